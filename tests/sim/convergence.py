"""What a cluster that is left alone comes to: everybody hears everybody, and nothing waits.

Each question is answered with "" or with what is not so yet. `check_store` compares a node with its store.
"""

from collections import Counter

from broker.core.group_choice import LOCAL_ONLY
from broker.core.owner import QueueOwner
from broker.core.retained_rows import value_order
from broker.core.routes import NoInterest
from broker.core.rows import RowKind, Table, row_subject, unpack_interest
from cluster.clock import AHEAD_MS_MAX

# A queue record's flags for a body of its own, and for a released delivery that has none.
APART_MASK = 8 | 16


def unsettled(world, clients):
    """Return "" if all of this is so, but that queues may hold something for who is away; else what is not so yet."""
    return (
        membership_converged(world)
        or clients_idle(world, clients)
        or interest_converged(world)
        or tables_converged(world)
        or retained_converged(world)
        or links_idle(world)
        or groups_idle(world)
        or online_queues_empty(world)
        or moves_over(world)
        or sessions_converged(world, clients)
    )


def membership_converged(world):
    """Return "" if all nodes are in one cluster and hear each other, else what is wrong."""
    names = sorted(node.name for node in world.members())
    clusters = set()
    for node in world.members():
        if not node.up:
            return f"{node.name} is down"
        running = [view.name for view in node.core.members_view() if view.running]
        if running != names:
            return f"{node.name} hears only {running}"
        if len(node.core.members_view()) != len(names):
            return f"{node.name} knows {len(node.core.members_view())} members"
        clusters.add(node.core.mesh.cluster_id)
    return "" if len(clusters) == 1 else f"there are {len(clusters)} clusters"


def interest_converged(world):
    """Return "" if every node knows exactly what every other wants, else what is wrong."""
    for node in world.members():
        wishes = dict(node.core.owner.local_interest())
        rows = node.core.mesh.own.all[Table.PASSING].rows.scan()
        told = {row_subject(row): unpack_interest(value) for _, row, value in rows if row[0] == RowKind.INTEREST}
        if told != wishes:
            return f"{node.name} tells others something else than it wants"
        stored = sorted(topic_filter for topic_filter, persistent in wishes.items() if persistent)
        for other in world.members():
            if other is not node and sorted(other.core.mesh.interest.persistent_filters(node.name)) != stored:
                return f"{other.name} has other persistent filters of {node.name} than that has"
    return ""


def tables_converged(world):
    """Return "" if every node holds exactly the tables of every other, else what is wrong."""
    for node in world.members():
        for number, own in node.core.mesh.own.all.items():
            for other in world.members():
                if other is node:
                    continue
                peer = other.core.mesh.peers.get(node.name)
                if peer is None or not peer.tables.replicas[number].is_at(own.position()):
                    return f"{other.name} does not know table {number} of {node.name}"
    registries = {frozenset(node.core.mesh.registry.rows()) for node in world.members()}
    return "" if len(registries) == 1 else "the nodes know different homes of client ids"


def retained_converged(world):
    """Return "" if all nodes show the same retained messages, and each is one node's, else what is wrong."""
    shown = {}
    rows = {}
    for node in world.members():
        store = node.core.owner.retained
        shown[node.name] = {message.topic: message.payload for message in store.match(b"#", node.clocks.monotonic())}
        for _, row, value in node.core.mesh.own.all[Table.RETAINED].rows.scan():
            rows.setdefault(row_subject(row), []).append(value_order(value))
    first = next(iter(shown.values()))
    for name, found in shown.items():
        if found != first:
            return f"{name} shows other retained messages"
    if sorted(rows) != sorted(first) or any(len(orders) > 1 for orders in rows.values()):
        return f"there are rows {sorted(rows)} of the retained topics {sorted(first)}"
    return ""


def moves_over(world):
    """Return "" if no session is under way between nodes and nobody has or wants a turn, else where that is so."""
    for node in world.members():
        # Whoever waits with a CONNECT has a turn, or wants one.
        counts = node.core.moving.counts()
        for name in ("moves_arriving", "moves_leaving", "turns_kept", "turns_requested"):
            if counts[name]:
                return f"{node.name} has {counts[name]} of {name}"
        ended = node.core.mesh.registry.own_ended()
        if ended:
            return f"{node.name} still says what of {ended[0]} is over"
    return ""


