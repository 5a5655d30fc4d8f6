"""The greeting: what a client's CONNECT asks for, whether it is let in, and what the CONNACK tells it.

A Greeting owns what matters from the CONNECT to the CONNACK and is forgotten afterwards; what lasts as long as the
connection is the connection's, which copies it. It writes no packets and knows no states: that is the connection's too.
"""

from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

from broker.core.connection_limits import RECEIVE_MAXIMUM_MAX, ConnectGate, ConnectionLimits
from broker.core.events import Attach
from broker.core.topic_aliases import OwnAliases
from broker.core.will import Will
from broker.mqtt.packets import Connect, PacketType
from broker.mqtt.properties import Properties, Property, int_property
from broker.mqtt.reasons import Reason

_BRIDGE_BIT: Final = 0x80
# How the body of an MQTT 5 CONNECT begins.
_CONNECT_5: Final = b"\x00\x04MQTT\x05"
_LENGTH_BYTES_MAX: Final = 4


@final
class Greeting:
    """One CONNECT that is let in. `make_client_id` names a client that has no id of its own.

    `authentication` is set when the client has authenticated by a method: what the CONNACK must say of it.
    """

    __slots__ = (
        "_assigned_client_id",
        "_limits",
        "_server_keep_alive",
        "authentication",
        "client_id",
        "connect",
        "keep_alive_s",
        "packet_bytes_max",
        "session_expiry_s",
    )

    def __init__(
        self, connect: Connect, limits: ConnectionLimits, mountpoint: str, make_client_id: Callable[[], str]
    ) -> None:
        self.connect = connect
        self.authentication: Properties | None = None
        self._limits = limits
        # [MQTT-3.1.3-6] [MQTT311-3.1.3-6]
        self._assigned_client_id = "" if connect.client_id else make_client_id()
        self.client_id: str = connect.client_id or self._assigned_client_id
        if mountpoint:
            self.client_id = f"{mountpoint}\0{self.client_id}"
        self.keep_alive_s: int = connect.keep_alive_s
        # MQTT 5 is told [MQTT-3.2.2-21]; for MQTT 3 the limit holds all the same.
        self._server_keep_alive = bool(limits.keep_alive_s_max) and not (
            0 < connect.keep_alive_s <= limits.keep_alive_s_max
        )
        if self._server_keep_alive:
            self.keep_alive_s = limits.keep_alive_s_max
        self.packet_bytes_max: int = int_property(connect.properties, Property.MAXIMUM_PACKET_SIZE, 0)
        if connect.version == 5:
            self.session_expiry_s: int = int_property(connect.properties, Property.SESSION_EXPIRY_INTERVAL, 0)
        else:
            self.session_expiry_s = 0 if connect.clean_start else limits.persistent_client_expiration_s

    def method(self) -> str | None:
        """Return the authentication method that the client names, None for none."""
        method = self.connect.properties.get(Property.AUTHENTICATION_METHOD)
        return None if method is None else str(method)

    def own_aliases(self) -> OwnAliases | None:
        """Return the topic aliases to be set for the client, None when it takes none, or none are to be set."""
        taken = int_property(self.connect.properties, Property.TOPIC_ALIAS_MAXIMUM, 0)
        aliases_max = min(taken, self._limits.topic_alias_max_broker)
        return OwnAliases(aliases_max, self.packet_bytes_max) if aliases_max else None

    def attach(self, number: int, user_name: str | None, will: Will | None) -> Attach:
        """Return what the owner is asked."""
        return Attach(
            number,
            self.client_id,
            self.connect.version,
            self.connect.clean_start,
            self.session_expiry_s,
            int_property(self.connect.properties, Property.RECEIVE_MAXIMUM, RECEIVE_MAXIMUM_MAX),
            self.packet_bytes_max,
            user_name,
            will,
        )

    def connack_properties(self) -> Properties:
        """Return what a CONNACK tells of this side's limits, as far as they are not MQTT's own.

        There is never Response Information [MQTT-3.1.2-28], and a method only for who named one [MQTT-4.12.0-6].
        """
        properties: Properties = {}
        if self.connect.version < 5:
            return properties
        limits = self._limits
        if limits.receive_max < RECEIVE_MAXIMUM_MAX:
            properties[Property.RECEIVE_MAXIMUM] = limits.receive_max
        if limits.packet_bytes_max:
            properties[Property.MAXIMUM_PACKET_SIZE] = limits.packet_bytes_max  # [MQTT-3.2.2-15]
        if self._assigned_client_id:
            # [MQTT-3.1.3-7] [MQTT-3.2.2-16]
            properties[Property.ASSIGNED_CLIENT_IDENTIFIER] = self._assigned_client_id
        if limits.topic_alias_max_client:
            properties[Property.TOPIC_ALIAS_MAXIMUM] = limits.topic_alias_max_client
        if self._server_keep_alive:
            # [MQTT-3.2.2-21] Without it, the client's own counts [MQTT-3.2.2-22].
            properties[Property.SERVER_KEEP_ALIVE] = self.keep_alive_s
        if self.authentication is not None:
            # [MQTT-4.12.0-5] The CONNACK says the method, and the last of what it has to say.
            properties.update(self.authentication)
        return properties


def why_refused(connect: Connect, limits: ConnectionLimits, gate: ConnectGate) -> tuple[int, str]:
    """Return the reason why a CONNECT is not let in, and a text for MQTT 5; 0 when it is."""
    if connect.version | (_BRIDGE_BIT if connect.bridge else 0) not in limits.protocol_versions:
        return int(Reason.UNSUPPORTED_PROTOCOL_VERSION), "this protocol version is not served here"
    if not gate.admit():
        return int(Reason.CONNECTION_RATE_EXCEEDED), ""
    if len(connect.client_id.encode()) > limits.client_id_bytes_max:
        # [MQTT-3.1.3-8] [MQTT-3.1.4-2] [MQTT311-3.1.3-9]
        return int(Reason.CLIENT_IDENTIFIER_NOT_VALID), f"client id over {limits.client_id_bytes_max} bytes"
    if not connect.client_id and (connect.version == 3 or (connect.version == 4 and not connect.clean_start)):
        # [MQTT311-3.1.3-8] [MQTT311-3.1.3-7] Without an id there is nothing to find a stored session by; MQTT 3.1 has
        # no empty one.
        return int(Reason.CLIENT_IDENTIFIER_NOT_VALID), "an empty client id needs a clean session"
    return 0, ""


def begins_as_mqtt_5(data: bytes) -> bool:
    """Say whether the first packet of a client is a CONNECT of MQTT 5, even if it ends before it is whole."""
    size: i64 = len(data)
    if size == 0 or data[0] >> 4 != PacketType.CONNECT:
        return False
    # The remaining length.
    at: i64 = 1
    while at < size and at < _LENGTH_BYTES_MAX and data[at] & 0x80:
        at += 1
    at += 1
    return data[at : at + len(_CONNECT_5)] == _CONNECT_5
