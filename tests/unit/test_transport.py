"""cluster.transport: real sockets on 127.0.0.1; who may come in, and what a refused join says."""

import contextlib
import socket
import threading
import time

import pytest
import zmq

from broker.core.message import Message
from broker.core.storage import MemoryStorage, WriteBatch
from cluster import commands as say
from cluster.join_watch import HANDSHAKE_REFUSED
from cluster.keys import JOIN, SERVER, towards
from cluster.mesh import Mesh, MeshSettings
from cluster.transport import BindError, MeshTransport, cluster_keys

COOKIE = "the cookie of the tests"
WAIT_S = 10.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nodes:
    """Transports that are polled together until something happens."""

    def __init__(self):
        self.transports = {}
        self.addresses = {}
        self.inputs = {}

    def add(self, name, cookie=COOKIE, failure_timeout_s=5.0, others=()):
        port = int(self.addresses[name].split(":")[1]) if name in self.addresses else free_port()
        self.addresses[name] = f"127.0.0.1:{port}"
        keys = [cluster_keys(other) for other in others]
        listen = ("127.0.0.1", port)
        self.transports[name] = MeshTransport(cluster_keys(cookie), name, listen, failure_timeout_s, keys)
        self.inputs[name] = []
        return self.transports[name]

    def poll(self, until, wait_s=WAIT_S, others=()):
        """Serve every transport until `until` is true; return whether it became so in time."""
        end = time.monotonic() + wait_s
        while not until():
            if time.monotonic() >= end:
                return False
            poller = zmq.Poller()
            for transport in self.transports.values():
                for each in transport.sockets():
                    poller.register(each, zmq.POLLIN)
            for each in others:
                poller.register(each, zmq.POLLIN)
            poller.poll(100)
            for name, transport in self.transports.items():
                self.inputs[name] += transport.receive(1000)
        return True

    def has(self, name, happened):
        return lambda: happened in self.inputs[name]

    def frames(self, name):
        return [(each.node, each.frame) for each in self.inputs[name] if isinstance(each, say.FrameReceived)]

    def failure(self, name):
        """Wait for the outcome of a join that must fail within 10 s."""
        assert self.poll(lambda: any(isinstance(each, say.JoinFailed) for each in self.inputs[name]))
        return next(each for each in self.inputs[name] if isinstance(each, say.JoinFailed))


@pytest.fixture
def nodes():
    found = Nodes()
    yield found
    for transport in found.transports.values():
        transport.close()


def connect(nodes, one, two):
    nodes.transports[one].execute([say.Admit(two), say.ConnectPeer(two, nodes.addresses[two])])
    nodes.transports[two].execute([say.Admit(one), say.ConnectPeer(one, nodes.addresses[one])])
    assert nodes.poll(nodes.has(one, say.PeerConnected(two)))
    assert nodes.poll(nodes.has(two, say.PeerConnected(one)))


def stranger(nodes, address, **keys):
    """A DEALER of somebody who is no transport of ours, with its monitor."""
    context = zmq.Context.instance()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    for name, value in keys.items():
        setattr(dealer, name, value)
    monitor = dealer.get_monitor_socket()
    dealer.connect(f"tcp://{address}")
    dealer.send(b"\x01\x05let me in")
    return dealer, monitor


def outcome(nodes, dealer, monitor):
    """Serve until the stranger's first handshake is decided; return the event."""
    events = []
    decided = int(
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_DISCONNECTED
    )

    def ended():
        while monitor.poll(0):
            event = int(zmq.utils.monitor.parse_monitor_message(monitor.recv_multipart())["event"])
            if event & decided:
                events.append(event)
        return bool(events)

    assert nodes.poll(ended, others=[monitor])
    dealer.disable_monitor()
    dealer.close(linger=0)
    return events[0]


