"""broker.core.listener: bytes in whatever pieces, frames of the right owner, and no bytes that break it."""

import pytest
from core_helpers import START_S, Node, packets_of
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_table import ROWS

from broker.core.client_publishing import UNACKNOWLEDGED_MAX
from broker.core.connection import CLOSED, PACKETS_PER_TURN
from broker.core.connection_limits import ConnectionLimits
from broker.core.listener import (
    BUSY_BYTES,
    LAZY_BYTES_MAX,
    MODEST_BYTES_MAX,
    MODEST_BYTES_PER_S,
    MODEST_S,
    PACE_S,
    PACED_PACKETS,
    SHARE_BYTES,
    TURN_BYTES,
    TURN_WAIT_S,
    ListenerCore,
)
from broker.core.listener_records import LISTENER_HEADER_BYTES, ListenerHeader
from broker.core.message import Message
from broker.core.owner_records import FRAME_BYTES_MAX, OwnerBatch, owner_frame
from broker.core.records import PUBACK, RETURN_BYTES, WINDOW_BYTES
from broker.core.settings import OwnerSettings
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)
from broker.mqtt.reasons import Reason


def listener_core(generation=1, owner_generation=1, limits=None):
    listener = ListenerCore(0, generation, limits or ConnectionLimits(), lambda: "assigned")
    if owner_generation:
        listener.owner_ready(owner_generation)
    return listener


def connected(listener, client_id="c", version=4):
    """A connection that the (absent) owner has attached, with empty output."""
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(version, client_id), version), START_S)
    batch = OwnerBatch()
    batch.connack(connection.number, 0, False)
    listener.receive_frame(owner_frame(listener.owner_generation, 1, 0, batch.records()[0]))
    listener.take_dirty()
    connection.output = []
    return connection


def conversation(version):
    """Everything that is served, in one stream of bytes; the client receives what it publishes."""
    packets = [
        Connect(version, "c", True, 60),
        Subscribe(1, (SubscriptionRequest(b"a/#", 1), SubscriptionRequest(b"b", 0))),
        Publish(b"a/b", b"1" * 200, 1, packet_id=2),
        Publish(b"b", b"0"),
        Puback(1),
        Pingreq(),
        Unsubscribe(3, (b"b", b"c")),
        Publish(b"nobody", b"", 1, packet_id=4),
    ]
    return b"".join(encode(packet, version) for packet in packets)


def heard(node, pieces, version):
    """What the client hears, sorted: how much comes in one turn decides how answers and deliveries interleave."""
    client = node.open(version=version)
    for piece in pieces:
        client.send(piece)
    packets = sorted(map(repr, client.take()))
    client.drop()
    return packets


@pytest.mark.parametrize("version", [4, 5])
def test_packets_may_be_split_anywhere(start, version):
    data = conversation(version)
    expected = heard(start(), [data], version)
    assert len(expected) == 8
    node = start()
    for at in range(1, len(data)):
        assert heard(node, [data[:at], data[at:]], version) == expected, at


@pytest.mark.parametrize("version", [4, 5])
def test_packets_may_come_byte_by_byte(start, version):
    data = conversation(version)
    expected = heard(start(), [data], version)
    assert heard(start(), [data[at : at + 1] for at in range(len(data))], version) == expected


def test_what_comes_with_the_connect_is_answered_in_order_after_the_connack(node):
    client = node.open()
    data = b"".join(
        encode(packet, 4)
        for packet in (
            Connect(4, "c"),
            Subscribe(1, (SubscriptionRequest(b"a", 1),)),
            Publish(b"a", b"p", 1, packet_id=2),
            Publish(b"nobody", b"p", 1, packet_id=3),
        )
    )
    client.send(data)
    assert client.take() == [
        Connack(),
        Suback(1, (1,)),
        Publish(b"a", b"p", 1, packet_id=1),
        Puback(2),
        Puback(3),
    ]


