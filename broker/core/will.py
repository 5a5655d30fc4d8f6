"""A will: the message that a client leaves to be published when its connection ends without a proper goodbye.

Only the value; when it is published, `wills` knows.
"""

from typing import final

from mypy_extensions import mypyc_attr


@mypyc_attr(acyclic=True)
@final
class Will:
    """The will of one connection. `delay_s` is the Will Delay Interval, `expiry_s` the message's, -1 without one.

    `properties` are encoded MQTT 5 properties to pass on, without delay and expiry.
    """

    __slots__ = ("delay_s", "expiry_s", "payload", "properties", "qos", "retain", "topic")

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        properties: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        delay_s: int = 0,
        expiry_s: int = -1,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.properties = properties
        self.qos = qos
        self.retain = retain
        self.delay_s = delay_s
        self.expiry_s = expiry_s
