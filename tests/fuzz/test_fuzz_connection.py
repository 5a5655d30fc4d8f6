"""Any bytes as what a client sends, cut anywhere, through listener and owner.

Documented: a client's fault is a ProtocolError inside the connection, which is closed for it, and nothing leaves the
cores. Whatever a client does, the owner's invariants hold, what it is told are whole packets of its version, others are
served, and a restart finds a store that it can read.
"""

from core_helpers import Client, Node, packets_of
from fuzzing import Target, examples, near
from hypothesis import given
from packet_table import ROWS
from scram_client import ScramClient

from broker.core.authentication import MethodTable
from broker.core.connection import ConnectionLimits
from broker.core.scram import METHOD, MemoryVerifiers, ScramExchange, scram_method
from broker.core.settings import OwnerSettings
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Auth,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property as P

# Where one connection of the client ends and the next begins.
NEXT = b"\0NEXT\0"
# Where three seconds pass.
WAIT = b"\0WAIT\0"
CONNECTIONS_MAX = 6
BYSTANDER = "bystander-0123456789"
NONCE = "server-nonce"
VERIFIERS = MemoryVerifiers()
VERIFIERS.add("user", "pencil", b"salt")

# The packet id of a delivery of `of_everything`, where no setting changes it.
MISSED_LARGE = 7

SETTINGS = (
    OwnerSettings(),
    OwnerSettings(queue_lifo=True, max_online_messages=3, max_offline_messages=2, retry_interval_s=2),
    OwnerSettings(max_inflight_messages=1, receive_max_client=1, max_queued_bytes=60, retained_messages_max=1),
    OwnerSettings(upgrade_outgoing_qos=True, max_subscriptions_per_client=2, retained_bytes_max=1100),
)
LIMITS = (
    ConnectionLimits(),
    ConnectionLimits(
        packet_bytes_max=200,
        topic_levels_max=3,
        topic_bytes_max=20,
        receive_max=2,
        topic_alias_max_client=2,
        topic_alias_max_broker=2,
        keep_alive_s_max=4,
        messages_per_s_max=3,
        check_payload_format=True,
    ),
)


def check(data: bytes) -> None:
    """Have a client say everything behind two bytes: how the node is set, and where the stream is cut."""
    if len(data) < 2:
        return
    node = Node(settings=SETTINGS[data[0] % len(SETTINGS)], limits=LIMITS[data[0] >> 4 & 1])
    for listener in node.listeners:
        listener._authenticator = MethodTable({METHOD: scram_method(VERIFIERS, lambda: NONCE, b"secret")})
    bystander = node.connect(BYSTANDER)
    bystander.subscribe(b"by/stander", 0)
    for number, said in enumerate(data[2:].split(NEXT)[:CONNECTIONS_MAX]):
        client = node.open(listener=number % 2)
        for index, part in enumerate(said.split(WAIT)):
            if index:
                bystander.send(Pingreq())
                node.advance(3.0)
            for piece in pieces(part, data[1] + number):
                client.send(piece)
        check_heard(client)
        check_served(bystander)
        if not data[1] & 1 or client.closed:
            # Else it stays, and the next connection is beside it.
            client.drop()
        node.validate()
    node.advance(100.0)
    node.validate()
    node.restart().validate()


