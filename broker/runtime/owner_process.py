"""The queue-owner process: one synchronous loop around the pure core of the node.

    drain the pipes and the mesh -> step the core -> commit -> tell peers -> tell listeners

It owns the only writer of the store and every socket of the mesh. What it decides is nothing: events and
frames go into NodeCore, effects come out, and they are carried out in the order of their fields. Between the two
stands the commit gate, which keeps what a failing store can't take.
"""

import contextlib
import gc
import logging
import math
import os
import secrets
import sys
import time
from collections import deque
from typing import Any

import setproctitle
import zmq

from broker import __version__
from broker.config import Config, mesh_advertise, mesh_listen
from broker.config_values import DNS_PREFIX, expiration_s, node_and_address, will_delay_s
from broker.core.events import NEVER_EXPIRES_S, CreditReturned, ListenerGone, ListenerStarted
from broker.core.listener_records import ListenerHeader, unpack_events
from broker.core.metrics import in_order, mesh_names, metrics_result
from broker.core.owner import QueueOwner
from broker.core.rows import Table
from broker.core.settings import OwnerSettings
from broker.core.storage import STORE_ID_BYTES, StorageError
from broker.core.systree import Systree
from broker.logs import child_logging, level_number
from broker.runtime.channel import OwnerChannel
from broker.runtime.commit_gate import CommitGate
from broker.runtime.control import ControlChannel
from broker.runtime.leave_commands import LeaveCommands
from broker.runtime.rocks_storage import OpenedStore, open_store
from broker.runtime.run_dir import RunDir
from cluster.checks import CheckResult
from cluster.donor import become_donor, fellows, stored_state
from cluster.leaving import State
from cluster.mesh import MemberView, Mesh, MeshSettings
from cluster.node import NodeCore, NodeEffects
from cluster.statuses import NodeStatus
from cluster.transport import BindError, MeshTransport, cluster_keys

log = logging.getLogger(__name__)

CANNOT_START = 78
# The node's exit code when it is no member of its cluster any more, and did not leave by itself.
REMOVED = 3
_AFTER_REMOVAL = (
    "`vmq-broker start --recover-queues` offers the queues of its store to the cluster; with an empty data_dir it can "
    "join as a new node"
)
_FRAMES_PER_TURN = 64
_POLL_S_MAX = 1.0
_BEHIND_POLL_MS = 100
_STOP_LINGER_MS = 500
GC_THRESHOLD = 500_000


