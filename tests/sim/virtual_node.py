"""A node of the simulated world: its disk, its clocks, its listeners' pipes, and its process, one life after another.

It drives NodeCore in the order in which the owner process does: events, inputs, tick, commit, commands, listeners. It
knows nothing of what a client wants, and leaves what is between nodes to `network`.

A crash takes everything but what `MemoryStorage.survivor` finds, and strikes where it hurts: before the commit of a
turn, after it, in the middle of the commands, before or between what the listeners are told. With `power_loss` it also
takes the last commits, as `store.sync: interval` allows, but no durable ones and never those of the start.

Each node has clocks of its own: a monotonic one, which began at some time and may go a little fast or slow, and a wall
clock, which may be wrong by minutes or by decades, and may be set while the node runs. What the world does to a node is
timed by the world's clock, what the node does by the node's.
"""

from collections import Counter, deque

from broker.core.events import CreditReturned, ListenerGone, ListenerStarted, connection_key
from broker.core.owner import QueueOwner
from broker.core.owner_records import unpack_owner_records
from broker.core.rows import RowKind
from broker.core.storage import PUT, MemoryStorage, ensure_store_id, next_incarnation
from cluster.commands import SendBulk
from cluster.mesh import Mesh, MeshSettings
from cluster.node import NodeCore
from cluster.table_rows import KEY_TABLE

FAILURE_TIMEOUT_S = 3.0
PLANNED_RESTART_S = 6.0
# Where in a key of the store the name of a row begins.
ROW_AT = len(KEY_TABLE) + 16 + 1 + 2
UTC_MS_AT_ZERO = 1_700_000_000_000
# As in the owner process: the longest sleep, and how much is taken in one turn.
POLL_S_MAX = 1.0
BEHIND_POLL_S = 0.1
INPUTS_PER_TURN = 64
# The shortest sleep.
TICK_S = 1e-6

# The version of an outbox record that is for groups.
ADDRESSED = 2
NOW = "now"
BEFORE_COMMIT = "before the commit"
AFTER_COMMIT = "after the commit"
AMID_COMMANDS = "amid the commands"
BEFORE_LISTENERS = "before the listeners are told"
AMID_LISTENERS = "amid what the listeners are told"
CRASH_POINTS = (NOW, BEFORE_COMMIT, AFTER_COMMIT, AMID_COMMANDS, BEFORE_LISTENERS, AMID_LISTENERS)


class Clocks:
    """The two clocks of one machine, which go on while its node is down.

    `ahead_ms` is how far the wall clock is ahead of the time of day; `rate` how fast the monotonic clock goes.
    """

    def __init__(self, world):
        self._world = world
        self._began = world.now
        self._began_at_s = world.rng.uniform(10.0, 1e6)
        self.rate = 1.0
        self.ahead_ms = 0
        # By how much the wall clock was set back and forth.
        self.was_set = False
        self.set_back_ms = 0

    def set_ahead(self, milliseconds):
        """Set the wall clock ahead, or back if that is negative."""
        self.was_set = True
        self.ahead_ms += milliseconds
        self.set_back_ms += max(0, -milliseconds)

    def monotonic(self):
        """Return the seconds of the monotonic clock."""
        return self._began_at_s + (self._world.now - self._began) * self.rate

    def utc_ms(self):
        """Return what the wall clock shows."""
        return UTC_MS_AT_ZERO + int(self._world.now * 1000) + self.ahead_ms


class Disk:
    """A node's store in memory; while `loading`, it counts what is read of queues."""

    def __init__(self, contents):
        self.contents = contents
        self.commit = contents.commit
        self.get = contents.get
        self.close = contents.close
        self.snapshot = contents.snapshot
        self.loading = False
        self.loaded = 0

    def survivor(self):
        """Return what a restart finds."""
        return Disk(self.contents.survivor())

    def scan(self, family, start, end):
        """Iterate as MemoryStorage does."""
        return self._rows(self.contents.scan(family, start, end))

    def scan_reverse(self, family, start, end):
        """Iterate as MemoryStorage does."""
        return self._rows(self.contents.scan_reverse(family, start, end))

    def _rows(self, rows):
        return self._counted(rows) if self.loading else rows

    def _counted(self, rows):
        for row in rows:
            self.loaded += 1
            yield row


