"""The simulator finds bugs of a node, its links and its tables: each is planted, and some early seed has to notice."""

import workload
from builds import compiled, interpreted
from planting import RETAINING, WAITING, caught, without
from virtual_node import AFTER_COMMIT

from broker.core.events import CONNECTION_LOST
from broker.core.groups import Groups
from broker.core.netsplit_gate import NetsplitGate
from broker.core.owner import QueueOwner
from broker.core.retained import RetainedStore
from broker.core.rows import BUCKETS
from broker.core.session_store import SessionStore
from broker.core.storage import DELETE, PUT
from cluster.frames import FrameType
from cluster.incoming_link import IncomingLink
from cluster.link import OutgoingLink
from cluster.retained_view import RetainedView
from cluster.tables import Replica


def tormented(world):
    """Plan that listeners die while a link is down, beside the other faults."""

    def strike():
        one, other = world.rng.sample(list(world.nodes.values()), 2)
        world.network.partition(one.name, other.name, False)
        world.later(2.0, world.network.heal, one.name, other.name)
        if one.up:
            for index in range(len(one.listeners)):
                world.later(0.5, one.listener_died, index)

    for place in range(6):
        world.later(8.0 + 3.0 * place, strike)


@compiled
def test_acknowledging_before_the_commit_is_caught():
    def plant(world):
        world.acknowledge_before_commit = True
        world.crash_points = (AFTER_COMMIT,)

    caught(plant)


@compiled
def test_a_position_that_is_not_committed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and key.startswith(b"position/"))

    caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_message_that_is_not_committed_to_an_outbox_is_caught():
    def forget(node, effects):
        # Of those that are in memory, too: a run that is read back would miss the others at once.
        links = [peer.outgoing for peer in node.core.mesh.peers.values()]
        spilling = any(link.bytes_behind for link in links)
        without(effects, lambda kind, family, key, value: kind == PUT and family == "outbox" and not spilling)

    assert "never arrived" in caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_message_that_stays_in_an_outbox_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == DELETE and family == "outbox")

    found = caught(lambda world: world.mutations.append(forget))
    # In the end, or by the node itself when it reads there.
    assert "stores what every other node has" in found or "the outbox lacks" in found


@compiled
def test_a_queue_record_that_is_not_committed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and family == "queue" and node.life > 1)

    caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_message_that_is_not_deleted_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind != PUT and family == "message")

    assert "no queue points to" in caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_subscription_that_is_not_committed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and family == "session" and len(key) > 8)

    caught(lambda world: world.mutations.append(forget))


@interpreted
def test_a_puback_before_the_link_ack_is_caught(monkeypatch):
    forward = OutgoingLink.forward
    waiting = []

    def keep_ticket(self, message, ticket, persistent, running, now, address):
        if ticket is not None:
            waiting.append(ticket)
        return forward(self, message, None, persistent and ticket is None, running, now, address)

    def acknowledge(node, effects):
        for ticket in waiting:
            node.core.owner.forward_acknowledged(ticket, node.clocks.monotonic())
        waiting.clear()

    def plant(world):
        waiting.clear()
        world.mutations.append(acknowledge)

    monkeypatch.setattr(OutgoingLink, "forward", keep_ticket)
    assert "never arrived" in caught(plant)


@interpreted
def test_a_receiver_that_does_not_discard_duplicates_is_caught(monkeypatch):
    receive = IncomingLink.receive

    def receive_again(self, forwards, now):
        if forwards.session == self.session and forwards.first <= self.position:
            self.position = forwards.first - 1
        return receive(self, forwards, now)

    monkeypatch.setattr(IncomingLink, "receive", receive_again)
    assert "times, though" in caught()


@interpreted
def test_a_receiver_that_takes_what_follows_a_hole_is_caught(monkeypatch):
    receive = IncomingLink.receive

    def receive_anyway(self, forwards, now):
        if forwards.session == self.session and forwards.first > self.position + 1:
            self.position = forwards.first - 1
        return receive(self, forwards, now)

    monkeypatch.setattr(IncomingLink, "receive", receive_anyway)
    caught()


def lose_some_interest(world):
    def lost(frame):
        return len(frame) > 1 and frame[1] == FrameType.TABLE_DELTA and world.rng.random() < 0.3

    world.network.lose_frame = lost


