"""The table of named packets: bytes and the packet they are, or bytes and the reason why they are refused.

Every Row with a `packet` is read and written both ways; one whose bytes are not the shortest form says so with
`canonical=False` and is only read. Rows are ordered by packet type. Hexadecimal bytes may hold spaces.
"""

from dataclasses import dataclass

from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property as P
from broker.mqtt.reasons import Reason


@dataclass(frozen=True)
class Row:
    """One packet: a good one has `packet`, a bad one `refused`."""

    name: str
    version: int
    hex: str
    packet: Packet | None = None
    refused: Reason | None = None
    canonical: bool = True

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.hex)


def text(value: str) -> str:
    """The hexadecimal form of a string with its length."""
    data = value.encode()
    return len(data).to_bytes(2, "big").hex() + data.hex()


def framed(first_byte: int, body_hex: str) -> str:
    """A body of less than 128 bytes behind its fixed header."""
    return f"{first_byte:02x}" + sized(body_hex)


def sized(body_hex: str) -> str:
    """Less than 128 bytes behind their length."""
    body = bytes.fromhex(body_hex)
    assert len(body) < 128
    return f"{len(body):02x}" + body.hex()


def good(name: str, version: int, hex_bytes: str, packet: Packet, canonical: bool = True) -> Row:
    return Row(name, version, hex_bytes, packet=packet, canonical=canonical)


def bad(name: str, version: int, hex_bytes: str, refused: Reason = Reason.MALFORMED_PACKET) -> Row:
    return Row(name, version, hex_bytes, refused=refused)


MALFORMED = Reason.MALFORMED_PACKET
FORBIDDEN = Reason.PROTOCOL_ERROR
HEAD_4 = text("MQTT") + "04"
HEAD_5 = text("MQTT") + "05"


def connect_4(flags: str, rest: str, keep_alive: str = "003c") -> str:
    return framed(0x10, HEAD_4 + flags + keep_alive + rest)


def connect_5(flags: str, rest: str, properties: str = "") -> str:
    return framed(0x10, HEAD_5 + flags + "003c" + sized(properties) + rest)


