"""Publishing: from a client's PUBLISH, or its will, to everybody who wants it, and the acknowledgement.

It owns message numbers, the packet ids of QoS 2 on their way in, and the order of acknowledgements. It knows routes,
retained messages, the dispatcher and which node gets what of a shared group; other nodes are names in `Forward`s.

Theory of operation
-------------------
A PUBLISH with QoS 1 is acknowledged when this node has done its part and every node with persistent interest, or that
was chosen for a shared group, has taken the message, or it is stored for that node; which of the two is the links'
business. One with QoS 2 is always stored for them, in the same batch as its packet id: if one of the two were stored
without the other, a PUBLISH that comes again after a restart would be answered as known and not reach them, or reach
them twice. Whether there is room for it is asked before anything is done: what is refused comes again, and nobody may
have had it; how long it waits for room before is the business of `full_links`. Acknowledgements leave in the
order of the PUBLISHes [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT311-4.6.0-2] [MQTT311-4.6.0-3], so one that waits holds back
those behind it. The packet id of a QoS 2 PUBLISH is remembered from then until its PUBREL, as part of the session: a
PUBLISH that comes again in between is answered and not published again [MQTT-4.3.3-10] [MQTT311-4.3.3-2], whether the
message has expired or not [MQTT-4.3.3-13]. It is stored with the message, however long its turn to be acknowledged
takes.
"""

from typing import Final, final

from broker.core.dispatch import Dispatcher
from broker.core.effects import Forward, Ticket
from broker.core.events import PublishReceived
from broker.core.forwarding import Forwarding
from broker.core.groups import NOBODY, Choice, Groups
from broker.core.left_will import LeftWill
from broker.core.message import Message, fingerprint, is_same
from broker.core.records import PUBACK, PUBCOMP, PUBREC
from broker.core.retained import RetainedStore
from broker.core.routes import Route, Routes
from broker.core.session import Attachment, Session
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.shared import SharedGroup
from broker.mqtt.reasons import Reason

# A number of a message id is the incarnation and a count: 2^24 starts of 2^40 messages each.
_INCARNATION_SHIFT: Final = 40
_SUCCESS: Final = 0
_FAILURE: Final = 0x80
_NO_MATCHING_SUBSCRIBERS: Final = 0x10
# No reason: the PUBLISH has to be handed in again.
WAITS: Final = -1
# What a PUBLISH is counted as that a route refuses, by the reason.
_REFUSED: Final[dict[int, str]] = {
    int(Reason.NOT_AUTHORIZED): "reserved_topic",
    int(Reason.TOPIC_NAME_INVALID): "topic_limit",
}


