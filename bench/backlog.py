"""What a session's long queue costs: `python -m bench.backlog --messages 1000000`.

Fills the queue of one offline persistent session through the owner's core and the store on disk, without sockets; a
fresh process then recovers it and drains it to its client. Prints times, the store's size and the resident memory
for small payloads, whose bodies lie in the queue, and for large ones, which are stored apart and whose references are
counted in memory. A queue has its head in memory and the rest in the store: memory must not grow with the number of
small messages.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.core.events import (
    NEVER_EXPIRES_S,
    Attach,
    CreditReturned,
    Detach,
    ListenerStarted,
    PubackReceived,
    PublishReceived,
    SubscribeReceived,
)
from broker.core.message import Message
from broker.core.owner import QueueOwner
from broker.core.owner_records import Deliver, unpack_owner_records
from broker.core.routes import NoInterest
from broker.core.settings import OwnerSettings
from broker.runtime.rocks_storage import open_store

PUBLISHER, SUBSCRIBER = 1, 2
# As many as a turn of a busy node handles.
TURN_MESSAGES = 200
MIB = 1 << 20


def memory_mib(field: str) -> float:
    """This process's VmRSS (resident now) or VmHWM (at most)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise AssertionError(f"no {field}")


def forget_peak() -> None:
    """Have VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


class Node:
    """An owner on a store, without limits on its queues, and one listener that answers everything at once."""

    def __init__(self, path: str) -> None:
        self.storage, store_id, incarnation = open_store(path, "interval", 100)
        self.empty_mib = memory_mib("VmRSS")
        forget_peak()
        settings = OwnerSettings(max_offline_messages=-1, max_online_messages=-1)
        self.owner = QueueOwner(settings, self.storage, NoInterest(), store_id, incarnation)
        began = time.perf_counter()
        self.owner.recover(time.monotonic(), time.time_ns() // 1_000_000)
        self.recovery_s = time.perf_counter() - began
        self.owner.receive(ListenerStarted(0, 1), 0.0)

    def turn(self) -> list[int]:
        """Commit, and return the packet ids that the subscriber was sent."""
        now = time.monotonic()
        effects = self.owner.take_effects()
        self.storage.commit(effects.writes)
        self.storage.flush(now)
        sent = []
        for batch in effects.to_listeners.values():
            for records in batch.records():
                for record in unpack_owner_records(records, 0):
                    if isinstance(record, Deliver):
                        sent += [int(record.target(index)[1]) for index in range(record.count)]
            self.owner.receive(CreditReturned(0, batch.size()), now)
        self.owner.begin(now)
        return sent

    def attach(self, connection: int, client_id: str) -> None:
        """Connect a client of MQTT 5 whose session stays."""
        event = Attach(connection, client_id, 5, False, NEVER_EXPIRES_S, 65535)
        self.owner.receive(event, time.monotonic())


def fill(path: str, messages: int, payload_bytes: int) -> dict[str, float]:
    """Queue the messages for a session that is offline."""
    node = Node(path)
    owner = node.owner
    node.attach(SUBSCRIBER, "subscriber")
    owner.receive(SubscribeReceived(SUBSCRIBER, 1, [(b"backlog/+", 1)]), 0.0)
    owner.receive(Detach(SUBSCRIBER), time.monotonic())
    node.attach(PUBLISHER, "publisher")
    node.turn()
    began = time.perf_counter()
    for number in range(messages):
        # Random, or the store would compress it to nothing.
        payload = os.urandom(payload_bytes)
        message = Message(b"backlog/%d" % (number % 100), payload, b"", 1)
        owner.receive(PublishReceived(PUBLISHER, number % 65535 + 1, message), time.monotonic())
        if number % TURN_MESSAGES == TURN_MESSAGES - 1:
            node.turn()
    node.turn()
    spent_s = time.perf_counter() - began
    assert owner.counts()["queued_messages"] == messages
    found = {"seconds": spent_s, "before": node.empty_mib, "after": memory_mib("VmRSS"), "peak": memory_mib("VmHWM")}
    node.storage.close()
    found["disk"] = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file()) / MIB
    return found


def recover_and_drain(path: str, messages: int, payload_bytes: int) -> dict[str, float]:
    """Recover the queue in this process, then deliver it to its client."""
    node = Node(path)
    assert node.owner.counts()["queued_messages"] == messages
    found = {"recovery": node.recovery_s, "before": node.empty_mib, "after": memory_mib("VmRSS")}
    found["recovery peak"] = memory_mib("VmHWM")
    began = time.perf_counter()
    node.attach(SUBSCRIBER, "subscriber")
    delivered = 0
    while delivered < messages:
        sent = node.turn()
        now = time.monotonic()
        for packet_id in sent:
            node.owner.receive(PubackReceived(SUBSCRIBER, packet_id), now)
        delivered += len(sent)
    node.turn()
    found["drain"] = time.perf_counter() - began
    found["drain peak"] = memory_mib("VmHWM")
    assert node.owner.counts()["queued_messages"] == 0
    node.storage.close()
    return found


def _report(phase: Callable[..., dict[str, float]], arguments: tuple[Any, ...], pipe: Any) -> None:
    pipe.send(phase(*arguments))


def in_a_process(phase: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Run a phase in a process of its own, whose memory holds nothing of another's."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(phase, arguments, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, float] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{phase.__name__} failed") from None
    process.join()
    return found


def run(messages: int, payload_bytes: int, directory: str | None) -> None:
    """Measure one size of payload and print the figures."""
    with tempfile.TemporaryDirectory(prefix="zvmq-backlog-", dir=directory) as path:
        store = f"{path}/store"
        print(f"{messages} messages of {payload_bytes} B:")
        filled = in_a_process(fill, store, messages, payload_bytes)
        print(
            f"  fill      {filled['seconds']:.1f} s, {filled['seconds'] / messages * 1e6:.1f} us each; "
            f"memory {filled['before']:.0f} MiB before, {filled['after']:.0f} after, {filled['peak']:.0f} at most; "
            f"{filled['disk']:.0f} MiB on disk",
            flush=True,
        )
        found = in_a_process(recover_and_drain, store, messages, payload_bytes)
        grown = (found["after"] - found["before"]) * MIB / messages
        print(
            f"  recovery  {found['recovery']:.1f} s, {found['recovery'] / messages * 1e6:.1f} us each; "
            f"memory {found['before']:.0f} MiB before, {found['after']:.0f} after, "
            f"{found['recovery peak']:.0f} at most; {grown:.0f} B a message"
        )
        print(
            f"  drain     {found['drain']:.1f} s, {found['drain'] / messages * 1e6:.1f} us each; "
            f"memory {found['drain peak']:.0f} MiB at most",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--payload", type=int, action="append", help="bytes; 100 and 1024 by default")
    parser.add_argument("--directory", help="where the store goes; by default that of temporary files")
    arguments = parser.parse_args()
    cores = sys.modules["broker.core.owner"].__file__
    print("cores are", "interpreted" if str(cores).endswith(".py") else "compiled")
    for payload_bytes in arguments.payload or [100, 1024]:
        run(arguments.messages, payload_bytes, arguments.directory)


if __name__ == "__main__":
    main()