class OwnerProcess:
    """The process: its loop, its sockets and its store, and the core they serve."""

    def __init__(self, start: dict[str, Any], control: ControlChannel) -> None:
        self.config = Config.from_dict(start["config"])
        self._control = control
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        data_dir = self.config.node.data_dir
        store = self.config.store
        opened = open_store(os.path.join(data_dir, "store"), store.sync, store.sync_interval_ms)  # type: ignore[arg-type]
        self._recovers = bool(start.get("recover"))
        if self._recovers and stored_state(opened.storage, self.config.node.name) == State.REMOVED:
            become_donor(opened.storage, self.config.node.name, os.urandom(STORE_ID_BYTES))
            opened.storage.close()
            opened = open_store(os.path.join(data_dir, "store"), store.sync, store.sync_interval_ms)  # type: ignore[arg-type]
        self._storage = opened.storage
        self.node = build_node(self.config, opened)
        self._gate = CommitGate(self.node, self._storage)
        self._channel = OwnerChannel(self._context, RunDir(data_dir), int(start["generation"]))
        self._transport = open_transport(self.config)
        self._mesh_sockets: set[Any] = set()
        self._mesh_changes = -1
        # Frames of listeners that were received and not yet worked off, at most a window of each.
        self._backlog: deque[tuple[ListenerHeader, bytes]] = deque()
        self._joins: list[int] = []
        # The commands that wait for a check, which is as one of them wanted it.
        self._checks: list[int] = []
        # And those that wait for what the other nodes say of themselves.
        self._shows: list[int] = []
        self._leaves = LeaveCommands(self.node, control.send)
        # What the supervisor was told last of the node's place in the cluster.
        self._told_accepts = True
        self._told_end = False
        self._told_ready = False
        self._running = True

    def run(self) -> None:
        """Serve until told to stop."""
        poller = zmq.Poller()
        poller.register(self._control.fileno(), zmq.POLLIN)
        poller.register(self._channel.pull, zmq.POLLIN)
        control_fd = self._control.fileno()
        self._tell_leave()
        self._tell_ready(time.monotonic())
        self._control_readable()
        self._turn(time.monotonic(), {})
        while self._running:
            self._register_mesh(poller)
            ready = dict(poller.poll(self._timeout_ms()))
            if control_fd in ready:
                self._control_readable()
            self._turn(time.monotonic(), ready)

    def _register_mesh(self, poller: zmq.Poller) -> None:
        if self._transport is None or self._transport.changes == self._mesh_changes:
            return
        self._mesh_changes = self._transport.changes
        wanted = set(self._transport.sockets())
        for socket in self._mesh_sockets - wanted:
            poller.unregister(socket)
        for socket in wanted - self._mesh_sockets:
            poller.register(socket, zmq.POLLIN)
        self._mesh_sockets = wanted

    def _timeout_ms(self) -> int:
        now = time.monotonic()
        if self._transport is not None and self._transport.has_inputs():
            return 0
        if self._backlog or self._gate.has_held():
            # Credit wakes the loop through the pipe; a listener that stalls has to be noticed without.
            return _BEHIND_POLL_MS if self.node.owner.is_behind(now) else 0
        wait_s = min(self.node.next_deadline(), self._gate.next_deadline()) - now
        # Rounded up: waking a fraction of a millisecond early would mean a turn for nothing.
        return max(0, math.ceil(min(wait_s, _POLL_S_MAX) * 1000))

    def _turn(self, now: float, ready: dict[Any, int]) -> None:
        """One turn of the loop; the order of its parts is the broker's promise."""
        node = self.node
        node.set_clock(now, _utc_ms())
        self._gate.begin(now)
        if self._channel.pull in ready:
            for header, frame in self._channel.receive(_FRAMES_PER_TURN, now):
                if header.consumed_bytes:
                    self._gate.receive(CreditReturned(header.listener, header.consumed_bytes), now)
                self._backlog.append((header, frame))
        self._work_off(now)
        for listener, generation in self._channel.take_silent(now):
            self._control.send({"type": "listener-silent", "index": listener, "generation": generation})
        transport = self._transport
        if transport is not None and (transport.has_inputs() or not self._mesh_sockets.isdisjoint(ready)):
            for mesh_input in transport.receive(_FRAMES_PER_TURN):
                node.receive_input(mesh_input, now)
        node.tick(now)
        for effects in self._gate.settle(now):
            self._carry_out(effects)
        self._gate.flush(now)
        for notice in node.owner.take_notices():
            log.warning("%s", notice)
        self._answer_joins()
        self._answer_checks()
        self._answer_shows()
        if not self._gate.failing_reason:
            self._leaves.answer()
            self._tell_leave()
        self._tell_ready(now)
        for name in node.mesh.take_lookups():
            self._control.send({"type": "look-up", "name": name})

    def _carry_out(self, effects: NodeEffects) -> None:
        """Let out what a turn has to say; what it writes is committed."""
        if self._transport is not None and effects.commands:
            self._transport.execute(effects.commands)
        self._channel.send(effects.to_listeners)
        for note in effects.notes:
            log.info("%s", note)

    def _work_off(self, now: float) -> None:
        """Step through what the listeners sent, as long as they keep up with what comes of it."""
        node = self.node
        if self._gate.has_held() and not self._gate.replay(self._channel.worked_off, now):
            return
        for _ in range(min(_FRAMES_PER_TURN, len(self._backlog))):
            if node.owner.is_behind(now):
                return
            header, frame = self._backlog.popleft()
            if self._channel.is_current(header):
                credit_bytes = self._gate.receive_frame(header, unpack_events(frame), len(frame), now)
                self._channel.worked_off(header, credit_bytes)

    # The supervisor.

    def _control_readable(self) -> None:
        try:
            messages = self._control.receive()
        except EOFError:
            self._running = False
            return
        now = time.monotonic()
        for message in messages:
            kind = message["type"]
            if kind == "listener-started":
                index, generation = int(message["index"]), int(message["generation"])
                self._channel.add_listener(index, generation)
                self._gate.receive(ListenerStarted(index, generation), now)
            elif kind == "listener-gone":
                self._gate.receive(ListenerGone(int(message["index"]), int(message["generation"])), now)
                self._channel.remove_listener(int(message["index"]))
            elif kind == "command":
                self._command(message, now)
            elif kind == "looked-up":
                self.node.mesh.looked_up(message["name"], message["addresses"], now)
            elif kind == "stopping":
                self.node.announce_stop()
            elif kind == "stop":
                self._running = False
            elif kind == "log-level":
                logging.getLogger().setLevel(level_number(message["level"]))

    def _command(self, message: dict[str, Any], now: float) -> None:
        number = int(message["id"])
        command = message["command"]
        if command == "cluster join":
            self._join(number, message["arguments"], now)
        elif command == "cluster leave":
            if self._gate.failing_reason and not message["flags"].get("status"):
                self._refuse(number, f"this node can take no order now: {self._gate.failing_reason}", 1)
            else:
                self._leaves.command(number, message["arguments"]["node"], message["flags"], now)
        elif command == "cluster check":
            self._check(number, bool(message["flags"].get("repair")), now)
        elif command == "cluster show":
            if message["flags"].get("verbose"):
                self._shows.append(number)
                self.node.mesh.look(now)
            else:
                self._reply(number, {"type": "table", "table": cluster_table(self.node.members_view())})
        elif command == "node status":
            self._reply(number, self._status_table())
        elif command == "metrics show":
            self._reply(number, self._metrics(bool(message["flags"].get("with-descriptions"))))
        elif command == "store backup":
            self._backup(number, message["arguments"]["directory"], now)
        else:
            self._refuse(number, f"unknown command {command!r}", 2)

    def _tell_ready(self, now: float) -> None:
        """Tell the supervisor, once, that clients may come."""
        if not self._told_ready and not self._told_end and not self.node.is_awaited(now):
            self._told_ready = True
            self._control.send({"type": "ready"})

    def _tell_leave(self) -> None:
        """Tell the supervisor what comes of the leave of this node; the state that says so is committed."""
        node = self.node
        job = node.leaver.job
        for is_bad, line in node.leaver.take_lines():
            log.log(logging.ERROR if is_bad else logging.INFO, "%s", line)
        accepts = job.accepts() and not self._recovers
        if accepts != self._told_accepts:
            self._told_accepts = accepts
            self._control.send({"type": "listeners", "accept": accepts})
        if self._told_end:
            return
        if job.state == State.LEFT:
            self._told_end = True
            self._control.send({"type": "left"})
        elif job.state == State.REMOVED:
            self._told_end = True
            error = node.removed or f"{self.config.node.name} was removed from its cluster and serves nobody"
            self._control.send({"type": "failed", "error": f"{error}; {_AFTER_REMOVAL}", "exit": REMOVED})
        elif self._recovers and job.state == State.IDLE and not node.mesh.peers:
            self._told_end = True
            error = f"the store of {self.config.node.name} is that of no removed member: it has no queues to give back"
            self._control.send({"type": "failed", "error": f"{error}; start it without --recover-queues", "exit": 1})
        elif self._recovers and job.state == State.IDLE and node.mesh.is_complete():
            self._told_end = True
            error = f"{self.config.node.name} is a member of its cluster: start it without --recover-queues"
            self._control.send({"type": "failed", "error": error, "exit": 1})

    def _join(self, number: int, arguments: dict[str, Any], now: float) -> None:
        if self._transport is None:
            self._refuse(number, "this node has no cluster.cookie: it can't join a cluster", 1)
        elif self._gate.failing_reason:
            self._refuse(number, f"this node can't join a cluster now: {self._gate.failing_reason}", 1)
        elif self._joins:
            self._refuse(number, "this node is joining a cluster already", 1)
        else:
            self._joins.append(number)
            self.node.join(arguments["discovery-node"], arguments["address"], now)

    def _check(self, number: int, repair: bool, now: float) -> None:
        if self._checks:
            self._refuse(number, "a check is under way already", 1)
        else:
            self._checks.append(number)
            self.node.mesh.check(repair, now)

    def _answer_checks(self) -> None:
        result = self.node.mesh.take_check_result() if self._checks else None
        if result is not None:
            for number in self._checks:
                exit_code = 0 if result.agrees() else 1
                self._reply(number, {"type": "table", "table": check_table(result)}, exit_code)
            self._checks = []

    def _answer_shows(self) -> None:
        statuses = self.node.mesh.take_statuses() if self._shows else None
        if statuses is not None:
            for number in self._shows:
                self._reply(number, {"type": "table", "table": cluster_table(self.node.members_view(), statuses)})
            self._shows = []

    def _backup(self, number: int, directory: str, now: float) -> None:
        if not os.path.isabs(directory):
            # This process has a working directory of its own.
            self._refuse(number, f"the directory must be an absolute path: {directory}", 2)
            return
        try:
            self._gate.copy(directory, now)
        except StorageError as error:
            self._refuse(number, str(error), 1)
        else:
            self._reply(number, {"type": "text", "text": "Done"})

    def _answer_joins(self) -> None:
        # A node is a member once its store says so.
        if not self._joins or self._gate.failing_reason:
            return
        result = self.node.take_join_result()
        if result is None:
            return
        for number in self._joins:
            if result.joined:
                self._reply(number, {"type": "text", "text": "Done"})
            else:
                self._refuse(number, result.text, 1)
        self._joins = []

    def _status_table(self) -> dict[str, Any]:
        values = {
            **status(self.node),
            "ready": self.node.mesh.readiness.reason or "yes",
            "store": self._gate.status(),
            "store_failures": self._gate.failures,
        }
        return {"type": "table", "table": [{"Status": name, "Value": value} for name, value in values.items()]}

    def _metrics(self, with_descriptions: bool) -> dict[str, Any]:
        found = self.node.metrics()
        if self._transport is not None:
            found = in_order({**found, **mesh_names(self._transport.counters)})
        return metrics_result(found, with_descriptions)

    def _reply(self, number: int, result: dict[str, Any], exit_code: int = 0) -> None:
        bad_news = {"exit": exit_code} if exit_code else {}
        self._control.send({"type": "reply", "id": number, "result": result, **bad_news})

    def _refuse(self, number: int, error: str, exit_code: int) -> None:
        self._control.send({"type": "reply", "id": number, "error": error, "exit": exit_code})

    def close(self) -> None:
        """Let go of sockets and store; what was sent still leaves, within the linger time."""
        self._channel.close()
        if self._transport is not None:
            self._transport.close()
        self._context.destroy(linger=_STOP_LINGER_MS)
        self._storage.close()


