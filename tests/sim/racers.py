"""Racers: clients that have one client id in common and connect all at once, wherever they are.

Whoever connects last has the connection; the others are closed and do not come back. So a race ends with exactly one
connection in the whole cluster. A contender whose node dies or refuses it tries again: it has not lost yet.
"""

from virtual_clients import ONLINE, Client


class Racers:
    """The contenders for one client id: one at each of some nodes, and a second one at the first."""

    def __init__(self, world, ledger, client_id, nodes, persistent):
        self.world = world
        self.client_id = client_id
        self.contenders = []
        # Nobody is promised anything, but a queue has to move with the connection.
        filters = {b"a/#": 1} if persistent else {}
        for place, home in enumerate([*nodes, nodes[0]]):
            version = world.rng.choice((4, 5))
            contender = Client(world, ledger, f"{client_id} {place}", home, version, persistent, filters)
            contender.client_id = client_id
            contender.contends = True
            contender.comes_back = False
            self.contenders.append(contender)

    def race(self):
        """Let all connect, within an instant or one after another."""
        world = self.world
        world.count("races")
        within_s = world.rng.choice((0.0, 0.02, 0.5))
        for contender in self.contenders:
            world.later(within_s * world.rng.random(), contender.come_back)

    def undecided(self):
        """Return "" if exactly one is connected and no node has another connection of the client id."""
        online = [contender for contender in self.contenders if contender.state == ONLINE]
        if len(online) != 1:
            return f"{len(online)} of the contenders for {self.client_id} are connected"
        for node in self.world.members():
            session = node.core.owner.session(self.client_id) if node.up else None
            attached = session is not None and session.attachment is not None
            if attached != (node is online[0].home):
                return f"{node.name} has {'a' if attached else 'no'} connection of {self.client_id}"
        return ""
