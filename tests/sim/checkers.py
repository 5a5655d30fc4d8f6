"""The checkers: what must be true of a history, by the promises of the design as they stand in this version.

They look at the nodes through public methods and at what clients saw; they never help the broker along.

The promise of delivery holds for persistent sessions whose interest was known at the publisher's node when the publish
began: interest spreads asynchronously. What a full queue dropped is counted by its node, and only so much may be
missing there.

QoS 2 is exactly once, at every node and whoever dies. A session that began at another node while its old home was away
may get more than once what was on its way at that time, and what its old home still has when that is back.
"""

from bisect import bisect_left

from ledger import matches, shared_part

from broker.core.group_choice import LOCAL_ONLY

QUEUE_FULL = "queue_full"
# What two pipes and a turn take at most, in seconds.
PIPES_S = 0.1
# What the node and its timers may be late; how long a node may stand still, or leave what listeners say.
LATE_S = 1.0
STALL_S = 7.0
CLOCK_S = 0.02


def promise(world, clients, publisher, message):
    """Write into a message, whose publish begins now, which sessions and shared groups it is promised to."""
    home = publisher.home
    message.home = home
    if message.qos == 0 or not home.up:
        return
    interest = home.core.mesh.interest
    known = {name: set(interest.persistent_filters(name)) for name in world.nodes}
    for client in clients:
        if not client.persistent or not client.session_exists:
            continue
        if client.shares:
            _promise_group(client, home, message)
            continue
        if client.roams:
            _promise_roamer(world, client, known, message)
            continue
        local = client.home is home
        for topic_filter, qos in client.subscribed.items():
            if qos and (local or topic_filter in known[client.home.name]) and matches(topic_filter, message.topic):
                message.promised.add(client.name)
                break


def _promise_group(client, home, message):
    """A group lasts as long as a member that never leaves; with the policy `local_only` one at the publisher's node."""
    if not client.steady:
        return
    for topic_filter, qos in client.subscribed.items():
        if not qos or not matches(shared_part(topic_filter), message.topic):
            continue
        known = client.home is home
        group = home.core.mesh.interest.group(topic_filter)
        if home.settings.shared_policy != LOCAL_ONLY and group is not None:
            part = group.parts.get(client.home.name)
            known = known or (part is not None and part.persistent)
        if known:
            message.groups.add(topic_filter)


def _promise_roamer(world, client, known, message):
    """What every node has known that it is wanted stays known wherever the client goes."""
    filters = client.subscribed
    if not client.rooted:
        others = [node for node in world.nodes.values() if node is not client.home]
        client.rooted = bool(filters) and all(
            node.up and set(filters) <= set(node.core.mesh.interest.persistent_filters(client.home.name))
            for node in others
        )
    if client.rooted and any(qos and matches(name, message.topic) for name, qos in filters.items()):
        message.promised.add(client.name)


def check_delivery(world, clients, ledger):
    """Every acknowledged message reached all that it was promised to, minus counted drops; so did every due will.

    Of a group a member has to have acknowledged it: who only heard it may have gone before the work was done.
    """
    by_name = {client.name: client for client in clients}
    received = {client.name: {arrival.payload for arrival in client.inbox.arrivals} for client in clients}
    missing = {}
    for message in ledger.published.values():
        if not message.acked:
            continue
        for name in sorted(message.promised):
            world.count("promises")
            if message.payload not in received[name]:
                # What a roamer lost may have been dropped anywhere.
                place = "" if by_name[name].roams else by_name[name].home.name
                missing.setdefault(place, []).append((message.number, message.publisher, name))
        for group in sorted(message.groups):
            world.count("promises to groups")
            members = [client for client in clients if group in client.ever_wanted]
            if not any(member.name in message.finishers for member in members):
                # It may have been dropped at any node.
                missing.setdefault("", []).append((message.number, message.publisher, group.decode()))
    for left in ledger.wills:
        home = left.client.home
        low, _high = expected_wills(world, left)
        for client in clients:
            if client.home is home and client.steady and low and b"will/#" in client.wanted:
                world.count("wills due")
                if left.message.payload not in received[client.name]:
                    missing.setdefault(home.name, []).append((left.message.number, left.client.name, client.name))
    everything = [each for lost in missing.values() for each in lost]
    for node_name, lost in [*missing.items(), ("", everything)]:
        nodes = [node for node in world.nodes.values() if node_name in ("", node.name)]
        dropped = sum(node.dropped()[QUEUE_FULL] for node in nodes)
        world.count("dropped by full queues", len(lost))
        world.check(
            len(lost) <= dropped,
            f"{len(lost)} acknowledged messages never arrived at sessions of {node_name or 'all nodes'}, which counted "
            f"{dropped} drops: (message, publisher, session or group) {lost[:5]}",
        )