@interpreted
def test_interest_that_is_lost_and_never_repaired_is_caught(monkeypatch):
    hear = Replica.hear

    def never_wrong(self, position):
        return (self.fresh == BUCKETS and self.generation == position.generation) or hear(self, position)

    receive_delta = Replica.receive_delta

    def no_hole(self, delta):
        if self.fresh == BUCKETS and self.generation == delta.generation:
            self.version = delta.version - 1
        return receive_delta(self, delta)

    monkeypatch.setattr(Replica, "hear", never_wrong)
    monkeypatch.setattr(Replica, "receive_delta", no_hole)
    caught(lose_some_interest)


@compiled
def test_interest_that_is_lost_is_repaired():
    for seed in range(5):
        workload.run(seed, prepare=lose_some_interest)


@interpreted
def test_a_link_that_forgets_what_was_not_acknowledged_is_caught(monkeypatch):
    disconnected = OutgoingLink.disconnected

    def forget(self):
        disconnected(self)
        self.take_tickets()

    monkeypatch.setattr(OutgoingLink, "disconnected", forget)
    caught()


# Sessions and groups.


def is_incoming(family, key):
    """Say whether a record is the packet id of a client's QoS 2 PUBLISH."""
    return family == "session" and key[8:9] == b"i"


def groups_of(node):
    """Return the keys of the groups in a node's store."""
    return {key[:8] for key in node.storage.snapshot()["session"] if key[8:9] == b"$"}


@compiled
def test_a_packet_id_that_is_not_stored_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and is_incoming(family, key))

    assert "times, though" in caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_packet_id_that_is_never_freed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind != PUT and is_incoming(family, key))

    # Where a session began without its home this is not judged, and so in most seeds.
    assert "packet ids for ever" in caught(lambda world: world.mutations.append(forget), range(40, 100))


@compiled
def test_a_released_delivery_that_is_not_stored_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and family == "queue" and value[1] & 16)

    caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_groups_delivery_that_stays_in_its_queue_is_caught():
    def forget(node, effects):
        groups = groups_of(node)
        without(effects, lambda kind, family, key, value: kind == DELETE and family == "queue" and key[:8] in groups)

    caught(lambda world: world.mutations.append(forget))


@compiled
def test_a_group_that_keeps_nothing_of_what_it_gave_is_caught():
    """What its members have whose sessions are not stored is lost when the process is killed."""

    def forget(node, effects):
        groups = node.core.owner._groups.all.values()
        kept = {(group.number, record.seq) for group in groups for record in group.kept.values()}

        def lost(kind, family, key, value):
            place = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
            return kind == PUT and family == "queue" and place in kept

        without(effects, lost)

    # A message is lost, or stays for ever.
    noticed = caught(lambda world: world.mutations.append(forget))
    assert "$share/crew" in noticed or "that no queue points to" in noticed


@interpreted
def test_a_member_that_takes_what_it_had_with_it_is_caught(monkeypatch):
    def lose(self, session, now):
        for delivery in session.inflight.deliveries.values():
            self._shared.forget_kept(delivery)

    monkeypatch.setattr(Groups, "session_ended", lose)
    assert "$share/crew" in caught()


@interpreted
def test_a_group_that_two_nodes_serve_is_caught(monkeypatch):
    choose = Groups.choose

    def choose_more(self, routed, message):
        choice = choose(self, routed, message)
        for each in routed:
            if each.here is not None and each.here.online and each.here not in choice.here:
                choice.here.append(each.here)
        return choice

    monkeypatch.setattr(Groups, "choose", choose_more)
    assert "sessions of b'$share" in caught()


@interpreted
def test_a_node_that_drops_what_it_can_not_give_to_a_member_is_caught(monkeypatch):
    place = Groups.place

    def place_here(self, shared_filter, message, now, waited=False):
        if shared_filter in self.all and self.all[shared_filter].members:
            place(self, shared_filter, message, now, waited)

    monkeypatch.setattr(Groups, "place", place_here)
    assert "$share/" in caught()