CONNECT_ROWS = [
    good("connect minimal", 4, "100d 0004 4d515454 04 02 003c 0001 61", Connect(4, "a", True, 60)),
    good("connect minimal", 5, "100e 0004 4d515454 05 02 003c 00 0001 61", Connect(5, "a", True, 60)),
    good("connect resume", 4, connect_4("00", text("a")), Connect(4, "a", False, 60)),
    good("connect resume", 5, connect_5("00", text("a")), Connect(5, "a", False, 60)),
    good("connect empty client id", 4, connect_4("02", text("")), Connect(4, "", True, 60)),
    good("connect empty client id, resume", 4, connect_4("00", text("")), Connect(4, "", False, 60)),
    good("connect empty client id", 5, connect_5("00", text("")), Connect(5, "", False, 60)),
    good("connect no keep alive", 4, connect_4("02", text("a"), "0000"), Connect(4, "a", True, 0)),
    good("connect longest keep alive", 4, connect_4("02", text("a"), "ffff"), Connect(4, "a", True, 65535)),
    good("connect user name", 4, connect_4("82", text("a") + text("u")), Connect(4, "a", True, 60, "u")),
    good(
        "connect user name and password",
        4,
        connect_4("c2", text("a") + text("u") + "0002 00ff"),
        Connect(4, "a", True, 60, "u", b"\x00\xff"),
    ),
    good(
        "connect empty user name and password",
        4,
        connect_4("c2", text("a") + "0000 0000"),
        Connect(4, "a", True, 60, "", b""),
    ),
    bad("connect password without user name", 4, connect_4("42", text("a") + text("p"))),
    good(
        "connect password without user name",
        5,
        connect_5("42", text("a") + text("p")),
        Connect(5, "a", True, 60, None, b"p"),
    ),
    good(
        "connect will",
        4,
        connect_4("06", text("a") + text("w/t") + text("gone")),
        Connect(4, "a", True, 60, will=Will(b"w/t", b"gone")),
    ),
    good(
        "connect will QoS 1 retained",
        4,
        connect_4("2e", text("a") + text("w") + "0000"),
        Connect(4, "a", True, 60, will=Will(b"w", b"", 1, True)),
    ),
    good(
        "connect will QoS 2, user name, password",
        5,
        connect_5("d6", text("a") + "00" + text("w") + text("x") + text("u") + text("p")),
        Connect(5, "a", True, 60, "u", b"p", Will(b"w", b"x", 2)),
    ),
    good(
        "connect all will properties",
        5,
        connect_5(
            "06",
            text("a")
            + sized(
                "18 00000005 01 01 02 0000000a 03 0001 74 08 0003 722f31 09 0002 00ff"
                " 26 0001 6b 0001 76 26 0001 6b 0001 77"
            )
            + text("w")
            + text("x"),
        ),
        Connect(
            5,
            "a",
            True,
            60,
            will=Will(
                b"w",
                b"x",
                properties={
                    P.WILL_DELAY_INTERVAL: 5,
                    P.PAYLOAD_FORMAT_INDICATOR: 1,
                    P.MESSAGE_EXPIRY_INTERVAL: 10,
                    P.CONTENT_TYPE: "t",
                    P.RESPONSE_TOPIC: "r/1",
                    P.CORRELATION_DATA: b"\x00\xff",
                    P.USER_PROPERTY: [("k", "v"), ("k", "w")],
                },
            ),
        ),
    ),
    good(
        "connect all properties",
        5,
        connect_5(
            "02",
            text("a"),
            "11 ffffffff 21 0014 27 00000fff 22 000a 19 01 17 00 26 0001 6b 0000 15 0001 6d 16 0002 0102",
        ),
        Connect(
            5,
            "a",
            True,
            60,
            properties={
                P.SESSION_EXPIRY_INTERVAL: 0xFFFF_FFFF,
                P.RECEIVE_MAXIMUM: 20,
                P.MAXIMUM_PACKET_SIZE: 4095,
                P.TOPIC_ALIAS_MAXIMUM: 10,
                P.REQUEST_RESPONSE_INFORMATION: 1,
                P.REQUEST_PROBLEM_INFORMATION: 0,
                P.USER_PROPERTY: [("k", "")],
                P.AUTHENTICATION_METHOD: "m",
                P.AUTHENTICATION_DATA: b"\x01\x02",
            },
        ),
    ),
    good(
        "connect client id in UTF-8",
        4,
        connect_4("02", text("Gruß-日本-\U0001f600")),
        Connect(4, "Gruß-日本-\U0001f600", True, 60),
    ),
    bad("connect reserved flag", 4, connect_4("03", text("a"))),
    bad("connect reserved flag", 5, connect_5("03", text("a"))),
    bad("connect will QoS without will", 4, connect_4("0a", text("a"))),
    bad("connect will retain without will", 5, connect_5("22", text("a"))),
    bad("connect will QoS 3", 4, connect_4("1e", text("a") + text("w") + text("x"))),
    bad("connect will QoS 3", 5, connect_5("1e", text("a") + "00" + text("w") + text("x"))),
    bad("connect will topic empty", 4, connect_4("06", text("a") + "0000" + text("x")), Reason.TOPIC_NAME_INVALID),
    bad(
        "connect will topic with wildcard",
        4,
        connect_4("06", text("a") + text("w/#") + text("x")),
        Reason.TOPIC_NAME_INVALID,
    ),
    bad("connect first byte flags", 4, "110d 0004 4d515454 04 02 003c 0001 61"),
    bad("connect client id missing", 4, connect_4("02", "")),
    bad("connect client id cut", 4, connect_4("02", "0002 61")),
    bad("connect client id with surrogate", 4, connect_4("02", "0003 eda080")),
    bad("connect client id overlong", 5, connect_5("02", "0002 c0af")),
    bad("connect client id with U+0000", 4, connect_4("02", "0003 610062")),
    bad("connect user name missing", 4, connect_4("82", text("a"))),
    bad("connect password missing", 4, connect_4("c2", text("a") + text("u"))),
    bad("connect will missing", 4, connect_4("06", text("a"))),
    bad("connect bytes after the end", 4, connect_4("02", text("a") + "00")),
    bad("connect empty", 4, "1000"),
    bad("connect 3.1", 4, framed(0x10, text("MQIsdp") + "03 02 003c" + text("a")), Reason.UNSUPPORTED_PROTOCOL_VERSION),
    bad(
        "connect level 3", 4, framed(0x10, text("MQTT") + "03 02 003c" + text("a")), Reason.UNSUPPORTED_PROTOCOL_VERSION
    ),
    bad(
        "connect level 6", 5, framed(0x10, text("MQTT") + "06 02 003c" + text("a")), Reason.UNSUPPORTED_PROTOCOL_VERSION
    ),
    bad(
        "connect bridge level",
        4,
        framed(0x10, text("MQTT") + "84 02 003c" + text("a")),
        Reason.UNSUPPORTED_PROTOCOL_VERSION,
    ),
    bad(
        "connect other protocol",
        4,
        framed(0x10, text("HTTP") + "04 02 003c" + text("a")),
        Reason.UNSUPPORTED_PROTOCOL_VERSION,
    ),
    bad("connect receive maximum 0", 5, connect_5("02", text("a"), "210000"), FORBIDDEN),
    bad("connect maximum packet size 0", 5, connect_5("02", text("a"), "2700000000"), FORBIDDEN),
    bad("connect request problem information 2", 5, connect_5("02", text("a"), "1702"), FORBIDDEN),
    bad("connect request response information 2", 5, connect_5("02", text("a"), "1902"), FORBIDDEN),
    bad("connect session expiry twice", 5, connect_5("02", text("a"), "11000000011100000001"), FORBIDDEN),
    bad("connect authentication data without method", 5, connect_5("02", text("a"), "16000101"), FORBIDDEN),
    bad("connect property of PUBLISH", 5, connect_5("02", text("a"), "230001")),
    bad("connect unknown property", 5, connect_5("02", text("a"), "7f")),
    bad("connect property identifier of two bytes", 5, connect_5("02", text("a"), "9100")),
    bad("connect property value cut", 5, connect_5("02", text("a"), "110000")),
    bad("connect properties longer than the packet", 5, framed(0x10, HEAD_5 + "02 003c 7f" + text("a"))),
    bad("connect property length not minimal", 5, framed(0x10, HEAD_5 + "02 003c 8000" + text("a"))),
    bad("connect will delay outside the will", 5, connect_5("02", text("a"), "1800000001")),
    bad("connect session expiry in the will", 5, connect_5("06", text("a") + "05 11 00000001" + text("w") + text("x"))),
]

