"""A crash round: load, SIGKILLs at moments that a seed draws, and a check of the whole history.

What was acknowledged is delivered, QoS 2 once, in order, and nothing else is. Whom to kill, and after how many
acknowledgements, is the seed's; what is under way at that moment is the machine's.
"""

import collections
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from nodes import LIMIT_S, Node, wait_until
from wire_clients import V5, V311, Message, Progress, Publication, WirePublisher, WireSubscriber

LISTENER: Final = "listener"
OWNER: Final = "owner"
ALL: Final = "all"

KILLS: Final = 4
PUBLISHERS: Final = (V311, V5, V311, V5)
TOPICS: Final = 2
# Some are longer than what a queue record holds itself.
PAYLOAD_BYTES: Final = (20, 20, 20, 700)
KILL_AFTER_S_MAX: Final = 0.02
SHOWN_MAX: Final = 10


class Wanted(NamedTuple):
    """A persistent subscription: who has it (of a shared one several, of which each message goes to one)."""

    name: str
    qos: int
    versions: tuple[int, ...]
    shared: bool = False
    receive_maximum: int = 65_535


EVERY_KIND: Final = (
    Wanted("qos1-v3", 1, (V311,)),
    Wanted("qos1-v5", 1, (V5,), receive_maximum=7),
    Wanted("qos2-v3", 2, (V311,)),
    Wanted("qos2-v5", 2, (V5,), receive_maximum=7),
    Wanted("share", 2, (V311, V5), shared=True),
)


class Taken(NamedTuple):
    """What came of a subscription: what each of its clients received."""

    wanted: Wanted
    received: list[list[Message]]


class Totals:
    """What rounds went through, for the summary."""

    def __init__(self) -> None:
        self.rounds = 0
        self.kills: collections.Counter[str] = collections.Counter()
        self.published: collections.Counter[int] = collections.Counter()
        self.acknowledged = 0
        self.delivered = 0
        self.again = 0
        self.lost = 0
        self.doubled = 0
        self.reordered = 0

    def line(self) -> str:
        """Return the summary."""
        kills = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        published = ", ".join(f"QoS {qos} {count}" for qos, count in sorted(self.published.items()))
        return (
            f"{self.rounds} rounds, {self.kills.total()} kills ({kills}), "
            f"{self.published.total()} published ({published}), {self.acknowledged} acknowledged, "
            f"{self.delivered} delivered, {self.again} duplicates at QoS 1, {self.lost} lost, "
            f"{self.doubled} QoS 2 duplicates, {self.reordered} reordered"
        )


def plan_for(
    publisher: int, prefix: str, qos: tuple[int, ...], messages: int, chance: random.Random
) -> list[Publication]:
    """Return what a publisher is to publish: QoS and topics mixed."""
    numbers: collections.Counter[tuple[str, int]] = collections.Counter()
    plan: list[Publication] = []
    for _ in range(messages):
        topic, level = f"{prefix}/{chance.randrange(TOPICS)}", chance.choice(qos)
        number = numbers[topic, level]
        numbers[topic, level] += 1
        payload = f"{publisher} {level} {number} ".encode().ljust(chance.choice(PAYLOAD_BYTES), b".")
        plan.append(Publication(Message(topic, payload), level, publisher, number))
    return plan


def check(sent: list[Publication], acknowledged: list[Publication], taken: list[Taken], totals: Totals) -> list[str]:
    """Add a history to the totals and return what is wrong with it."""
    found: list[str] = []
    known = {publication.message: publication for publication in sent}
    for wanted, received in taken:
        seen: set[Publication] = set()
        doubled: list[Publication] = []
        reordered: list[Publication] = []
        strangers = 0
        for messages in received:
            last: dict[tuple[str, int, int], int] = {}
            for message in messages:
                publication = known.get(message)
                totals.delivered += 1
                if publication is None:
                    strangers += 1
                elif publication in seen:
                    if min(publication.qos, wanted.qos) == 2:
                        doubled.append(publication)
                    else:
                        totals.again += 1
                else:
                    seen.add(publication)
                    stream = (message.topic, publication.qos, publication.publisher)
                    # A message of QoS 1 that its publisher sends again may be for another client of a shared
                    # subscription than the first time.
                    if publication.number < last.get(stream, -1) and not (wanted.shared and publication.qos == 1):
                        reordered.append(publication)
                    last[stream] = max(publication.number, last.get(stream, -1))
        lost = [publication for publication in acknowledged if publication not in seen]
        totals.lost += len(lost)
        totals.doubled += len(doubled)
        totals.reordered += len(reordered)
        for what, which in (("lost", lost), ("QoS 2 duplicates", doubled), ("reordered", reordered)):
            if which:
                found.append(f"{wanted.name}: {len(which)} {what}, as {[describe(one) for one in which[:SHOWN_MAX]]}")
        if strangers:
            found.append(f"{wanted.name}: {strangers} that nobody published")
    totals.acknowledged += len(acknowledged)
    totals.published.update(publication.qos for publication in sent)
    return found


