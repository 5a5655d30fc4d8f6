"""A turn's outcome: what the parts of the mesh want done, gathered until the caller takes it.

Owns the commands, writes, messages, tickets and notes of the turn, and the counts. It decides nothing and knows
nothing of peers.

Notes are for an operator. What a peer says wrong it says again and again: `note_once` repeats a note only when
something else was said of the same subject in between.
"""

from typing import Final, final

from broker.core.effects import Ticket
from broker.core.message import Message
from broker.core.storage import WriteBatch
from cluster.addressing import Addressed
from cluster.commands import MeshCommand
from cluster.forwards import Mark

# Subjects are nodes and what is wrong with them; beyond this number all are forgotten and may be noted again.
SUBJECTS_MAX: Final = 1024

COUNTS: Final = (
    "frames_malformed",
    "frames_of_strangers",
    "frames_of_old_connections",
    "hellos_refused",
    "frames_while_frozen",
    "peers_died",
    "table_requests",
    "tables_copied",
    "outbox_left",
    "groups_moved",
    "retained_over_limit",
)


@final
class Turn:
    """What is to be done since the last `take_*`. `number` counts the turns of the loop since the start."""

    def __init__(self) -> None:
        self.number = 0
        # The store takes no writes: nothing leaves that says how far this node has come.
        self.frozen = False
        self.commands: list[MeshCommand] = []
        self.writes = WriteBatch()
        self.messages: list[Message | Addressed | Mark] = []
        self.acknowledged: list[Ticket] = []
        # What the members say of turns and moves: (node name, frame).
        self.moves: list[tuple[str, bytes]] = []
        # Who runs changed, or what is known of other nodes.
        self.running_changed = True
        self.tables_changed = True
        self.routes_changed = False
        # Shared filters of groups of which other nodes have something else than before.
        self.groups_changed: dict[bytes, bool] = {}
        # This node adopted a cluster.
        self.joined = False
        # Stores that are no members any more, for which something waits here.
        self.estates: list[bytes] = []
        # Members that say that this node is none any more.
        self.removed_by: set[str] = set()
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self._notes: list[str] = []
        self._noted: dict[str, str] = {}

    def count(self, name: str) -> None:
        """Count one of COUNTS."""
        self.counts[name] += 1

    def note(self, text: str) -> None:
        """Say something to the operator."""
        self._notes.append(text)

    def note_once(self, subject: str, text: str) -> None:
        """Say something unless it is what was said of this subject last."""
        if self._noted.get(subject) == text:
            return
        if len(self._noted) >= SUBJECTS_MAX:
            self._noted.clear()
        self._noted[subject] = text
        self._notes.append(text)

    def take_writes(self, writes: WriteBatch) -> None:
        """Move the writes to the end of `writes`."""
        if len(self.writes):
            writes.extend(self.writes)
            self.writes = WriteBatch()

    def take_commands(self) -> list[MeshCommand]:
        """Return the commands in order; those that acknowledge leave after the writes are committed."""
        commands = self.commands
        if commands:
            self.commands = []
        return commands

    def take_messages(self) -> list[Message | Addressed | Mark]:
        """Return the messages that peers forwarded, and the marks between them, in order."""
        messages = self.messages
        if messages:
            self.messages = []
        return messages

    def take_acknowledged(self) -> list[Ticket]:
        """Return the tickets of forwards whose receiver has taken responsibility."""
        tickets = self.acknowledged
        if tickets:
            self.acknowledged = []
        return tickets

    def take_notes(self) -> list[str]:
        """Return the notes."""
        notes = self._notes
        if notes:
            self._notes = []
        return notes