CONNACK_ROWS = [
    good("connack accepted", 4, "2002 00 00", Connack()),
    good("connack session present", 4, "2002 01 00", Connack(True)),
    good("connack wrong version", 4, "2002 00 01", Connack(False, Reason.UNSUPPORTED_PROTOCOL_VERSION)),
    good("connack client id refused", 4, "2002 00 02", Connack(False, Reason.CLIENT_IDENTIFIER_NOT_VALID)),
    good("connack server unavailable", 4, "2002 00 03", Connack(False, Reason.SERVER_UNAVAILABLE)),
    good("connack bad password", 4, "2002 00 04", Connack(False, Reason.BAD_USER_NAME_OR_PASSWORD)),
    good("connack not authorized", 4, "2002 00 05", Connack(False, Reason.NOT_AUTHORIZED)),
    good("connack accepted", 5, "2003 00 00 00", Connack()),
    good("connack refused", 5, "2003 00 87 00", Connack(False, Reason.NOT_AUTHORIZED)),
    good(
        "connack all properties",
        5,
        framed(
            0x20,
            "0100"
            + sized(
                "11 00000001 21 0014 24 01 25 00 27 00001000 12 0001 69 22 000a 1f 0001 72 28 01 29 00 2a 00 13 001e"
                " 1a 0001 69 1c 0001 73 15 0001 6d 16 0001 64 26 0001 6b 0001 76 26 0001 61 0001 62"
            ),
        ),
        Connack(
            True,
            0,
            {
                P.SESSION_EXPIRY_INTERVAL: 1,
                P.RECEIVE_MAXIMUM: 20,
                P.MAXIMUM_QOS: 1,
                P.RETAIN_AVAILABLE: 0,
                P.MAXIMUM_PACKET_SIZE: 4096,
                P.ASSIGNED_CLIENT_IDENTIFIER: "i",
                P.TOPIC_ALIAS_MAXIMUM: 10,
                P.REASON_STRING: "r",
                P.WILDCARD_SUBSCRIPTION_AVAILABLE: 1,
                P.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0,
                P.SHARED_SUBSCRIPTION_AVAILABLE: 0,
                P.SERVER_KEEP_ALIVE: 30,
                P.RESPONSE_INFORMATION: "i",
                P.SERVER_REFERENCE: "s",
                P.AUTHENTICATION_METHOD: "m",
                P.AUTHENTICATION_DATA: b"d",
                P.USER_PROPERTY: [("k", "v"), ("a", "b")],
            },
        ),
    ),
    bad("connack reserved flags", 4, "2002 02 00"),
    bad("connack reserved return code", 4, "2002 00 06", FORBIDDEN),
    bad("connack session present in a refusal", 4, "2002 01 05", FORBIDDEN),
    bad("connack session present in a refusal", 5, "2003 01 87 00", FORBIDDEN),
    bad("connack reason of another packet", 5, "2003 00 93 00", FORBIDDEN),
    bad("connack maximum QoS 2", 5, "2005 00 00 02 24 02", FORBIDDEN),
    bad("connack properties missing", 5, "2002 00 00"),
    bad("connack bytes after the end", 4, "2003 00 00 00"),
]