class Listener:
    """One listener process of one generation, and its ends of the two pipes."""

    def __init__(self, node, index, generation):
        self.node = node
        self.index = index
        self.generation = generation
        self.up = True
        self.connections = {}
        self._next_number = 1
        self._to_owner_at = 0.0
        self._from_owner_at = 0.0
        self._consumed_bytes = 0

    def open(self, client):
        """Accept a client; return its connection's number. Numbers begin anew with each process."""
        number = self._next_number
        self._next_number += 1
        self.connections[number] = client
        return number

    def key(self, number):
        """Return the node-wide number of a connection."""
        return connection_key(self.index, number)

    def send(self, event, delay_s=0.0):
        """Send an event to the owner, behind what was sent before."""
        world = self.node.world
        self._to_owner_at = max(self._to_owner_at, world.now + delay_s + world.short_delay())
        world.at(self._to_owner_at, self.node.event_arrives, self.node.life, self, event)

    def tell(self, records):
        """The owner sends a frame of records."""
        world = self.node.world
        self._from_owner_at = max(self._from_owner_at, world.now + world.short_delay())
        world.at(self._from_owner_at, self._receive, records)

    def _receive(self, records):
        if not self.up:
            return
        for record in unpack_owner_records(records, 0):
            count = getattr(record, "count", 0)
            if count:
                for index in range(count):
                    number, packet_id, flags = record.target(index)
                    client = self.connections.get(number)
                    if client is not None:
                        client.deliver(record, packet_id, flags)
            else:
                client = self.connections.get(record.connection)
                if client is not None:
                    client.answer(record)
        self._consumed_bytes += len(records)
        if self._consumed_bytes * 8 >= self.node.settings.listener_window_bytes:
            self.send(CreditReturned(self.index, self._consumed_bytes))
            self._consumed_bytes = 0


