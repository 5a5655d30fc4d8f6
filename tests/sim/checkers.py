"""The checkers: what must be true of a history, by the promises of the design as they stand in this version.

They look at the nodes through public methods and at what clients saw; they never help the broker along.

The promise of delivery holds for persistent sessions whose interest was known at the publisher's node when the publish
began: interest spreads asynchronously. What a full queue dropped is counted by its node, and only so much may be
missing there. That somebody at a session's home wants the same is enough, unless the publisher's node leaves: removed
without its leave it gives what it kept, as a donor, only to those sessions of which it knew themselves.

QoS 2 is exactly once, at every node and whoever dies. A session that began at another node while its old home was away
may get more than once what was on its way at that time, and what its old home still has when that is back. One whose
home was removed without its leave (an orphan) may get once more what that had sent it, as nobody knows what was in
flight there; it misses what that had in its store, unless that comes back as a donor, and gets it in front of the rest.
"""

from bisect import bisect_left

from latecomer import HELD, NAME, TWIN_FILTER
from ledger import matches, shared_part
from virtual_node import FAILURE_TIMEOUT_S

from broker.core.group_choice import LOCAL_ONLY
from broker.core.subscription import QOS_MASK

QUEUE_FULL = "queue_full"
# What two pipes and a turn take at most, in seconds.
PIPES_S = 0.1
# What the node and its timers may be late; how long a node may stand still, or leave what listeners say.
LATE_S = 1.0
STALL_S = 7.0
CLOCK_S = 0.05
# How long after a death others publish a will that is due, after they have missed the node; and how long before it they
# must have been at one to know the will.
CLAIM_S = 5.0
# How soon after a death at least somebody misses the node.
MISSED_S = FAILURE_TIMEOUT_S - 0.5
PEACE_S = 6.0
# So long before and after, a partition may matter to what is published.
APART_S = 15.0


def promise(world, clients, publisher, message):
    """Write into a message, which its publisher sends now, which sessions and shared groups it is promised to.

    One that was sent before, and to another node, may be either's: it is promised where both knew of an interest.
    """
    home = publisher.home
    if message.sends and message.home is home:
        return
    promised, groups = set(), set()
    if message.qos and home.up:
        promised, groups = _owed(world, clients, home, message)
    if message.sends:
        promised &= message.promised
        groups &= message.groups
    message.home = home
    message.promised = promised
    message.groups = groups


def _owed(world, clients, home, message):
    """Return the sessions and the shared groups which a node owes a message."""
    promised, groups = set(), set()
    interest = home.core.mesh.interest
    known = {name: set(interest.persistent_filters(name)) for name in world.nodes}
    for client in clients:
        if not client.persistent or not client.session_exists:
            continue
        if client.shares:
            _promise_group(client, home, message, groups)
            continue
        if client.wanders():
            if _is_owed_to_roamer(world, client, known, message):
                promised.add(client.name)
            continue
        local = client.home is home
        knows = known[client.home.name]
        if home is world.leaver and not local:
            knows = knows & _known_to_donor(world, home, client)
        for topic_filter, qos in client.subscribed.items():
            if qos and (local or topic_filter in knows) and matches(topic_filter, message.topic):
                promised.add(client.name)
                break
    return promised, groups


def _known_to_donor(world, node, client):
    """Return by which filters of a client a node keeps messages for its session, and not only for others at its home.

    If it is removed and gives them as a donor, it gives them to the sessions that it knew, and to nobody else.
    """
    home = node.core.mesh.registry.find(client.client_id)
    registries = [each.core.mesh.registry for each in world.running_nodes()]
    if home is None or any(registry.is_over(client.client_id, home.epoch.counter) for registry in registries):
        # The client has begun anew where this node did not hear it.
        return set()
    return {topic_filter for topic_filter, is_kept in _wishes(node, client, client.home.name).items() if is_kept}


def _wishes(node, client, home_name):
    """Return what a node knows of the filters of a client's session at a home, and whether it keeps anything by each.

    What is known to be wanted at QoS 0 alone is kept for nobody who is away, wherever the session goes.
    """
    peer = node.core.mesh.peers.get(home_name)
    head = peer and peer.tables.head_of(client.client_id)
    return {topic_filter: options & QOS_MASK != 0 for topic_filter, options, _ in head.subscriptions} if head else {}


def _promise_group(client, home, message, groups):
    """A group lasts as long as a member that never leaves its node; with `local_only` one at the publisher's node."""
    if not client.steady or client.wanders():
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
            groups.add(topic_filter)


