"""The receiver's end of a link: which messages are news, and what the sender has to hear of it.

Owns the position in one peer's stream. What a stream is and what both ends owe each other, `link` says.

A peer that leaves hands over what it has for members that are down (see `handover`), and then parts of its stream come
from whoever took them over, each from the first that is not here. One of the peer's own messages and a part may be the
same: what has come up to a number, on either way, is not taken again on the other.
"""

from typing import final

from broker.core.message import Message
from cluster.addressing import Addressed
from cluster.forwards import Forwards, Mark


@final
class IncomingLink:
    """The receiver's end of a stream. `position` is the number of the last message it has.

    `handed` is that of the last message of the stream that came from another node, 0 for none.
    """

    def __init__(self, sender: bytes, position: int, handed: int = 0) -> None:
        self.sender = sender
        self.position = position
        self.handed = handed
        self.session = 0
        # Nothing is taken until a frame with START of the current session.
        self.waiting_for_start = True
        # What the caller owes: an acknowledgement, the position in the write batch, the position to the sender.
        self.ack_due = False
        self.commit_due = False
        self.position_due = False
        self.gaps = 0
        self.duplicates = 0
        self.stale = 0
        self.messages = 0

    def connected(self, session: int) -> None:
        """The sender's Hello opened a session; it is due to hear the position."""
        if session != self.session:
            self.session = session
            self.waiting_for_start = True
        self.position_due = True

    def receive(self, forwards: Forwards, now: float) -> list[Message | Addressed | Mark]:
        """Take a frame; return the messages and marks that are new, in order. FrameError if they can't be read."""
        if forwards.session != self.session:
            self.stale += 1
            return []
        first = forwards.first
        if not forwards.start:
            if self.waiting_for_start:
                self.stale += 1
                return []
            if forwards.after > self.position:
                self.waiting_for_start = True
                self.position_due = True
                return []
        # What can't be read would be as unreadable when it is sent again at once. It is asked for again, like a START
        # that was lost, no more often than once a heartbeat.
        self.waiting_for_start = True
        messages = forwards.messages(self.sender, now)
        self.waiting_for_start = False
        if first > self.position + 1:
            if forwards.gap:
                self.gaps += 1
            self.position = first - 1
            self.commit_due = True
        self.ack_due = True
        known = self.position + 1 - first
        if known > 0:
            self.duplicates += min(known, len(messages))
            messages = messages[known:]
        behind = self.position
        if messages:
            self.position += len(messages)
            self.messages += len(messages)
            for message in messages:
                if _is_stored(message):
                    self.commit_due = True
                    break
        if behind < self.handed:
            # Marks come from the peer alone.
            return self._without_handed(messages, behind + 1)
        return messages

    def take_handed(self, number: int) -> bool:
        """A message of this stream comes from another node: say whether it is new here, and count it as had then."""
        if number <= max(self.position, self.handed):
            self.duplicates += 1
            return False
        self.handed = number
        return True

    def _without_handed(
        self, messages: list[Message | Addressed | Mark], first: int
    ) -> list[Message | Addressed | Mark]:
        found: list[Message | Addressed | Mark] = []
        for place, each in enumerate(messages):
            if isinstance(each, Mark) or first + place > self.handed:
                found.append(each)
            else:
                self.duplicates += 1
        return found


def _is_stored(message: Message | Addressed | Mark) -> bool:
    if isinstance(message, Message):
        return message.qos > 0
    return message.durable if isinstance(message, Mark) else message.message.qos > 0