def test_what_comes_before_the_connack_waits_for_it():
    listener = listener_core()
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(4, "c"), 4), START_S)
    assert not connection.want_read
    listener.receive_data(connection, encode(Pingreq(), 4), START_S)
    listener.receive_data(connection, encode(Pingreq(), 4) + b"\xc0", START_S)
    assert connection.output == []
    batch = OwnerBatch()
    batch.connack(connection.number, 0, True)
    listener.receive_frame(owner_frame(1, 1, 0, batch.records()[0]))
    assert packets_of(b"".join(connection.output), 4) == [Connack(True), Pingresp(), Pingresp()]
    listener.receive_data(connection, b"\x00", START_S)
    assert packets_of(b"".join(connection.output), 4)[3:] == [Pingresp()]


def test_a_fault_that_came_with_the_connect_is_answered_after_the_connack(node):
    client = node.open(version=5)
    client.send(encode(Connect(5, "c"), 5) + b"\xf3\x00")
    connack, disconnect = client.take()
    assert connack.reason == 0
    assert disconnect.reason == Reason.MALFORMED_PACKET
    assert client.closed
    assert node.owner.counts()["num_online"] == 0


def test_a_big_packet_in_small_pieces_is_joined_once():
    """Each piece is kept as it came: nothing is copied before the packet is whole."""
    listener = listener_core()
    connection = connected(listener)
    data = encode(Publish(b"a", b"x" * 300_000), 4)
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    for count, piece in enumerate(pieces[:-1], start=1):
        listener.receive_data(connection, piece, START_S)
        assert connection._buffer is not None
        assert len(connection._buffer._chunks) == count
        if count > 1:
            assert connection._buffer._chunks[-1] is piece
    before = listener.batch.size()
    listener.receive_data(connection, pieces[-1], START_S)
    assert listener.batch.size() > before + 300_000
    assert connection._buffer is None


@pytest.mark.parametrize("first", [0x00, 0x20, 0x30, 0x40, 0x82, 0xC0, 0xE0, 0xF0, 0x47])
def test_the_first_packet_is_a_connect(node, first):
    """[MQTT-3.1.0-1]: anything else is closed at its first byte."""
    client = node.open()
    client.send(bytes([first]))
    assert client.closed
    assert client.take_bytes() == b""
    assert node.owner.counts()["num_online"] == 0


def test_a_connect_is_bounded_before_it_is_buffered(start):
    """Whatever the limit for packets is: who hasn't connected gets 8 KiB."""
    node = start(limits=ConnectionLimits(packet_bytes_max=1_000_000))
    client = node.open()
    client.send(b"\x10\xff\xff\x7f")
    assert client.closed
    limited = start(limits=ConnectionLimits(packet_bytes_max=50))
    client = limited.connect("c" * 60)
    assert not client.closed


def test_packets_over_the_limit_are_refused_at_their_header(start):
    node = start(limits=ConnectionLimits(packet_bytes_max=100))
    client = node.connect("c", 5)
    assert client.connack.properties[0x27] == 100
    client.publish(b"a", b"x" * 90)
    assert not client.closed
    client.send(b"\x30\x63")
    assert client.take()[0].reason == Reason.PACKET_TOO_LARGE
    assert client.closed


def test_a_silent_client_is_closed_after_its_keep_alive(node):
    """[MQTT-3.1.2-22]: one and a half times."""
    clients = {version: node.connect(f"c{version}", version, keep_alive_s=10) for version in (4, 5)}
    node.advance(14.9)
    assert not any(client.closed for client in clients.values())
    clients[4].send(Pingreq())
    clients[4].take()
    node.advance(0.2)
    assert not clients[4].closed
    assert clients[5].take() == [Disconnect(Reason.KEEP_ALIVE_TIMEOUT)]
    node.advance(15)
    assert clients[4].closed
    assert clients[4].take_bytes() == b""
    assert node.owner.counts()["num_online"] == 0


def test_a_keep_alive_of_0_is_none(node):
    """[MQTT-3.1.2-10]"""
    client = node.connect("c")
    node.advance(1e6)
    assert not client.closed


