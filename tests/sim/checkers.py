"""The checkers: what must be true of a history, by the promises of the design as they stand in this version.

They look at the nodes through public methods and at what clients saw; they never help the broker along.

The promise of delivery holds for persistent sessions whose interest was known at the publisher's node when the publish
began: interest spreads asynchronously. What a full queue dropped is counted by its node, and only so much may be
missing there.
"""

from collections import Counter

from virtual_clients import matches

from broker.core.owner import QueueOwner
from broker.core.routes import NoInterest
from cluster.interest import wish_hash

MASK = (1 << 64) - 1
QOS0_REASON = "offline_qos0"
QUEUE_FULL = "queue_full"


def promised_sessions(world, clients, publisher, message):
    """Return the names of the sessions that a message, whose publish begins now, is promised to."""
    if message.qos == 0 or not publisher.home.up:
        return set()
    mesh = publisher.home.core.mesh
    known = {name: set(mesh.interest.persistent_filters(name)) for name in world.nodes}
    promised = set()
    for client in clients:
        if not client.persistent or not client.session_exists:
            continue
        local = client.home is publisher.home
        for topic_filter, qos in client.subscribed.items():
            if qos and (local or topic_filter in known[client.home.name]) and matches(topic_filter, message.topic):
                promised.add(client.name)
                break
    return promised


def check_delivery(world, clients, ledger):
    """Every acknowledged QoS 1 message reached every session that it was promised to, minus counted drops."""
    by_name = {client.name: client for client in clients}
    received = {client.name: {payload for payload, _qos in client.arrivals} for client in clients}
    missing = {}
    for message in ledger.published.values():
        if not message.acked:
            continue
        for name in sorted(message.promised):
            world.count("promises")
            if message.payload not in received[name]:
                missing.setdefault(by_name[name].home.name, []).append((message.number, message.publisher, name))
    for node_name, lost in missing.items():
        dropped = world.nodes[node_name].dropped()[QUEUE_FULL]
        world.count("dropped by full queues", len(lost))
        world.check(
            len(lost) <= dropped,
            f"{len(lost)} acknowledged messages never arrived at sessions of {node_name}, which counted {dropped} "
            f"drops: (message, publisher, session) {lost[:5]}",
        )


def check_copies(world, clients, ledger):
    """No message came more often than its publisher sent it; QoS 0 may repeat after a crash of the home."""
    for client in clients:
        for payload, copies in client.copies.items():
            message = ledger.published[payload]
            allowed = message.sends if message.qos else 1 + client.home.crashes
            world.check(
                copies <= allowed,
                f"{client.name} received message {message.number} of QoS {message.qos} {copies} times, though "
                f"{message.publisher} sent it {message.sends} times",
            )


def check_order(world, clients, ledger):
    """First deliveries to a session come in the publisher's order, by publisher, topic and QoS.

    A message that was sent again may have missed a session the first time, if that had no promise then.
    """
    for client in clients:
        last = {}
        seen = set()
        for payload, qos in client.arrivals:
            if payload in seen:
                continue
            seen.add(payload)
            message = ledger.published[payload]
            bounded = client.home.settings.max_offline_messages >= 0
            if message.sends > 1 and (bounded or client.name not in message.promised):
                continue
            stream = (message.publisher, message.topic, message.qos, qos)
            world.check(
                last.get(stream, 0) < message.number,
                f"{client.name} received message {message.number} of {message.publisher} on "
                f"{message.topic.decode()} (QoS {message.qos}, granted {qos}) after message {last.get(stream)}",
            )
            last[stream] = message.number


def membership_converged(world):
    """Return "" if all nodes are in one cluster and hear each other, else what is wrong."""
    names = sorted(world.nodes)
    clusters = set()
    for node in world.nodes.values():
        if not node.up:
            return f"{node.name} is down"
        running = [view.name for view in node.core.members_view() if view.running]
        if running != names:
            return f"{node.name} hears only {running}"
        clusters.add(node.core.mesh.cluster_id)
    return "" if len(clusters) == 1 else f"there are {len(clusters)} clusters"


