"""The supervisor: the parent of a node's processes. It starts them, watches, restarts and stops them.

Owns the processes' lives, signals, the ready line and the admin socket. Knows nothing of MQTT, sessions or the cluster,
holds no listening descriptor, and does no ZeroMQ: what it says to its children goes over their control channels.

Theory of operation
-------------------
There is one owner and a listener per CPU, each with a generation that grows at every start. Listeners run only
next to an owner that is ready, and the owner hears of a listener before the listener's process exists, so that
no frame comes from somebody unknown:

    owner starts -> ready -> listener-started for each -> listeners start -> all ready: the ready line
    listener dies -> owner: listener-gone; later listener-started with the next generation, then the process
    owner dies -> listeners: owner-gone; new owner ready -> owner: listener-started for each running listener,
                  listeners: owner-ready

A child that dies is started again, after a pause that doubles. A child that says it can't start ("failed", or
exit code 78) ends the node instead: starting it again would fail the same way.

Signal handlers only queue; one task handles what is queued.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

from setproctitle import setproctitle

from broker.commands import Command
from broker.config import Config, listener_processes
from broker.config_load import ConfigError
from broker.logs import NodeLog
from broker.runtime import left
from broker.runtime.addresses import AddressError, check_free, look_up, resolve_discovery_node
from broker.runtime.admin_socket import NAME as ADMIN_SOCKET_NAME
from broker.runtime.admin_socket import AdminSocket, Progress, error_response, text_result
from broker.runtime.child_process import ChildProcess, ending, python_command
from broker.runtime.control import Message
from broker.runtime.notify import Notifier
from broker.runtime.owner_calls import OwnerCalls
from broker.runtime.run_dir import NodeRunningError, RunDir
from broker.shown_settings import describe_setting, show_settings

EXIT_CANNOT_START = 78
"""The exit code of a child that would fail again (EX_CONFIG of sysexits.h)."""

EXIT_REMOVED = 3
"""The exit code of a node whose store is that of no member any more."""

IGNORED = (
    "cluster.discovery is ignored until `vmq-admin cluster join` is given, or the file LEFT in its data_dir removed"
)

STOPPING = "this node is stopping"

COMMANDS: Mapping[str, list[str]] = {
    "owner": python_command("broker.runtime.owner_process"),
    "listener": python_command("broker.runtime.listener_process"),
}


class StartError(Exception):
    """The node can't start; the text is for the user."""


@dataclass(frozen=True)
class Timing:
    """The supervisor's patience, in seconds. Tests shorten it."""

    restart_first_s: float = 0.1
    restart_max_s: float = 5.0
    healthy_s: float = 30.0
    stop_s: float = 10.0
    deaths_before_ready_max: int = 5


@dataclass
class Slot:
    """The place of one child: the process that fills it changes, the place stays."""

    role: str
    index: int
    generation: int = 0
    child: ChildProcess | None = None
    announced: bool = False
    ready: bool = False
    ever_ready: bool = False
    deaths_before_ready: int = 0
    restart_s: float = 0.0

    @property
    def label(self) -> str:
        """What logs call it."""
        return self.role if self.role == "owner" else f"{self.role} {self.index}"