def build_node(config: Config, opened: OpenedStore) -> NodeCore:
    """Recover the node from its store."""
    now = time.monotonic()
    mesh = Mesh(
        MeshSettings(
            config.node.name,
            mesh_advertise(config),
            config.cluster.failure_timeout_ms / 1000,
            (
                *(node_and_address(text) for text in config.cluster.discovery if not text.startswith(DNS_PREFIX)),
                *fellows(opened.storage),
            ),
            config.cluster.readiness,
            config.cluster.planned_restart_s,
            config.cluster.forward_spill_after_ms / 1000,
            config.cluster.outbox_bytes_max,
            tuple(text for text in config.cluster.discovery if text.startswith(DNS_PREFIX)),
        ),
        opened.storage,
        opened.store_id,
        opened.incarnation,
        secrets.token_bytes(16),
        now,
    )
    owner = QueueOwner(owner_settings(config), opened.storage, mesh.interest, opened.store_id, opened.incarnation)
    owner.recover(now, _utc_ms(), log.info)
    interval_s = config.systree.interval_s if config.systree.enabled else 0
    systree = Systree(config.node.name, __version__, interval_s, now)
    return NodeCore(owner, mesh, systree, __version__, config.node.server_reference)


def _utc_ms() -> int:
    return time.time_ns() // 1_000_000