def describe(publication: Publication) -> str:
    """Return who published it where, with which QoS and number."""
    return f"{publication.publisher}:{publication.message.topic}:{publication.qos}:{publication.number}"


class Round:
    """One round on a node, or on one that publishes to another."""

    def __init__(
        self,
        seed: int,
        publishing: Node,
        subscribing: Node,
        kinds: tuple[str, ...] = (LISTENER, OWNER, ALL),
        qos: tuple[int, ...] = (1, 2),
        wanted: tuple[Wanted, ...] = EVERY_KIND,
        messages: int = 150,
    ) -> None:
        chance = random.Random(seed)
        prefix = f"crash/{seed}"
        self._chance = chance
        self._nodes = [publishing, subscribing] if publishing is not subscribing else [publishing]
        self._kinds = kinds
        self._wanted = wanted
        self._progress = Progress()
        self._messages = messages * len(PUBLISHERS)
        self.publishers = [
            WirePublisher(
                publishing,
                f"{prefix}/publisher-{number}",
                version,
                random.Random(chance.random()),
                plan_for(number, prefix, qos, messages, chance),
                self._progress,
            )
            for number, version in enumerate(PUBLISHERS)
        ]
        self.subscribers = [
            [
                WireSubscriber(
                    subscribing,
                    f"{prefix}/{want.name}-{number}",
                    version,
                    random.Random(chance.random()),
                    f"$share/{want.name}/{prefix}/+" if want.shared else f"{prefix}/+",
                    want.qos,
                    want.receive_maximum,
                )
                for number, version in enumerate(want.versions)
            ]
            for want in wanted
        ]

    def run(self, totals: Totals, subscribed: Callable[[], None] = lambda: None) -> list[str]:
        """Run and return what is wrong; `subscribed` is called before anything is published."""
        receivers = [subscriber for group in self.subscribers for subscriber in group]
        clients = [*receivers, *self.publishers]
        try:
            for subscriber in receivers:
                subscriber.start()
            for subscriber in receivers:
                assert subscriber.subscribed.wait(LIMIT_S), subscriber.fault or f"{subscriber.name} has no SUBACK"
            subscribed()
            for publisher in self.publishers:
                publisher.start()
            # Never so late that nothing is left to do.
            for count in sorted(self._chance.sample(range(1, self._messages * 9 // 10), KILLS)):
                node, kind = self._chance.choice(self._nodes), self._chance.choice(self._kinds)
                pause_s = self._chance.uniform(0, KILL_AFTER_S_MAX)
                if not self._progress.wait(count, 2 * LIMIT_S):
                    break
                time.sleep(pause_s)
                kill(node, kind, self._chance)
                totals.kills[kind] += 1
            unfinished = [publisher.name for publisher in self.publishers if not publisher.done.wait(2 * LIMIT_S)]
            acknowledged = [publication for publisher in self.publishers for publication in publisher.acknowledged]
            # Whatever is lost takes its time, and is found by the check.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: self._all_delivered(acknowledged), "all is delivered")
                wait_until(lambda: self._nothing_queued(), "the broker has every acknowledgement")
            drops = [found for node in self._nodes for found in dropped(node)]
        finally:
            for client in clients:
                client.leaving.set()
        for client in clients:
            if client.is_alive():
                client.join(LIMIT_S)
        totals.rounds += 1
        taken = [
            Taken(want, [subscriber.received for subscriber in group])
            for want, group in zip(self._wanted, self.subscribers, strict=True)
        ]
        sent = [publication for publisher in self.publishers for publication in publisher.sent]
        found = check(sent, acknowledged, taken, totals)
        found += [client.fault for client in clients if client.fault]
        found += [f"{name} has unanswered messages" for name in unfinished]
        return found + drops

    def _all_delivered(self, acknowledged: list[Publication]) -> bool:
        wanted = {publication.message for publication in acknowledged}
        return all(wanted <= {message for one in group for message in one.received} for group in self.subscribers)

    def _nothing_queued(self) -> bool:
        return all(queued_messages(node) == 0 for node in self._nodes)


def kill(node: Node, kind: str, chance: random.Random) -> None:
    """Kill what is of this kind; the supervisor starts it again, and if that is killed, too, this does."""
    if kind == ALL:
        node.kill()
        node.start()
        return
    role = OWNER if kind == OWNER else f"{LISTENER} {chance.randrange(2)}"
    # It may not be back from the last time.
    victim = wait_until(lambda: node.process_of(role), f"{node.name} has a {role}")
    os.kill(victim, signal.SIGKILL)


def queued_messages(node: Node) -> int:
    """Return how many messages wait in the node's queues; -1 while it doesn't answer."""
    rows = {row["Status"]: row["Value"] for row in node.table("node", "status")}
    return int(rows.get("queued_messages", -1))


def dropped(node: Node) -> list[str]:
    """Return what the node dropped since its last start: nothing, with the limits of these tests."""
    rows = node.table("node", "status")
    return [f"{row['Status']} = {row['Value']}" for row in rows if row["Status"].startswith("queue_message_drop")]