def _is_owed_to_roamer(world, client, known, message):
    """What every node has known that it is wanted stays known wherever the client goes."""
    filters = client.subscribed
    if not client.rooted >= set(filters):
        others = [node for node in world.members() if node is not client.home]
        known_to_all = all(
            node.up and knows_session(node, client, client.home.name) and _knows_what_is_left(node, client)
            for node in others
        )
        if known_to_all and not _is_new_on_its_way(client):
            client.rooted = set(filters)
    return any(qos and name in client.rooted and matches(name, message.topic) for name, qos in filters.items())


def _is_new_on_its_way(client):
    """Say whether a client may have made a subscription while its session was moving.

    What the new home gets directly below an origin's mark is left to the old one, which does not know such a filter.
    """
    if client.roams:
        return False
    session = client.home.core.owner.session(client.client_id) if client.home.up else None
    return session is None or session.arrival is not None


def _knows_what_is_left(node, client):
    """Say whether a node knows of all that a session has left at other nodes: who joins may hear of its home first."""
    known = {node.name, *[home.node for home in node.core.mesh.registry.homes(client.client_id)]}
    return all(
        other.name in known
        for other in node.world.running_nodes()
        if client.client_id in other.core.moving.departures.leavings
    )


def knows_session(node, client, home_name):
    """Say whether a node knows what the session wants at a home, and not only that somebody there wants the same."""
    kept = _wishes(node, client, home_name)
    knows_all = all(kept.get(topic_filter) == (qos != 0) for topic_filter, qos in client.subscribed.items())
    return knows_all and set(client.subscribed) <= set(node.core.mesh.interest.persistent_filters(home_name))


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
            client = by_name[name]
            lost = world.is_lost(client.client_id, message.payload, client.wanders())
            if message.payload not in received[name] and not lost:
                # What a roamer lost may have been dropped anywhere.
                place = "" if client.wanders() else client.home.name
                missing.setdefault(place, []).append((message.number, message.publisher, name))
        for group in sorted(message.groups):
            world.count("promises to groups")
            members = [client for client in clients if group in client.ever_wanted]
            names = [group.decode(), *[member.client_id for member in members]]
            lost = any(world.is_lost(name, message.payload) for name in names)
            if not lost and not any(member.name in message.finishers for member in members):
                # It may have been dropped at any node.
                missing.setdefault("", []).append((message.number, message.publisher, group.decode()))
    for left in ledger.wills:
        low, _high = expected_wills(world, left)
        for client in clients:
            if client.steady and low and b"will/#" in client.wanted:
                world.count("wills due")
                payload = left.message.payload
                lost = world.is_lost(client.client_id, payload, client.wanders())
                if payload not in received[client.name] and not lost:
                    missing.setdefault(client.home.name, []).append(
                        (left.message.number, left.client.name, client.name)
                    )
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


def copies_allowed(world, by_name, message):
    """Return how many copies of a message of QoS 1 or 2 a session may be sent."""
    if message.will:
        return 1
    publisher = by_name[message.publisher]
    if message.qos == 1 or not publisher.persistent:
        # Every sending is a publish: QoS 1 is at least once, and nobody knows the ids of a session that is over.
        return message.sends
    # A session that began anew without its old home may not know what its client has sent there.
    anew = world.revived[publisher.client_id] + (publisher.client_id in world.orphans)
    return min(message.sends, 1 + anew)


def check_copies(world, clients, ledger):
    """No message came more often than it may; QoS 0 may repeat after a crash of the home."""
    by_name = {client.name: client for client in clients}
    for client in clients:
        if client.shares:
            continue
        if client.contends:
            # It shares its session with others, and has seen only a part of what that was sent.
            continue
        for payload, copies in client.inbox.copies.items():
            message = ledger.published[payload]
            if message.will:
                # `check_wills` counts these.
                continue
            # What was on the way when an old home went away may be at both, and nobody can tell before it is back;
            # that is so of each publish of a message that was sent several times. So may what came while a node with a
            # session of the same client id was joining.
            homes = 1 + world.twins[client.client_id] + world.revived[client.client_id]
            if message.sent_at[0] >= world.donates_since:
                # A donor gives what it had when it was a member, and nothing that others have had directly since.
                homes -= world.revived_before[client.client_id]
            publishes = copies_allowed(world, by_name, message) if message.qos else 1
            limit = _copies_again(world, client, message, publishes) + homes * (
                publishes if message.qos else 1 + sum(node.crashes for node in world.nodes.values())
            )
            world.check(
                copies <= limit,
                f"{client.name} received message {message.number} of QoS {message.qos} {copies} times, though "
                f"{message.publisher} sent it {message.sends} times",
            )
    check_groups(world, clients, ledger)


