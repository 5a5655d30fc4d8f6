"""Replaying: the retained messages that a new subscription is sent, as far and as fast as its connection can take them.

It owns whose turn it is, and what of the retained messages a subscription is owed. Which subscriptions ask for them is
`subscribing`'s business, and what goes ahead of them `dispatch`'s.

Theory of operation
-------------------
Retained messages are looked for when a turn begins only, REPLAY_STEPS_MAX steps a turn for all sessions together:
whoever asks for many, or for the same ones again and again, waits for them and not the others.
"""

from typing import Final, final

from broker.core.fifo import Fifo
from broker.core.message import Message
from broker.core.retained import RetainedStore, RetainedWalk, is_expired
from broker.core.sending import Sender, is_too_large
from broker.core.session import Attachment, Replay, Session
from broker.core.subscription import NO_LOCAL, Subscription

# How far a turn looks for retained messages that are to be replayed: about a millisecond's work, what is sent included.
REPLAY_STEPS_MAX: Final = 500


@final
class Replays:
    """Replays retained messages to sessions; a session's own part of it is in its `Replay`s."""

    def __init__(self, retained: RetainedStore, sender: Sender) -> None:
        # Sessions that retained messages are to be looked for, who waits longest first, and how far this turn may look.
        self._due: Fifo[Session] = Fifo()
        self._steps_left: int = 0
        self._retained = retained
        self._sender = sender

    def begin(self, session: Session, topic_filters: list[bytes]) -> bool:
        """Have what is retained for these subscriptions sent, the first one's first; false when nothing is retained."""
        if not len(self._retained):
            return False
        for topic_filter in reversed(topic_filters):
            walk = self._retained.walk(topic_filter)
            session.begin_replay(Replay(topic_filter, walk, self._retained.revision))
        return True

    def is_due(self) -> bool:
        """Say whether retained messages are to be looked for in the next turn."""
        return not self._due.is_empty()

    def begin_turn(self) -> None:
        """Begin to look for retained messages, as far as a turn may."""
        self._steps_left = REPLAY_STEPS_MAX

    def next_session(self) -> Session | None:
        """Return whose turn it is to be looked for; who is not done then waits behind the others. None: enough."""
        if self._steps_left > 0 and not self._due.is_empty():
            self._steps_left -= 1
            session = self._due.popleft()
            session.replay_due = False
            return session
        self._steps_left = 0
        return None

    def drain(self, attachment: Attachment, now: float) -> bool:
        """Send the next retained message; false when the window is full or this turn has looked far enough."""
        session = attachment.session
        replay = session.next_replay()
        if replay is None:
            return True
        # As the client subscribes now, if it has done so again: nothing is lost by that [MQTT-3.8.4-4].
        subscription = session.subscriptions[replay.topic_filter]
        walk = replay.walk
        message = walk.message
        if message is None:
            return self._look_further(session, walk)
        if self._is_owed(session, replay, message, subscription, now):
            qos = self._sender.qos(message, subscription)
            if not self._sender.has_room(session, message, qos):
                return False
            if is_too_large(attachment, message, qos, subscription.encoded):
                self._sender.counters.drop("max_packet_size_exceeded")
            else:
                self._sender.send(session, message, subscription, True, b"", now)
        walk.leave()
        return True

    def _look_further(self, session: Session, walk: RetainedWalk) -> bool:
        """Look for the next retained message, if this turn may; false when it may not."""
        if walk.is_at_end():
            session.replay = None
        elif self._steps_left > 0:
            self._steps_left -= walk.find(self._steps_left)
        else:
            if not session.replay_due:
                session.replay_due = True
                self._due.append(session)
            return False
        return True

    def _is_owed(
        self, session: Session, replay: Replay, message: Message, subscription: Subscription, now: float
    ) -> bool:
        """Say whether a retained message is to be sent to a subscription that is replayed to."""
        if is_expired(message, now):
            return False
        if subscription.options & NO_LOCAL and message.publisher == session.client_id:
            # [MQTT-3.8.3-3] It makes no exception for what is retained.
            return False
        if replay.walk.revision <= replay.revision:
            return True
        # It came after the subscription and so as a live message, but for one of QoS 0 whose receiver was away.
        return not self._sender.qos(message, subscription) and replay.walk.revision <= session.live_since
