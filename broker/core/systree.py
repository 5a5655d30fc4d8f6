"""The $SYS topics: what a node publishes about itself, and when.

It owns the topics, the clock of their rounds and the averages under `$SYS/broker/load`. It is told the time and the
metrics, and answers values; it publishes nothing and knows no session.

Theory of operation
-------------------
Each round publishes every metric as `$SYS/<node name>/<its name with / for _>`, a series one level below its metric,
and, for dashboards made for mosquitto, its names under `$SYS/broker`. A topic whose numbers nobody counts is left out.

A load is an exponentially weighted average of a counter's growth per minute, over 1, 5 and 15 minutes: after `t`
seconds the old average counts for exp(-t/60), exp(-t/300) or exp(-t/900), and the growth in those seconds, made a rate
per minute, for the rest. The first round only notes the counters: what was counted before it is no growth.
"""

import math
from collections.abc import Mapping
from typing import Final, final

from broker.core.counters import RECEIVED, SENT, received_name, sent_name
from broker.core.metrics import base_name, label_value

_BROKER: Final = "$SYS/broker/"
_WINDOWS: Final = (("1min", 60.0), ("5min", 300.0), ("15min", 900.0))

# Topic below $SYS/broker -> the metrics whose sum it is.
_SUMS: Final[dict[str, tuple[str, ...]]] = {
    "clients/connected": ("sessions_online",),
    "clients/disconnected": ("sessions_offline",),
    "clients/total": ("sessions_online", "sessions_offline"),
    # The older names of the first two, which dashboards still read.
    "clients/active": ("sessions_online",),
    "clients/inactive": ("sessions_offline",),
    "clients/expired": ("client_expired",),
    "messages/received": tuple([received_name(kind) for kind in RECEIVED]),
    "messages/sent": tuple([sent_name(kind) for kind in SENT]),
    # Unlike mosquitto's, a message that waits in two queues counts twice.
    "messages/stored": ("queue_messages",),
    "store/messages/count": ("queue_messages",),
    "store/messages/bytes": ("queue_message_bytes",),
    "publish/messages/received": ("mqtt_publish_received",),
    "publish/messages/sent": ("mqtt_publish_sent",),
    "publish/messages/dropped": ("queue_message_drop",),
    "publish/bytes/received": ("mqtt_publish_bytes_received",),
    "publish/bytes/sent": ("mqtt_publish_bytes_sent",),
    "bytes/received": ("bytes_received",),
    "bytes/sent": ("bytes_sent",),
    "retained messages/count": ("retain_messages",),
    "subscriptions/count": ("router_subscriptions",),
    "shared_subscriptions/count": ("shared_subscriptions",),
}
# mosquitto counts retained messages among those that it stores.
_STORED: Final = ("messages/stored", "store/messages/count")
_STORED_BYTES: Final = "store/messages/bytes"

# Topic below $SYS/broker/load -> the counters whose growth it averages.
_LOADS: Final[dict[str, tuple[str, ...]]] = {
    "messages/received": _SUMS["messages/received"],
    "messages/sent": _SUMS["messages/sent"],
    "publish/received": ("mqtt_publish_received",),
    "publish/sent": ("mqtt_publish_sent",),
    "publish/dropped": ("queue_message_drop",),
    "bytes/received": ("bytes_received",),
    "bytes/sent": ("bytes_sent",),
    "sockets": ("socket_open",),
    "connections": ("mqtt_connect_received",),
}


def total(metrics: Mapping[str, int], names: tuple[str, ...]) -> int:
    """Return the sum of some metrics, -1 when one of them is not counted."""
    found = 0
    for name in names:
        value = metrics.get(name)
        if value is None:
            return -1
        found += value
    return found


def topic_of(series: str) -> str:
    """Return the part of a metric's topic that follows the node name."""
    topic = base_name(series).replace("_", "/")
    label = label_value(series)
    return f"{topic}/{label}" if label else topic


@final
class Load:
    """The averages of one counter's growth, per minute."""

    __slots__ = ("averages", "last")

    def __init__(self, count: int) -> None:
        self.last = count
        self.averages: list[float] = [0.0, 0.0, 0.0]

    def note(self, count: int, elapsed_s: float) -> None:
        """Take the counter's new value, `elapsed_s` after the last one."""
        # It never shrinks but when the queue-owner was started again, and then nothing is known of the time between.
        per_minute = max(0, count - self.last) * 60.0 / elapsed_s
        self.last = count
        for index, window in enumerate(_WINDOWS):
            decay = math.exp(-elapsed_s / window[1])
            self.averages[index] = per_minute + decay * (self.averages[index] - per_minute)


@final
class Systree:
    """One node's $SYS. `tick` answers the topics of a round when it is time for one."""

    def __init__(self, node_name: str, version: str, interval_s: float, now: float) -> None:
        """Begin at `now`: the first round is due one interval later. An interval of 0 means never."""
        self._prefix = f"$SYS/{node_name}/"
        self._version = version
        self._interval_s = interval_s
        self._began_at = now
        self._ticked_at = now
        self._deadline = now + interval_s if interval_s > 0 else math.inf
        self._clients_max: int = 0
        self._loads: dict[str, Load] = {}
        # Metric -> its topic, which is the same in every round.
        self._topics: dict[str, bytes] = {}

    def next_deadline(self) -> float:
        """Return when `tick` has something to say; infinity if never."""
        return self._deadline

    def tick(self, now: float, metrics: Mapping[str, int]) -> list[tuple[bytes, bytes]]:
        """Return the (topic, payload) of a round if one is due, else nothing."""
        if now < self._deadline:
            return []
        elapsed_s = now - self._ticked_at
        self._ticked_at = now
        self._deadline += self._interval_s
        if self._deadline <= now:
            # Rounds that were missed are not made up for.
            self._deadline = now + self._interval_s
        round_of: list[tuple[bytes, bytes]] = []
        for name, value in metrics.items():
            topic = self._topics.get(name)
            if topic is None:
                topic = self._topics[name] = (self._prefix + topic_of(name)).encode()
            round_of.append((topic, b"%d" % value))
        for topic_text, text in self._broker(now, metrics) + self._averages(elapsed_s, metrics):
            round_of.append(((_BROKER + topic_text).encode(), text.encode()))
        return round_of

    def _broker(self, now: float, metrics: Mapping[str, int]) -> list[tuple[str, str]]:
        found = [
            ("version", f"zvmq version {self._version}"),
            ("uptime", f"{int(now - self._began_at)} seconds"),
        ]
        for topic, names in _SUMS.items():
            count = total(metrics, names)
            if count < 0:
                continue
            if topic in _STORED:
                count += metrics.get("retain_messages", 0)
            elif topic == _STORED_BYTES:
                count += metrics.get("retain_memory", 0)
            found.append((topic, str(count)))
        connected = metrics.get("sessions_online")
        if connected is not None:
            # As mosquitto's: what came and went between two rounds is not seen.
            self._clients_max = max(self._clients_max, connected)
            found.append(("clients/maximum", str(self._clients_max)))
        return found

    def _averages(self, elapsed_s: float, metrics: Mapping[str, int]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for topic, names in _LOADS.items():
            count = total(metrics, names)
            if count < 0:
                continue
            load = self._loads.get(topic)
            if load is None:
                load = self._loads[topic] = Load(count)
            else:
                load.note(count, elapsed_s)
            for index, window in enumerate(_WINDOWS):
                found.append((f"load/{topic}/{window[0]}", f"{load.averages[index]:.2f}"))
        return found
