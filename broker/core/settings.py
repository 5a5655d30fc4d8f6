"""What the configuration says to the queue-owner, and what it counts."""

from dataclasses import dataclass
from typing import final

from broker.core.events import NEVER_EXPIRES_S
from broker.core.group_choice import PREFER_LOCAL
from broker.core.records import WINDOW_BYTES


@dataclass(slots=True, frozen=True)
class OwnerSettings:
    """Limits and habits; negative limits are none, and so are limits of 0 where 0 makes no sense.

    With `subacks_wait` a SUBACK leaves when the caller of `QueueOwner.take_subacks` says so.
    `listener_window_bytes` is WINDOW_BYTES but in tests: listeners return credit in parts of that.
    """

    max_inflight_messages: int = 20
    max_online_messages: int = 1000
    max_offline_messages: int = 1000
    max_queued_bytes: int = -1
    override_max_online_messages: bool = False
    queue_lifo: bool = False
    persistent_client_expiration_s: int = NEVER_EXPIRES_S
    shared_policy: str = PREFER_LOCAL
    retry_interval_s: int = 0
    upgrade_outgoing_qos: bool = False
    max_subscriptions_per_client: int = 0
    max_connections: int = -1
    receive_max_client: int = 65535
    retained_messages_max: int = -1
    retained_bytes_max: int = -1
    max_last_will_delay_s: int = NEVER_EXPIRES_S
    leave_will_grace_s: int = 10
    suppress_will_on_takeover: bool = False
    allow_register_during_netsplit: bool = False
    allow_publish_during_netsplit: bool = False
    allow_subscribe_during_netsplit: bool = False
    allow_unsubscribe_during_netsplit: bool = False
    subacks_wait: bool = False
    listener_window_bytes: int = WINDOW_BYTES


@final
class Counters:
    """Counts since the start; the names are the metrics'."""

    def __init__(self) -> None:
        self.mqtt_publish_received: int = 0
        self.mqtt_publish_sent: int = 0
        self.mqtt_puback_invalid_error: int = 0
        self.mqtt_pubrec_invalid_error: int = 0
        self.mqtt_pubcomp_invalid_error: int = 0
        self.queue_setup: int = 0
        self.queue_initialized_from_storage: int = 0
        self.queue_teardown: int = 0
        self.queue_message_in: int = 0
        self.queue_message_out: int = 0
        self.client_expired: int = 0
        self.router_matches_local: int = 0
        self.router_matches_remote: int = 0
        self.will_published: int = 0
        # What could not be done as the node was not ready.
        self.mqtt_publish_error: int = 0
        self.mqtt_subscribe_error: int = 0
        self.mqtt_unsubscribe_error: int = 0
        self.dropped: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    def drop(self, reason: str, count: int = 1) -> None:
        """Count dropped deliveries by reason."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def refuse(self, limit: str, count: int = 1) -> None:
        """Count requests that a limit refused."""
        self.refused[limit] = self.refused.get(limit, 0) + count

    def named(self) -> dict[str, int]:
        """Return the counts by metric, but for the drops; refusals are series of `limit_refused`."""
        return {
            "mqtt_publish_received": self.mqtt_publish_received,
            "mqtt_publish_sent": self.mqtt_publish_sent,
            "mqtt_publish_error": self.mqtt_publish_error,
            "mqtt_subscribe_error": self.mqtt_subscribe_error,
            "mqtt_unsubscribe_error": self.mqtt_unsubscribe_error,
            "mqtt_puback_invalid_error": self.mqtt_puback_invalid_error,
            "mqtt_pubrec_invalid_error": self.mqtt_pubrec_invalid_error,
            "mqtt_pubcomp_invalid_error": self.mqtt_pubcomp_invalid_error,
            "queue_setup": self.queue_setup,
            "queue_initialized_from_storage": self.queue_initialized_from_storage,
            "queue_teardown": self.queue_teardown,
            "queue_message_in": self.queue_message_in,
            "queue_message_out": self.queue_message_out,
            "client_expired": self.client_expired,
            "router_matches_local": self.router_matches_local,
            "router_matches_remote": self.router_matches_remote,
            "will_published": self.will_published,
            **{f"limit_refused{{limit={limit}}}": count for limit, count in self.refused.items()},
        }