def copies_allowed(by_name, message):
    """Return how many copies of a message of QoS 1 or 2 a session may be sent."""
    if message.will:
        return 1
    publisher = by_name[message.publisher]
    if message.qos == 1 or not publisher.persistent:
        # Every sending is a publish: QoS 1 is at least once, and nobody knows the ids of a session that is over.
        return message.sends
    return 1


def check_copies(world, clients, ledger):
    """No message came more often than it may; QoS 0 may repeat after a crash of the home."""
    by_name = {client.name: client for client in clients}
    for client in clients:
        if client.shares:
            continue
        for payload, copies in client.inbox.copies.items():
            message = ledger.published[payload]
            # What was on the way when an old home went away may be at both, and nobody can tell before it is back.
            limit = world.revived[client.name] + (
                copies_allowed(by_name, message)
                if message.qos
                else 1 + sum(node.crashes for node in world.nodes.values())
            )
            world.check(
                copies <= limit,
                f"{client.name} received message {message.number} of QoS {message.qos} {copies} times, though "
                f"{message.publisher} sent it {message.sends} times",
            )
    check_groups(world, clients, ledger)


def check_groups(world, clients, ledger):
    """A message goes to one session of a group in the whole cluster; to another only when that one's session ended.

    Or when the node died that was to have it, which may have had it.
    """
    by_name = {client.name: client for client in clients}
    workers = {client.name: client for client in clients if client.shares}
    for message in ledger.published.values():
        if not message.qos:
            continue
        takers = {}
        for name, session in message.takers:
            worker = workers[name]
            (group,) = worker.ever_wanted
            takers.setdefault(group, []).append(session < worker.sessions)
        for group, ended in takers.items():
            moved = world.moved[group, message.payload]
            world.check(
                len(ended) <= copies_allowed(by_name, message) + sum(ended) + moved,
                f"message {message.number} of QoS {message.qos} went to {len(ended)} sessions of {group}, of which "
                f"{sum(ended)} ended, and was taken from dead nodes {moved} times",
            )


def check_order(world, clients, ledger):
    """First deliveries to a session come in the publisher's order, by publisher, topic and QoS.

    A message that was sent again may have missed a session the first time, if that had no promise then. A group has
    no order: what a member could not take goes to another.
    """
    for client in clients:
        if client.shares:
            continue
        if world.revived[client.name]:
            # What its old homes had came when they were back.
            continue
        settings = client.home.settings
        if settings.queue_lifo and client.roams:
            # What another node has is no younger or older than what is here.
            continue
        if settings.queue_lifo:
            check_lifo_order(world, client, ledger)
            continue
        last = {}
        seen = set()
        for arrival in client.inbox.arrivals:
            payload = arrival.payload
            if payload in seen:
                continue
            seen.add(payload)
            message = ledger.published[payload]
            bounded = settings.max_offline_messages >= 0
            if message.sends > 1 and (bounded or client.name not in message.promised):
                continue
            stream = (message.publisher, message.topic, message.qos, arrival.qos)
            world.check(
                last.get(stream, 0) < message.number,
                f"{client.name} received message {message.number} of {message.publisher} on "
                f"{message.topic.decode()} (QoS {message.qos}, granted {arrival.qos}) after message {last.get(stream)}",
            )
            last[stream] = message.number


