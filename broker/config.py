"""The configuration of a node: what may be set, its defaults, and whether what was set makes sense.

Owns the table of keys (the frozen dataclasses below mirror the YAML exactly: a field is a key, with how its text is
read, its default and its meaning), the look-up order, and every complaint about a configuration. It knows nothing of
what the values do.

Theory of operation
-------------------
Sources are read in order, later ones win: the file, the environment (`ZVMQ__CLUSTER__COOKIE`), `--set KEY=VALUE`. A
value is read from its text as written, never through YAML's guesses: a cookie of digits stays text, and `off` is
false where a switch is wanted and a word where a word is wanted. Then the rules that concern several keys are
checked. Every problem found is reported at once, with file and line, or the name of the variable or argument. No
message holds the value of a secret.
"""

import dataclasses
import difflib
import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

MESH_PORT: Final = 44053
COOKIE_CHARACTERS_MIN: Final = 16
MQTT_MESSAGE_BYTES_MAX: Final = 268_435_455
LOOKED_UP_FILES: Final = ("./zvmq.yml", "/etc/zvmq/zvmq.yml")
ENVIRONMENT_PREFIX: Final = "ZVMQ__"

SERVED_LISTENER_TYPES: Final = ("mqtt", "http")
LISTENER_TYPES: Final = ("mqtt", "mqtts", "ws", "wss", "http", "https")
UNIX_PREFIX: Final = "unix:"
DNS_PREFIX: Final = "dns://"

# Months and years are the plain ones: an expiry needs no calendar.
EXPIRATION_UNITS_S: Final = {"h": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}

# A node name is a level of $SYS topics and a label of keys and metrics.
NODE_NAME: Final = re.compile(r"[^@\s/+#\x00:]+@(\[[0-9a-fA-F:.]+\]|[^@\s/+#\x00:\[\],]+)")
HOST: Final = re.compile(r"[A-Za-z0-9_.-]+")


class ConfigError(Exception):
    """What is wrong with a configuration, one message a problem."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = list(messages)


def host_port(text: str) -> tuple[str, int]:
    """Split `host:port` or `[IPv6]:port`; ValueError says what is wrong with it."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"expected host:port with a port from 1 to 65535, not {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"expected an IPv6 address between the brackets of {text!r}") from None
    elif not HOST.fullmatch(host):
        raise ValueError(f"expected a host name or IP address before the port, not {text!r}")
    return host, int(port)


def node_and_address(text: str) -> tuple[str, str]:
    """Split `name@host[:port]` into the node name and the `host:port` of its mesh; ValueError if it is none."""
    match = NODE_NAME.match(text)
    if match is None:
        raise ValueError(f"expected name@host or name@host:port, not {text!r}")
    rest = text[match.end() :]
    address = match.group(1) + (rest or f":{MESH_PORT}")
    try:
        host_port(address)
    except ValueError:
        raise ValueError(f"expected name@host or name@host:port, not {text!r}") from None
    return match.group(), address


def expiration_s(text: str) -> float:
    """Read `never` (infinity) or a number of h, d, w, m or y, in seconds; ValueError if it is neither."""
    if text == "never":
        return math.inf
    # As many digits as everywhere; a float does not take any number of them.
    if not re.fullmatch(r"[0-9]{1,19}[hdwmy]", text):
        raise ValueError(f"expected never or a whole number followed by h, d, w, m or y, not {text!r}")
    return float(int(text[:-1]) * EXPIRATION_UNITS_S[text[-1]])


def _text(text: str) -> str:
    return text


def _switch(text: str) -> bool:
    word = text.lower()
    if word not in ("on", "true", "yes", "off", "false", "no"):
        raise ValueError(f"expected on or off, not {text!r}")
    return word in ("on", "true", "yes")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise ValueError(f"expected a whole number, not {text!r}")
        if not least <= int(text) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}, not {text}")
        return int(text)

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}, not {text!r}")
        return text

    return parse


def _processes(text: str) -> int | str:
    return text if text == "auto" else _whole(1, 256)(text)