PUBLISH_ROWS = [
    good("publish QoS 0", 4, "3007 0003 612f62 6869", Publish(b"a/b", b"hi")),
    good("publish QoS 1", 4, "3209 0003 612f62 0007 6869", Publish(b"a/b", b"hi", 1, packet_id=7)),
    good("publish QoS 2", 4, "3409 0003 612f62 ffff 6869", Publish(b"a/b", b"hi", 2, packet_id=65535)),
    good("publish QoS 1 duplicate retained", 4, "3b05 0001 61 0001", Publish(b"a", b"", 1, True, True, 1)),
    good("publish empty payload retained", 4, "3103 0001 61", Publish(b"a", b"", retain=True)),
    good("publish QoS 0", 5, "3008 0003 612f62 00 6869", Publish(b"a/b", b"hi")),
    good("publish QoS 1", 5, "320a 0003 612f62 0007 00 6869", Publish(b"a/b", b"hi", 1, packet_id=7)),
    good("publish QoS 2", 5, "340a 0003 612f62 0007 00 6869", Publish(b"a/b", b"hi", 2, packet_id=7)),
    good("publish payload looks like properties", 4, "3006 0001 61 02 01 01", Publish(b"a", b"\x02\x01\x01")),
    good("publish topic in UTF-8", 4, "3005 0003 e697a5", Publish("日".encode(), b"")),
    good("publish topic with spaces and empty levels", 4, "3007 0005 2f 20 2f 2f 61", Publish(b"/ //a", b"")),
    good("publish topic of the system", 4, "3006 0004 24535953", Publish(b"$SYS", b"")),
    good(
        "publish all properties",
        5,
        framed(
            0x33,
            "0001 61 0007"
            + sized(
                "01 01 02 0000003c 03 0002 742f 08 0001 72 09 0003 010203 23 0005 0b 01 0b ffffff7f"
                " 26 0001 6b 0001 76 26 0000 0001 77 26 0001 6b 0000"
            )
            + "6869",
        ),
        Publish(
            b"a",
            b"hi",
            1,
            True,
            False,
            7,
            {
                P.PAYLOAD_FORMAT_INDICATOR: 1,
                P.MESSAGE_EXPIRY_INTERVAL: 60,
                P.CONTENT_TYPE: "t/",
                P.RESPONSE_TOPIC: "r",
                P.CORRELATION_DATA: b"\x01\x02\x03",
                P.TOPIC_ALIAS: 5,
                P.SUBSCRIPTION_IDENTIFIER: [1, 268_435_455],
                P.USER_PROPERTY: [("k", "v"), ("", "w"), ("k", "")],
            },
        ),
    ),
    good(
        "publish user properties apart",
        5,
        "3013 0001 61 0e 26 0001 61 0000 01 00 26 0001 62 0000 78",
        Publish(b"a", b"x", properties={P.USER_PROPERTY: [("a", ""), ("b", "")], P.PAYLOAD_FORMAT_INDICATOR: 0}),
        canonical=False,
    ),
    good("publish topic alias only", 5, "3006 0000 03 23 0001", Publish(b"", b"", properties={P.TOPIC_ALIAS: 1})),
    good(
        "publish topic and alias", 5, "3007 0001 61 03 23 ffff", Publish(b"a", b"", properties={P.TOPIC_ALIAS: 65535})
    ),
    good("publish of 128 bytes", 4, "308001 0001 61" + "78" * 125, Publish(b"a", b"x" * 125)),
    good("publish of 127 bytes", 4, "307f 0001 61" + "78" * 124, Publish(b"a", b"x" * 124)),
    good("publish of 16384 bytes", 4, "30808001 0001 61" + "78" * 16381, Publish(b"a", b"x" * 16381)),
    bad("publish QoS 3", 4, "3605 0001 61 0001"),
    bad("publish QoS 3", 5, "3606 0001 61 0001 00"),
    bad("publish duplicate with QoS 0", 4, "3803 0001 61"),
    bad("publish packet id 0", 4, "3205 0001 61 0000", FORBIDDEN),
    bad("publish packet id cut", 4, "3204 0001 61 00"),
    bad("publish topic missing", 4, "3001 00"),
    bad("publish topic cut", 4, "3004 0003 612f"),
    bad("publish empty", 4, "3000"),
    bad("publish topic empty", 4, "3003 0000 78", Reason.TOPIC_NAME_INVALID),
    bad("publish neither topic nor alias", 5, "3003 0000 00", FORBIDDEN),
    bad("publish topic with #", 4, "3005 0003 612f23", Reason.TOPIC_NAME_INVALID),
    bad("publish topic with +", 5, "3006 0003 2b2f61 00", Reason.TOPIC_NAME_INVALID),
    bad("publish topic with U+0000", 4, "3005 0003 610062", Reason.TOPIC_NAME_INVALID),
    bad("publish topic with surrogate", 4, "3005 0003 edbfbf"),
    bad("publish topic cut inside a character", 5, "3005 0002 e697 00"),
    bad("publish topic too deep", 4, "308301 0081" + "2f" * 129, Reason.TOPIC_NAME_INVALID),
    bad("publish properties missing", 5, "3003 0001 61"),
    bad("publish topic alias 0", 5, "3007 0001 61 03 23 0000", Reason.TOPIC_ALIAS_INVALID),
    bad("publish topic alias twice", 5, "300a 0001 61 06 23 0001 23 0001", FORBIDDEN),
    bad("publish subscription identifier 0", 5, "3006 0001 61 02 0b 00", FORBIDDEN),
    bad("publish subscription identifier of five bytes", 5, "300a 0001 61 06 0b 8080808001"),
    bad("publish payload format 2", 5, "3006 0001 61 02 01 02", FORBIDDEN),
    bad("publish response topic with wildcard", 5, "3008 0001 61 04 08 0001 23", Reason.TOPIC_NAME_INVALID),
    bad("publish content type ill-formed", 5, "3008 0001 61 04 03 0001 ff"),
    bad("publish user property cut", 5, "300a 0001 61 06 26 0001 61 0001"),
    bad("publish string runs over the properties", 5, "300a 0001 61 04 03 0003 616263"),
    bad("publish property length of five bytes", 5, "3008 0001 61 80808080 01"),
]

