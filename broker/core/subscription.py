"""Subscriptions: what a client asked for when it subscribed, in the form in which routes and the store hold it.

`options` is the byte of the SUBSCRIBE without what only counts at that moment: QoS in bits 0 and 1, No Local 4,
Retain As Published 8. `identifier` is MQTT 5's Subscription Identifier, 0 for none.
"""

from typing import Final, final

from librt.strings import BytesWriter

from broker.mqtt.framing import write_varint

QOS_MASK: Final = 3
NO_LOCAL: Final = 4
RETAIN_AS_PUBLISHED: Final = 8
OPTIONS_MASK: Final = 15
RETAIN_HANDLING_SHIFT: Final = 4

_SUBSCRIPTION_IDENTIFIER: Final = 0x0B


@final
class Subscription:
    """One client's subscription to one filter; immutable, and shared by all that are alike."""

    __slots__ = ("encoded", "identifier", "options")

    def __init__(self, options: int, identifier: int = 0) -> None:
        self.options = options & OPTIONS_MASK
        self.identifier = identifier
        # The identifier as a property, ready to be put in front of a PUBLISH's others [MQTT-3.3.4-3].
        self.encoded: bytes = _encode(identifier) if identifier else b""

    def is_like(self, other: "Subscription") -> bool:
        """Say whether both ask for the same."""
        return self.options == other.options and self.identifier == other.identifier


# Nearly all subscriptions have no identifier: sixteen objects serve them.
_PLAIN: Final = [Subscription(options) for options in range(OPTIONS_MASK + 1)]


def subscription(options: int, identifier: int = 0) -> Subscription:
    """Return the subscription with these options; those without an identifier are shared."""
    return Subscription(options, identifier) if identifier else _PLAIN[options & OPTIONS_MASK]


def _encode(identifier: int) -> bytes:
    writer = BytesWriter()
    writer.append(_SUBSCRIPTION_IDENTIFIER)
    write_varint(writer, identifier)
    return writer.getvalue()