def _node_name(text: str) -> str:
    if not NODE_NAME.fullmatch(text) or len(text.encode()) > 255:
        raise ValueError(f"expected name@host, at most 255 bytes without blanks and / + # :, not {text!r}")
    node_and_address(text)
    return text


def _address_or_none(text: str) -> str:
    if text:
        host_port(text)
    return text


def _listener_address(text: str) -> str:
    if not text.startswith(UNIX_PREFIX):
        host_port(text)
    elif not text.startswith(f"{UNIX_PREFIX}/"):
        raise ValueError(f"expected unix: and an absolute path, not {text!r}")
    return text


def _discovery(text: str) -> str:
    if not text.startswith(DNS_PREFIX):
        node_and_address(text)
        return text
    name = text.removeprefix(DNS_PREFIX)
    host_port(name if ":" in name else f"{name}:{MESH_PORT}")
    return text


def will_delay_s(text: str) -> float:
    """Read `client` (infinity: as the client says) or a number of s, h, d, w, m or y, in seconds; ValueError else."""
    if text == "client":
        return math.inf
    if re.fullmatch(r"[0-9]{1,19}s", text):
        return float(text[:-1])
    try:
        return expiration_s(text)
    except ValueError:
        raise ValueError(f"expected client or a whole number followed by s, h, d, w, m or y, not {text!r}") from None


def _will_delay(text: str) -> str:
    if text == "never":
        raise ValueError("expected client or a whole number followed by s, h, d, w, m or y, not 'never'")
    will_delay_s(text)
    return text


def protocol_versions(text: str) -> frozenset[int]:
    """Read `3,4,5,131,132` or a part of it; ValueError else."""
    words = [word.strip() for word in text.split(",")]
    if not words or not set(words) <= {"3", "4", "5", "131", "132"}:
        raise ValueError(f"expected some of 3, 4, 5, 131 and 132 with commas between them, not {text!r}")
    return frozenset(int(word) for word in words)


def _protocol_versions(text: str) -> str:
    protocol_versions(text)
    return text


def _expiration(text: str) -> str:
    expiration_s(text)
    return text


def _filled(text: str) -> str:
    if not text:
        raise ValueError("expected a value")
    return text


def _mountpoint(text: str) -> str:
    if re.search(r"[/+#\x00]", text):
        raise ValueError(f"expected a name without / + and #, not {text!r}")
    return text