def test_members_hear_each_other_by_the_names_of_their_keys(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a")
    connect(nodes, "node1@a", "node2@a")
    nodes.transports["node1@a"].execute([say.SendControl("node2@a", b"control"), say.SendBulk("node2@a", b"bulk")])
    nodes.transports["node2@a"].execute([say.SendControl("node1@a", b"back")])
    assert nodes.poll(lambda: len(nodes.frames("node2@a")) == 2 and len(nodes.frames("node1@a")) == 1)
    assert sorted(nodes.frames("node2@a")) == [("node1@a", b"bulk"), ("node1@a", b"control")]
    assert nodes.frames("node1@a") == [("node2@a", b"back")]
    received = [each for each in nodes.inputs["node2@a"] if isinstance(each, say.FrameReceived)]
    assert len({each.connection for each in received}) == 2, "control and bulk are connections of their own"


def test_a_reply_comes_back_on_the_connection(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a")
    connect(nodes, "node1@a", "node2@a")
    nodes.transports["node1@a"].execute([say.SendControl("node2@a", b"hello")])
    assert nodes.poll(lambda: nodes.frames("node2@a"))
    connection = next(each.connection for each in nodes.inputs["node2@a"] if isinstance(each, say.FrameReceived))
    nodes.transports["node2@a"].execute([say.Reply(connection, b"refused"), say.Reply(b"nobody", b"lost")])
    assert nodes.poll(nodes.has("node1@a", say.FrameReceived("node2@a", b"", b"refused")))
    assert nodes.transports["node2@a"].counters["mesh_reply_lost"] == 1


def test_a_large_frame_passes(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a")
    connect(nodes, "node1@a", "node2@a")
    large = bytes(3 * 1024 * 1024)
    nodes.transports["node1@a"].execute([say.SendBulk("node2@a", large)])
    assert nodes.poll(lambda: nodes.frames("node2@a") == [("node1@a", large)])


class SlowNetwork:
    """A TCP relay that carries so many bytes a second each way, on every connection."""

    STEP_S = 0.01

    def __init__(self, address, bytes_per_s):
        host, port = address.split(":")
        self.target = (host, int(port))
        self.step_bytes = int(bytes_per_s * self.STEP_S)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets = [self.listener]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.target)
                self.sockets += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    def carry(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(self.step_bytes):
                other.sendall(data)
                time.sleep(self.STEP_S)
            other.shutdown(socket.SHUT_RDWR)

    def close(self):
        for each in self.sockets:
            each.close()


def test_a_large_frame_passes_a_slow_network_however_short_the_failure_timeout_is(nodes):
    """Reason: a frame is no sign of life before it is whole; a link that breaks over it would try it for ever."""
    nodes.add("node1@a", failure_timeout_s=2.0)
    nodes.add("node2@a", failure_timeout_s=2.0)
    slow = SlowNetwork(nodes.addresses["node2@a"], 1_000_000)
    nodes.addresses["node2@a"] = slow.address
    connect(nodes, "node1@a", "node2@a")
    large = bytes(3_000_000)
    nodes.transports["node1@a"].execute([say.SendBulk("node2@a", large)])
    assert nodes.poll(lambda: nodes.frames("node2@a") == [("node1@a", large)])
    assert say.PeerDisconnected("node2@a") not in nodes.inputs["node1@a"]
    slow.close()


def test_no_two_members_and_no_member_and_the_router_share_an_io_thread(nodes):
    """Reason: a thread that looks up a name that nobody answers for stands still, with all its connections."""
    transport = nodes.add("node1@a")
    transport.execute([say.ConnectPeer(f"node{number}@a", f"127.0.0.1:{number}") for number in (2, 3, 4)])
    transport.execute([say.ConnectPeer("node3@a", "127.0.0.1:9"), say.DisconnectPeer("node2@a")])
    transport.execute([say.ConnectPeer("node5@a", "127.0.0.1:5")])
    used = [transport._router.affinity] + [peer.control.socket.affinity for peer in transport._peers.values()]
    assert sorted(used) == [1, 2, 4, 8]


def test_connections_are_watched_while_frames_keep_coming(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a")
    connect(nodes, "node1@a", "node2@a")
    transport = nodes.transports["node2@a"]
    transport.execute([say.ConnectPeer("node3@a", f"127.0.0.1:{free_port()}"), say.OpenJoin("node4@a", "127.0.0.1:x")])
    nodes.transports["node1@a"].execute([say.SendBulk("node2@a", b"%d" % number) for number in range(1000)])
    nodes.addresses["node4@a"] = f"127.0.0.1:{free_port()}"
    transport.execute([say.OpenJoin("node4@a", nodes.addresses["node4@a"])])

    def failed():
        nodes.transports["node1@a"].execute([say.SendBulk("node2@a", b"more")] * 10)
        return [each.kind for each in nodes.inputs["node2@a"] if isinstance(each, say.JoinFailed)][-1:] == ["refused"]

    assert nodes.poll(failed)


def test_a_join_is_heard_under_the_join_label_only(nodes):
    nodes.add("node1@a")
    joiner = nodes.add("node2@a")
    joiner.execute([say.OpenJoin("node1@a", nodes.addresses["node1@a"])])
    assert nodes.poll(nodes.has("node2@a", say.PeerConnected(JOIN)))
    joiner.execute([say.SendJoin(b"hello")])
    assert nodes.poll(lambda: nodes.frames("node1@a") == [(JOIN, b"hello")])
    connection = nodes.inputs["node1@a"][0].connection
    assert connection
    nodes.transports["node1@a"].execute([say.Reply(connection, b"welcome")])
    assert nodes.poll(nodes.has("node2@a", say.FrameReceived(JOIN, b"", b"welcome")))
    joiner.execute([say.CloseJoin()])


def test_a_member_not_yet_admitted_is_refused_and_comes_in_when_asked_to_try_again(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a").execute([say.ConnectPeer("node1@a", nodes.addresses["node1@a"])])
    assert nodes.poll(nodes.has("node2@a", say.PeerRefused("node1@a")))
    assert nodes.transports["node1@a"].counters["mesh_keys_refused"] == 1
    nodes.transports["node1@a"].execute([say.Admit("node2@a")])
    nodes.transports["node2@a"].execute([say.ConnectPeer("node1@a", nodes.addresses["node1@a"])])
    assert nodes.poll(nodes.has("node2@a", say.PeerConnected("node1@a")))


def test_a_revoked_member_is_refused(nodes):
    nodes.add("node1@a").execute([say.Admit("node2@a"), say.Revoke("node2@a")])
    nodes.add("node2@a").execute([say.ConnectPeer("node1@a", nodes.addresses["node1@a"])])
    assert nodes.poll(nodes.has("node2@a", say.PeerRefused("node1@a")))


def test_another_cookie_is_refused_and_the_joiner_is_told(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a", "quite another cookie").execute([say.OpenJoin("node1@a", nodes.addresses["node1@a"])])
    failure = nodes.failure("node2@a")
    assert (failure.kind, failure.text) == ("handshake", HANDSHAKE_REFUSED)
    assert nodes.frames("node1@a") == []


NEW = "the cookie that comes after it"


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((COOKIE, NEW), (COOKIE,)),
        ((COOKIE, NEW), (COOKIE, NEW)),
        ((NEW, COOKIE), (COOKIE, NEW)),
        ((NEW, COOKIE), (NEW, COOKIE)),
        ((NEW,), (NEW, COOKIE)),
    ],
)
def test_members_hear_each_other_at_every_step_of_a_change_of_cookies(nodes, one, two):
    nodes.add("node1@a", one[0], others=one[1:])
    nodes.add("node2@a", two[0], others=two[1:])
    connect(nodes, "node1@a", "node2@a")
    for here, there in (("node1@a", "node2@a"), ("node2@a", "node1@a")):
        nodes.transports[here].execute([say.SendControl(there, b"control"), say.SendBulk(there, b"bulk")])
        assert nodes.poll(lambda there=there: len(nodes.frames(there)) == 2)
        assert sorted(nodes.frames(there)) == [(here, b"bulk"), (here, b"control")]
        # Two that have one cookie in common meet by it, and either finds it.
        nodes.transports[here].execute([say.OpenJoin(there, nodes.addresses[there])])
        assert nodes.poll(nodes.has(here, say.PeerConnected(JOIN)))
        nodes.transports[here].execute([say.SendJoin(b"hello")])
        assert nodes.poll(lambda here=here, there=there: (JOIN, b"hello") in nodes.frames(there))


def test_a_member_that_comes_back_with_the_other_cookie_is_found_again(nodes):
    nodes.add("node1@a", COOKIE, others=[NEW])
    nodes.add("node2@a", COOKIE, others=[NEW])
    connect(nodes, "node1@a", "node2@a")
    for first, other in ((NEW, COOKIE), (COOKIE, NEW)):
        nodes.transports.pop("node2@a").close()
        assert nodes.poll(nodes.has("node1@a", say.PeerDisconnected("node2@a")))
        nodes.inputs["node1@a"].clear()
        nodes.add("node2@a", first, others=[other]).execute([say.Admit("node1@a")])
        assert nodes.poll(nodes.has("node1@a", say.PeerConnected("node2@a")))
        nodes.transports["node1@a"].execute([say.SendControl("node2@a", b"news")])
        assert nodes.poll(lambda: nodes.frames("node2@a") == [("node1@a", b"news")])


def test_a_cookie_that_is_not_admitted_any_more_is_refused(nodes):
    nodes.add("node1@a", NEW).execute([say.Admit("node2@a")])
    nodes.add("node2@a", COOKIE, others=["a third cookie of nobody"])
    nodes.transports["node2@a"].execute([say.OpenJoin("node1@a", nodes.addresses["node1@a"])])
    failure = nodes.failure("node2@a")
    assert (failure.kind, failure.text) == ("handshake", HANDSHAKE_REFUSED)
    nodes.transports["node2@a"].execute([say.ConnectPeer("node1@a", nodes.addresses["node1@a"])])
    assert not nodes.poll(nodes.has("node2@a", say.PeerConnected("node1@a")), wait_s=1.0)
    assert nodes.frames("node1@a") == []


def test_a_revoked_member_is_refused_with_every_cookie(nodes):
    nodes.add("node1@a", COOKIE, others=[NEW]).execute([say.Admit("node2@a"), say.Revoke("node2@a")])
    assert set(nodes.transports["node1@a"]._admitted.values()) == {JOIN.encode()}


def test_a_port_that_is_no_cluster_port_is_told(nodes):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0)
        nodes.add("node2@a").execute([say.OpenJoin("node1@a", f"127.0.0.1:{other.getsockname()[1]}")])
        failure = nodes.failure("node2@a")
    assert failure.text == HANDSHAKE_REFUSED


def test_a_refused_connection_an_unknown_host_and_no_address_have_their_own_texts(nodes):
    joiner = nodes.add("node2@a")
    texts = {}
    for kind, address in (
        ("refused", f"127.0.0.1:{free_port()}"),
        ("unknown", "no-such-host.invalid:44053"),
        ("invalid", "127.0.0.1:notaport"),
    ):
        nodes.inputs["node2@a"].clear()
        joiner.execute([say.OpenJoin("node1@a", address)])
        assert joiner.has_inputs() == (kind == "invalid"), "no socket would wake the loop for it"
        failure = nodes.failure("node2@a")
        assert failure.kind == kind, failure
        texts[kind] = failure.text
    assert texts["refused"] == "the TCP connection was refused"
    assert len(set(texts.values())) == 3


def test_a_stranger_who_knows_the_server_key_but_has_a_random_key_is_refused(nodes):
    nodes.add("node1@a")
    public, secret = zmq.curve_keypair()
    server = cluster_keys(COOKIE).public(SERVER)
    dealer, monitor = stranger(
        nodes, nodes.addresses["node1@a"], curve_publickey=public, curve_secretkey=secret, curve_serverkey=server
    )
    assert outcome(nodes, dealer, monitor) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    assert nodes.frames("node1@a") == []


def test_a_stranger_without_the_server_key_and_a_plaintext_client_are_refused(nodes):
    nodes.add("node1@a")
    public, secret = zmq.curve_keypair()
    wrong, _ = zmq.curve_keypair()
    for keys in ({"curve_publickey": public, "curve_secretkey": secret, "curve_serverkey": wrong}, {}):
        dealer, monitor = stranger(nodes, nodes.addresses["node1@a"], **keys)
        assert outcome(nodes, dealer, monitor) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert nodes.frames("node1@a") == []


def test_a_peer_that_goes_is_noticed_and_found_again(nodes):
    nodes.add("node1@a")
    nodes.add("node2@a")
    connect(nodes, "node1@a", "node2@a")
    nodes.transports.pop("node2@a").close()
    assert nodes.poll(nodes.has("node1@a", say.PeerDisconnected("node2@a")))
    nodes.transports["node1@a"].execute([say.SendControl("node2@a", b"lost"), say.SendBulk("node2@a", b"lost")])
    assert nodes.transports["node1@a"].counters["mesh_send_blocked"] == 2
    nodes.inputs["node1@a"].clear()
    host, port = nodes.addresses["node2@a"].split(":")
    nodes.transports["node2@a"] = MeshTransport(cluster_keys(COOKIE), "node2@a", (host, int(port)), 5.0)
    nodes.transports["node2@a"].execute([say.Admit("node1@a")])
    assert nodes.poll(nodes.has("node1@a", say.PeerConnected("node2@a")))
    nodes.transports["node1@a"].execute([say.SendControl("node2@a", b"news")])
    assert nodes.poll(lambda: ("node1@a", b"news") in nodes.frames("node2@a"))
    assert ("node1@a", b"lost") not in nodes.frames("node2@a")


def test_a_port_in_use_names_the_address(nodes):
    nodes.add("node1@a")
    host, port = nodes.addresses["node1@a"].split(":")
    with pytest.raises(BindError, match=f"127.0.0.1:{port}"):
        MeshTransport(cluster_keys(COOKIE), "node2@a", (host, int(port)), 5.0)


def test_whoever_is_at_an_address_can_be_asked_and_who_is_meant_can_not_be_mistaken(nodes):
    nodes.add("node1@a").execute([say.Admit("node2@a")])
    other = nodes.add("node2@a")
    other.execute([say.OpenJoin("", nodes.addresses["node1@a"])])
    assert nodes.poll(nodes.has("node2@a", say.PeerConnected(JOIN)))
    other.execute([say.SendJoin(b"who")])
    assert nodes.poll(lambda: nodes.frames("node1@a") == [(JOIN, b"who")])
    # Another node has taken over the address.
    other.execute([say.OpenJoin("node3@a", nodes.addresses["node1@a"])])
    assert nodes.failure("node2@a") == say.JoinFailed("handshake", HANDSHAKE_REFUSED)
    other.execute([say.ConnectPeer("node3@a", nodes.addresses["node1@a"])])
    assert nodes.poll(nodes.has("node2@a", say.PeerRefused("node3@a")))
    assert nodes.frames("node1@a") == [(JOIN, b"who")]


def test_a_key_of_another_member_can_not_be_borrowed_by_name(nodes):
    """The node of a frame is what the key says, whatever the client calls itself."""
    nodes.add("node1@a").execute([say.Admit("node2@a"), say.Admit("node3@a")])
    keys = cluster_keys(COOKIE)
    public, secret = keys.pair(towards("node2@a", "node1@a"))
    dealer, monitor = stranger(
        nodes,
        nodes.addresses["node1@a"],
        routing_id=b"node3@a",
        curve_publickey=public,
        curve_secretkey=secret,
        curve_serverkey=keys.public(SERVER),
    )
    assert nodes.poll(lambda: nodes.frames("node1@a"), others=[monitor])
    assert nodes.frames("node1@a")[0][0] == "node2@a"
    dealer.disable_monitor()
    dealer.close(linger=0)


class Meshes(Nodes):
    """Whole meshes over real sockets."""

    def __init__(self):
        super().__init__()
        self.meshes = {}
        self.messages = {}

    def start(self, name, cookie=COOKIE, discovery=()):
        self.add(name, cookie)
        settings = MeshSettings(name, self.addresses[name], 5.0, discovery)
        store_id = name.encode().ljust(16, b".")
        self.meshes[name] = Mesh(settings, MemoryStorage(), store_id, 1, store_id, time.monotonic())
        self.messages[name] = []
        return self.meshes[name]

    def run(self, until):
        def turn():
            now = time.monotonic()
            for name, mesh in self.meshes.items():
                for happened in self.inputs[name]:
                    mesh.receive(happened, now)
                    self.messages[name] += mesh.take_messages()
                self.inputs[name].clear()
                mesh.tick(now)
                self.transports[name].execute(mesh.flush(WriteBatch(), now))
            return until()

        return self.poll(turn)

    def join(self, joiner, target):
        self.meshes[joiner].join(target, self.addresses[target], time.monotonic())
        results = []

        def decided():
            result = self.meshes[joiner].take_join_result()
            if result is not None:
                results.append(result)
            return bool(results)

        assert self.run(decided), "no outcome within 10 s"
        return results[0]


@pytest.fixture
def meshes():
    found = Meshes()
    yield found
    for transport in found.transports.values():
        transport.close()


def test_three_meshes_join_and_a_message_crosses(meshes):
    names = ["node1@a", "node2@a", "node3@a"]
    for name in names:
        meshes.start(name)
    assert meshes.join("node2@a", "node1@a").joined
    # node2 has not heard of node3 when node3 first knocks.
    assert meshes.join("node3@a", "node1@a").joined
    for name in names:
        assert meshes.run(lambda name=name: all(view.running for view in meshes.meshes[name].members_view()))
        assert len(meshes.meshes[name].members_view()) == 3
    sent = Message(b"a/b", b"hi", b"", 1, False, 0.0, "client", b"o" * 16, 7)
    meshes.meshes["node3@a"].forward("node2@a", sent, None, time.monotonic())
    assert meshes.run(
        lambda: sent.key() in [each.key() for each in meshes.messages["node2@a"] if isinstance(each, Message)]
    )


def test_three_meshes_find_each_other_by_discovery(meshes):
    names = ["node1@a", "node2@a", "node3@a"]
    for name in names:
        meshes.start(name)
    candidates = [(name, meshes.addresses[name]) for name in names]
    for name in names:
        meshes.meshes[name] = Mesh(
            MeshSettings(name, meshes.addresses[name], 5.0, tuple(candidates)),
            MemoryStorage(),
            name.encode().ljust(16, b"."),
            1,
            name.encode(),
            time.monotonic(),
        )

    def one_cluster():
        views = [mesh.members_view() for mesh in meshes.meshes.values()]
        return all(len(view) == 3 and all(member.running for member in view) for view in views)

    assert meshes.run(one_cluster)
    assert len({mesh.cluster_id for mesh in meshes.meshes.values()}) == 1


def test_a_join_with_another_cookie_fails_with_its_reason(meshes):
    meshes.start("node1@a")
    meshes.start("node2@a", "quite another cookie")
    result = meshes.join("node2@a", "node1@a")
    assert not result.joined
    assert HANDSHAKE_REFUSED in result.text
    assert len(meshes.meshes["node1@a"].members_view()) == 1