ACK_ROWS = [
    good("puback", 4, "4002 0007", Puback(7)),
    good("puback", 5, "4002 0007", Puback(7)),
    good("puback no subscribers", 5, "4003 0007 10", Puback(7, Reason.NO_MATCHING_SUBSCRIBERS)),
    good("puback quota, reason string", 5, "4008 0007 97 04 1f 0001 78", Puback(7, 0x97, {P.REASON_STRING: "x"})),
    good("puback success, properties", 5, "4009 0007 00 05 26 0000 0000", Puback(7, 0, {P.USER_PROPERTY: [("", "")]})),
    good("puback success said aloud", 5, "4003 0007 00", Puback(7), canonical=False),
    good("puback empty properties", 5, "4004 0007 00 00", Puback(7), canonical=False),
    bad("puback reason", 4, "4003 0007 00"),
    bad("puback packet id 0", 4, "4002 0000", FORBIDDEN),
    bad("puback packet id cut", 5, "4001 00"),
    bad("puback flags", 4, "4202 0007"),
    bad("puback reason of another packet", 5, "4003 0007 92", FORBIDDEN),
    bad("puback reason string twice", 5, "400c 0007 00 08 1f 0001 78 1f 0001 78", FORBIDDEN),
    bad("puback bytes after the end", 5, "4005 0007 00 00 00"),
    good("pubrec", 4, "5002 0007", Pubrec(7)),
    good("pubrec refused", 5, "5003 0007 87", Pubrec(7, Reason.NOT_AUTHORIZED)),
    bad("pubrec flags", 5, "5202 0007"),
    good("pubrel", 4, "6202 0007", Pubrel(7)),
    good("pubrel unknown", 5, "6203 0007 92", Pubrel(7, Reason.PACKET_IDENTIFIER_NOT_FOUND)),
    bad("pubrel flags", 4, "6002 0007"),
    bad("pubrel reason of another packet", 5, "6203 0007 87", FORBIDDEN),
    good("pubcomp", 4, "7002 0007", Pubcomp(7)),
    good("pubcomp unknown", 5, "7008 0007 92 04 1f 0001 78", Pubcomp(7, 0x92, {P.REASON_STRING: "x"})),
    bad("pubcomp empty", 4, "7000"),
]