def _file_name(text: str) -> str:
    if not text or "/" in text or text in (".", ".."):
        raise ValueError(f"expected a file name without a directory, not {text!r}")
    return text


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

    name: str = _key(_node_name, "node1@127.0.0.1", "name@host, unique in the cluster")
    data_dir: str = _key(_filled, "./zvmq-data", "store, logs and sockets; relative to the current directory")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How this node meets others, and what it does when it can't reach all of them."""

    cookie: str = _key(_text, "", "secret of the cluster, at least 16 characters", secret=True)
    cookie_file: str = _key(_text, "", "file that holds the cookie")
    other_cookies: tuple[str, ...] = _key(_text, (), "also admitted, for rotation", many=True, secret=True)
    listen: str = _key(_address_or_none, "", "host:port for other nodes; default the host of node.name, port 44053")
    advertise: str = _key(_address_or_none, "", "host:port for peers when it differs from listen")
    discovery: tuple[str, ...] = _key(_discovery, (), "name@host[:port] or dns://name[:port] to join", many=True)
    readiness: str = _key(_choice("all", "majority", "available"), "all", "which members a node needs to be ready")
    failure_timeout_ms: int = _key(_whole(500, 600_000), 5000, "silence after which a member counts as dead")
    planned_restart_s: int = _key(_whole(0, 86400), 30, "how long members wait for a node that announced its stop")
    forward_spill_after_ms: int = _key(_whole(1, 600_000), 200, "link without progress: forwards go to disk")
    outbox_bytes_max: int = _key(_whole(0, 2**62), 1073741824, "per peer, on disk")
    subscribe_wait: str = _key(_choice("local", "cluster"), "local", "who has a subscription before its SUBACK")
    allow_register_during_netsplit: bool = _key(_switch, False, "CONNECT while a member is not reachable")
    allow_publish_during_netsplit: bool = _key(_switch, False, "PUBLISH while a member is not reachable")
    allow_subscribe_during_netsplit: bool = _key(_switch, False, "SUBSCRIBE while a member is not reachable")
    allow_unsubscribe_during_netsplit: bool = _key(_switch, False, "UNSUBSCRIBE while a member is not reachable")


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One address that clients connect to."""

    type: str = _key(_choice(*LISTENER_TYPES), dataclasses.MISSING, "mqtt, mqtts, ws, wss, http or https")
    address: str = _key(_listener_address, dataclasses.MISSING, "host:port, or unix:/path for mqtt")
    path: str = _key(_filled, "/mqtt", "of a WebSocket")
    mountpoint: str = _key(_mountpoint, "", "its clients and their topics are apart from those of other mountpoints")
    certfile: str = _key(_text, "", "PEM file of the certificate chain")
    keyfile: str = _key(_text, "", "PEM file of the private key")
    cafile: str = _key(_text, "", "PEM file of the authorities that sign client certificates")
    require_certificate: bool = _key(_switch, False, "refuse clients without a certificate")
    use_identity_as_username: bool = _key(_switch, False, "the certificate's common name is the user name")


DEFAULT_LISTENERS: Final = (ListenerConfig("mqtt", "127.0.0.1:1883"), ListenerConfig("http", "127.0.0.1:8888"))


@dataclass(frozen=True, slots=True)
class ProcessesConfig:
    """How many processes a node has."""

    listeners: int | str = _key(_processes, "auto", "auto: one per CPU this process may use")


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Who may connect and do what."""

    allow_anonymous: bool = _key(_switch, False, "let clients in without asking who they are")
    password_file: str = _key(_text, "", "users and their passwords")
    acl_file: str = _key(_text, "", "who may publish and subscribe to what")
    plugins: tuple[str, ...] = _key(_text, (), "Python entry points that decide", many=True)


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """Limits and habits of MQTT sessions."""

    max_inflight_messages: int = _key(_whole(0, 65535), 20, "unacknowledged deliveries of a v3 client; 0: no limit")
    max_online_messages: int = _key(_whole(-1, 2**31 - 1), 1000, "queued for a connected session; -1: no limit")
    max_offline_messages: int = _key(_whole(-1, 2**31 - 1), 1000, "queued for an absent session; -1: no limit")
    max_message_size: int = _key(_whole(0, MQTT_MESSAGE_BYTES_MAX), 0, "bytes of a packet; 0: MQTT's own limit")
    persistent_client_expiration: str = _key(_expiration, "never", "never, or <n>h, d, w, m or y; of v3 sessions")
    shared_subscription_policy: str = _key(
        _choice("prefer_local", "random", "local_only", "prefer_online_before_local"), "prefer_local", "who gets it"
    )
    retry_interval: int = _key(_whole(0, 86400), 0, "seconds; 0: deliver again only on reconnect, as MQTT 5 demands")
    leave_will_grace_s: int = _key(_whole(0, 86400), 10, "least delay of wills when the server closes connections")
    # [MQTT-3.1.3-5] [MQTT311-3.1.3-5] A server must take client ids of 23 bytes.
    max_client_id_size: int = _key(_whole(23, 65535), 100, "bytes of a client id")
    max_connect_size: int = _key(_whole(256, MQTT_MESSAGE_BYTES_MAX), 8192, "bytes of a CONNECT, its will included")
    mqtt_connect_timeout: int = _key(_whole(1, 600_000), 5000, "milliseconds from the TCP connection to CONNECT")
    topic_max_depth: int = _key(_whole(1, 65535), 128, "levels of a topic name or filter")
    max_topic_size: int = _key(_whole(1, 65535), 65535, "bytes of a topic name or filter")
    allowed_protocol_versions: str = _key(_protocol_versions, "3,4,5,131,132", "as CONNECT says them")
    override_max_online_messages: bool = _key(_switch, False, "an absent session's backlog may exceed the online limit")
    max_queued_bytes: int = _key(
        _whole(0, 2**62), 0, "topics, properties and payloads queued for a session; 0: no limit"
    )
    queue_type: str = _key(_choice("fifo", "lifo"), "fifo", "fifo drops the newest when full, lifo the oldest")
    upgrade_outgoing_qos: bool = _key(_switch, False, "deliver at the subscription's QoS, even if published with less")
    receive_max_client: int = _key(_whole(1, 65535), 65535, "unacknowledged deliveries of a v5 client at most")
    receive_max_broker: int = _key(_whole(1, 65535), 65535, "unacknowledged PUBLISHes of a client at most")
    topic_alias_max_client: int = _key(_whole(0, 65535), 0, "topic aliases that a v5 client may set")
    topic_alias_max_broker: int = _key(_whole(0, 65535), 0, "topic aliases set for a v5 client that takes them")
    max_subscriptions_per_client: int = _key(_whole(0, 2**31 - 1), 0, "0: no limit")
    max_retained_messages: int = _key(_whole(0, 2**31 - 1), 0, "retained messages of a node; 0: no limit")
    max_retained_bytes: int = _key(_whole(0, 2**62), 0, "their topics, properties and payloads; 0: no limit")
    max_last_will_delay: str = _key(_will_delay, "client", "client, or <n>s, h, d, w, m or y at most")
    suppress_lwt_on_session_takeover: bool = _key(_switch, False, "no will when the client connects again meanwhile")
    max_connections: int = _key(_whole(0, 2**31 - 1), 0, "connected clients of a node; 0: no limit")
    max_connection_rate: int = _key(_whole(0, 2**31 - 1), 0, "CONNECTs a second of a listener process; 0: no limit")
    max_message_rate: int = _key(_whole(0, 2**31 - 1), 0, "PUBLISHes a second that are read of a client; 0: no limit")
    max_keep_alive: int = _key(_whole(0, 65535), 0, "seconds; 0: no limit")
    max_output_buffer: int = _key(_whole(4096, 2**31 - 1), 262144, "bytes that wait for a client that does not read")
    check_payload_format: bool = _key(_switch, False, "refuse payloads that say to be UTF-8 and aren't")


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """What of the store survives a power loss."""

    sync: str = _key(_choice("always", "interval", "never"), "interval", "when the log is synced; never: the OS does")
    sync_interval_ms: int = _key(_whole(1, 600_000), 100, "the most that a power loss takes with sync: interval")


