"""The configuration of a node: what may be set, its default and its meaning, and what follows from it.

Owns the table of keys: the frozen dataclasses below mirror the YAML exactly, a field is a key, with how its text is
read (`config_values`), its default and its meaning. Knows nothing of where values come from (`config_sources`) and of
the rules that concern several keys (`config_load`).
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.config_values import (
    address_or_none,
    any_text,
    choice,
    discovery_entry,
    expiration,
    file_name,
    filled,
    host_port,
    listener_address,
    mountpoint_name,
    node_and_address,
    node_name,
    process_count,
    protocol_version_list,
    switch,
    whole,
    will_delay,
)

MQTT_MESSAGE_BYTES_MAX: Final = 268_435_455
LISTENER_TYPES: Final = ("mqtt", "mqtts", "ws", "wss", "http", "https")


def _key(parse: Callable[[str], Any], default: Any, doc: str, *, many: bool = False, secret: bool = False) -> Any:
    # `parse` reads the text of a scalar, of each item with `many`; without a default the key must be given.
    metadata = {"parse": parse, "many": many, "doc": doc}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def _tables(kind: type[Any], default: tuple[Any, ...], doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"tables": kind, "doc": doc})


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Who this node is and where it keeps its data."""

    name: str = _key(node_name, "node1@127.0.0.1", "name@host, unique in the cluster")
    data_dir: str = _key(filled, "./zvmq-data", "store, logs and sockets; relative to the current directory")
    server_reference: str = _key(
        address_or_none,
        "",
        "host:port of this node for MQTT 5 clients of a node that leaves; empty: they are told none",
    )


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How this node meets others, and what it does when it can't reach all of them."""

    cookie: str = _key(any_text, "", "secret of the cluster, at least 16 characters", secret=True)
    cookie_file: str = _key(any_text, "", "file that holds the cookie")
    other_cookies: tuple[str, ...] = _key(any_text, (), "also admitted, for rotation", many=True, secret=True)
    listen: str = _key(address_or_none, "", "host:port for other nodes; default the host of node.name, port 44053")
    advertise: str = _key(address_or_none, "", "host:port for peers when it differs from listen")
    discovery: tuple[str, ...] = _key(discovery_entry, (), "name@host[:port] or dns://name[:port] to join", many=True)
    readiness: str = _key(choice("all", "majority", "available"), "all", "which members a node needs to be ready")
    failure_timeout_ms: int = _key(whole(500, 600_000), 5000, "silence after which a member counts as dead")
    planned_restart_s: int = _key(whole(0, 86400), 30, "how long members wait for a node that announced its stop")
    forward_spill_after_ms: int = _key(whole(1, 600_000), 200, "link without progress: forwards go to disk")
    outbox_bytes_max: int = _key(whole(0, 2**62), 1073741824, "per peer, on disk")
    subscribe_wait: str = _key(choice("local", "cluster"), "local", "who has a subscription before its SUBACK")
    allow_register_during_netsplit: bool = _key(switch, False, "CONNECT while a member is not reachable")
    allow_publish_during_netsplit: bool = _key(switch, False, "PUBLISH while a member is not reachable")
    allow_subscribe_during_netsplit: bool = _key(switch, False, "SUBSCRIBE while a member is not reachable")
    allow_unsubscribe_during_netsplit: bool = _key(switch, False, "UNSUBSCRIBE while a member is not reachable")


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One address that clients connect to."""

    type: str = _key(choice(*LISTENER_TYPES), dataclasses.MISSING, "mqtt, mqtts, ws, wss, http or https")
    address: str = _key(listener_address, dataclasses.MISSING, "host:port, or unix:/path for mqtt")
    path: str = _key(filled, "/mqtt", "of a WebSocket")
    mountpoint: str = _key(
        mountpoint_name, "", "its clients and their topics are apart from those of other mountpoints"
    )
    certfile: str = _key(any_text, "", "PEM file of the certificate chain")
    keyfile: str = _key(any_text, "", "PEM file of the private key")
    cafile: str = _key(any_text, "", "PEM file of the authorities that sign client certificates")
    require_certificate: bool = _key(switch, False, "refuse clients without a certificate")
    use_identity_as_username: bool = _key(switch, False, "the certificate's common name is the user name")


DEFAULT_LISTENERS: Final = (ListenerConfig("mqtt", "127.0.0.1:1883"), ListenerConfig("http", "127.0.0.1:8888"))


@dataclass(frozen=True, slots=True)
class ProcessesConfig:
    """How many processes a node has."""

    listeners: int | str = _key(process_count, "auto", "auto: one per CPU this process may use")


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Who may connect and do what."""

    allow_anonymous: bool = _key(switch, False, "let clients in without asking who they are")
    password_file: str = _key(any_text, "", "users and their passwords")
    acl_file: str = _key(any_text, "", "who may publish and subscribe to what")
    plugins: tuple[str, ...] = _key(any_text, (), "Python entry points that decide", many=True)


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """Limits and habits of MQTT sessions."""

    max_inflight_messages: int = _key(whole(0, 65535), 20, "unacknowledged deliveries of a v3 client; 0: no limit")
    max_online_messages: int = _key(whole(-1, 2**31 - 1), 1000, "queued for a connected session; -1: no limit")
    max_offline_messages: int = _key(whole(-1, 2**31 - 1), 1000, "queued for an absent session; -1: no limit")
    max_message_size: int = _key(whole(0, MQTT_MESSAGE_BYTES_MAX), 0, "bytes of a packet; 0: MQTT's own limit")
    persistent_client_expiration: str = _key(expiration, "never", "never, or <n>h, d, w, m or y; of v3 sessions")
    shared_subscription_policy: str = _key(
        choice("prefer_local", "random", "local_only", "prefer_online_before_local"), "prefer_local", "who gets it"
    )
    retry_interval: int = _key(whole(0, 86400), 0, "seconds; 0: deliver again only on reconnect, as MQTT 5 demands")
    leave_will_grace_s: int = _key(whole(0, 86400), 10, "least delay of wills when the server closes connections")
    # [MQTT-3.1.3-5] [MQTT311-3.1.3-5] A server must take client ids of 23 bytes.
    max_client_id_size: int = _key(whole(23, 65535), 100, "bytes of a client id")
    max_connect_size: int = _key(whole(256, MQTT_MESSAGE_BYTES_MAX), 8192, "bytes of a CONNECT, its will included")
    mqtt_connect_timeout: int = _key(whole(1, 600_000), 5000, "milliseconds from the TCP connection to CONNECT")
    topic_max_depth: int = _key(whole(1, 65535), 128, "levels of a topic name or filter")
    max_topic_size: int = _key(whole(1, 65535), 65535, "bytes of a topic name or filter")
    allowed_protocol_versions: str = _key(protocol_version_list, "3,4,5,131,132", "as CONNECT says them")
    override_max_online_messages: bool = _key(switch, False, "an absent session's backlog may exceed the online limit")
    max_queued_bytes: int = _key(
        whole(0, 2**62), 0, "topics, properties and payloads held for a session, queued or in flight; 0: no limit"
    )
    queue_type: str = _key(choice("fifo", "lifo"), "fifo", "fifo drops the newest when full, lifo the oldest")
    upgrade_outgoing_qos: bool = _key(switch, False, "deliver at the subscription's QoS, even if published with less")
    receive_max_client: int = _key(whole(1, 65535), 65535, "unacknowledged deliveries of a v5 client at most")
    receive_max_broker: int = _key(whole(1, 65535), 65535, "unacknowledged PUBLISHes of a client at most")
    topic_alias_max_client: int = _key(whole(0, 65535), 0, "topic aliases that a v5 client may set")
    topic_alias_max_broker: int = _key(whole(0, 65535), 0, "topic aliases set for a v5 client that takes them")
    max_subscriptions_per_client: int = _key(whole(0, 2**31 - 1), 0, "0: no limit")
    max_retained_messages: int = _key(whole(0, 2**31 - 1), 0, "retained messages of a node; 0: no limit")
    max_retained_bytes: int = _key(whole(0, 2**62), 0, "about what they take in memory; 0: no limit")
    max_last_will_delay: str = _key(will_delay, "client", "client, or <n>s, h, d, w, m or y at most")
    suppress_lwt_on_session_takeover: bool = _key(switch, False, "no will when the client connects again meanwhile")
    max_connections: int = _key(whole(0, 2**31 - 1), 0, "connected clients of a node; 0: no limit")
    max_connection_rate: int = _key(whole(0, 2**31 - 1), 0, "CONNECTs a second of a listener process; 0: no limit")
    max_message_rate: int = _key(whole(0, 2**31 - 1), 0, "PUBLISHes a second that are read of a client; 0: no limit")
    max_keep_alive: int = _key(whole(0, 65535), 0, "seconds; 0: no limit")
    max_output_buffer: int = _key(whole(4096, 2**31 - 1), 262144, "bytes that wait for a client that does not read")
    check_payload_format: bool = _key(switch, False, "refuse payloads that say to be UTF-8 and aren't")


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """What of the store survives a power loss."""

    sync: str = _key(choice("always", "interval", "never"), "interval", "when the log is synced; never: the OS does")
    sync_interval_ms: int = _key(
        whole(1, 600_000), 100, "the most that a power loss takes with sync: interval, of moves, too"
    )