def interest_converged(world):
    """Return "" if every node knows exactly what every other wants, else what is wrong."""
    for node in world.nodes.values():
        wishes = node.core.owner.local_interest()
        own = node.core.mesh.interest
        checksum = sum(wish_hash(topic_filter, persistent) for topic_filter, persistent in wishes) & MASK
        if own.checksum != checksum:
            return f"{node.name} tells others something else than it wants"
        stored = sorted(topic_filter for topic_filter, persistent in wishes if persistent)
        for other in world.nodes.values():
            if other is node:
                continue
            table = other.core.mesh.interest
            if not table.current(node.name, own.incarnation, own.version, own.checksum):
                return f"{other.name} does not know what {node.name} wants"
            if sorted(table.persistent_filters(node.name)) != stored:
                return f"{other.name} has other persistent filters of {node.name} than that has"
    return ""


def links_idle(world):
    """Return "" if every link is open and empty, else which is not."""
    for node in world.nodes.values():
        for view in node.core.members_view():
            if view.name != node.name and (not view.link_open or view.link_bytes_pending):
                return f"the link {node.name} -> {view.name} holds {view.link_bytes_pending} bytes"
    return ""


def clients_idle(world, clients):
    """Return "" if every client that may be online is, and has nothing left to say or to hear; else who has."""
    for client in clients:
        if client.comes_back and client.state != "online":
            return f"{client.name} is {client.state}"
        if client.comes_back and set(client.subscribed) != set(client.wanted):
            return f"{client.name} has not subscribed to {sorted(set(client.wanted) - set(client.subscribed))}"
        if client.comes_back and not client.idle():
            return f"{client.name} waits for {len(client.unacknowledged)} acknowledgements"
    return ""


def queues_empty(world):
    """Return "" if no delivery waits or is in flight on any node, else where."""
    for node in world.nodes.values():
        queued = node.core.owner.counts()["queued_messages"]
        if queued:
            return f"{node.name} holds {queued} deliveries"
    return ""


def check_store(world, node):
    """What a restart would find is what is in memory, and nothing in the store is an orphan."""
    survivor = node.storage.survivor()
    contents = survivor.snapshot()
    referenced = {value[-24:] for value in contents["queue"].values()}
    orphans = set(contents["message"]) - referenced
    world.check(not orphans, f"{node.name} stores {len(orphans)} messages that no queue points to")
    sessions = {key for key in contents["session"] if len(key) == 8}
    for family in ("session", "queue"):
        strays = [key for key in contents[family] if key[:8] not in sessions]
        world.check(not strays, f"{node.name} stores {len(strays)} {family} records without a session")
    recovered = QueueOwner(node.settings, survivor, NoInterest(), node.store_id, 1 << 20)
    recovered.recover(world.now, world.utc_ms())
    recovered.validate()
    stored = recovered.counts()["queued_messages"]
    world.check(
        stored == len(contents["queue"]), f"{node.name} stores {len(contents['queue'])} deliveries, restores {stored}"
    )
    memory = node.core.owner
    wanted = Counter(topic_filter for topic_filter, persistent in memory.local_interest() if persistent)
    found = Counter(topic_filter for topic_filter, persistent in recovered.local_interest())
    world.check(wanted == found, f"{node.name} wants {sorted(wanted)}, after a restart it would want {sorted(found)}")


def online_queues_empty(world):
    """Return "" if only persistent sessions hold deliveries, and memory and store hold the same; else where not."""
    for node in world.nodes.values():
        queued = node.core.owner.counts()["queued_messages"]
        stored = len(node.storage.snapshot()["queue"])
        if queued != stored:
            return f"{node.name} holds {queued} deliveries in memory, {stored} in its store"
    return ""