def test_who_does_not_connect_is_closed(node):
    silent, slow = node.open(), node.open()
    slow.send(b"\x10")
    node.advance(4.9)
    assert not silent.closed
    assert not slow.closed
    node.advance(0.2)
    assert silent.closed
    assert slow.closed
    assert silent.take_bytes() == b""


def test_who_connects_byte_by_byte_has_no_longer(node):
    """The connect timeout is for the whole CONNECT; else one byte every four seconds holds a socket for hours."""
    client = node.open()
    data = encode(Connect(4, "c" * 50), 4)
    for at in range(10):
        client.send(data[at : at + 1])
        node.advance(2)
    assert client.closed


def test_a_client_that_is_not_read_is_not_silent(node):
    """Its bytes wait in the socket because we don't read them; they count as soon as we do."""
    client = node.connect("c", keep_alive_s=10)
    node.turn()
    for packet_id in range(1, UNACKNOWLEDGED_MAX + 1):
        client.say(Publish(b"a", b"", 1, packet_id=packet_id))
    assert not client.connection.want_read
    node.now += 60
    node.listeners[0].tick(node.now)
    assert not client.closed
    node.settle()
    assert client.connection.want_read
    node.listeners[0].tick(node.now + 1)
    assert not client.closed


def test_while_the_owner_is_behind_nobody_is_silent():
    """Without credit no client is read, so that no client can be blamed for its silence."""
    listener = listener_core()
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(4, "c", keep_alive_s=10), 4), START_S)
    batch = OwnerBatch()
    batch.connack(connection.number, 0, False)
    listener.receive_frame(owner_frame(1, 1, 0, batch.records()[0]))
    while not listener.is_blocked():
        listener.receive_data(connection, encode(Publish(b"a", b"x" * 500_000), 4), START_S)
        listener.take_frame()
    listener.tick(START_S + 100)
    assert connection.state != CLOSED


def test_too_many_unacknowledged_publishes_stop_the_reading(node):
    client = node.connect("c")
    for packet_id in range(1, UNACKNOWLEDGED_MAX + 1):
        assert client.connection.want_read
        client.say(Publish(b"a", b"", 1, packet_id=packet_id))
    assert not client.connection.want_read
    node.settle()
    assert client.connection.want_read
    assert len(client.take()) == UNACKNOWLEDGED_MAX


def test_what_is_said_of_clients_is_taken_wherever_it_comes_from(start):
    """A SUBACK says something as well as what a client sends, and what was held back until the CONNACK."""
    node = start(settings=OwnerSettings(max_subscriptions_per_client=1), limits=ConnectionLimits(packet_bytes_max=100))
    client = node.connect("c")
    client.send(encode(Subscribe(1, (SubscriptionRequest(b"a"), SubscriptionRequest(b"b"))), 4))
    assert "client 'c' has all the subscriptions" in "".join(node.listeners[0].take_notices())
    eager = node.open()
    eager.send(encode(Connect(4, "eager"), 4) + encode(Publish(b"a", bytes(100)), 4))
    assert node.listeners[0].take_notices() == ["client 'eager' sends a packet of more than 100 bytes"]
    assert eager.closed


# Turns.