@compiled
def test_what_is_taken_from_a_queue_and_not_committed_for_another_node_is_caught():
    def forget(node, effects):
        removed = {
            key[:8] for kind, family, key, _ in effects.writes.operations if kind == DELETE and family == "queue"
        }
        groups = node.core.owner._groups.all.values()
        if any(group.number.to_bytes(8, "big") in removed and not group.online for group in groups):
            without(effects, lambda kind, family, key, value: (kind, family, value[:1]) == (PUT, "outbox", b"\x02"))

    caught(lambda world: world.mutations.append(forget))


@interpreted
def test_a_tail_that_loses_a_message_is_caught(monkeypatch):
    load = SessionStore.load

    def load_less(self, owner, queue):
        load(self, owner, queue)
        if queue.in_memory() > 3:
            queue.pop()

    monkeypatch.setattr(SessionStore, "load", load_less)
    caught()


@interpreted
def test_qos_2_that_is_forwarded_in_memory_alone_is_caught(monkeypatch):
    """Its packet id is known after the restart, and the message is not."""
    forward = OutgoingLink.forward

    def forget(self, message, ticket, persistent, running, now, address):
        return forward(self, message, ticket, persistent and message.qos != 2, running, now, address)

    monkeypatch.setattr(OutgoingLink, "forward", forget)
    assert "never arrived" in caught()


@interpreted
def test_numbers_that_begin_anew_with_every_start_are_caught(monkeypatch):
    init = OutgoingLink.__init__

    def begin_anew(self, sender, outbox, first, spill_after_s):
        init(self, sender, outbox, 1, spill_after_s)

    monkeypatch.setattr(OutgoingLink, "__init__", begin_anew)
    caught()


@compiled
def test_listeners_may_die_while_a_link_is_down():
    for seed in range(20, 25):
        workload.run(seed, prepare=tormented)


# Wills.


@compiled
def test_a_will_that_is_published_again_after_a_restart_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind != PUT and family == "will")

    caught(lambda world: world.mutations.append(forget))


@interpreted
def test_a_will_that_a_goodbye_does_not_discard_is_caught(monkeypatch):
    execute = QueueOwner._execute_will

    def keep(self, session, reason, now):
        execute(self, session, CONNECTION_LOST, now)

    monkeypatch.setattr(QueueOwner, "_execute_will", keep)
    # In most of the first seeds nodes stand still, and may have heard of the goodbye too late.
    assert "said goodbye" in caught(seeds=range(15, 40))


# Retained messages.


@interpreted
def test_a_delete_that_leaves_no_row_is_caught(monkeypatch):
    put = RetainedStore._put_own

    def forget(self, topic, kept, value, writes):
        if kept.message is not None:
            put(self, topic, kept, value, writes)

    monkeypatch.setattr(RetainedStore, "_put_own", forget)
    assert "retain" in caught(seeds=RETAINING)


@interpreted
def test_rows_that_outlive_newer_ones_are_caught(monkeypatch):
    monkeypatch.setattr(RetainedView, "_is_superseded", lambda self, topic: False)
    assert "rows" in caught(seeds=RETAINING)


# Net splits.


@interpreted
def test_a_gate_that_forgets_what_it_holds_is_caught(monkeypatch):
    hold = NetsplitGate._hold

    def forget(self, connection, event):
        held = hold(self, connection, event)
        self.forget(connection)
        return held

    monkeypatch.setattr(NetsplitGate, "_hold", forget)
    # Its client waits for ever, or hears the next answer before it.
    found = caught(seeds=WAITING)
    assert "healing did not end" in found or "instead of" in found


@interpreted
def test_a_gate_that_turns_what_it_holds_around_is_caught(monkeypatch):
    hold = NetsplitGate._hold

    def turn_around(self, connection, event):
        held = hold(self, connection, event)
        held.events.appendleft(held.events.pop())
        return held

    monkeypatch.setattr(NetsplitGate, "_hold", turn_around)
    noticed = caught(seeds=WAITING)
    assert "instead of" in noticed or "after message" in noticed


@interpreted
def test_a_gate_that_nobody_opens_is_caught(monkeypatch):
    set_ready = NetsplitGate.set_ready

    def stay_shut(self, ready, reason):
        if not ready:
            set_ready(self, ready, reason)

    monkeypatch.setattr(NetsplitGate, "set_ready", stay_shut)
    assert "did not end" in caught(seeds=WAITING)