@dataclass(frozen=True, slots=True)
class SystreeConfig:
    """The $SYS topics."""

    enabled: bool = _key(switch, True, "publish $SYS topics")
    interval_s: int = _key(whole(1, 86400), 20, "between two rounds of them")


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Administration over HTTP."""

    api_keys_file: str = _key(any_text, "", "keys that may administrate")


@dataclass(frozen=True, slots=True)
class RotationConfig:
    """When a log file makes room for the next."""

    size_mb: int = _key(whole(1, 1_000_000), 64, "of one file")
    keep: int = _key(whole(0, 10_000), 5, "older files")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Where logs go."""

    console: str = _key(choice("off", "file", "console", "both"), "both", "where to log")
    level: str = _key(choice("debug", "info", "warning", "error", "critical"), "info", "the least that is logged")
    file: str = _key(file_name, "console.log", "under data_dir/log")
    format: str = _key(choice("text", "json"), "text", "of a line")
    rotation: RotationConfig = RotationConfig()


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set for a node. Its repr holds no secret, its `to_dict` does."""

    node: NodeConfig = NodeConfig()
    cluster: ClusterConfig = ClusterConfig()
    listeners: tuple[ListenerConfig, ...] = _tables(ListenerConfig, DEFAULT_LISTENERS, "addresses for clients")
    processes: ProcessesConfig = ProcessesConfig()
    auth: AuthConfig = AuthConfig()
    mqtt: MqttConfig = MqttConfig()
    store: StoreConfig = StoreConfig()
    systree: SystreeConfig = SystreeConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can carry it to another process; the cookies are in it."""
        result: dict[str, Any] = dataclasses.asdict(self)
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Build what `to_dict` gave, also after a way through JSON; no rule is checked again."""
        config: Config = _from_dict(cls, values)
        return config


def mesh_listen(config: Config) -> tuple[str, int]:
    """Return host and port where this node listens for other nodes."""
    if config.cluster.listen:
        return host_port(config.cluster.listen)
    return host_port(node_and_address(config.node.name)[1])


def mesh_advertise(config: Config) -> str:
    """Return the `host:port` that peers connect to."""
    if config.cluster.advertise:
        return config.cluster.advertise
    host, port = mesh_listen(config)
    if host in ("0.0.0.0", "::"):
        # Every address of this machine: the node's name holds the one that others know.
        host = host_port(node_and_address(config.node.name)[1])[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listener_processes(config: Config) -> int:
    """Return how many listener processes to run."""
    wanted = config.processes.listeners
    return len(os.sched_getaffinity(0)) if isinstance(wanted, str) else wanted


def known_keys(kind: type[Any] = Config, prefix: str = "") -> list[str]:
    """List every dotted key, the sections too; those of a listener as `listeners[].type`."""
    keys = []
    for name, field in fields_of(kind).items():
        keys.append(prefix + name)
        if (section := section_of(field)) is not None:
            keys += known_keys(section, f"{prefix}{name}.")
        elif "tables" in field.metadata:
            keys += known_keys(field.metadata["tables"], f"{prefix}{name}[].")
    return keys


def fields_of(kind: type[Any]) -> dict[str, "dataclasses.Field[Any]"]:
    """Return the keys of a table by name."""
    return {field.name: field for field in dataclasses.fields(kind)}


def section_of(field: "dataclasses.Field[Any]") -> type[Any] | None:
    """Return the table that a key stands for; None: it has a value."""
    return field.type if isinstance(field.type, type) and dataclasses.is_dataclass(field.type) else None


def _from_dict(kind: type[Any], values: Mapping[str, Any]) -> Any:
    built = {}
    for name, field in fields_of(kind).items():
        value = values[name]
        if (section := section_of(field)) is not None:
            value = _from_dict(section, value)
        elif "tables" in field.metadata:
            value = tuple(_from_dict(field.metadata["tables"], item) for item in value)
        elif field.metadata["many"]:
            value = tuple(value)
        built[name] = value
    return kind(**built)