def pieces(said: bytes, cut: int) -> list[bytes]:
    """Cut a stream: not at all, or into pieces of a length."""
    size = (len(said), 1, 2, 7, 50)[cut // 2 % 5] or 1
    return [said[pos : pos + size] for pos in range(0, len(said), size)]


def check_heard(client: Client) -> None:
    """What the client was told are whole packets that a server may send; a DISCONNECT is the last."""
    version = client.connection.version
    data = client.take_bytes()
    if version not in (3, 4, 5):
        assert not data
        return
    packets = packets_of(data, version)
    for packet in packets:
        assert not isinstance(packet, (Connect, Subscribe, Unsubscribe, Pingreq))
    assert not any(isinstance(packet, Disconnect) for packet in packets[:-1])


def check_served(bystander: Client) -> None:
    """Somebody else still publishes and receives."""
    bystander.take_bytes()
    bystander.publish(b"by/stander", b"still here")
    assert not bystander.closed
    assert bystander.take_payloads()[-1:] == [b"still here"]


def stream(version: int, *packets: Packet | bytes) -> bytes:
    return b"".join(packet if isinstance(packet, bytes) else encode(packet, version) for packet in packets)


def wanted(topic_filter: bytes, qos: int = 2) -> tuple[SubscriptionRequest, ...]:
    return (SubscriptionRequest(topic_filter, qos),)


def of_everything(version: int) -> bytes:
    """A session that does everything, goes, misses something, comes back, and is taken over."""
    expiry = {int(P.SESSION_EXPIRY_INTERVAL): 50, int(P.TOPIC_ALIAS_MAXIMUM): 2} if version == 5 else {}
    alias = {int(P.TOPIC_ALIAS_MAXIMUM): 1} if version == 5 else {}
    will = Will(b"w", b"gone", 1, True)
    first = stream(
        version,
        Connect(version, "c", False, 10, will=will, properties=expiry),
        Subscribe(1, wanted(b"#")),
        Subscribe(2, wanted(b"$share/g/a", 1)),
        Publish(b"a", b"0"),
        Publish(b"a", b"1", 1, packet_id=1, retain=True),
        Publish(b"a", b"2", 2, packet_id=2),
        Publish(b"a", b"2", 2, packet_id=2, dup=True),
        Pubrel(2),
        Puback(1),
        Pubrec(4),
        Pubcomp(4),
        Pingreq(),
    )
    other = stream(
        version,
        Connect(version, "d", True, properties=alias),
        Publish(b"a", b"missed", 1, packet_id=7),
        Publish(b"b", b"p" * 600, 2, packet_id=8, properties={}),
        Pubrel(8),
        Publish(b"a", b"", 0, retain=True),
        Disconnect(),
    )
    back = stream(
        version,
        Connect(version, "c", False),
        Unsubscribe(3, (b"#",)),
        Puback(3),
        # The one with a large body, which is stored apart.
        Pubrec(MISSED_LARGE),
        Pubrec(MISSED_LARGE),
        WAIT,
        Pubcomp(MISSED_LARGE),
        Pubrel(9),
    )
    over = stream(version, Connect(version, "c", True, 1), Subscribe(1, wanted(b"+/b", 0)), WAIT, Disconnect(4))
    return first + NEXT + other + NEXT + back + NEXT + over


def authenticated() -> bytes:
    client = ScramClient("user", "pencil")
    first = ScramExchange(VERIFIERS, NONCE, b"secret").receive(client.first())
    proof = client.final(first.data)
    begin = {int(P.AUTHENTICATION_METHOD): METHOD, int(P.AUTHENTICATION_DATA): client.first()}
    end = {int(P.AUTHENTICATION_METHOD): METHOD, int(P.AUTHENTICATION_DATA): proof}
    return stream(
        5,
        Connect(5, "s", True, properties=begin),
        Auth(0x18, end),
        Auth(0x19, begin),
        Auth(0x18, end),
        Subscribe(1, wanted(b"a"), {int(P.SUBSCRIPTION_IDENTIFIER): 5}),
        Publish(b"a", b"x", 1, packet_id=1, properties={int(P.TOPIC_ALIAS): 1, int(P.USER_PROPERTY): [("k", "v")]}),
        Publish(b"", b"x", 1, packet_id=2, properties={int(P.TOPIC_ALIAS): 1, int(P.MESSAGE_EXPIRY_INTERVAL): 2}),
        WAIT,
        Disconnect(0, {int(P.SESSION_EXPIRY_INTERVAL): 0}),
    )


def seeds() -> list[bytes]:
    """Whole sessions of each version and setting, and every packet of the table after a CONNECT."""
    found = [bytes([setting, 0]) + of_everything(version) for version in (3, 4, 5) for setting in (0, 1, 2, 3, 16, 17)]
    found += [bytes([16, cut]) + authenticated() for cut in (0, 2)]
    for row in ROWS:
        if len(row.data) <= 200:
            greeting = b"" if row.data[0] >> 4 == PacketType.CONNECT else encode(Connect(row.version, "c"), row.version)
            found.append(bytes([0, 0]) + greeting + row.data)
    return found


SESSIONS = 20
TARGET = Target("connection", check, seeds())


def test_whole_sessions() -> None:
    for seed in TARGET.seeds[:SESSIONS]:
        # Each cut, and with what is left connected.
        for cut in range(10):
            check(bytes([seed[0], cut]) + seed[2:])


def test_the_sessions_do_what_they_say() -> None:
    """Else the seeds would try how connections are refused, and nothing more."""
    for version in (3, 4, 5):
        node = Node()
        first, other, back, _ = of_everything(version).split(NEXT)
        client = node.open()
        client.send(first)
        assert not client.closed
        heard = packets_of(client.take_bytes(), version)
        assert {b"0", b"1", b"2"} <= {packet.payload for packet in heard if isinstance(packet, Publish)}
        client.drop()
        node.open().send(other)
        assert node.owner.counts()["queued_messages"] > 0
        client = node.open()
        client.send(back.replace(WAIT, b""))
        assert not client.closed
        heard = packets_of(client.take_bytes(), version)
        assert [packet.packet_id for packet in heard if isinstance(packet, Pubrel)] == [MISSED_LARGE] * 2


@given(near(TARGET.seeds))
@examples(150)
def test_near_sessions(data: bytes) -> None:
    check(data)