SUBSCRIBE_ROWS = [
    good("subscribe", 4, "8206 0001 0001 61 00", Subscribe(1, (SubscriptionRequest(b"a"),))),
    good(
        "subscribe three",
        4,
        "8210 0001 0003 612f23 01 0001 2b 02 0001 23 00",
        Subscribe(1, (SubscriptionRequest(b"a/#", 1), SubscriptionRequest(b"+", 2), SubscriptionRequest(b"#", 0))),
    ),
    good("subscribe", 5, "8207 0001 00 0001 61 00", Subscribe(1, (SubscriptionRequest(b"a"),))),
    good(
        "subscribe all options",
        5,
        "8207 0001 00 0001 61 2e",
        Subscribe(1, (SubscriptionRequest(b"a", 2, True, True, 2),)),
    ),
    good(
        "subscribe properties",
        5,
        "820f 0001 08 0b 8001 26 0000 0000 0001 61 11",
        Subscribe(
            1,
            (SubscriptionRequest(b"a", 1, retain_handling=1),),
            {P.SUBSCRIPTION_IDENTIFIER: 128, P.USER_PROPERTY: [("", "")]},
        ),
    ),
    good(
        "subscribe shared",
        5,
        "8210 0001 00 000a 24736861 72652f67 2f61 01",
        Subscribe(1, (SubscriptionRequest(b"$share/g/a", 1),)),
    ),
    bad("subscribe flags", 4, "8006 0001 0001 61 00"),
    bad("subscribe no filter", 4, "8202 0001", FORBIDDEN),
    bad("subscribe no filter", 5, "8203 0001 00", FORBIDDEN),
    bad("subscribe packet id 0", 4, "8206 0000 0001 61 00", FORBIDDEN),
    bad("subscribe QoS 3", 4, "8206 0001 0001 61 03", FORBIDDEN),
    bad("subscribe options of 5.0", 4, "8206 0001 0001 61 04"),
    bad("subscribe reserved options", 5, "8207 0001 00 0001 61 40"),
    bad("subscribe retain handling 3", 5, "8207 0001 00 0001 61 30", FORBIDDEN),
    bad("subscribe no local shared", 5, "8210 0001 00 000a 24736861 72652f67 2f61 04", FORBIDDEN),
    bad("subscribe options missing", 4, "8205 0001 0001 61"),
    bad("subscribe filter empty", 4, "8205 0001 0000 00", Reason.TOPIC_FILTER_INVALID),
    bad("subscribe # inside", 4, "8208 0001 0003 232f61 00", Reason.TOPIC_FILTER_INVALID),
    bad("subscribe + beside a letter", 5, "8208 0001 00 0002 612b 00", Reason.TOPIC_FILTER_INVALID),
    bad("subscribe shared without filter", 5, "820e 0001 00 0008 2473686172652f67 00", Reason.TOPIC_FILTER_INVALID),
    bad("subscribe filter ill-formed", 4, "8206 0001 0001 ff 00"),
    bad("subscribe identifier 0", 5, "8209 0001 02 0b 00 0001 61 00", FORBIDDEN),
    bad("subscribe identifier twice", 5, "820b 0001 04 0b 01 0b 02 0001 61 00", FORBIDDEN),
    bad("subscribe identifier not minimal", 5, "820a 0001 03 0b 8100 0001 61 00"),
    good("suback", 4, "9003 0001 00", Suback(1, (0,))),
    good("suback all codes", 4, "9006 0001 00 01 02 80", Suback(1, (0, 1, 2, 0x80))),
    good("suback", 5, "9005 0001 00 01 9e", Suback(1, (1, Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED))),
    good("suback reason string", 5, "9008 0001 04 1f 0001 78 87", Suback(1, (0x87,), {P.REASON_STRING: "x"})),
    bad("suback reason of 5.0", 4, "9003 0001 87", FORBIDDEN),
    bad("suback QoS 3", 5, "9004 0001 00 03", FORBIDDEN),
    bad("suback no reason", 4, "9002 0001", FORBIDDEN),
    bad("suback no reason", 5, "9003 0001 00", FORBIDDEN),
]