def sessions_converged(world, clients):
    """Return "" if every session is at one node, with its client's connection and subscriptions; else which is not."""
    homes = {}
    for node in world.members():
        for client_id, _home in node.core.mesh.registry.clients_of(node.name):
            homes.setdefault(client_id, []).append(node)
    for client in clients:
        if client.contends:
            homes.pop(client.client_id, None)
            continue
        found = homes.pop(client.client_id, [])
        online = client.state == "online"
        # Of a CONNECT without an answer its client does not know what came of it.
        # One that had just moved may be lost with the power of its new home.
        fewest, most = int((client.session_exists and not world.power_loss) or online), int(client.persistent or online)
        if not fewest <= len(found) <= most:
            return f"{client.name} has {len(found)} sessions"
        for node in found:
            session = node.core.owner.session(client.client_id)
            if (session.attachment is not None) != online or (online and node is not client.home):
                return f"{client.name} is {client.state} at {client.home.name}, in the eyes of {node.name} it is not"
            wanted = set(session.subscriptions)
            # Of two nodes that were apart the latest home's word counts, a Clean Start as well, and not the last one of
            # a client that went back to an older home; but if that has been removed, only where somebody had heard it.
            removed = {store_id for _name, store_id in node.core.mesh.membership.removed}
            sure = {
                topic_filter
                for topic_filter in set(client.subscribed) - client.outdated
                for said_by in [client.said_by[topic_filter]]
                if said_by <= session.epoch or said_by.store_id not in removed
            }
            if not sure <= wanted <= set(client.ever_wanted) and not world.power_loss:
                return f"{client.name} has {sorted(wanted)} at {node.name}, not {sorted(client.subscribed)}"
    return f"there are sessions of {sorted(homes)}, which nobody knows" if homes else ""


def check_clock(world, node):
    """No node goes by a time that is later than the latest that it may believe."""
    ahead_ms = (node.core.mesh.stamp() >> 16) - node.clocks.utc_ms()
    # What was stamped before the clock was set back goes on.
    latest_ms = AHEAD_MS_MAX + node.clocks.set_back_ms + 1000
    world.check(ahead_ms <= latest_ms, f"{node.name} stamps {ahead_ms} ms ahead of its clock")


def check_tables(world, node):
    """What is told of sessions is what they are, and the sums of all tables are those of their rows."""
    told = {}
    for number, own in node.core.mesh.own.all.items():
        own.validate_rows()
        of_sessions = (RowKind.SESSION, RowKind.SUBSCRIPTION, RowKind.WILL, RowKind.GROUP)
        told.update({(number, row): value for _, row, value in own.rows.scan() if row[0] in of_sessions})
    found = {(table, row): value for table, row, value in node.core.owner.local_rows()}
    world.check(told == found, f"{node.name} tells others something else of its sessions than is so")
    for peer in node.core.mesh.peers.values():
        for replica in peer.tables.replicas.values():
            replica.validate_rows()


def links_idle(world):
    """Return "" if every link is open and empty, else which is not."""
    for node in world.members():
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
        if client.comes_back and not client.is_idle():
            waiting = len(client.outbox.under_way), len(client.inbox.received)
            return f"{client.name} has {waiting[0]} publishes under way and {waiting[1]} QoS 2 messages half received"
    return ""


def queues_empty(world):
    """Return "" if no delivery waits or is in flight on any node, else where."""
    for node in world.members():
        queued = node.core.owner.counts()["queued_messages"]
        if queued:
            return f"{node.name} holds {queued} deliveries"
    return ""


def groups_idle(world):
    """Return "" if nothing of a group waits where nobody is connected, while somebody elsewhere is; else where."""
    online = {}
    for node in world.members():
        for name, group in node.core.owner._groups.all.items():
            online[name] = online.get(name, 0) + len(group.online)
    for node in world.members():
        for name, group in node.core.owner._groups.all.items():
            if not group.members:
                return f"{node.name} has {len(group.queue)} messages of {name!r}, of which it has no members"
            hoards = node.settings.shared_policy != LOCAL_ONLY and not group.online and online[name]
            if hoards and not group.queue.is_empty():
                return f"{node.name} hoards {len(group.queue)} messages of {name!r}"
    return ""


def check_store(world, node):
    """What a restart would find is what is in memory, and nothing in the store is an orphan."""
    survivor = node.storage.survivor()
    contents = survivor.snapshot()
    # No client of the simulator has subscription identifiers, so the message's key stands at the end.
    referenced = {value[-24:] for value in contents["queue"].values() if not value[1] & APART_MASK}
    orphans = set(contents["message"]) - referenced
    world.check(not orphans, f"{node.name} stores {len(orphans)} messages that no queue points to")
    sessions = {key for key in contents["session"] if len(key) == 8}
    groups = {key[:8] for key in contents["session"] if key[8:9] == b"$"}
    parts = [key for key in contents["session"] if key[8:9] != b"$" and key[:8] not in sessions]
    world.check(not parts, f"{node.name} stores {len(parts)} parts of no session")
    strays = [key for key in contents["queue"] if key[:8] not in sessions | groups]
    world.check(not strays, f"{node.name} stores {len(strays)} deliveries of no session or group")
    recovered = QueueOwner(node.settings, survivor, NoInterest(), node.store_id, 1 << 20)
    recovered.recover(node.clocks.monotonic(), node.clocks.utc_ms())
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
    for node in world.members():
        queued = node.core.owner.counts()["queued_messages"]
        stored = len(node.storage.snapshot()["queue"])
        if queued != stored:
            return f"{node.name} holds {queued} deliveries in memory, {stored} in its store"
    return ""