class Supervisor:
    """Runs one node: `await run()` returns its exit code."""

    def __init__(
        self,
        config: Config,
        log: NodeLog,
        run_dir: RunDir,
        lock: int,
        reload: Callable[[], Config] | None = None,
        commands: Mapping[str, list[str]] = COMMANDS,
        timing: Timing | None = None,
        output: IO[str] | None = None,
        notifier: Notifier | None = None,
        recovers: bool = False,
    ) -> None:
        """`recovers`: serve nobody, and give the queues of a store whose node was removed to the cluster."""
        self._config = config
        self._recovers = recovers
        self._node_log = log
        self._run_dir = run_dir
        self._lock = lock
        self._reload = reload
        self._commands = commands
        self._timing = timing or Timing()
        self._output = output or sys.stdout
        self._notifier = notifier or Notifier()
        self._owner = Slot("owner", 0, restart_s=self._timing.restart_first_s)
        self._listeners = [
            Slot("listener", index, restart_s=self._timing.restart_first_s)
            for index in range(listener_processes(config))
        ]
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._owner_ready = asyncio.Event()
        self._calls = OwnerCalls()
        # Those that end by themselves.
        self._tasks: set[asyncio.Task[None]] = set()
        self._announced_ready = False
        self._exit = 0
        # Whether clients may connect; and the node has left its cluster, so that its store is to be put aside.
        self._accepts = not recovers
        self.has_left = False

    async def run(self) -> int:
        """Run the node until it is stopped or can't go on; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        admin = AdminSocket(self._run_dir.path(ADMIN_SOCKET_NAME), self.execute)
        await admin.start()
        signals = asyncio.create_task(self._guard(self._handle_signals()))
        watchdog = asyncio.create_task(self._guard(self._keep_watchdog_quiet()))
        owner = asyncio.create_task(self._guard(self._keep(self._owner)))
        listeners = [asyncio.create_task(self._guard(self._keep(slot))) for slot in self._listeners]
        try:
            await self._stopping.wait()
            await self._stop_children(listeners, owner)
        finally:
            tasks = (signals, watchdog, owner, *listeners, *self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await admin.close()
        self._log(logging.INFO, "stopped")
        return self._exit

    def stop(self) -> None:
        """Begin the clean stop."""
        if not self._stopping.is_set():
            self._log(logging.INFO, "stopping")
            self._notifier.stopping()
            self._stopping.set()

    async def execute(
        self, command: Command, arguments: dict[str, Any], flags: dict[str, Any], progress: Progress
    ) -> Message:
        """Carry out an admin command; returns the final response."""
        if command.words == "node stop":
            self.stop()
            return text_result("Done")
        if command.words == "cluster cookie":
            return error_response("`vmq-admin cluster cookie` makes a cookie by itself; a node gives none away")
        if command.words == "show":
            return {"type": "result", "result": show_settings(self._config, arguments["keys"])}
        if command.words == "describe":
            return {"type": "result", "result": describe_setting(self._config, " ".join(arguments["keys"]))}
        if command.words == "cluster join":
            try:
                arguments = await resolve_discovery_node(arguments["discovery-node"])
            except AddressError as error:
                return error_response(str(error))
        response = await self._ask_owner(command, arguments, flags, progress)
        if command.words == "cluster join" and response["type"] == "result":
            left.forget(self._config.node.data_dir)
        return response

    async def _ask_owner(
        self, command: Command, arguments: dict[str, Any], flags: dict[str, Any], progress: Progress
    ) -> Message:
        owner = self._owner.child
        if self._stopping.is_set():
            return error_response(STOPPING)
        if owner is None or not self._owner.ready:
            return error_response("this node is starting: its queue-owner is not ready yet")
        return await self._calls.ask(owner, command, arguments, flags, progress)

    async def _guard(self, work: Awaitable[None]) -> None:
        """Our own fault must end the node, not leave it half alive."""
        try:
            await work
        except Exception as error:
            self._log(logging.ERROR, traceback.format_exc())
            self._fail(f"supervisor: {type(error).__name__}: {error}", 1)

    async def _keep(self, slot: Slot) -> None:
        """Keep a slot filled until the node stops."""
        loop = asyncio.get_running_loop()
        timing = self._timing
        while True:
            if slot.role == "listener":
                await self._unless_stopping(self._owner_ready.wait())
            if self._stopping.is_set():
                return
            started = loop.time()
            exit_code = await self._run_child(slot)
            if exit_code == EXIT_CANNOT_START:
                # What it had to say came as "failed", before; then this changes nothing.
                self._fail(f"{slot.label} cannot start", 1)
            if self._stopping.is_set():
                return
            if not slot.ever_ready:
                slot.deaths_before_ready += 1
                if slot.deaths_before_ready >= timing.deaths_before_ready_max:
                    self._fail(f"{slot.label} {ending(exit_code)} {slot.deaths_before_ready} times before it was ready")
                    return
            if loop.time() - started >= timing.healthy_s:
                slot.restart_s = timing.restart_first_s
            pause_s, slot.restart_s = slot.restart_s, min(slot.restart_s * 2, timing.restart_max_s)
            self._log(logging.ERROR, f"{slot.label} {ending(exit_code)}; it starts again in {pause_s:g} s")
            await self._unless_stopping(asyncio.sleep(pause_s))

    async def _run_child(self, slot: Slot) -> int:
        slot.generation += 1
        if slot.role == "listener":
            # Before the process exists: what it sends to the owner must not come from a stranger.
            self._tell_owner("listener-started", slot)
            slot.announced = True
        try:
            try:
                child = await ChildProcess.start(slot.label, self._commands[slot.role], [self._lock], self._node_log)
            except OSError as error:
                # No processes or descriptors left: maybe later.
                self._log(logging.ERROR, f"{slot.label} cannot be started: {error}")
                return os.EX_OSERR
            slot.child = child
            child.send(self._start_message(slot))
            if slot.role == "listener" and not self._owner_ready.is_set():
                child.send({"type": "owner-gone"})
            if self._stopping.is_set():
                child.kill()
            self._log(logging.DEBUG, f"{slot.label} started as process {child.process_id}")
            return await child.run(lambda message: self._receive(slot, message))
        finally:
            slot.child, slot.ready, slot.announced = None, False, False
            if slot.role == "listener":
                self._tell_owner("listener-gone", slot)
            else:
                self._owner_gone()

    def _start_message(self, slot: Slot) -> Message:
        return {
            "type": "start",
            "role": slot.role,
            "index": slot.index,
            "generation": slot.generation,
            "owner_generation": self._owner.generation,
            "config": self._config.to_dict(),
            "run_dir": self._run_dir.directory,
            "accept": self._accepts,
            "recover": self._recovers,
        }

    def _receive(self, slot: Slot, message: Message) -> None:
        kind = message.get("type")
        if kind == "ready":
            slot.ready = slot.ever_ready = True
            if slot.role == "owner":
                self._owner_is_ready()
            self._announce_ready()
        elif kind == "failed":
            self._fail(str(message.get("error", f"{slot.label} failed")), int(message.get("exit", 1)))
        elif kind == "listener-silent":
            self._kill_silent(int(message["index"]), int(message["generation"]))
        elif kind == "listeners":
            self._accepts = bool(message["accept"])
            for listener in self._listeners:
                if listener.child is not None:
                    listener.child.send({"type": "accept", "on": self._accepts})
        elif kind == "left":
            self._leave()
        elif kind == "look-up":
            self._spawn(self._look_up(str(message["name"])))
        elif kind in ("reply", "progress"):
            self._calls.receive(message)
        else:
            self._log(logging.ERROR, f"{slot.label} sent an unknown control message: {kind}")

    def _leave(self) -> None:
        """The node is no member of its cluster any more, and has nothing left."""
        self._log(logging.INFO, "this node has left its cluster")
        if self._owner.ready:
            # A marker of an earlier leave says nothing of this store; an owner that starts knows its store by it.
            left.forget(self._config.node.data_dir)
        self.has_left = True
        self.stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, name: str) -> None:
        """Look up a name for the owner, whose loop must not wait for it."""
        addresses = await look_up(name)
        if self._owner.child is not None and self._owner.ready:
            self._owner.child.send({"type": "looked-up", "name": name, "addresses": addresses})

    def _kill_silent(self, index: int, generation: int) -> None:
        """End a listener that the owner has not heard for too long; then it is one that died."""
        slot = self._listeners[index]
        if slot.child is not None and slot.generation == generation:
            self._log(logging.ERROR, f"{slot.label} hangs: it is killed")
            slot.child.kill()

    def _owner_is_ready(self) -> None:
        for slot in self._listeners:
            if slot.announced:
                self._tell_owner("listener-started", slot)
        self._owner_ready.set()
        for slot in self._listeners:
            if slot.child is not None:
                slot.child.send({"type": "owner-ready", "generation": self._owner.generation})

    def _owner_gone(self) -> None:
        is_stop = self._stopping.is_set()
        self._calls.owner_gone(
            STOPPING if is_stop else "the queue-owner of this node has ended meanwhile; it is started again"
        )
        if self._owner_ready.is_set():
            self._owner_ready.clear()
            for slot in self._listeners:
                if slot.child is not None:
                    slot.child.send({"type": "owner-gone"})

    def _tell_owner(self, kind: str, slot: Slot) -> None:
        """Tell an owner that is ready. One that is not hears of the listeners that run when it is."""
        if self._owner.child is not None and self._owner.ready:
            self._owner.child.send({"type": kind, "index": slot.index, "generation": slot.generation})

    def _announce_ready(self) -> None:
        if self._announced_ready or not all(slot.ready for slot in (self._owner, *self._listeners)):
            return
        self._announced_ready = True
        if self._recovers:
            # No listener accepts.
            self._log(logging.INFO, "serves nobody, and offers its queues to the members of its cluster")
            self._notifier.ready(f"{self._config.node.name} offers its queues to its cluster")
            return
        addresses = [f"mqtt={listener.address}" for listener in self._config.listeners if listener.type == "mqtt"]
        # A node serves on when nobody reads its ready line any more.
        with contextlib.suppress(OSError):
            print("ready:", self._config.node.name, *addresses, file=self._output, flush=True)
        self._log(logging.INFO, " ".join(["ready", *addresses]))
        self._notifier.ready(" ".join([f"{self._config.node.name} serves", *addresses]))

    async def _keep_watchdog_quiet(self) -> None:
        """Tell the service manager that the node is alive, as long as all of its processes are."""
        while self._notifier.watchdog_s:
            if self._stopping.is_set() or all(slot.child is not None for slot in (self._owner, *self._listeners)):
                self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog_s)

    def _fail(self, error: str, exit_code: int = 1) -> None:
        """End the node for a reason that a restart does not cure. The first reason counts."""
        if self._stopping.is_set():
            return
        self._log(logging.CRITICAL, error)
        self._exit = exit_code
        # Said once more where the user looks, unless the log goes there.
        if not self._node_log.on_console:
            print(f"vmq-broker: {error}", file=sys.stderr, flush=True)
        self.stop()

    async def _unless_stopping(self, work: Awaitable[Any]) -> None:
        """Wait for `work` or the stop, whichever comes first."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _stop_children(self, listeners: list[asyncio.Task[None]], owner: asyncio.Task[None]) -> None:
        """Stop the listeners, then the owner, which then knows all that the clients said.

        The listeners have half the time: the owner commits what they leave. Whoever is late is killed, which
        costs nothing that was acknowledged.
        """
        loop = asyncio.get_running_loop()
        # The kill itself must fit in as well.
        deadline = loop.time() + self._timing.stop_s * 0.9
        if not self._exit and self._owner.child is not None:
            # The other nodes wait for one that was told to stop; not for one that can't go on.
            self._owner.child.send({"type": "stopping"})
        await self._stop_slots(self._listeners, listeners, loop.time() + self._timing.stop_s / 2)
        await self._stop_slots([self._owner], [owner], deadline)

    async def _stop_slots(self, slots: list[Slot], tasks: list[asyncio.Task[None]], deadline: float) -> None:
        for slot in slots:
            if slot.child is not None:
                slot.child.send({"type": "stop"})
        timeout = max(0.0, deadline - asyncio.get_running_loop().time())
        _, late = await asyncio.wait(tasks, timeout=timeout)
        if not late:
            return
        for slot in slots:
            if slot.child is not None:
                self._log(logging.WARNING, f"{slot.label} did not stop in time and is killed")
                slot.child.kill()
        await asyncio.wait(tasks)

    async def _handle_signals(self) -> None:
        while True:
            number = await self._signals.get()
            if number == signal.SIGHUP:
                self._handle_reload()
            else:
                self._log(logging.INFO, f"received {number.name}")
                self.stop()

    def _handle_reload(self) -> None:
        """Read the configuration again and take over what can change while the node runs: the log level."""
        if self._reload is None:
            return
        try:
            config = self._reload()
        except ConfigError as error:
            self._log(logging.ERROR, f"configuration not reloaded: {error}")
            return
        level = config.log.level
        self._node_log.set_level(level)
        for slot in (self._owner, *self._listeners):
            if slot.child is not None:
                slot.child.send({"type": "log-level", "level": level})
        # For the children that start from now on.
        self._config = replace(self._config, log=replace(self._config.log, level=level))
        changed = changed_keys(self._config.to_dict(), config.to_dict())
        self._log(logging.INFO, f"configuration reloaded: log.level is {level}")
        if changed:
            self._log(logging.WARNING, f"changed, but only a restart takes it over: {', '.join(changed)}")

    def _log(self, level: int, message: str) -> None:
        self._node_log.write("supervisor", level, message)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of the settings that differ. Never their values: one of them is the cookie."""
    changed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(prefix + key)
    return changed


def run_node(
    config: Config,
    reload: Callable[[], Config] | None = None,
    commands: Mapping[str, list[str]] = COMMANDS,
    timing: Timing | None = None,
    recovers: bool = False,
) -> int:
    """Run a node in the foreground; returns its exit code. Raises StartError.

    With `recovers` it serves nobody, and gives the queues of a store whose node was removed to the cluster.
    """
    setproctitle(f"zvmq {config.node.name} supervisor")
    try:
        run_dir = RunDir(config.node.data_dir)
        lock = run_dir.lock()
    except OSError as error:
        raise StartError(f"cannot use the data_dir {config.node.data_dir}: {error.strerror or error}") from None
    except NodeRunningError as error:
        raise StartError(str(error)) from None
    try:
        for listener in config.listeners:
            if listener.type == "mqtt":
                check_free(listener.address)
        log = open_log(config)
    except AddressError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"cannot write the log: {error}") from None
    for listener in config.listeners:
        if listener.type != "mqtt":
            log.write("supervisor", logging.WARNING, f"{listener.type} on {listener.address} is not served yet")
    if left.has_left(config.node.data_dir) and config.cluster.discovery:
        log.write("supervisor", logging.WARNING, f"this node has left its cluster: {IGNORED}")
        config = replace(config, cluster=replace(config.cluster, discovery=()))
    try:
        # A node that has not heard yet that it was removed hears so first.
        for attempt in (1, 2):
            notifier = Notifier.from_environment(os.environ)
            supervisor = Supervisor(
                config, log, run_dir, lock, reload, commands, timing, notifier=notifier, recovers=recovers
            )
            exit_code = asyncio.run(supervisor.run())
            if exit_code != EXIT_REMOVED or not recovers or attempt == 2:
                break
        return put_aside(config, log) if supervisor.has_left else exit_code
    finally:
        log.close()
        os.close(lock)
        run_dir.close()


def put_aside(config: Config, log: NodeLog) -> int:
    """Put the store of a node that has left aside; returns its exit code."""
    try:
        place = left.put_aside(config.node.data_dir, config.node.name, time.time())
    except left.PutBackError as error:
        return _end(log, str(error), EXIT_REMOVED)
    except OSError as error:
        said = f"{config.node.name} has left its cluster, but its store can't be put aside: {error}"
        return _end(log, f"{said}; start it again when it can, to have that done", 1)
    log.write("supervisor", logging.INFO, f"the store of the node that has left is in {place}")
    return 0


def _end(log: NodeLog, error: str, exit_code: int) -> int:
    """Say where the user looks why a node that has stopped did not end well; returns the exit code."""
    log.write("supervisor", logging.CRITICAL, error)
    if not log.on_console:
        print(f"vmq-broker: {error}", file=sys.stderr, flush=True)
    return exit_code


def open_log(config: Config) -> NodeLog:
    """The log that the configuration asks for; raises OSError."""
    return NodeLog(
        node=config.node.name,
        console=config.log.console,
        level=config.log.level,
        path=os.path.join(config.node.data_dir, "log", config.log.file),
        style=config.log.format,
        size_bytes_max=config.log.rotation.size_mb * 1024 * 1024,
        keep=config.log.rotation.keep,
        secrets=(config.cluster.cookie, *config.cluster.other_cookies),
    )