UNSUBSCRIBE_ROWS = [
    good("unsubscribe", 4, "a205 0001 0001 61", Unsubscribe(1, (b"a",))),
    good("unsubscribe two", 5, "a20b 0001 00 0003 612f23 0001 2b", Unsubscribe(1, (b"a/#", b"+"))),
    good(
        "unsubscribe user property",
        5,
        "a20b 0001 05 26 0000 0000 0001 61",
        Unsubscribe(1, (b"a",), {P.USER_PROPERTY: [("", "")]}),
    ),
    bad("unsubscribe no filter", 4, "a202 0001", FORBIDDEN),
    bad("unsubscribe no filter", 5, "a203 0001 00", FORBIDDEN),
    bad("unsubscribe flags", 4, "a005 0001 0001 61"),
    bad("unsubscribe filter cut", 4, "a205 0001 0002 61"),
    bad("unsubscribe filter invalid", 4, "a206 0001 0002 6123", Reason.TOPIC_FILTER_INVALID),
    bad("unsubscribe property of SUBSCRIBE", 5, "a208 0001 02 0b 01 0001 61"),
    good("unsuback", 4, "b002 0001", Unsuback(1)),
    good("unsuback", 5, "b005 0001 00 00 11", Unsuback(1, (0, Reason.NO_SUBSCRIPTION_EXISTED))),
    good("unsuback reason string", 5, "b008 0001 04 1f 0001 78 00", Unsuback(1, (0,), {P.REASON_STRING: "x"})),
    bad("unsuback reasons of 5.0", 4, "b003 0001 00"),
    bad("unsuback no reason", 5, "b003 0001 00", FORBIDDEN),
    bad("unsuback granted QoS 1", 5, "b004 0001 00 01", FORBIDDEN),
]

