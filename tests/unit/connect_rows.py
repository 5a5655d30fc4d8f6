"""The rows of the table of named packets that open a connection: CONNECT and CONNACK, in all versions."""

from packet_rows import FORBIDDEN, Row, bad, framed, good, sized, text

from broker.mqtt.packets import Connack, Connect, Will
from broker.mqtt.properties import Property as P
from broker.mqtt.reasons import Reason

HEAD_3 = text("MQIsdp") + "03"
HEAD_4 = text("MQTT") + "04"
HEAD_5 = text("MQTT") + "05"


def connect_3(flags: str, rest: str, head: str = HEAD_3) -> str:
    return framed(0x10, head + flags + "003c" + rest)


def connect_4(flags: str, rest: str, keep_alive: str = "003c") -> str:
    return framed(0x10, HEAD_4 + flags + keep_alive + rest)


def connect_5(flags: str, rest: str, properties: str = "") -> str:
    return framed(0x10, HEAD_5 + flags + "003c" + sized(properties) + rest)


def will_5(properties: str) -> str:
    return connect_5("06", text("a") + sized(properties) + text("w") + text("x"))


def unserved(what: str, name: str, level: str) -> Row:
    """A CONNECT with a combination of protocol name and level that doesn't exist."""
    rest = "02 003c" + text("a")
    return bad(f"connect {what}", 4, framed(0x10, text(name) + level + rest), Reason.UNSUPPORTED_PROTOCOL_VERSION)


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
    bad("connect will topic empty", 4, connect_4("06", text("a") + "0000" + text("x")), FORBIDDEN),
    bad(
        "connect will topic with wildcard",
        4,
        connect_4("06", text("a") + text("w/#") + text("x")),
        FORBIDDEN,
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

LEVEL_ROWS = [
    unserved("level 0", "MQTT", "00"),
    unserved("level 3 of MQTT", "MQTT", "03"),
    unserved("level 6", "MQTT", "06"),
    unserved("level 4 of MQIsdp", "MQIsdp", "04"),
    unserved("level 5 of MQIsdp", "MQIsdp", "05"),
    unserved("level 2 of MQIsdp", "MQIsdp", "02"),
    unserved("bridge of MQTT at 3.1's level", "MQTT", "83"),
    unserved("bridge of MQIsdp at 3.1.1's level", "MQIsdp", "84"),
    unserved("bridge of 5.0", "MQTT", "85"),
    unserved("bridge without a level", "MQTT", "80"),
    unserved("level 255", "MQTT", "ff"),
    unserved("other protocol", "HTTP", "04"),
    unserved("protocol name in small letters", "mqtt", "04"),
    unserved("protocol name with more behind it", "MQTT5", "05"),
    unserved("protocol name empty", "", "04"),
    bad("connect protocol name cut", 4, framed(0x10, "0006 4d51")),
    bad("connect level missing", 4, framed(0x10, text("MQTT"))),
    bad("connect flags missing", 4, framed(0x10, HEAD_4)),
    bad("connect keep alive cut", 3, framed(0x10, HEAD_3 + "02 00")),
    good(
        "connect bridge",
        4,
        framed(0x10, text("MQTT") + "84 02 003c" + text("a")),
        Connect(4, "a", True, 60, bridge=True),
    ),
    good(
        "connect bridge", 3, connect_3("02", text("a"), text("MQIsdp") + "83"), Connect(3, "a", True, 60, bridge=True)
    ),
    bad("connect bridge with the reserved flag", 4, framed(0x10, text("MQTT") + "84 03 003c" + text("a"))),
]

CONNECT_3_ROWS = [
    good("connect minimal", 3, "100f 0006 4d5149736470 03 02 003c 0001 61", Connect(3, "a", True, 60)),
    good("connect resume", 3, connect_3("00", text("a")), Connect(3, "a", False, 60)),
    good("connect empty client id", 3, connect_3("02", text("")), Connect(3, "", True, 60)),
    good("connect client id of 24 bytes", 3, connect_3("02", text("a" * 24)), Connect(3, "a" * 24, True, 60)),
    good(
        "connect will, user name, password",
        3,
        connect_3("f6", text("a") + text("w/t") + text("gone") + text("u") + text("p")),
        Connect(3, "a", True, 60, "u", b"p", Will(b"w/t", b"gone", 2, True)),
    ),
    good("connect reserved flag", 3, connect_3("03", text("a")), Connect(3, "a", True, 60), canonical=False),
    good("connect will QoS 3 without will", 3, connect_3("3a", text("a")), Connect(3, "a", True, 60), canonical=False),
    good("connect user name left out", 3, connect_3("82", text("a")), Connect(3, "a", True, 60), canonical=False),
    good(
        "connect password left out",
        3,
        connect_3("c2", text("a") + text("u")),
        Connect(3, "a", True, 60, "u"),
        canonical=False,
    ),
    good(
        "connect user name and password left out",
        3,
        connect_3("c2", text("a")),
        Connect(3, "a", True, 60),
        canonical=False,
    ),
    bad("connect password without user name", 3, connect_3("42", text("a") + text("p"))),
    bad("connect user name cut", 3, connect_3("82", text("a") + "0002 75")),
    bad("connect user name's length cut", 3, connect_3("82", text("a") + "00")),
    bad("connect will QoS 3", 3, connect_3("1e", text("a") + text("w") + text("x"))),
    bad("connect will missing", 3, connect_3("06", text("a"))),
    bad("connect will payload missing", 3, connect_3("06", text("a") + text("w"))),
    bad("connect will topic with wildcard", 3, connect_3("06", text("a") + text("+") + text("x")), FORBIDDEN),
    bad("connect client id missing", 3, connect_3("02", "")),
    bad("connect properties", 3, connect_3("02", "00" + text("a"))),
    bad("connect first byte flags", 3, "120f 0006 4d5149736470 03 02 003c 0001 61"),
]

CONNECT_5_ROWS = [
    good(
        "connect least limits",
        5,
        connect_5("02", text("a"), "11 00000000 21 0001 27 00000001 22 0000 19 00 17 01"),
        Connect(
            5,
            "a",
            True,
            60,
            properties={
                P.SESSION_EXPIRY_INTERVAL: 0,
                P.RECEIVE_MAXIMUM: 1,
                P.MAXIMUM_PACKET_SIZE: 1,
                P.TOPIC_ALIAS_MAXIMUM: 0,
                P.REQUEST_RESPONSE_INFORMATION: 0,
                P.REQUEST_PROBLEM_INFORMATION: 1,
            },
        ),
    ),
    bad("connect receive maximum twice", 5, connect_5("02", text("a"), "21 0001 21 0001"), FORBIDDEN),
    bad("connect maximum packet size twice", 5, connect_5("02", text("a"), "27 00000001 27 00000001"), FORBIDDEN),
    bad("connect topic alias maximum twice", 5, connect_5("02", text("a"), "22 0001 22 0001"), FORBIDDEN),
    bad("connect request response information twice", 5, connect_5("02", text("a"), "19 01 19 01"), FORBIDDEN),
    bad("connect request problem information twice", 5, connect_5("02", text("a"), "17 01 17 01"), FORBIDDEN),
    bad("connect authentication method twice", 5, connect_5("02", text("a"), "15 0001 6d 15 0001 6d"), FORBIDDEN),
    bad("connect properties missing", 5, framed(0x10, HEAD_5 + "02 003c")),
    bad("connect will topic with +", 5, connect_5("06", text("a") + "00" + text("+/w") + text("x")), FORBIDDEN),
    bad("connect will topic empty", 5, connect_5("06", text("a") + "00 0000" + text("x")), FORBIDDEN),
    bad("connect will topic with U+0000", 5, connect_5("06", text("a") + "00 0001 00" + text("x"))),
    bad("connect will topic ill-formed", 5, connect_5("06", text("a") + "00 0001 ff" + text("x"))),
    bad("connect will payload missing", 5, connect_5("06", text("a") + "00" + text("w"))),
    bad("connect will payload cut", 5, connect_5("06", text("a") + "00" + text("w") + "0002 78")),
    bad("connect will properties missing", 5, connect_5("06", text("a"))),
    bad("connect will properties longer than the packet", 5, connect_5("06", text("a") + "7f" + text("w") + text("x"))),
    bad("connect will payload format 2", 5, will_5("01 02"), FORBIDDEN),
    bad("connect will delay twice", 5, will_5("18 00000001 18 00000001"), FORBIDDEN),
    bad("connect will message expiry twice", 5, will_5("02 00000001 02 00000001"), FORBIDDEN),
    bad("connect will content type twice", 5, will_5("03 0000 03 0000"), FORBIDDEN),
    bad("connect will content type ill-formed", 5, will_5("03 0001 ff")),
    bad("connect will response topic twice", 5, will_5("08 0001 72 08 0001 72"), FORBIDDEN),
    bad("connect will response topic with wildcard", 5, will_5("08 0003 722f23"), FORBIDDEN),
    bad("connect will response topic empty", 5, will_5("08 0000"), FORBIDDEN),
    bad("connect will correlation data twice", 5, will_5("09 0000 09 0000"), FORBIDDEN),
    bad("connect will user property cut", 5, will_5("26 0001 6b")),
    bad("connect topic alias in the will", 5, will_5("23 0001")),
    bad("connect subscription identifier in the will", 5, will_5("0b 01")),
]

CONNACK_ROWS = [
    good("connack accepted", 3, "2002 00 00", Connack()),
    good("connack wrong version", 3, "2002 00 01", Connack(False, Reason.UNSUPPORTED_PROTOCOL_VERSION)),
    good("connack client id refused", 3, "2002 00 02", Connack(False, Reason.CLIENT_IDENTIFIER_NOT_VALID)),
    good("connack server unavailable", 3, "2002 00 03", Connack(False, Reason.SERVER_UNAVAILABLE)),
    good("connack bad password", 3, "2002 00 04", Connack(False, Reason.BAD_USER_NAME_OR_PASSWORD)),
    good("connack not authorized", 3, "2002 00 05", Connack(False, Reason.NOT_AUTHORIZED)),
    good("connack reserved byte", 3, "2002 ff 00", Connack(), canonical=False),
    bad("connack reserved return code", 3, "2002 00 06", FORBIDDEN),
    bad("connack cut", 3, "2001 00"),
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
    bad("connack receive maximum 0", 5, "2006 00 00 03 21 0000", FORBIDDEN),
    bad("connack maximum packet size 0", 5, "2008 00 00 05 27 00000000", FORBIDDEN),
    bad("connack retain available 2", 5, "2005 00 00 02 25 02", FORBIDDEN),
    bad("connack wildcard subscription available 2", 5, "2005 00 00 02 28 02", FORBIDDEN),
    bad("connack subscription identifier available 2", 5, "2005 00 00 02 29 02", FORBIDDEN),
    bad("connack shared subscription available 2", 5, "2005 00 00 02 2a 02", FORBIDDEN),
    bad("connack server keep alive twice", 5, "2009 00 00 06 13 0001 13 0001", FORBIDDEN),
    bad("connack will delay", 5, "2008 00 00 05 18 00000001"),
]

OPENING_ROWS = LEVEL_ROWS + CONNECT_3_ROWS + CONNECT_ROWS + CONNECT_5_ROWS + CONNACK_ROWS