def publishes(size):
    """QoS 0 PUBLISHes of that many bytes together."""
    return encode(Publish(b"a", b"x" * (SHARE_BYTES - 6)), 4) * (size // SHARE_BYTES)


def flood(listener, connections):
    """Each says a whole turn's worth at once."""
    for connection in connections:
        listener.receive_data(connection, publishes(TURN_BYTES), START_S)


def consumed(listener, frame):
    """The owner returns the credit for a frame."""
    listener.receive_frame(owner_frame(1, 1, len(frame), b""))


def test_who_says_a_lot_waits_for_a_turn():
    listener = listener_core()
    modest, greedy = connected(listener, "modest"), connected(listener, "greedy")
    listener.take_frame()
    listener.receive_data(modest, publishes(SHARE_BYTES)[:-1], START_S)
    listener.receive_data(greedy, publishes(SHARE_BYTES), START_S)
    assert not modest.waits_for_turn and greedy.waits_for_turn
    assert modest.want_read and greedy.want_read
    assert listener.wants_turn()
    assert listener.take_turns(START_S) == [greedy]
    assert not greedy.waits_for_turn and not listener.wants_turn()


def test_turns_go_round_while_the_owner_keeps_up():
    listener = listener_core()
    connections = [connected(listener, name) for name in "abcde"]
    flood(listener, connections[4:])
    assert listener.take_turns(START_S) == connections[4:]
    consumed(listener, listener.take_frame())
    flood(listener, connections)
    frame = listener.take_frame()
    assert len(frame) > BUSY_BYTES and not listener.is_blocked()
    assert not listener.wants_turn() and listener.take_turns(START_S) == []
    consumed(listener, frame)
    given = []
    while len(given) < 10:
        turns = listener.take_turns(START_S)
        assert 1 <= len(turns) <= BUSY_BYTES // TURN_BYTES
        given.extend(turns)
        flood(listener, turns)
        consumed(listener, listener.take_frame())
    assert given == connections * 2


def test_a_turn_is_given_now_and_then_though_others_keep_the_owner_busy():
    listener = listener_core()
    first, second = connected(listener, "first"), connected(listener, "second")
    consumed(listener, listener.take_frame())
    flood(listener, [first, second])
    listener.take_frame()
    assert listener.take_turns(START_S) == [first]
    flood(listener, [first])
    assert listener.take_turns(START_S + TURN_WAIT_S / 2) == []
    assert listener.take_turns(START_S + TURN_WAIT_S) == [second]
    # Not even then when nobody is read at all.
    while not listener.is_blocked():
        flood(listener, [second])
        listener.take_frame()
    assert listener.take_turns(START_S + 100) == []


def say_little(listener, connection, now):
    listener.receive_data(connection, encode(Publish(b"a", b"x"), 4), now)


def test_for_the_sake_of_a_modest_client_turns_are_paced():
    listener = listener_core()
    modest, first, second = (connected(listener, name) for name in ("modest", "first", "second"))
    flood(listener, [first, second])
    assert listener.turn_wait_s(START_S) == 0
    say_little(listener, modest, START_S)
    assert listener.take_turns(START_S) == [first]
    consumed(listener, listener.take_frame())
    # There is room, and yet it has to wait.
    assert listener.wants_turn() and listener.turn_wait_s(START_S) == pytest.approx(PACE_S)
    assert listener.take_turns(START_S) == []
    assert listener.turn_wait_s(START_S + PACE_S) == 0
    assert listener.take_turns(START_S + PACE_S) == [second]
    flood(listener, [first, second])
    consumed(listener, listener.take_frame())
    later = START_S + MODEST_S
    assert listener.turn_wait_s(later) == 0 and listener.take_turns(later) == [first, second]


def test_for_the_sake_of_a_modest_client_few_packets_are_worked_off_in_a_turn():
    listener = listener_core()
    modest, greedy = connected(listener, "modest"), connected(listener, "greedy")
    for paced in (True, False):
        now = START_S if paced else START_S + MODEST_S
        if paced:
            say_little(listener, modest, now)
        listener.receive_data(greedy, encode(Pingreq(), 4) * (TURN_BYTES // 2), now)
        for turns in range(1, 4):
            count = PACED_PACKETS if paced else PACKETS_PER_TURN
            assert len(greedy.output) == turns * count
            now += PACE_S
            assert listener.take_turns(now) == [greedy]
        while greedy.has_more:
            now += MODEST_S
            listener.take_turns(now)
        greedy.output = []


def test_a_client_is_modest_again_when_it_has_said_little_for_a_while():
    listener = listener_core()
    client, greedy = connected(listener, "client"), connected(listener, "greedy")

    def paces(now):
        say_little(listener, client, now)
        flood(listener, [greedy])
        listener.take_turns(now)
        paced = listener.turn_wait_s(now) > 0
        consumed(listener, listener.take_frame())
        return paced

    assert paces(START_S)
    flood(listener, [client] * 10)
    assert not paces(START_S + MODEST_S)
    assert not paces(START_S + MODEST_BYTES_MAX / MODEST_BYTES_PER_S)
    assert paces(START_S + 3 * MODEST_BYTES_MAX / MODEST_BYTES_PER_S)


def test_nobody_is_paced_for_its_own_sake():
    listener = listener_core()
    client = connected(listener, "client")
    say_little(listener, client, START_S)
    for _ in range(3):
        flood(listener, [client])
        consumed(listener, listener.take_frame())
        assert listener.turn_wait_s(START_S) == 0 and listener.take_turns(START_S) == [client]


def test_who_only_connects_paces_nobody():
    listener = listener_core()
    greedy, newcomer = connected(listener, "greedy"), listener.open(START_S)
    flood(listener, [greedy])
    listener.receive_data(newcomer, encode(Connect(4, "newcomer"), 4), START_S)
    assert listener.take_turns(START_S) == [greedy]
    assert listener.turn_wait_s(START_S) == 0


def test_a_turn_never_waits_for_credit_that_does_not_come():
    assert BUSY_BYTES > RETURN_BYTES + LAZY_BYTES_MAX


def test_however_small_packets_are_only_so_many_are_worked_off_in_a_turn(node):
    client = node.connect("c")
    connection = client.connection
    node.listeners[0].receive_data(connection, encode(Pingreq(), 4) * (2 * PACKETS_PER_TURN + 1), node.now)
    for left in (2 * PACKETS_PER_TURN + 1, PACKETS_PER_TURN + 1, 1):
        assert len(connection.output) == min(left, PACKETS_PER_TURN)
        connection.output = []
        assert connection.has_more == connection.waits_for_turn == (left > PACKETS_PER_TURN)
        assert node.listeners[0].take_turns(node.now) == ([connection] if left > PACKETS_PER_TURN else [])
    assert connection.output == []


@pytest.mark.parametrize("version", [4, 5])
def test_what_is_held_back_for_others_stays_in_order(node, version):
    client = node.open(version=version)
    ids = range(1, 3 * PACKETS_PER_TURN)
    packets = [Publish(b"a", b"", 1, packet_id=packet_id) for packet_id in ids]
    data = b"".join(encode(packet, version) for packet in (Connect(version, "c"), *packets, Pingreq()))
    client.send(data[:-1])
    client.send(data[-1:])
    heard = client.take()
    assert [packet.packet_id for packet in heard if isinstance(packet, Puback)] == list(ids)
    assert isinstance(heard[0], Connack) and Pingresp() in heard
    assert not client.connection.has_more and not client.connection.waits_for_turn


def test_a_fault_ends_what_is_held_back(node):
    client = node.connect("c")
    data = encode(Pingreq(), 4) * PACKETS_PER_TURN + encode(Connect(4, "c"), 4)
    node.listeners[0].receive_data(client.connection, data, node.now)
    assert client.connection.has_more
    node.settle()
    assert client.closed and not client.connection.has_more
    assert node.listeners[0].take_turns(node.now) == []


def test_who_is_closed_waits_for_no_turn(node):
    """Reason: with packets held back it waited for ever, with its bytes, and took turns from the others."""
    listener, client = node.listeners[0], node.connect("c")
    connection = client.connection
    listener.receive_data(connection, encode(Pingreq(), 4) * (PACKETS_PER_TURN + 1), node.now)
    assert connection.has_more and connection.waits_for_turn
    connection.close(Reason.ADMINISTRATIVE_ACTION, "")
    assert not connection.has_more
    assert listener.take_turns(node.now) == [] and not listener.wants_turn()
    listener.receive_data(connection, publishes(TURN_BYTES), node.now)
    assert not connection.waits_for_turn and not listener.wants_turn()


def test_who_floods_and_leaves_again_and_again_takes_no_turn_from_others():
    listener = listener_core()
    client = connected(listener, "stays")
    for _ in range(3 * BUSY_BYTES // TURN_BYTES):
        leaves = connected(listener, "leaves")
        listener.receive_data(leaves, encode(Pingreq(), 4) * (PACKETS_PER_TURN + 1), START_S)
        assert leaves.waits_for_turn
        listener.lost(leaves)
        assert not listener.wants_turn()
    consumed(listener, listener.take_frame())
    flood(listener, [client])
    assert listener.take_turns(START_S) == [client]


@pytest.mark.parametrize("ends", ["lost", "closed"])
def test_what_a_client_said_last_is_not_kept_when_it_is_closed(ends):
    listener = listener_core()
    connection = connected(listener)
    listener.receive_data(connection, encode(Publish(b"a", bytes(100_000)), 4)[:-1], START_S)
    assert connection._buffer is not None
    if ends == "lost":
        listener.lost(connection)
    else:
        connection.close(Reason.ADMINISTRATIVE_ACTION, "")
    assert connection._buffer is None


def test_what_follows_a_connect_that_is_refused_is_not_kept():
    listener = listener_core(limits=ConnectionLimits(client_id_bytes_max=1))
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(4, "long"), 4) + publishes(SHARE_BYTES), START_S)
    assert connection.state == CLOSED and connection._buffer is None and not connection.waits_for_turn


def test_a_client_that_waits_for_its_turn_is_not_silent():
    listener = listener_core()
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(4, "c", keep_alive_s=10), 4), START_S)
    batch = OwnerBatch()
    batch.connack(connection.number, 0, False)
    listener.receive_frame(owner_frame(1, 1, 0, batch.records()[0]))
    flood(listener, [connection])
    listener.tick(START_S + 100)
    assert connection.state != CLOSED
    assert listener.take_turns(START_S + 100) == [connection]
    listener.tick(START_S + 116)
    assert connection.state == CLOSED