class Node:
    """One node: its disk, which stays, and its process, which is one life after another."""

    def __init__(self, world, name, settings, listeners, discovery=()):
        self.world = world
        self.name = name
        self.address = f"{name}:1"
        self.settings = settings
        self.discovery = tuple(discovery)
        # It is to join the cluster and has not yet.
        self.is_alone = False
        # It is no member any more, and everybody knows.
        self.is_gone = False
        # Nobody starts it again for now.
        self.stays_down = False
        self.clocks = Clocks(world)
        self.storage = Disk(MemoryStorage())
        self.store_id = ensure_store_id(self.storage, world.rng.randbytes(16))
        self.life = 0
        self.up = False
        self.core = None
        self.listeners = [None] * listeners
        self.crashes = 0
        self.started_at = []
        self.died_at = []
        self.crash_point = ""
        self.stalled_until = 0.0
        # Until when the others wait for it, since it said that it stops.
        self.planned_until = 0.0
        # That, by when it died.
        self.waited_until = {}
        # A slow node: until when, and how long it takes over a turn.
        self.slow_until = 0.0
        self.turn_s = 0.0
        # Drops of lives that ended, as of their last commit, and of this one; counts of links of lives that ended.
        self.drops_before = Counter()
        self.drops = Counter()
        self.links_before = Counter()
        self._synced = self.storage
        self._generations = 0
        self._known = {}
        # The nodes of which this life says that it does not hear them.
        self._missed = set()
        self._inputs = deque()
        self._events = deque()
        self._turn_at = float("inf")
        self._turn_token = 0
        self._free_at = 0.0

    def start(self):
        """Begin a life on what the disk holds."""
        world = self.world
        assert not self.up
        self.life += 1
        self.up = True
        now = self.clocks.monotonic()
        self.started_at.append(world.now)
        self.planned_until = 0.0
        world.trouble()
        storage = self.storage
        incarnation = next_incarnation(storage)
        settings = MeshSettings(
            self.name, self.address, FAILURE_TIMEOUT_S, self.discovery, world.readiness, PLANNED_RESTART_S
        )
        mesh = Mesh(settings, storage, self.store_id, incarnation, world.rng.randbytes(16), now)
        owner = QueueOwner(self.settings, storage, mesh.interest, self.store_id, incarnation)
        owner.recover(now, self.clocks.utc_ms())
        self.core = NodeCore(owner, mesh)
        mesh.ask_can_move(self._can_move)
        if world.power_loss:
            self._sync(self.life)
        self._inputs.clear()
        self._events.clear()
        self._known = {}
        self._missed = set()
        self.crash_point = ""
        self.stalled_until = 0.0
        self._turn_at = float("inf")
        world.network.node_started(self)
        world.note(f"{self.name} starts life {self.life}")
        for index in range(len(self.listeners)):
            self._start_listener(index)
        self.wake(0.0)

    def _can_move(self, shared_filter, message):
        """What a dead node was to have, and may have had, goes to another member: note how often."""
        can_move = self.core.owner.can_move(shared_filter, message)
        if can_move:
            self.world.moved[shared_filter, message.payload] += 1
            self.world.count("moved from dead nodes")
        return can_move

    def listener_died(self, index):
        """A listener process ends: its clients are cut off, the supervisor tells the owner and starts another."""
        world = self.world
        listener = self.listeners[index]
        if not self.up or listener is None or not listener.up:
            return
        world.count("listener deaths")
        world.note(f"{self.name} listener {index} generation {listener.generation} dies")
        self._cut_off(listener)
        world.later(world.rng.uniform(0.001, 0.3), self._listener_gone, self.life, listener)

    def kill(self):
        """End the process now, as `kill -9` or a power cut does."""
        world = self.world
        assert self.up
        world.count("crashes")
        world.note(f"{self.name} dies{' ' + self.crash_point if self.crash_point else ''}")
        self.crashes += 1
        self.died_at.append(world.now)
        self.waited_until[world.now] = self.planned_until
        if world.power_loss and world.rng.random() < 0.5:
            world.count("power losses")
            self.storage = self._synced
        self.end()

    def lose_power(self):
        """End the process now, and lose what was committed since the last `sync`, but for durable batches."""
        self.world.note(f"{self.name} loses power")
        self.storage = self._synced
        self.end()

    def sync(self):
        """Have everything that is committed survive a loss of power."""
        self._synced = self.storage.survivor()

    def end(self):
        """The process ends, as it does by itself when the node has left its cluster."""
        world = self.world
        self.up = False
        world.trouble()
        self.links_before.update(self.core.mesh.counters())
        self._count_life()
        self.core = None
        self.storage = self.storage.survivor()
        self.drops_before.update(self.drops)
        self.drops = Counter()
        # The listeners may live on for a moment, and tell clients what is in their pipes.
        lingers_s = world.rng.uniform(0.003, 0.05) if world.rng.random() < 0.5 else 0.0
        for index, listener in enumerate(self.listeners):
            if listener is not None and listener.up:
                if lingers_s:
                    world.later(lingers_s, self._cut_off, listener)
                else:
                    self._cut_off(listener)
            self.listeners[index] = None
        world.network.node_died(self)

    def crash(self, point):
        """Crash at a point of the next turn that has something to lose there."""
        if not self.up:
            return
        if point == NOW:
            self.kill()
            return
        self.crash_point = point
        self.world.later(2.0, self._crash_anyway, self.life)

    def wake(self, delay_s):
        """See to it that a turn comes within `delay_s`."""
        at = max(self.world.now + delay_s, self.stalled_until, self._free_at)
        if at < self._turn_at:
            self._turn_at = at
            self._turn_token += 1
            self.world.at(at, self._turn, self.life, self._turn_token)

    def input_arrives(self, happened):
        """The transport has something."""
        self._inputs.append(happened)
        self.wake(self.world.short_delay())

    def event_arrives(self, life, listener, event):
        """A listener's event is in the pipe."""
        if life != self.life or not self.up:
            return
        if isinstance(event, CreditReturned):
            if self._known.get(listener.index) == listener.generation:
                self.core.receive_event(event, self.clocks.monotonic())
        else:
            self._events.append((listener, event))
        self.wake(self.world.short_delay())

    def link_counts(self):
        """Return what the links of all lives counted."""
        return self.links_before + Counter(self.core.mesh.counters() if self.core is not None else {})

    def _count_life(self):
        """Count the splits of this life, what had to wait in it, and the sessions that left."""
        self.world.count("moves", self.core.moving.counts()["moves_left"])
        for name, count in self.core.mesh.netsplits().items():
            self.world.count(name, count)
        self.world.count("publishes held", self.core.owner.counters.mqtt_publish_error - self.drops["not_ready"])

    def dropped(self):
        """Return what this node counted as dropped in all its lives, as far as it was committed."""
        return self.drops_before + self.drops

    def _sync(self, life):
        if life == self.life and self.up:
            self.sync()
            self.world.later(1.0, self._sync, life)

    def _start_listener(self, index):
        self._generations += 1
        generation = self._generations
        self._known[index] = generation
        self.core.receive_event(ListenerStarted(index, generation), self.clocks.monotonic())
        self.listeners[index] = Listener(self, index, generation)
        self.wake(0.0)

    def _cut_off(self, listener):
        listener.up = False
        clients = list(listener.connections.values())
        listener.connections.clear()
        for client in clients:
            client.connection_lost()

    def _listener_gone(self, life, listener):
        if life != self.life or not self.up:
            return
        self.core.receive_event(ListenerGone(listener.index, listener.generation), self.clocks.monotonic())
        del self._known[listener.index]
        self.wake(0.0)
        self.world.later(self.world.rng.uniform(0.05, 1.0), self._restart_listener, life, listener.index)

    def _restart_listener(self, life, index):
        if life == self.life and self.up:
            self._start_listener(index)

    def _crash_anyway(self, life):
        if life == self.life and self.up and self.crash_point:
            self.kill()

    def _turn(self, life, token):
        if life != self.life or token != self._turn_token or not self.up:
            return
        world = self.world
        self._turn_at = float("inf")
        if world.now < self.stalled_until:
            self.wake(0.0)
            return
        now = self.clocks.monotonic()
        if world.now < self.slow_until:
            self._free_at = world.now + self.turn_s * world.rng.random()
        core = self.core
        self._begin(now)
        events = self._events
        for _ in range(min(len(events), INPUTS_PER_TURN)):
            if core.owner.is_behind(now):
                break
            listener, event = events.popleft()
            if self._known.get(listener.index) == listener.generation:
                core.receive_event(event, now)
        inputs = self._inputs
        for _ in range(min(len(inputs), INPUTS_PER_TURN)):
            core.receive_input(inputs.popleft(), now)
        core.tick(now)
        effects = core.take_effects()
        world.turns += 1
        self._carry_out(effects)
        if not self.up:
            return
        if world.turns % world.validate_every == 0:
            core.validate()
        if inputs or (events and not core.owner.is_behind(now)):
            self.wake(world.short_delay())
        elif events:
            self.wake(BEHIND_POLL_S)
        due_s = min(core.next_deadline() - now, POLL_S_MAX)
        if due_s > 0.0:
            # Two clocks that are rounded differently must not stand still together.
            due_s = max(due_s / self.clocks.rate, TICK_S)
        self.wake(max(0.0, due_s))

    def _begin(self, now):
        disk = self.storage
        disk.loading, disk.loaded = True, 0
        self.core.set_clock(now, self.clocks.utc_ms())
        self.core.begin(now)
        disk.loading = False
        self.world.count("loaded from tails", disk.loaded)

    def _carry_out(self, effects):
        world = self.world
        world.mutate(self, effects)
        point = self.crash_point if self.crash_point and _hurts(effects) else ""
        if point == BEFORE_COMMIT:
            self.kill()
            return
        commands = effects.commands
        batches = [(index, records) for index, batch in effects.to_listeners.items() for records in batch.records()]
        for index, records in batches:
            world.digest.update(b"%d" % index + records)
        self._note_missed()
        for note in effects.notes:
            world.note(f"{self.name}: {note}")
            if note.startswith("session of "):
                # Its old home had no part in that.
                world.revived[note.split("'")[1]] += 1
                world.count("revivals")
        if world.acknowledge_before_commit:
            world.network.execute(self, commands)
            self._tell(batches)
            commands, batches = [], []
            if point == AFTER_COMMIT:
                self.kill()
                return
        if len(effects.writes):
            self.storage.commit(effects.writes)
            if effects.writes.durable:
                self.sync()
        outboxed = [value for kind, family, _, value in effects.writes.operations if (kind, family) == (PUT, "outbox")]
        world.count("put into outboxes", len(outboxed))
        world.count("put into outboxes for groups", sum(value[0] == ADDRESSED for value in outboxed))
        self.drops = Counter(self.core.owner.counters.dropped)
        if point == AFTER_COMMIT:
            self.kill()
            return
        if point == AMID_COMMANDS:
            world.network.execute(self, commands[: world.rng.randint(0, len(commands))])
            self.kill()
            return
        world.network.execute(self, commands)
        if point == BEFORE_LISTENERS:
            self.kill()
            return
        if point == AMID_LISTENERS:
            self._tell(batches[: world.rng.randint(0, len(batches))])
            self.kill()
            return
        self._tell(batches)

    def _note_missed(self):
        """Tell the world whom this node takes for dead now: one that it heard, or never did since its start."""
        wills = self.core.mesh.registry.wills
        missed = {node.name for node in self.world.nodes.values() if wills.is_away_for(self.name, node.store_id)}
        for name in sorted(missed - self._missed):
            self.world.missed(name)
        self._missed = missed

    def _tell(self, batches):
        for index, records in batches:
            listener = self.listeners[index]
            if listener is not None and listener.generation == self._known.get(index):
                listener.tell(records)


def _hurts(effects):
    """Say whether a turn has something to lose: messages or claims in its writes, or messages on their way."""
    for operation in effects.writes.operations:
        if operation[1] in ("queue", "session", "will", "outbox") or is_claim(operation):
            return True
    return any(isinstance(command, SendBulk) for command in effects.commands)


def is_claim(operation):
    """Say whether an operation of a batch writes a CLAIM row."""
    kind, family, key, _value = operation
    return kind == PUT and family == "registry" and key.startswith(KEY_TABLE) and key[ROW_AT] == RowKind.CLAIM