OTHER_ROWS = [
    good("pingreq", 4, "c000", Pingreq()),
    good("pingreq", 5, "c000", Pingreq()),
    bad("pingreq flags", 4, "c100"),
    bad("pingreq with a body", 5, "c001 00"),
    good("pingresp", 4, "d000", Pingresp()),
    good("pingresp", 5, "d000", Pingresp()),
    bad("pingresp with a body", 4, "d001 00"),
    good("disconnect", 4, "e000", Disconnect()),
    good("disconnect", 5, "e000", Disconnect()),
    good("disconnect with will", 5, "e001 04", Disconnect(Reason.DISCONNECT_WITH_WILL)),
    good("disconnect taken over", 5, "e001 8e", Disconnect(Reason.SESSION_TAKEN_OVER)),
    good("disconnect session expiry", 5, "e007 00 05 11 0000000a", Disconnect(0, {P.SESSION_EXPIRY_INTERVAL: 10})),
    good(
        "disconnect moved",
        5,
        "e00f 9d 0d 1c 0001 73 1f 0001 78 26 0000 0000",
        Disconnect(0x9D, {P.SERVER_REFERENCE: "s", P.REASON_STRING: "x", P.USER_PROPERTY: [("", "")]}),
    ),
    good("disconnect empty properties", 5, "e002 00 00", Disconnect(), canonical=False),
    bad("disconnect reason", 4, "e001 00"),
    bad("disconnect flags", 4, "e200"),
    bad("disconnect reason of another packet", 5, "e001 84", FORBIDDEN),
    bad("disconnect bytes after the end", 5, "e003 00 00 00"),
    good("auth", 5, "f000", Auth()),
    good(
        "auth continue",
        5,
        "f00a 18 08 15 0001 6d 16 0001 64",
        Auth(0x18, {P.AUTHENTICATION_METHOD: "m", P.AUTHENTICATION_DATA: b"d"}),
    ),
    good("auth again", 5, "f006 19 04 15 0001 6d", Auth(0x19, {P.AUTHENTICATION_METHOD: "m"})),
    good("auth said aloud", 5, "f002 00 00", Auth(), canonical=False),
    bad("auth", 4, "f000"),
    bad("auth without property length", 5, "f001 18"),
    bad("auth unknown reason", 5, "f002 01 00", FORBIDDEN),
    bad("auth flags", 5, "f100"),
    bad("type 0", 4, "0000"),
    bad("type 0", 5, "0100"),
]

ROWS = CONNECT_ROWS + CONNACK_ROWS + PUBLISH_ROWS + ACK_ROWS + SUBSCRIBE_ROWS + UNSUBSCRIBE_ROWS + OTHER_ROWS
GOOD_ROWS = [row for row in ROWS if row.packet is not None]
BAD_ROWS = [row for row in ROWS if row.refused is not None]