def test_qos0_is_not_counted_as_unacknowledged(node):
    client = node.connect("c")
    for _ in range(5000):
        client.say(Publish(b"a", b""))
    assert client.connection.want_read


# The owner.


def test_without_an_owner_clients_are_closed():
    listener = listener_core(owner_generation=0)
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(4, "c"), 4), START_S)
    assert connection.state == CLOSED
    assert listener.take_dirty() == [connection]
    assert listener.batch.size() == 0


def test_the_loss_of_the_owner_closes_everybody():
    listener = listener_core()
    clients = {version: connected(listener, f"c{version}", version) for version in (4, 5)}
    waiting = listener.open(START_S)
    listener.receive_data(clients[4], encode(Publish(b"a", b"lost"), 4), START_S)
    listener.owner_gone()
    assert set(listener.take_dirty()) == {*clients.values(), waiting}
    assert all(connection.state == CLOSED for connection in (*clients.values(), waiting))
    assert packets_of(b"".join(clients[5].output), 5) == [Disconnect(Reason.SERVER_SHUTTING_DOWN)]
    assert clients[4].output == waiting.output == []
    # What was said to the old owner is void, and the new one hears nothing of old connections.
    listener.owner_ready(2)
    assert listener.batch.size() == 0
    assert ListenerHeader(listener.take_frame()).owner_generation == 2
    for connection in list(listener.connections.values()):
        listener.lost(connection)
    assert listener.batch.size() == 0
    assert not listener.connections