def _copies_again(world, client, message, publishes=1):
    """Return how many copies that a client had at a node which left may come again, of a message published so often.

    To an orphan they may have been in flight there. Who has no session beside its connection, or began anew, has
    another session elsewhere, and nothing is known there of what the last one had: what was on its way to that node,
    for whoever wants it there, is for this session as well: each publish of it.
    """
    payload = message.payload
    began_anew = not client.persistent or len(client.inbox.sessions[payload]) > 1
    if not began_anew and client.client_id not in world.orphans:
        return 0
    return min(client.inbox.from_leaver[payload], publishes)


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
                len(ended) <= copies_allowed(world, by_name, message) + sum(ended) + moved,
                f"message {message.number} of QoS {message.qos} went to {len(ended)} sessions of {group}, of which "
                f"{sum(ended)} ended, and was taken from dead nodes {moved} times",
            )


def check_order(world, clients, ledger, unordered=()):
    """First deliveries to a session come in the publisher's order, by publisher, topic and QoS, but of some publishers.

    A message that was sent again may have missed a session the first time, if that had no promise then. A group has
    no order: what a member could not take goes to another. Nor have two nodes to which a publisher has been.
    Nor have two sessions of one client: what a node has for another one since long before a session began is for that
    session too if it is there when it comes, be it older than what the client's last session had.
    """
    by_name = {client.name: client for client in clients}
    for client in clients:
        if client.shares or client.contends:
            continue
        if world.revived[client.client_id] or client.client_id in world.orphans:
            # What its old homes had came when they were back.
            continue
        settings = client.home.settings
        if settings.queue_lifo and client.wanders():
            # What another node has is no younger or older than what is here.
            continue
        if settings.queue_lifo:
            check_lifo_order(world, client, ledger)
            continue
        last = {}
        seen = set()
        for arrival in client.inbox.arrivals:
            payload = arrival.payload
            if (arrival.session, payload) in seen:
                continue
            seen.add((arrival.session, payload))
            message = ledger.published[payload]
            if message.will or message.publisher in unordered:
                # One will may be published by another node than the next.
                continue
            if world.twins[client.client_id] and matches(TWIN_FILTER, message.topic):
                # What its twin had before that node joined came when it had, whatever this session had of it till then.
                continue
            bounded = settings.max_offline_messages >= 0
            roams = not message.will and by_name[message.publisher].wanders()
            if message.sends > 1 and (bounded or roams or client.name not in message.promised):
                continue
            stream = (arrival.session, message.publisher, message.home, message.topic, message.qos, arrival.qos)
            world.check(
                last.get(stream, 0) < message.number,
                f"{client.name} received message {message.number} of {message.publisher} on "
                f"{message.topic.decode()} (QoS {message.qos}, granted {arrival.qos}) after message {last.get(stream)}",
            )
            last[stream] = message.number


def check_lifo_order(world, client, ledger):
    """The youngest first: nothing goes out for the first time while something younger, acknowledged, waits.

    What was published at another node may be acknowledged long before it is in the queue, and is younger there.
    """
    waited = {}
    for arrival in reversed(client.inbox.arrivals):
        message = ledger.published[arrival.payload]
        if arrival.qos == 0 or arrival.again or client.inbox.copies[arrival.payload] > 1:
            continue
        # Of what came after this, in the order of publishing and so of acknowledgement.
        stream = (message.publisher, message.home, message.topic, message.qos, arrival.qos)
        numbers = waited.setdefault(stream, [])
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


def _misses_alive(world, left, back_at):
    """Return how often the node of a will was taken for dead while it lived."""
    return sum(
        is_up and name == left.home.name and left.asked_at <= at <= back_at for at, name, is_up, _ in world.misses
    )