def open_transport(config: Config) -> MeshTransport | None:
    """Open the mesh's sockets; a node without a cookie is alone and has none."""
    cluster = config.cluster
    if not cluster.cookie:
        return None
    keys, *other_keys = [cluster_keys(cookie) for cookie in (cluster.cookie, *cluster.other_cookies)]
    failure_timeout_s = cluster.failure_timeout_ms / 1000
    return MeshTransport(keys, config.node.name, mesh_listen(config), failure_timeout_s, other_keys)


def cluster_table(members: list[MemberView], statuses: dict[str, NodeStatus] | None = None) -> list[dict[str, Any]]:
    """Return what `cluster show` shows; with `statuses`, of the nodes that answered, all that is known of members."""
    rows: list[dict[str, Any]] = []
    for member in members:
        row: dict[str, Any] = {"Node": member.name, "Running": member.running}
        if statuses is not None:
            status = statuses.get(member.name)
            row["State"] = member.state
            row["Address"] = member.address
            row["Sessions"] = None if status is None else status.sessions
            row["Queued messages"] = None if status is None else status.queued_messages
            row["Link lag (bytes)"] = member.link_bytes_pending
            row["Version"] = None if status is None else status.version
        rows.append(row)
    return rows


def check_table(result: CheckResult) -> list[dict[str, Any]]:
    """Return what `cluster check` shows: of each node what it holds of each, itself included."""
    rows: list[dict[str, Any]] = []
    for node in sorted([*result.findings, *result.missing]):
        for found in sorted(result.findings.get(node, []), key=lambda found: (found.owner, found.table)):
            rows.append(
                {
                    "Node": node,
                    "Table of": found.owner,
                    "Table": Table(found.table).name.lower() if found.table in set(Table) else str(found.table),
                    "Version": found.version,
                    "Checksum": f"{found.checksum:016x}",
                    "Rows": found.rows,
                    "Agrees": found.agrees if found.known else None,
                }
            )
        if node in result.missing:
            columns = ("Table of", "Table", "Version", "Checksum", "Rows", "Agrees")
            rows.append({"Node": node, **dict.fromkeys(columns)})
    return rows