@pytest.mark.parametrize("version", [4, 5])
def test_the_loss_of_the_owner_closes_who_is_just_connecting(version):
    listener = listener_core()
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(version, "c"), version), START_S)
    listener.owner_gone()
    assert connection.state == CLOSED
    (connack,) = packets_of(b"".join(connection.output), version)
    assert connack.reason in (Reason.SERVER_UNAVAILABLE, Reason.SERVER_BUSY)


@pytest.mark.parametrize("version", [4, 5])
def test_a_stop_closes_who_is_just_connecting(version):
    listener = listener_core()
    connection = listener.open(START_S)
    listener.receive_data(connection, encode(Connect(version, "c"), version), START_S)
    listener.close_all(Reason.SERVER_SHUTTING_DOWN)
    assert connection.state == CLOSED


def test_frames_of_another_generation_are_ignored():
    listener = listener_core(generation=1, owner_generation=7)
    connection = connected(listener)
    batch = OwnerBatch()
    batch.acknowledge(PUBACK, connection.number, 1, 0)
    for owner_generation, generation in ((6, 1), (8, 1), (7, 2), (7, 0)):
        listener.receive_frame(owner_frame(owner_generation, generation, 0, batch.records()[0]))
        assert connection.output == []
    listener.receive_frame(owner_frame(7, 1, 0, batch.records()[0]))
    assert packets_of(b"".join(connection.output), 4) == [Puback(1)]