def expected_wills(world, left):
    """Return how often a will has to be published at least, and at most.

    In a cluster at one that is once at most: by its own node, or by another one when that is away for long enough.
    While some node takes another for dead that lives, each may publish it, and again the next time. So may others when
    the node has published it and died before anybody heard of that, or everybody who did.
    """
    home = left.home
    back_at = left.back_at or world.now
    back_asked_at = left.back_asked_at or world.now
    # What is cut off when the client connects, or when the will is published, counts as well.
    divided = world.is_divided(left.asked_at - APART_S, back_at + APART_S)
    high = len(world.nodes) + _misses_alive(world, left, back_at) if divided else 1
    ignorant = 0 if divided else _ignorant(world, left, back_at)
    if ignorant:
        return 0, ignorant + (not left.farewell_arrived)
    if left.farewell and left.farewell_arrived and not divided:
        # A node that stood still may hear first that the session is elsewhere, and then what its listener had said.
        stands_still = world.stats["stalls"] or world.stats["slow nodes"]
        return 0, 1 if stands_still and back_asked_at - left.ended_at < STALL_S else 0
    if not left.connected or left.farewell:
        # Nobody but the node knows whether it had the CONNECT, or the DISCONNECT.
        return 0, high
    if home is world.leaver and world.leaves_since <= back_at:
        return _expected_of_leaver(world, left, back_asked_at, back_at, high)
    if left.taken_over:
        # Another session of the client id came to its node, or its own went: some settings have that suppress wills.
        return 0, high
    if world.revived[left.client.client_id] and left.told_at > back_asked_at:
        # It was back elsewhere before its node had heard of the end, and that was taken for dead or not heard yet.
        return 0, high
    if divided:
        return 0, high
    if not left.ended_at:
        return 0, 0
    if home.clocks.was_set and home.died_at:
        # Deadlines that are stored go by the wall clock.
        return 0, high
    deaths = [at for at in home.died_at if left.asked_at <= at <= back_at]
    if _may_be_unheard(world, left, deaths):
        return 0, len(world.nodes)
    if _is_spent_unheard(world, left):
        return 0, 1
    if not deaths:
        if left.delay_s == 0:
            return 1, 1
        first, last = left.ended_at + left.delay_s, left.told_at + left.delay_s
    else:
        wait_s = max(left.delay_s, home.settings.leave_will_grace_s)
        starts = [at for at in home.started_at if at <= back_asked_at]
        # The connection that a death ended waits for the grace; one that had ended before may be due without.
        waited = left.ended_at < deaths[0]
        first = left.ended_at + left.delay_s if waited else deaths[0] + wait_s
        # From here on another node may publish it.
        missed_at = deaths[0] + MISSED_S
        due_at = left.ended_at + left.delay_s if waited else missed_at + left.delay_s
        first = min(first, max(missed_at, home.waited_until[deaths[0]], due_at))
        last = max(starts[-1] + wait_s, left.told_at + left.delay_s)
    if back_at < first - CLOCK_S:
        return 0, 0
    late_s = LATE_S + (STALL_S if world.stats["stalls"] or world.stats["slow nodes"] else 0.0)
    if deaths:
        last = max(last, starts[-1])
        others = [node for node in world.nodes.values() if node is not home]
        if any(at > deaths[0] + MISSED_S for node in others for at in node.died_at):
            # A will that it had claimed waits until it is back.
            last = max(last, max(at for at in world.troubles if at <= back_asked_at))
    # So long a node waits at most to know what others did that start or die meanwhile.
    last += CLAIM_S
    if home.up and back_asked_at > last + late_s:
        return 1, 1
    return (1, 1) if deaths and _is_claimed(world, left, deaths[-1], back_asked_at - late_s) else (0, 1)


def _ignorant(world, left, back_at):
    """Return how many nodes were down when a will was over, and had nobody soon after their start that knew of that."""
    if not left.ended_at:
        return 0
    over_at = min(left.told_at + left.delay_s, back_at) + LATE_S
    found = 0
    for node in world.nodes.values():
        others = [other for other in world.nodes.values() if other is not node]
        for died_at in node.died_at if node is not left.home else ():
            start_at = min([at for at in node.started_at if at > died_at], default=0.0)
            if left.asked_at <= died_at <= over_at and start_at >= left.ended_at:
                found += all(_was_down(other, died_at, start_at + PEACE_S) for other in others)
    return found


def _was_down(node, since, until):
    """Say whether a node was down at some time between two."""
    if any(since <= at <= until for at in node.died_at):
        return True
    deaths = [at for at in node.died_at if at < since]
    return bool(deaths) and not any(deaths[-1] < at <= since for at in node.started_at)


def _expected_of_leaver(world, left, back_asked_at, back_at, high):
    """The will of a connection that the leave has closed waits for the grace; none fires of who is back by then."""
    if any(left.asked_at <= at for node in world.nodes.values() for at in node.died_at):
        return 0, len(world.nodes)
    if not left.evicted or high > 1:
        return 0, high
    due_at = left.ended_at + max(left.delay_s, left.home.settings.leave_will_grace_s)
    if back_at < due_at - CLOCK_S:
        return 0, 0
    return (1, 1) if back_asked_at > due_at + LATE_S + STALL_S + CLAIM_S else (0, 1)