@dataclass(frozen=True, slots=True)
class SystreeConfig:
    """The $SYS topics."""

    enabled: bool = _key(_switch, True, "publish $SYS topics")
    interval_s: int = _key(_whole(1, 86400), 20, "between two rounds of them")


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Administration over HTTP."""

    api_keys_file: str = _key(_text, "", "keys that may administrate")


@dataclass(frozen=True, slots=True)
class RotationConfig:
    """When a log file makes room for the next."""

    size_mb: int = _key(_whole(1, 1_000_000), 64, "of one file")
    keep: int = _key(_whole(0, 10_000), 5, "older files")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Where logs go."""

    console: str = _key(_choice("off", "file", "console", "both"), "both", "where to log")
    level: str = _key(_choice("debug", "info", "warning", "error", "critical"), "info", "the least that is logged")
    file: str = _key(_file_name, "console.log", "under data_dir/log")
    format: str = _key(_choice("text", "json"), "text", "of a line")
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


def load(path: str | None = None, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Look up, read and check the configuration; ConfigError holds everything that is wrong with it.

    `path` is what `--config` said, `environ` defaults to the process's own, `overrides` are `KEY=VALUE` of `--set`.
    """
    environ = os.environ if environ is None else environ
    reader = _Reader()
    file = find_file(path, environ)
    if file is not None:
        reader.read_file(file)
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX):
            reader.read_text(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), environ[name], name)
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals:
            reader.read_text(name.strip().split("."), value, f"--set {name}")
        else:
            reader.problems.append("--set: expected KEY=VALUE")
    config = _build(Config, "", reader)
    config = _check_cluster(config, reader)
    config = _check_auth(config, reader)
    _check_listeners(config, reader)
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def find_file(path: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the file that `load` reads: `--config`, $ZVMQ_CONFIG, the usual places; None: only defaults."""
    for named in (path, environ.get("ZVMQ_CONFIG")):
        if named:
            return named
    return next((name for name in LOOKED_UP_FILES if os.path.exists(name)), None)


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


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`; an unknown name counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Reader:
    """What the sources said so far: values and places by dotted key, and problems."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.problems: list[str] = []
        self._file = ""
        self._source = ""

    def read_file(self, name: str) -> None:
        """Read a YAML file."""
        self._file, self._source = name, ""
        try:
            with open(name, encoding="utf-8") as file:
                root = yaml.compose(file.read(), Loader=yaml.SafeLoader)
        except OSError as error:
            self.problems.append(f"{name}: {error.strerror}")
        except UnicodeDecodeError:
            self.problems.append(f"{name}: not UTF-8")
        except (yaml.YAMLError, RecursionError) as error:
            self.problems.append(_yaml_problem(name, error))
        else:
            if root is not None and root.tag != "tag:yaml.org,2002:null":
                self._read_section(Config, root, "")

    def read_text(self, path: list[str], text: str, source: str) -> None:
        """Read the value of one key from the environment or the command line."""
        self._source = source
        kind: type[Any] = Config
        for depth, name in enumerate(path):
            field = _fields(kind).get(name)
            if field is None:
                self._unknown(".".join(path), source)
                return
            last = depth == len(path) - 1
            if last:
                self._read_override(field, text, ".".join(path), source)
            elif (section := _section(field)) is not None:
                kind = section
            else:
                self._unknown(".".join(path), source)
                return

    def _read_override(self, field: "dataclasses.Field[Any]", text: str, key: str, source: str) -> None:
        text = text.strip()
        node: yaml.Node | None = yaml.ScalarNode("tag:yaml.org,2002:str", text)
        # A scalar is taken as it is: YAML would cut a cookie at " #" and take [::1]:1883 for a list.
        yaml_starts = ("'", '"', "[", "- ") if field.metadata.get("many") else ("'", '"')
        if text and ("parse" not in field.metadata or text.startswith(yaml_starts)):
            try:
                node = yaml.compose(text, Loader=yaml.SafeLoader)
            except (yaml.YAMLError, RecursionError) as error:
                self.problems.append(f"{source}: {getattr(error, 'problem', None) or 'not YAML'}")
                return
        if node is not None:
            self._read_field(field, node, key)

    def _read_section(self, kind: type[Any], node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, prefix.rstrip(".") or "the configuration", f"expected keys and values, not {_name(node)}")
            return
        fields = _fields(kind)
        seen = set()
        for name_node, value_node in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            if name not in fields:
                self._unknown(prefix + name, self._place(name_node))
            elif name in seen:
                self._wrong(name_node, prefix + name, "given twice")
            else:
                self._read_field(fields[name], value_node, prefix + name)
            seen.add(name)

    def _read_field(self, field: "dataclasses.Field[Any]", node: yaml.Node, key: str) -> None:
        self.places[key] = self._place(node)
        if (section := _section(field)) is not None:
            # "cluster:" with nothing below it is a section without keys.
            if not _is_empty(node):
                self._read_section(section, node, f"{key}.")
        elif "tables" in field.metadata:
            self._read_tables(field.metadata["tables"], node, key)
        elif field.metadata["many"]:
            items = [item for item in _items(node) if not _is_empty(item)]
            values = [self._scalar(field, item, key) for item in items]
            if all(value is not None for value in values):
                self.values[key] = tuple(values)
        else:
            value = self._scalar(field, node, key)
            if value is not None:
                self.values[key] = value

    def _read_tables(self, kind: type[Any], node: yaml.Node, key: str) -> None:
        if not isinstance(node, yaml.SequenceNode) and not _is_empty(node):
            self._wrong(node, key, f"expected a list, not {_name(node)}")
            return
        for gone in [known for known in self.values if known.startswith(f"{key}[")]:
            # A later source replaces the whole list.
            del self.values[gone]
        tables = []
        items = [] if _is_empty(node) else _items(node)
        for index, item in enumerate(items):
            prefix = f"{key}[{index}]"
            problems = len(self.problems)
            self.places[prefix] = self._place(item)
            self._read_section(kind, item, f"{prefix}.")
            if len(self.problems) > problems:
                continue
            for name, field in _fields(kind).items():
                if field.default is dataclasses.MISSING and f"{prefix}.{name}" not in self.values:
                    self._wrong(item, prefix, f"{name} is missing")
            if len(self.problems) == problems:
                tables.append(_build(kind, f"{prefix}.", self))
        if len(tables) == len(items):
            self.values[key] = tuple(tables)

    def _scalar(self, field: "dataclasses.Field[Any]", node: yaml.Node, key: str) -> Any:
        # None stands for a problem, which is then recorded.
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(node, key, f"expected one value, not {_name(node)}")
            return None
        try:
            return field.metadata["parse"]("" if _is_empty(node) else _checked_text(node.value))
        except ValueError as error:
            self._wrong(node, key, str(error))
            return None

    def _unknown(self, key: str, place: str) -> None:
        self.problems.append(f"{place}: unknown key {key}; the nearest known key is {_nearest(key)}")

    def _wrong(self, node: yaml.Node, key: str, message: str) -> None:
        self.problems.append(f"{self._place(node)}: {key}: {message}")

    def _place(self, node: yaml.Node) -> str:
        return self._source or f"{self._file}:{node.start_mark.line + 1}"

    def refuse(self, key: str, message: str) -> None:
        """Record a problem of a key whose value alone is right."""
        place = self.places.get(key)
        self.problems.append(f"{place}: {key}: {message}" if place else f"{key}: {message}")

    def was_set(self, section: str) -> bool:
        """Tell whether any source has set a key of `section`."""
        return any(key.startswith(f"{section}.") for key in self.places)


def _check_cluster(config: Config, reader: _Reader) -> Config:
    cluster = config.cluster
    if cluster.cookie and cluster.cookie_file:
        reader.refuse("cluster.cookie_file", "cluster.cookie is set too: set one of the two")
    elif cluster.cookie_file:
        cookie = ""
        try:
            with open(cluster.cookie_file, encoding="utf-8") as file:
                cookie = file.read().strip()
        except OSError as error:
            reader.refuse("cluster.cookie_file", f"{cluster.cookie_file}: {error.strerror}")
        except UnicodeDecodeError:
            reader.refuse("cluster.cookie_file", f"{cluster.cookie_file}: not UTF-8")
        else:
            _check_cookie("cluster.cookie_file", cookie, reader)
        config = dataclasses.replace(config, cluster=dataclasses.replace(cluster, cookie=cookie))
    elif cluster.cookie:
        _check_cookie("cluster.cookie", cluster.cookie, reader)
    for other in cluster.other_cookies:
        _check_cookie("cluster.other_cookies", other, reader)
    if cluster.discovery and not cluster.cookie and not cluster.cookie_file:
        reader.refuse("cluster.discovery", "joining a cluster needs cluster.cookie or cluster.cookie_file")
    return config


def _check_cookie(key: str, cookie: str, reader: _Reader) -> None:
    if len(cookie) < COOKIE_CHARACTERS_MIN:
        reader.refuse(key, f"the cookie has {len(cookie)} characters, it needs at least {COOKIE_CHARACTERS_MIN}")


def _check_auth(config: Config, reader: _Reader) -> Config:
    for name in ("password_file", "acl_file", "plugins"):
        if getattr(config.auth, name):
            # Accepted and not enforced would be worse than refused.
            reader.refuse(f"auth.{name}", "not served yet")
    if reader.was_set("auth") or not all(_is_local(listener) for listener in config.listeners):
        return config
    return dataclasses.replace(config, auth=dataclasses.replace(config.auth, allow_anonymous=True))


def _check_listeners(config: Config, reader: _Reader) -> None:
    open_to_all = not config.auth.allow_anonymous and not config.auth.password_file and not config.auth.plugins
    addresses = set()
    for index, listener in enumerate(config.listeners):
        key = f"listeners[{index}]"
        if listener.type not in SERVED_LISTENER_TYPES:
            reader.refuse(key, f"type {listener.type} is not served yet")
        elif listener.address.startswith(UNIX_PREFIX):
            reader.refuse(key, "unix addresses are not served yet")
        elif listener.type == "mqtt" and open_to_all and not _is_local(listener):
            reader.refuse(
                key,
                f"{listener.address} is reachable from other machines and nothing authenticates clients: "
                "listen on 127.0.0.1, or set auth.allow_anonymous: on if that is meant",
            )
        if listener.address in addresses:
            reader.refuse(key, f"{listener.address} is listened on twice")
        addresses.add(listener.address)


def _is_local(listener: ListenerConfig) -> bool:
    return (
        listener.type in ("http", "https")
        or listener.address.startswith(UNIX_PREFIX)
        or is_loopback(host_port(listener.address)[0])
    )


def _fields(kind: type[Any]) -> dict[str, "dataclasses.Field[Any]"]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _section(field: "dataclasses.Field[Any]") -> type[Any] | None:
    # A field that is a table of keys itself has that table as its type.
    return field.type if isinstance(field.type, type) and dataclasses.is_dataclass(field.type) else None


def _build(kind: type[Any], prefix: str, reader: _Reader) -> Any:
    values = {}
    for name, field in _fields(kind).items():
        if (section := _section(field)) is not None:
            values[name] = _build(section, f"{prefix}{name}.", reader)
        elif prefix + name in reader.values:
            values[name] = reader.values[prefix + name]
    return kind(**values)


def _from_dict(kind: type[Any], values: Mapping[str, Any]) -> Any:
    built = {}
    for name, field in _fields(kind).items():
        value = values[name]
        if (section := _section(field)) is not None:
            value = _from_dict(section, value)
        elif "tables" in field.metadata:
            value = tuple(_from_dict(field.metadata["tables"], item) for item in value)
        elif field.metadata["many"]:
            value = tuple(value)
        built[name] = value
    return kind(**built)


def known_keys(kind: type[Any] = Config, prefix: str = "") -> list[str]:
    """List every dotted key, the sections too; those of a listener as `listeners[].type`."""
    keys = []
    for name, field in _fields(kind).items():
        keys.append(prefix + name)
        if (section := _section(field)) is not None:
            keys += known_keys(section, f"{prefix}{name}.")
        elif "tables" in field.metadata:
            keys += known_keys(field.metadata["tables"], f"{prefix}{name}[].")
    return keys


def _nearest(key: str) -> str:
    # The last word counts twice: a key of the wrong section is as likely as a key that is misspelt.
    key = re.sub(r"\[[0-9]+\]", "[]", key)

    def likeness(known: str) -> float:
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        return whole + difflib.SequenceMatcher(None, key.rpartition(".")[2], known.rpartition(".")[2]).ratio()

    return max(known_keys(), key=likeness)


def _checked_text(text: str) -> str:
    # YAML's escapes, and bytes in the environment that are no UTF-8, make what no file name, cookie or frame can hold.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text that UTF-8 can express") from None
    if "\0" in text:
        raise ValueError("expected text without U+0000")
    return text


def _yaml_problem(name: str, error: yaml.YAMLError | RecursionError) -> str:
    # Not str(error): that quotes the line, and the line may be the cookie's.
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{name}:{error.problem_mark.line + 1}: {error.problem}"
    return f"{name}: not YAML"


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and (node.tag == "tag:yaml.org,2002:null" or not node.value)


def _items(node: yaml.Node) -> list[yaml.Node]:
    # One value stands for a list of one, which is what an environment variable mostly holds.
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _name(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    return "a list" if isinstance(node, yaml.SequenceNode) else "one value"