def test_records_for_a_connection_that_is_gone_are_ignored():
    listener = listener_core()
    connection = connected(listener)
    number = connection.number
    listener.lost(connection)
    batch = OwnerBatch()
    batch.acknowledge(PUBACK, number, 1, 0)
    batch.suback(number, 1, [0])
    batch.unsuback(number, 1, [0])
    batch.connack(number, 0, False)
    batch.close(number, 0x8E)
    message = Message(b"a", b"p")
    for targets in (1, 2):
        batch.deliver_head(message, b"", -1, targets)
        for _ in range(targets):
            batch.target(number, 0, 0)
        batch.deliver_body(message, b"")
    listener.receive_frame(owner_frame(1, 1, 0, batch.records()[0]))
    assert connection.output == []
    assert listener.take_dirty() == []


def test_nothing_follows_a_disconnect():
    """[MQTT-3.14.4-1]: answers that were under way when we said DISCONNECT are not sent any more."""
    listener = listener_core()
    connection = connected(listener, version=5)
    listener.receive_data(connection, encode(Publish(b"a", b"", 1, packet_id=1), 5) + b"\xf3\x00", START_S)
    assert packets_of(b"".join(connection.output), 5)[-1].reason == Reason.MALFORMED_PACKET
    connection.output = []
    batch = OwnerBatch()
    batch.acknowledge(PUBACK, connection.number, 1, 0)
    batch.suback(connection.number, 2, [0])
    batch.unsuback(connection.number, 3, [0])
    message = Message(b"a", b"p")
    batch.deliver_head(message, b"", -1, 1)
    batch.target(connection.number, 0, 0)
    batch.deliver_body(message, b"")
    listener.receive_frame(owner_frame(1, 1, 0, batch.records()[0]))
    assert connection.output == []
    assert not connection.want_read


def test_credit_towards_the_owner():
    listener = listener_core()
    connection = connected(listener)
    assert not listener.is_blocked()
    sent_bytes = 0
    while not listener.is_blocked():
        listener.receive_data(connection, encode(Publish(b"a", b"x" * 100_000), 4), START_S)
        if listener.is_full():
            assert listener.batch.size() >= FRAME_BYTES_MAX
            assert listener.wants_flush()
            sent_bytes += len(listener.take_frame())
    assert WINDOW_BYTES - 1000 < sent_bytes < WINDOW_BYTES + 2 * FRAME_BYTES_MAX
    listener.receive_frame(owner_frame(1, 1, sent_bytes, b""))
    assert not listener.is_blocked()
    # A new owner begins with the whole window.
    listener.owner_ready(2)
    assert not listener.is_blocked()


def test_credit_towards_the_listener_is_worth_a_frame_now_and_then():
    listener = listener_core()
    message = Message(b"a", b"x" * 10_000)
    batch = OwnerBatch()
    batch.deliver_head(message, b"", -1, 0)
    batch.deliver_body(message, b"")
    frame = owner_frame(1, 1, 0, batch.records()[0])
    frames = 0
    while not listener.wants_flush():
        listener.receive_frame(frame)
        frames += 1
    assert RETURN_BYTES <= frames * len(frame) < 2 * RETURN_BYTES
    answer = listener.take_frame()
    assert len(answer) == LISTENER_HEADER_BYTES
    assert ListenerHeader(answer).consumed_bytes == frames * len(frame)
    assert not listener.wants_flush()