def check_lifo_order(world, client, ledger):
    """The youngest first: nothing goes out for the first time while something younger, acknowledged, waits.

    What was published at another node may be acknowledged long before it is in the queue.
    """
    waited = {}
    for arrival in reversed(client.inbox.arrivals):
        message = ledger.published[arrival.payload]
        if arrival.qos == 0 or arrival.again or client.inbox.copies[arrival.payload] > 1:
            continue
        # Of what came after this, in the order of publishing and so of acknowledgement.
        numbers = waited.setdefault((message.publisher, message.topic, message.qos, arrival.qos), [])
        place = bisect_left(numbers, (message.number,))
        if place < len(numbers):
            number, acked_at = numbers[place]
            world.check(
                arrival.at <= acked_at + PIPES_S,
                f"{client.name} received message {message.number} of {message.publisher} before message {number}, "
                "although its queue is LIFO and that was there",
            )
        local = message.home is client.home
        if local and message.acked and message.sends == 1 and client.name in message.promised:
            numbers.insert(place, (message.number, message.acked_at))


def expected_wills(world, left):
    """Return how often a will has to be published at least, and at most."""
    if left.farewell and left.farewell_arrived:
        return 0, 0
    if not left.connected or left.farewell:
        # Nobody but the node knows whether it had the CONNECT, or the DISCONNECT.
        return 0, 1
    if not left.ended_at:
        return 0, 0
    home = left.client.home
    back_at = left.back_at or world.now
    back_asked_at = left.back_asked_at or world.now
    deaths = [at for at in home.died_at if left.asked_at <= at <= back_at]
    if not deaths:
        if left.delay_s == 0:
            return 1, 1
        first, last = left.ended_at + left.delay_s, left.told_at + left.delay_s
    else:
        wait_s = max(left.delay_s, home.settings.leave_will_grace_s)
        starts = [at for at in home.started_at if at <= back_asked_at]
        # The connection that a death ended waits for the grace; one that had ended before may be due without.
        first = deaths[0] + wait_s if deaths[0] <= left.ended_at else left.ended_at + left.delay_s
        last = max(starts[-1] + wait_s, left.told_at + left.delay_s)
    if back_at < first - CLOCK_S:
        return 0, 0
    late_s = LATE_S + (STALL_S if world.stats["stalls"] else 0.0)
    return (1, 1) if home.up and back_asked_at > last + late_s else (0, 1)


def check_wills(world, clients, ledger):
    """No will came that must not come; that those came which must, `check_delivery` has seen."""
    came = set()
    for client in clients:
        came.update(arrival.payload for arrival in client.inbox.arrivals)
    for left in ledger.wills:
        _low, high = expected_wills(world, left)
        published = left.message.payload in came
        if published:
            world.count("wills published")
        world.check(
            high or not published,
            f"the will {left.message.number} of {left.client.name} was published, which "
            f"{'said goodbye' if left.farewell else 'came back'}",
        )


def check_retained(world, ledger):
    """Of a topic that one publisher sets, its last word stands; of any other somebody's word that was not refused."""
    last = {}
    words = {}
    for message in ledger.published.values():
        if message.retain and not message.refused:
            last[message.topic] = b"" if message.deletes else message.payload
            words.setdefault(message.topic, set()).add(last[message.topic])
    for node in world.nodes.values():
        shown = {message.topic: message.payload for message in node.core.owner.retained.match(b"#", world.now)}
        for topic in last:
            found = shown.pop(topic, b"")
            if b"/of/" in topic:
                world.check(found == last[topic], f"{node.name} retains {found[:20]!r} of {topic!r}, not the last word")
            else:
                world.check(found in words[topic] | {b""}, f"{node.name} retains {found[:20]!r} of {topic!r}")
        world.check(not shown, f"{node.name} retains what nobody published: {sorted(shown)}")
