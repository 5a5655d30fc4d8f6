"""Operators: the commands that are given at nodes, what is said to them, and what a node's supervisor does for it.

A process whose node has left, or was removed, ends and does not begin again by itself.
"""

from broker.core.storage import ensure_store_id
from cluster.donor import become_donor, fellows
from cluster.leave_desk import TIMED_OUT
from cluster.leave_frames import Order, Verb
from cluster.leaving import State

WATCH_S = 0.02


class Command:
    """A command of an operator at a node, and what was said to it."""

    def __init__(self, number, node, unsettled):
        self.number = number
        # Those that were given before, and might have been taken by nobody yet.
        self.unsettled = unsettled
        self.node = node
        self.life = node.life
        self.progress = []
        self.exit_code = None
        self.text = ""

    def is_over(self):
        return self.exit_code is not None

    def is_settled(self):
        """Say whether it was taken, or never is, as far as can be seen where it was given."""
        return bool(self.progress) or (self.is_over() and self.exit_code != TIMED_OUT)

    def is_last(self):
        """Say whether none of those that were given before it can have been taken after it.

        Those of one node are taken in their order. One that was given elsewhere was taken before an abort that ends it.
        """
        return all(other.node is self.node or "was aborted" in other.text for other in self.unsettled)

    def is_lost(self):
        """Say whether the node has died to which it was given."""
        return not self.node.up or self.node.life != self.life


class Operators:
    """Everybody who gives orders in a world. `gone` are the names of the nodes that have ended for good.

    `on_look` is called whenever they look at the nodes.
    """

    def __init__(self, world, on_said=lambda said: None, on_gone=lambda node: None, on_look=lambda: None):
        self.world = world
        self.commands = []
        self.gone = set()
        self._on_said = on_said
        self._on_gone = on_gone
        self._on_look = on_look

    def watch(self):
        """Look at every node now and then, as its processes do: take what is said, and end what has left."""
        world = self.world
        self.listen()
        self._on_look()
        for node in world.running_nodes():
            if node.core.leaver.job.state in (State.LEFT, State.REMOVED) or node.core.removed:
                # What it wrote in the last turn is committed by now.
                self.gone.add(node.name)
                world.note(f"{node.name} has left")
                self._on_gone(node)
                node.end()
        world.later(WATCH_S, self.watch)

    def listen(self):
        """Take what is said to commands."""
        for node in self.world.running_nodes():
            for said in node.core.leave_desk.take_said():
                self._on_said(said)
                for command in self.commands:
                    if command.node is node and command.number == said.command:
                        if said.is_end:
                            command.exit_code, command.text = said.exit_code, said.text
                        elif said.text:
                            command.progress.append(said.text)

    def order(self, at, node, verb=Verb.MOVE, **order):
        """Give an order at one node about another; the result is the command."""
        unsettled = [command for command in self.commands if not command.is_settled()]
        command = Command(len(self.commands) + 1, at, unsettled)
        self.commands.append(command)
        at.core.leave_desk.command(command.number, node.name, Order(verb, **order), at.clocks.monotonic())
        at.wake(0.0)
        return command

    def recover(self, node, store_id=b""):
        """Start a node that was removed as a donor of its queues, as its processes would.

        Its new store id is random if none is given.
        """
        self.gone.discard(node.name)
        become_donor(node.storage, node.name, store_id or self.world.rng.randbytes(16))
        node.store_id = ensure_store_id(node.storage, b"")
        node.discovery = tuple(fellows(node.storage))
        node.start()