def test_connection_numbers_skip_those_in_use():
    listener = listener_core()
    first = listener.open(START_S)
    listener._next_number = first.number
    assert listener.open(START_S).number != first.number
    assert len(listener.connections) == 2


# Deliveries to many.


def test_one_message_for_clients_of_every_kind(node):
    """Alike ones share their bytes, and each gets the form of its version, with its own packet id."""
    clients = [node.connect(f"c{number}", 4 + number % 2) for number in range(6)]
    for number, client in enumerate(clients):
        client.subscribe(b"own/%d" % number)
        for _ in range(number):
            # Moves the packet ids apart.
            client.publish(b"own/%d" % number, qos=1)
        client.subscribe(b"a", number // 2 % 2)
    node.connect("p", 5).publish(b"a", b"p" * 2000, qos=1, properties={1: 1, 2: 30})
    for number, client in enumerate(clients):
        qos = number // 2 % 2
        expected = Publish(
            b"a",
            b"p" * 2000,
            qos,
            packet_id=number + 1 if qos else 0,
            properties={1: 1, 2: 30} if client.version == 5 else {},
        )
        assert client.take() == [expected]


# Nothing that a client says breaks the listener, or the owner behind it.


@pytest.mark.parametrize("count", [65_536])
@pytest.mark.parametrize("kind", [Subscribe, Unsubscribe])
def test_more_filters_than_a_record_can_count(node, kind, count):
    """A SUBSCRIBE of 65,536 filters has 260 kB. It may be served or refused; it may not reach the owner garbled."""
    client = node.connect("c", 5)
    filters = (SubscriptionRequest(b"a", 0),) * count if kind is Subscribe else (b"a",) * count
    client.send(kind(1, filters))
    (answer,) = client.take()
    if not client.closed:
        assert len(answer.reasons) == count
    else:
        assert isinstance(answer, Disconnect)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.version}-{row.name}")
@pytest.mark.parametrize("version", [4, 5])
def test_every_packet_of_the_table_to_a_connected_client(start, row, version):
    """Good or bad, served or not: an answer or the end of the connection, and the node goes on."""
    node = start(listeners=1)
    client = node.connect("c", version)
    client.send(row.data)
    client.take()
    other = node.connect("other", version)
    other.subscribe(b"still/served")
    other.publish(b"still/served")
    assert len(other.take_publishes()) == 1


@pytest.mark.parametrize("level", [0, 3, 6, 255])
def test_a_second_connect_of_any_level(node, level):
    """[MQTT-3.1.0-2]: the second CONNECT ends the connection, of whatever version it says to be."""
    for version in (4, 5):
        client = node.connect("c", version)
        client.send(b"\x10\x0d\x00\x04MQTT" + bytes([level]) + b"\x02\x00\x00\x00\x01c")
        assert client.closed
        if version == 5:
            assert client.take()[0].reason in (Reason.PROTOCOL_ERROR, Reason.MALFORMED_PACKET)


PACKETS = [row.data for row in ROWS]
STREAMS = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(PACKETS)), max_size=6).map(b"".join)


@st.composite
def mutated(draw):
    """A stream of packets of the table with a few bytes changed, inserted or removed."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(PACKETS), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 2))
        if kind == 0:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            data[at:at] = draw(st.binary(max_size=4))
        else:
            del data[at : at + draw(st.integers(1, 4))]
    return bytes(data)


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(STREAMS, mutated()),
    st.sampled_from([0, 4, 5]),
    st.integers(0, 40),
    st.sampled_from([0, 60]),
)
def test_no_bytes_raise_out_of_the_listener(data, version, at, packet_bytes_max):
    """Before and after the CONNECT, in two pieces; what the owner is told is sound, and what the client hears too."""
    node = Node(listeners=1, limits=ConnectionLimits(packet_bytes_max=packet_bytes_max))
    client = node.connect("c", version) if version else node.open()
    client.send(data[:at])
    client.send(data[at:])
    if client.connection.version:
        packets_of(client.take_bytes(), client.connection.version)
    client.drop()
    node.validate()
