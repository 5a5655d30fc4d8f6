"""What a connection may use up, as the configuration says it, and the gate that lets connections in.

Owns the numbers and the count of CONNECTs in a second. Knows no connection.
"""

from dataclasses import dataclass
from typing import Final, final

from broker.core.counters import ListenerCounters
from broker.core.events import NEVER_EXPIRES_S
from broker.mqtt.framing import STRING_BYTES_MAX

# A CONNECT is an id, a user name and a password; the largest tokens in use as passwords are a few KiB.
CONNECT_BYTES_MAX: Final = 8192
RECEIVE_MAXIMUM_MAX: Final = 65535
# Bounds the depth of every tree; real topics stay below 20 levels.
TOPIC_LEVELS_MAX: Final = 128


@dataclass(slots=True, frozen=True)
class ConnectionLimits:
    """What the configuration says to connections."""

    connect_timeout_s: float = 5.0
    connect_bytes_max: int = CONNECT_BYTES_MAX
    packet_bytes_max: int = 0
    client_id_bytes_max: int = 100
    topic_levels_max: int = TOPIC_LEVELS_MAX
    topic_bytes_max: int = STRING_BYTES_MAX
    persistent_client_expiration_s: int = NEVER_EXPIRES_S
    # Unacknowledged QoS 1 and 2 PUBLISHes of an MQTT 5 client.
    receive_max: int = RECEIVE_MAXIMUM_MAX
    # Aliases that clients may set, and that this side sets.
    topic_alias_max_client: int = 0
    topic_alias_max_broker: int = 0
    # 0 for no maximum.
    keep_alive_s_max: int = 0
    messages_per_s_max: int = 0
    connects_per_s_max: int = 0
    # As CONNECT says them, the bridge bit included.
    protocol_versions: frozenset[int] = frozenset((3, 4, 5, 131, 132))
    check_payload_format: bool = False


@final
class ConnectGate:
    """How many CONNECTs a listener process lets in within a second."""

    __slots__ = ("_counters", "_left", "_per_s_max")

    def __init__(self, per_s_max: int, counters: ListenerCounters) -> None:
        self._per_s_max = per_s_max
        self._left = per_s_max
        self._counters = counters

    def begin_second(self) -> None:
        """A new second begins."""
        self._left = self._per_s_max

    def admit(self) -> bool:
        """Say whether one more may come in."""
        if not self._per_s_max:
            return True
        if self._left == 0:
            self._counters.connections_refused += 1
            return False
        self._left -= 1
        return True