def status(node: NodeCore) -> dict[str, Any]:
    """Return what `node status` shows."""
    counters = node.owner.counters
    return {
        **node.owner.counts(),
        "mqtt_publish_received": counters.mqtt_publish_received,
        "mqtt_publish_sent": counters.mqtt_publish_sent,
        "matches_local": counters.router_matches_local,
        "matches_remote": counters.router_matches_remote,
        **{f"queue_message_drop{{reason={reason}}}": count for reason, count in sorted(counters.dropped.items())},
        "version": __version__,
    }


def main() -> None:
    """Run the queue-owner process; the supervisor starts it."""
    control = ControlChannel.from_environment()
    start = control.wait_start()
    config = Config.from_dict(start["config"])
    child_logging(config.log.level, "owner")
    setproctitle.setproctitle(f"zvmq {config.node.name} owner")
    # What exists now stays for ever, and what comes is freed by its reference counts: collecting rarely keeps the
    # collector out of every thousandth message.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            process = OwnerProcess(start, control)
        except (BindError, OSError, StorageError, zmq.ZMQError) as error:
            control.send({"type": "failed", "error": str(error), "exit": 1})
            sys.exit(CANNOT_START)
        try:
            process.run()
        finally:
            process.close()


def owner_settings(config: Config) -> OwnerSettings:
    """Return what the configuration says to the queue-owner. Where 0 means no limit there, it is -1 here."""
    mqtt = config.mqtt
    cluster = config.cluster
    return OwnerSettings(
        max_inflight_messages=mqtt.max_inflight_messages,
        max_online_messages=mqtt.max_online_messages,
        max_offline_messages=mqtt.max_offline_messages,
        max_queued_bytes=mqtt.max_queued_bytes or -1,
        override_max_online_messages=mqtt.override_max_online_messages,
        queue_lifo=mqtt.queue_type == "lifo",
        persistent_client_expiration_s=int(min(expiration_s(mqtt.persistent_client_expiration), NEVER_EXPIRES_S)),
        shared_policy=mqtt.shared_subscription_policy,
        retry_interval_s=mqtt.retry_interval,
        upgrade_outgoing_qos=mqtt.upgrade_outgoing_qos,
        max_subscriptions_per_client=mqtt.max_subscriptions_per_client,
        max_connections=mqtt.max_connections or -1,
        receive_max_client=mqtt.receive_max_client,
        retained_messages_max=mqtt.max_retained_messages or -1,
        retained_bytes_max=mqtt.max_retained_bytes or -1,
        max_last_will_delay_s=int(min(will_delay_s(mqtt.max_last_will_delay), NEVER_EXPIRES_S)),
        leave_will_grace_s=mqtt.leave_will_grace_s,
        suppress_will_on_takeover=mqtt.suppress_lwt_on_session_takeover,
        allow_register_during_netsplit=cluster.allow_register_during_netsplit,
        allow_publish_during_netsplit=cluster.allow_publish_during_netsplit,
        allow_subscribe_during_netsplit=cluster.allow_subscribe_during_netsplit,
        allow_unsubscribe_during_netsplit=cluster.allow_unsubscribe_during_netsplit,
        subacks_wait=cluster.subscribe_wait == "cluster",
    )