@final
class Publishing:
    """What comes of messages that enter the cluster at this node."""

    def __init__(
        self,
        settings: OwnerSettings,
        store: SessionStore,
        routes: Routes,
        dispatcher: Dispatcher,
        groups: Groups,
        forwarding: Forwarding,
        retained: RetainedStore,
        store_id: bytes,
        incarnation: int,
    ) -> None:
        self._counters = dispatcher.counters
        self._store = store
        self._routes = routes
        self._dispatcher = dispatcher
        self._groups = groups
        self._forwarding = forwarding
        self._retained = retained
        self._store_id = store_id
        self._message_number: int = incarnation << _INCARNATION_SHIFT
        self._numbers_all = settings.upgrade_outgoing_qos

    def publish(self, attachment: Attachment, event: PublishReceived, may_wait: bool, now: float) -> int:
        """Take a client's PUBLISH; the result is the reason for which the connection has to end, 0 for none.

        It is WAITS, and nothing has been done, if it `may_wait` and there is no room at another node.
        """
        message = event.message
        session = attachment.session
        qos = message.qos
        if qos == 2 and event.packet_id in session.incoming and is_same(session.incoming[event.packet_id], message):
            # [MQTT-4.3.3-10] Answered again, and not published again.
            self._answer_again(attachment, event.packet_id)
            return 0
        _complete(message, session, event, now)
        route = self._routes.find(message.topic)
        reason = route.refused
        choice = self._groups.choose(route.groups, message) if route.groups and not reason else NOBODY
        if reason:
            self._counters.drop(_REFUSED[reason])
        elif qos and (route.nodes or choice.nodes) and not self._is_accepted(route, choice, message):
            # Before anything is delivered: the client sends it again, and here it must not come twice.
            if may_wait:
                return WAITS
            self._counters.drop("link_full")
            return self._refuse(attachment, event.packet_id, message, int(Reason.QUOTA_EXCEEDED))
        else:
            # [MQTT-4.3.2-5] [MQTT311-4.3.2-2] A message of its own, whatever its packet id was used for.
            if qos or message.retain or self._numbers_all:
                self._number(message)
            # [MQTT-3.3.1-8] [MQTT311-3.3.1-12] Without the flag, what is retained stays.
            if message.retain and not self._retain(message, now) and qos and attachment.version == 5:
                reason = int(Reason.QUOTA_EXCEEDED)
        if reason:
            # [MQTT311-3.3.5-2] MQTT 3 has no word for a refusal: the PUBLISH is acknowledged, and dropped.
            self._answer(attachment, event.packet_id, message, reason if attachment.version == 5 else 0, None)
            return 0
        ticket: Ticket | None = None
        # [MQTT-3.3.4-1] [MQTT311-3.3.4-1]
        matched = self._offer(choice.here, message, now) if choice.here else 0
        if route.sessions:
            matched += self._dispatcher.deliver(message, route, now)
        if route.nodes or choice.nodes:
            matched += 1
            asked = _ticket(attachment, event.packet_id, qos, _SUCCESS) if qos == 1 else None
            ticket = self._forward(message, route, choice, asked)
        if qos:
            reason = _SUCCESS if matched else _NO_MATCHING_SUBSCRIBERS
            self._answer(attachment, event.packet_id, message, reason, ticket)
        return 0

    def publish_expired(self, attachment: Attachment, event: PublishReceived, now: float) -> None:
        """Take a PUBLISH whose message expired while it waited: it is answered, and nobody gets it [MQTT-3.3.2-5]."""
        message = event.message
        incoming = attachment.session.incoming
        if message.qos == 2 and event.packet_id in incoming and is_same(incoming[event.packet_id], message):
            self._answer_again(attachment, event.packet_id)
        else:
            self._counters.drop("expired")
            self._answer(attachment, event.packet_id, message, _SUCCESS, None)

    def _is_accepted(self, route: Route, choice: Choice, message: Message) -> bool:
        """Say whether every node that has to have the message can be sent it."""
        has_room = self._forwarding.has_room
        if not all(has_room(node, message) for node, persistent in route.nodes if persistent):
            return False
        return all(has_room(node, message) for node in choice.nodes)

    def _refuse(self, attachment: Attachment, packet_id: int, message: Message, reason: int) -> int:
        """Refuse a PUBLISH in its turn. MQTT 3 has no word for it but the end of the connection (`release_pending`)."""
        if attachment.version == 5:
            self._answer(attachment, packet_id, message, reason, None)
            return 0
        attachment.pending.append(_ticket(attachment, packet_id, message.qos, reason))
        return self.release_pending(attachment)

    def publish_will(self, left: LeftWill, now: float) -> None:
        """Publish the will of a client that is gone."""
        will = left.will
        message = Message(will.topic, will.payload, will.properties, will.qos, will.retain, publisher=left.client_id)
        if will.expiry_s >= 0:
            message.expires_at = now + will.expiry_s
        route = self._routes.find(message.topic)
        if route.refused:
            self._counters.drop("reserved_topic")
            return
        self._number(message)
        if message.retain:
            # [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT311-3.1.2-16] [MQTT311-3.1.2-17]
            self._retain(message, now)
        self._counters.will_published += 1
        choice = self._groups.choose(route.groups, message)
        self._offer(choice.here, message, now)
        self._dispatcher.deliver(message, route, now)
        self._forward(message, route, choice, None)

    def receive_forwarded(self, message: Message, now: float) -> None:
        """Deliver what came from elsewhere. It has its id, but for QoS 0; where QoS is upgraded that is stored, too."""
        route = self._routes.find(message.topic)
        if not message.qos:
            route = self._dispatcher.without_newcomers(route, message)
        if self._numbers_all and not message.number:
            self._number(message)
        self._dispatcher.deliver(message, route, now)

    def publish_here(self, message: Message, now: float) -> None:
        """Deliver what concerns this node alone, to its groups' parts as well."""
        if self._numbers_all:
            self._number(message)
        route = self._routes.find(message.topic)
        self._dispatcher.deliver(message, route, now)
        groups = [routed.here for routed in route.groups]
        self._offer([group for group in groups if group is not None and group.members], message, now)

    def _offer(self, groups: list[SharedGroup], message: Message, now: float) -> int:
        """Give the message to groups of this node; return how many they are."""
        for group in groups:
            self._dispatcher.shared.offer(group, message, now)
        self._counters.router_matches_local += len(groups)
        return len(groups)

    def next_number(self) -> int:
        """Return the number of the next message that gets one."""
        return self._message_number + 1

    def _number(self, message: Message) -> None:
        self._message_number += 1
        message.origin = self._store_id
        message.number = self._message_number

    def _retain(self, message: Message, now: float) -> bool:
        """Keep the message for later subscribers; false when a limit forbids it.

        [MQTT-3.3.1-5] [MQTT311-3.3.1-5], and longer than any session [MQTT311-3.1.2.7].
        """
        if self._retained.set(message, self._store.writes, self._store.clock, now):
            return True
        self._counters.refuse("max_retained")
        return False

    def _forward(self, message: Message, route: Route, choice: Choice, ticket: Ticket | None) -> Ticket | None:
        """Forward once to each interested or chosen node; the ticket is returned when one must answer first."""
        chosen = choice.nodes
        for node, persistent in route.nodes:
            groups = chosen.pop(node, None) if chosen else None
            # Of a group it is the only one that is sent the message.
            self._forward_to(Forward(node, message, None, persistent or groups is not None, groups), ticket)
        for node, groups in chosen.items():
            self._forward_to(Forward(node, message, None, True, groups, False), ticket)
        self._counters.router_matches_remote += len(route.nodes) + len(chosen)
        return ticket if ticket is not None and ticket.waiting else None

    def _forward_to(self, forward: Forward, ticket: Ticket | None) -> None:
        if forward.persistent and ticket is not None:
            ticket.waiting += 1
            forward.ticket = ticket
        self._forwarding.add(forward)

    def _answer(
        self, attachment: Attachment, packet_id: int, message: Message, reason: int, ticket: Ticket | None
    ) -> None:
        """Acknowledge in turn: now, or when everything before it and its ticket are done."""
        qos = message.qos
        if qos == 0:
            return
        if qos == 2 and reason < _FAILURE:  # [MQTT-4.3.3-9] A refusal takes no id.
            # [MQTT-4.3.3-8]
            session = attachment.session
            session.incoming[packet_id] = fingerprint(message)
            if session.persistent:
                self._store.put_incoming(session, packet_id)
        if ticket is None and attachment.pending.is_empty():
            self._acknowledge(attachment, packet_id, qos, reason)
        else:
            attachment.pending.append(ticket or _ticket(attachment, packet_id, qos, reason))

    def _answer_again(self, attachment: Attachment, packet_id: int) -> None:
        """The client sent a QoS 2 PUBLISH again: acknowledge it in its turn [MQTT-4.6.0-3]."""
        if attachment.pending.is_empty():
            self._acknowledge(attachment, packet_id, 2, _SUCCESS)
        elif packet_id not in attachment.repeated:
            attachment.repeated.add(packet_id)
            attachment.pending.append(_ticket(attachment, packet_id, 2, _SUCCESS))

    def _acknowledge(self, attachment: Attachment, packet_id: int, qos: int, reason: int) -> None:
        attachment.outlet.batch.acknowledge(PUBREC if qos == 2 else PUBACK, attachment.connection, packet_id, reason)

    def release_pending(self, attachment: Attachment) -> int:
        """Acknowledge what waits no more; the result is the reason for which the connection has to end, 0 for none."""
        pending = attachment.pending
        while not pending.is_empty() and pending.first().waiting == 0:
            ticket = pending.popleft()
            attachment.repeated.discard(ticket.packet_id)
            if ticket.reason >= _FAILURE and attachment.version != 5:
                # [MQTT311-3.3.5-2] [MQTT311-4.8.0-2] MQTT 3 can refuse a PUBLISH only by closing the connection.
                return ticket.reason
            self._acknowledge(attachment, ticket.packet_id, ticket.qos, ticket.reason)
        return 0

    def leave(self, attachment: Attachment) -> None:
        """The connection ended: what waits in it is nobody's, until the next connection asks again."""
        attachment.pending.clear()

    def release(self, attachment: Attachment, packet_id: int) -> None:
        """A client's PUBREL: it is answered [MQTT-4.3.3-11]; its id is free [MQTT-4.3.3-12]."""
        session = attachment.session
        reason = int(Reason.PACKET_IDENTIFIER_NOT_FOUND)
        if packet_id in session.incoming:
            reason = _SUCCESS
            del session.incoming[packet_id]
            if session.persistent:
                self._store.delete_incoming(session, packet_id)
        attachment.outlet.batch.acknowledge(PUBCOMP, attachment.connection, packet_id, reason)


def _complete(message: Message, session: Session, event: PublishReceived, now: float) -> None:
    """Write into the message what the PUBLISH does not say in itself."""
    message.publisher = session.client_id
    if event.expiry_s >= 0:
        message.expires_at = now + event.expiry_s


def _ticket(attachment: Attachment, packet_id: int, qos: int, reason: int) -> Ticket:
    return Ticket(attachment.connection, packet_id, reason, qos)