def _may_be_unheard(world, left, deaths):
    """Say whether a node may have published a will and died before anybody heard of that."""
    if not deaths or not left.ended_at:
        return False
    published_at = left.ended_at + left.delay_s
    before = [at for at in world.troubles if published_at - PEACE_S < at < deaths[0]]
    in_peace = not before and deaths[0] > left.told_at + left.delay_s + LATE_S
    return len(deaths) > 1 or (published_at <= deaths[0] and not in_peace)


def _is_spent_unheard(world, left):
    """Say whether the client may have been back at a node that had not heard its home yet since it had started.

    It spends the will that the client left at a home which is away; that home had not been told of the end by then, or
    died before anybody had heard of the will.
    """
    has_died = any(left.asked_at <= at <= left.told_at for at in left.home.died_at)
    if not left.back_at or (left.back_at > left.told_at and not has_died):
        return False
    others = [node for node in world.nodes.values() if node is not left.home]
    return any(left.back_at - PEACE_S < at <= left.back_at for node in others for at in node.started_at)


def _is_claimed(world, left, died_at, until):
    """Say whether others had to publish a will of a node that died, in peace otherwise, until a time."""
    before = [at for at in world.troubles if at < died_at]
    after = [at for at in world.troubles if died_at < at <= until]
    if after or died_at - max(before[-1], left.asked_at) < PEACE_S or not left.ended_at:
        return False
    missed = [max(at, planned) for at, name, _, planned in world.misses if name == left.home.name and at >= died_at]
    return bool(missed) and until > max(missed[0], left.told_at) + left.delay_s + CLAIM_S


def _publications(world, client, message):
    """Return how often a will was published, by what a client got: that may have come twice for another reason."""
    copies = client.inbox.copies[message.payload]
    again = world.revived[client.client_id] + world.twins[client.client_id] + _copies_again(world, client, message)
    return max(min(copies, 1), copies - again)


def check_wills(world, clients, ledger):
    """No will came that must not come; that those came which must, `check_delivery` has seen."""
    for left in ledger.wills:
        _low, high = expected_wills(world, left)
        copies = max(_publications(world, client, left.message) for client in clients if not client.shares)
        if copies:
            world.count("wills published")
        world.check(
            high or not copies,
            f"the will {left.message.number} of {left.client.name} was published, which "
            f"{'said goodbye' if left.farewell else 'came back'}",
        )
        world.check(
            copies <= high,
            f"the will {left.message.number} of {left.client.name} was published {copies} times",
        )


def _words(messages):
    """Return what is retained by these messages."""
    return [b"" if message.deletes else message.payload for message in messages]


def _last(messages):
    """Return those of one publisher's messages of which any may be the last word.

    One of QoS 1 that is sent again is a new message [MQTT-4.3.2-5], and one of QoS 2 is not [MQTT-4.3.3-10]: if both
    have arrived and are sent again, the former stands, though the latter is behind it each time.
    """
    last = messages[-1]
    again = [message for message in messages if message.qos == 1 and message.sent_at[1] > last.sent_at[0]]
    return [last, again[-1]] if last.qos == 2 and again else [last]


def check_retained(world, ledger):
    """Of a topic that one publisher sets, its last word stands; of any other somebody's word that was not refused.

    Of what a latecomer brought nothing stands against what the cluster had.
    """
    said = {}
    # A publisher that went to another node, which did not hear of what it had said before, had two first words.
    unsure = set()
    held = b""
    for message in ledger.published.values():
        if message.retain and message.home is world.leaver and (world.orphans or world.stats["skews"]):
            unsure.add(message.topic)
        if message.topic == HELD and message.home.name != NAME:
            held = message.payload
        if message.retain and not message.refused:
            said.setdefault(message.topic, []).append(message)
    for node in world.members():
        now = node.clocks.monotonic()
        shown = {message.topic: message.payload for message in node.core.owner.retained.match(b"#", now)}
        for topic, messages in said.items():
            found = shown.pop(topic, b"")
            if topic == HELD:
                world.check(found == held, f"{node.name} retains {found[:20]!r} of {topic!r}, which the latecomer set")
            elif b"/of/" in topic and topic not in unsure:
                stands = found in _words(_last(messages))
                world.check(stands, f"{node.name} retains {found[:20]!r} of {topic!r}, not the last word")
            else:
                stands = found in {b"", *_words(messages)}
                world.check(stands, f"{node.name} retains {found[:20]!r} of {topic!r}")
        world.check(not shown, f"{node.name} retains what nobody published: {sorted(shown)}")
