"""Reason codes of MQTT 5.0, their 3.1.1 equivalents, and the one exception for a peer's fault.

Inside the broker a reason is always a 5.0 code; only the codec knows the few numbers that 3.1.1 has instead.
"""

from enum import IntEnum
from typing import Final


class Reason(IntEnum):
    """Every reason code of MQTT 5.0; 0x80 and above are failures."""

    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    GRANTED_QOS_0 = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


# 5.0 reason -> 3.1.1 CONNACK return code. Reasons that 3.1.1 can't say are "server unavailable".
CONNACK_RETURN_CODES: Final[dict[int, int]] = {
    int(Reason.SUCCESS): 0,
    int(Reason.UNSUPPORTED_PROTOCOL_VERSION): 1,
    int(Reason.CLIENT_IDENTIFIER_NOT_VALID): 2,
    int(Reason.SERVER_UNAVAILABLE): 3,
    int(Reason.SERVER_BUSY): 3,
    int(Reason.BAD_USER_NAME_OR_PASSWORD): 4,
    int(Reason.BAD_AUTHENTICATION_METHOD): 4,
    int(Reason.NOT_AUTHORIZED): 5,
    int(Reason.BANNED): 5,
}

# 3.1.1 CONNACK return code -> 5.0 reason, the position being the return code.
CONNACK_REASONS: Final[tuple[int, ...]] = (
    int(Reason.SUCCESS),
    int(Reason.UNSUPPORTED_PROTOCOL_VERSION),
    int(Reason.CLIENT_IDENTIFIER_NOT_VALID),
    int(Reason.SERVER_UNAVAILABLE),
    int(Reason.BAD_USER_NAME_OR_PASSWORD),
    int(Reason.NOT_AUTHORIZED),
)


def connack_return_code(reason: int) -> int:
    """The 3.1.1 CONNACK return code (0..5) that says best what the 5.0 `reason` says."""
    return CONNACK_RETURN_CODES.get(reason, 3)


class ProtocolError(Exception):
    """The peer broke the protocol: answer with `reason` where the version and packet allow it, then close."""

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(text)
        self.reason: int = int(reason)
        self.text: str = text


def malformed(text: str) -> ProtocolError:
    """The error for bytes that can't be parsed (0x81)."""
    return ProtocolError(Reason.MALFORMED_PACKET, text)


def forbidden(text: str) -> ProtocolError:
    """The error for what can be parsed but the protocol doesn't allow (0x82)."""
    return ProtocolError(Reason.PROTOCOL_ERROR, text)
