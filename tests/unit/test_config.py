"""Configuration: the documented defaults, the sources and their order, and every complaint with its place."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from broker import config_load
from broker.config import (
    ClusterConfig,
    Config,
    ListenerConfig,
    MqttConfig,
    fields_of,
    known_keys,
    listener_processes,
    mesh_advertise,
    mesh_listen,
)
from broker.config_load import NOT_SERVED, TYPES_OF_KEYS, ConfigError, load
from broker.config_values import expiration_s, node_and_address

COOKIE = "a-cookie-of-enough-characters"

# The documented configuration with its documented defaults.
DOCUMENTED: dict[str, Any] = {
    "node": {"name": "node1@127.0.0.1", "data_dir": "./zvmq-data", "server_reference": ""},
    "cluster": {
        "cookie": "",
        "cookie_file": "",
        "other_cookies": (),
        "listen": "",
        "advertise": "",
        "discovery": (),
        "readiness": "all",
        "failure_timeout_ms": 5000,
        "planned_restart_s": 30,
        "forward_spill_after_ms": 200,
        "outbox_bytes_max": 1073741824,
        "subscribe_wait": "local",
        "allow_register_during_netsplit": False,
        "allow_publish_during_netsplit": False,
        "allow_subscribe_during_netsplit": False,
        "allow_unsubscribe_during_netsplit": False,
    },
    "processes": {"listeners": "auto"},
    "auth": {"allow_anonymous": True, "password_file": "", "acl_file": "", "plugins": ()},
    "mqtt": {
        "max_inflight_messages": 20,
        "max_online_messages": 1000,
        "max_offline_messages": 1000,
        "max_message_size": 0,
        "persistent_client_expiration": "never",
        "shared_subscription_policy": "prefer_local",
        "retry_interval": 0,
        "leave_will_grace_s": 10,
        "max_client_id_size": 100,
        "mqtt_connect_timeout": 5000,
        "topic_max_depth": 128,
        "max_connect_size": 8192,
        "max_topic_size": 65535,
        "allowed_protocol_versions": "3,4,5,131,132",
        "override_max_online_messages": False,
        "max_queued_bytes": 0,
        "queue_type": "fifo",
        "upgrade_outgoing_qos": False,
        "receive_max_client": 65535,
        "receive_max_broker": 65535,
        "topic_alias_max_client": 0,
        "topic_alias_max_broker": 0,
        "max_subscriptions_per_client": 0,
        "max_retained_messages": 0,
        "max_retained_bytes": 0,
        "max_last_will_delay": "client",
        "suppress_lwt_on_session_takeover": False,
        "max_connections": 0,
        "max_connection_rate": 0,
        "max_message_rate": 0,
        "max_keep_alive": 0,
        "max_output_buffer": 262144,
        "check_payload_format": False,
    },
    "store": {"sync": "interval", "sync_interval_ms": 100},
    "systree": {"enabled": True, "interval_s": 20},
    "http": {"api_keys_file": ""},
    "log": {
        "console": "both",
        "level": "info",
        "file": "console.log",
        "format": "text",
        "rotation": {"size_mb": 64, "keep": 5},
    },
}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No zvmq.yml of this machine is found: each test starts in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_load, "LOOKED_UP_FILES", ("./zvmq.yml", str(tmp_path / "etc" / "zvmq.yml")))


def load_text(text: str, *overrides: str, **environ: str) -> Config:
    Path("test.yml").write_text(text, encoding="utf-8")
    return load("test.yml", environ, overrides)


def problems(text: str, *overrides: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_text(text, *overrides, **environ)
    assert str(raised.value) == "\n".join(raised.value.messages)
    return raised.value.messages


def test_the_defaults_are_the_documented_ones() -> None:
    values = load(None, {}).to_dict()
    listeners = values.pop("listeners")
    assert values == DOCUMENTED
    assert [(listener["type"], listener["address"]) for listener in listeners] == [
        ("mqtt", "127.0.0.1:1883"),
        ("http", "127.0.0.1:8888"),
    ]


def test_an_empty_file_and_empty_sections_mean_the_defaults() -> None:
    assert load_text("") == load_text("# nothing\n") == load_text("mqtt:\ncluster:\nauth:\n") == load(None, {})


def test_every_key_has_a_meaning_in_words() -> None:
    for kind in (ClusterConfig, ListenerConfig, MqttConfig):
        assert all(field.metadata["doc"] for field in fields_of(kind).values())


def test_a_file_is_read() -> None:
    config = load_text(
        f"""
node: {{name: a@10.0.0.1, data_dir: /var/lib/zvmq}}
cluster:
  cookie: {COOKIE}
  discovery: [b@10.0.0.2, "c@c.example:4000", dns://nodes, "dns://nodes:44054"]
listeners:
  - {{type: mqtt, address: 127.0.0.1:1884}}
  - type: mqtt
    address: "[::1]:1884"
processes: {{listeners: 3}}
mqtt: {{max_offline_messages: -1, persistent_client_expiration: 2w, upgrade_outgoing_qos: on, retry_interval: 5}}
systree: {{enabled: no}}
log: {{console: off, rotation: {{keep: 1}}}}
"""
    )
    assert config.node.name == "a@10.0.0.1"
    assert config.cluster.cookie == COOKIE
    assert config.cluster.discovery == ("b@10.0.0.2", "c@c.example:4000", "dns://nodes", "dns://nodes:44054")
    assert config.mqtt.upgrade_outgoing_qos
    assert config.mqtt.retry_interval == 5
    assert not config.systree.enabled
    assert not config.mqtt.override_max_online_messages
    assert config.listeners == (ListenerConfig("mqtt", "127.0.0.1:1884"), ListenerConfig("mqtt", "[::1]:1884"))
    assert config.processes.listeners == 3
    assert config.mqtt.max_offline_messages == -1
    assert (config.log.console, config.log.rotation.keep, config.log.rotation.size_mb) == ("off", 1, 64)
    assert mesh_listen(config) == ("10.0.0.1", 44053)


def test_the_file_is_looked_up_in_order(tmp_path: Path) -> None:
    for directory, name in ((tmp_path / "etc", "etc"), (tmp_path, "here")):
        directory.mkdir(exist_ok=True)
        (directory / "zvmq.yml").write_text(f"node: {{name: {name}@127.0.0.1}}")
    for name in ("environment", "argument"):
        Path(f"{name}.yml").write_text(f"node: {{name: {name}@127.0.0.1}}")
    found = [
        load("argument.yml", {"ZVMQ_CONFIG": "environment.yml"}),
        load(None, {"ZVMQ_CONFIG": "environment.yml"}),
        load(None, {"ZVMQ_CONFIG": ""}),
    ]
    os.remove("zvmq.yml")
    found.append(load(None, {}))
    assert [config.node.name for config in found] == [
        f"{name}@127.0.0.1" for name in ("argument", "environment", "here", "etc")
    ]


def test_a_named_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"none\.yml: No such file"):
        load("none.yml", {})
    with pytest.raises(ConfigError, match=r"none\.yml: No such file"):
        load(None, {"ZVMQ_CONFIG": "none.yml"})


def test_the_environment_wins_over_the_file_and_set_over_both() -> None:
    text = "mqtt: {max_inflight_messages: 1, max_online_messages: 1, max_offline_messages: 1}"
    environ = {"ZVMQ__MQTT__MAX_ONLINE_MESSAGES": "2", "ZVMQ__MQTT__MAX_OFFLINE_MESSAGES": "2"}
    config = load_text(text, "mqtt.max_offline_messages=3", **environ)
    assert config.mqtt.max_inflight_messages == 1
    assert config.mqtt.max_online_messages == 2
    assert config.mqtt.max_offline_messages == 3


def test_the_environment_holds_switches_lists_and_tables() -> None:
    config = load(
        None,
        {
            "ZVMQ__CLUSTER__COOKIE": COOKIE,
            "ZVMQ__CLUSTER__DISCOVERY": "[a@b, c@d:4000]",
            "ZVMQ__SYSTREE__ENABLED": "off",
            "ZVMQ__LISTENERS": "[{type: mqtt, address: 127.0.0.1:2000}]",
            "ZVMQ__MQTT": "{max_message_size: 7}",
            "ZVMQ__LOG__ROTATION__KEEP": "9",
            "ZVMQ_CONFIG": "",
            "ZVMQ_CONTROL_FD": "7",
            "HOME": "/nowhere",
        },
    )
    assert config.cluster.discovery == ("a@b", "c@d:4000")
    assert not config.systree.enabled
    assert config.listeners == (ListenerConfig("mqtt", "127.0.0.1:2000"),)
    assert config.mqtt.max_message_size == 7
    assert config.log.rotation.keep == 9


def test_one_value_stands_for_a_list_of_one() -> None:
    config = load(None, {"ZVMQ__CLUSTER__DISCOVERY": "a@[::1]:4000", "ZVMQ__CLUSTER__COOKIE": COOKIE})
    assert config.cluster.discovery == ("a@[::1]:4000",)
    assert load(None, {"ZVMQ__CLUSTER__DISCOVERY": ""}).cluster.discovery == ()


@pytest.mark.parametrize(
    "cookie", ["0123456789012345", "1e10000000000000", "a cookie # with: all {of} [it]", "&anchor-or-a-cookie"]
)
def test_a_cookie_of_the_environment_is_taken_as_written(cookie: str) -> None:
    assert load(None, {"ZVMQ__CLUSTER__COOKIE": cookie}).cluster.cookie == cookie
    assert load(None, {}, [f"cluster.cookie={cookie}"]).cluster.cookie == cookie
    assert load(None, {"ZVMQ__CLUSTER__COOKIE": f"'{cookie}'"}).cluster.cookie == cookie


def test_a_cookie_of_digits_in_a_file_stays_text() -> None:
    assert load_text("cluster: {cookie: 0123456789012345}").cluster.cookie == "0123456789012345"


def test_an_ipv6_address_needs_no_quotes_in_an_override() -> None:
    assert mesh_listen(load(None, {}, ["cluster.listen=[::1]:4000"])) == ("::1", 4000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster:\n  cokie: x\n", "test.yml:2: unknown key cluster.cokie; the nearest known key is cluster.cookie"),
        ("clustr: {cookie: x}", "test.yml:1: unknown key clustr; the nearest known key is cluster"),
        (
            "\nmax_inflight_message: 3",
            "test.yml:2: unknown key max_inflight_message; the nearest known key is mqtt.max_inflight_messages",
        ),
        (
            "listeners:\n  - type: mqtt\n    adress: 127.0.0.1:1\n",
            "test.yml:3: unknown key listeners[0].adress; the nearest known key is listeners[].address",
        ),
        (
            "\nmqtt: {max_inflight_messages: many}",
            "test.yml:2: mqtt.max_inflight_messages: expected a whole number, not 'many'",
        ),
        (
            "mqtt: {max_inflight_messages: 65536}",
            "test.yml:1: mqtt.max_inflight_messages: expected a whole number from 0 to 65535, not 65536",
        ),
        (
            "mqtt: {max_inflight_messages: [1]}",
            "test.yml:1: mqtt.max_inflight_messages: expected one value, not a list",
        ),
        ("mqtt: 3", "test.yml:1: mqtt: expected keys and values, not one value"),
        ("[a, b]", "test.yml:1: the configuration: expected keys and values, not a list"),
        ("listeners: mqtt", "test.yml:1: listeners: expected a list, not one value"),
        ("listeners: [{type: mqtt}]", "test.yml:1: listeners[0]: address is missing"),
        ("systree: {enabled: maybe}", "test.yml:1: systree.enabled: expected on or off, not 'maybe'"),
        ("store: {sync: often}", "test.yml:1: store.sync: expected always, interval or never, not 'often'"),
        ("node: {name: node1}", "test.yml:1: node.name: expected name@host, at most 255 bytes without blanks and "),
        ("node: {name: a@b, name: a@c}", "test.yml:1: node.name: given twice"),
        (
            "cluster: {listen: 127.0.0.1}",
            "test.yml:1: cluster.listen: expected host:port with a port from 1 to 65535, not '127.0.0.1'",
        ),
        ("cluster: {listen: 'a b:1'}", "test.yml:1: cluster.listen: expected a host name or IP address before the"),
        ("cluster: {listen: '[x]:1'}", "test.yml:1: cluster.listen: expected an IPv6 address between the brackets"),
        ("cluster: {advertise: 'a:0'}", "test.yml:1: cluster.advertise: expected host:port with a port from 1 to"),
        (
            f"cluster: {{cookie: {COOKIE}, discovery: ['a@b,c@d']}}",
            "test.yml:1: cluster.discovery: expected name@host or name@host:port, not 'a@b,c@d'",
        ),
        ("mqtt: {persistent_client_expiration: 5x}", "test.yml:1: mqtt.persistent_client_expiration: expected never"),
        # A float takes no number of any length.
        (f"mqtt: {{persistent_client_expiration: {'9' * 400}y}}", "test.yml:1: mqtt.persistent_client_expiration: ex"),
        (f"mqtt: {{max_last_will_delay: {'9' * 5000}s}}", "test.yml:1: mqtt.max_last_will_delay: expected client or"),
        ('cluster: {cookie_file: "\\0"}', "test.yml:1: cluster.cookie_file: expected text without U+0000"),
        ('cluster: {cookie_file: "\\uD800"}', "test.yml:1: cluster.cookie_file: expected text that UTF-8 can express"),
        ("[" * 3000, "test.yml: not YAML"),
        ("{a: " * 3000, "test.yml: not YAML"),
        ("log: {file: ../x}", "test.yml:1: log.file: expected a file name without a directory, not '../x'"),
        ("cluster: {cookie: short}", "test.yml:1: cluster.cookie: the cookie has 5 characters, it needs at least 16"),
        (
            f"cluster: {{cookie: {COOKIE}, other_cookies: [{COOKIE}2, short]}}",
            "test.yml:1: cluster.other_cookies: the cookie has 5 characters, it needs at least 16",
        ),
        (
            f"cluster: {{other_cookies: [{COOKIE}]}}",
            "test.yml:1: cluster.other_cookies: admitting others needs cluster.cookie or cluster.cookie_file",
        ),
        (
            f"cluster: {{cookie: {COOKIE}, other_cookies: {[f'{COOKIE}{each}' for each in range(5)]}}}",
            "test.yml:1: cluster.other_cookies: at most 4",
        ),
        ("cluster: {discovery: [a@b]}", "test.yml:1: cluster.discovery: joining a cluster needs cluster.cookie or"),
        ("cluster: {cookie_file: none}", "test.yml:1: cluster.cookie_file: none: No such file or directory"),
        (
            f"cluster: {{cookie: {COOKIE}, cookie_file: none}}",
            "test.yml:1: cluster.cookie_file: cluster.cookie is set too: set one of the two",
        ),
        (
            "mqtt: {topic_max_depth: 65536}",
            "test.yml:1: mqtt.topic_max_depth: expected a whole number from 1 to 65535, not 65536",
        ),
        (
            "listeners: [{type: mqtt, address: 127.0.0.1:1, path: /x}]",
            "test.yml:1: listeners[0].path: has no meaning for type mqtt, only for ws, wss",
        ),
        ("listeners:\n- {type: ws, address: 127.0.0.1:1}", "test.yml:2: listeners[0]: type ws is not served yet"),
        ("listeners: [{type: mqtt, address: unix:/x}]", "test.yml:1: listeners[0]: unix addresses are not served yet"),
        ("listeners: [{type: mqtt, address: unix:x}]", "test.yml:1: listeners[0].address: expected unix: and an abs"),
        (
            "listeners: [{type: mqtt, address: 'a:1'}, {type: http, address: 'a:1'}]\nauth: {allow_anonymous: on}",
            "test.yml:1: listeners[1]: a:1 is listened on twice",
        ),
        ("a: [\n", "test.yml:2: "),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auth.password_file", "x"),
        ("auth.acl_file", "x"),
        ("auth.plugins", "[x]"),
        ("http.api_keys_file", "x"),
    ],
)
def test_settings_that_nothing_obeys_are_refused(key: str, value: str) -> None:
    section, _, name = key.partition(".")
    (problem,) = problems(f"{section}:\n  {name}: {value}\n")
    assert problem == f"test.yml:2: {key}: not served yet: {NOT_SERVED[key]}"
    (problem,) = problems("", f"{key}={value}")
    assert problem == f"--set {key}: {key}: not served yet: {NOT_SERVED[key]}"


def test_their_defaults_may_be_said() -> None:
    values = load(None, {}).to_dict()
    for key in NOT_SERVED:
        section, _, name = key.partition(".")
        value = values[section][name]
        text = "" if value == () else str(value)
        assert load(None, {}, [f"{key}={text}", "auth.allow_anonymous=on"]) == load(None, {})


def test_every_other_setting_is_read_somewhere() -> None:
    root = Path(config_load.__file__).parents[1]
    files = [file for name in ("broker", "cluster") for file in (root / name).rglob("*.py") if file.name != "config.py"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    obeyed = [key for key in known_keys() if key not in NOT_SERVED and "." in key]
    # The mesh's address has a function in config.py.
    names = {key.rpartition(".")[2] for key in obeyed} - {"advertise", *TYPES_OF_KEYS}
    assert not [name for name in names if not re.search(rf"\.{name}\b", text)]


def test_client_ids_have_room_behind_their_mountpoint() -> None:
    text = "mqtt: {max_client_id_size: %d}\nlisteners:\n- {type: mqtt, address: 127.0.0.1:1, mountpoint: mü}\n"
    assert load_text(text % (65535 - 4)).mqtt.max_client_id_size == 65531
    (problem,) = problems(text % (65535 - 3))
    assert problem.startswith("test.yml:3: listeners[0].mountpoint: 4 bytes and client ids of mqtt.max_client_id_size")
    assert load_text("mqtt: {max_client_id_size: 65535}").mqtt.max_client_id_size == 65535


@pytest.mark.parametrize("kind", ["mqtt", "http"])
@pytest.mark.parametrize(
    "setting",
    ["certfile: x", "keyfile: x", "cafile: x", "require_certificate: on", "use_identity_as_username: on"],
)
def test_settings_of_tls_are_refused_where_there_is_none(kind: str, setting: str) -> None:
    (problem,) = problems(f"listeners:\n- type: {kind}\n  address: 127.0.0.1:1\n  {setting}\n")
    name = setting.partition(":")[0]
    assert problem == f"test.yml:4: listeners[0].{name}: has no meaning for type {kind}, only for mqtts, wss, https"


@pytest.mark.parametrize("kind", ["mqtts", "ws", "wss", "https"])
def test_types_that_are_not_served_are_refused(kind: str) -> None:
    (problem,) = problems(f"listeners: [{{type: {kind}, address: 127.0.0.1:1}}]")
    assert problem == f"test.yml:1: listeners[0]: type {kind} is not served yet"


def test_all_problems_are_reported_together() -> None:
    found = problems(
        "node:\n  name: x\nmqtt:\n  max_inflight: 3\n  topic_max_depth: 0\nlisteners:\n  - {type: smtp, address: x}\n",
        "store.sync=sometimes",
        "nothing",
        "store.snc=never",
        ZVMQ__CLUSTER__COKIE="secret-that-is-not-printed",
        ZVMQ__SYSTREE__INTERVAL_S="soon",
        ZVMQ__LISTENERS="[",
    )
    starts = [
        "test.yml:2: node.name: ",
        "test.yml:4: unknown key mqtt.max_inflight; the nearest known key is mqtt.max_inflight_messages",
        "test.yml:5: mqtt.topic_max_depth: ",
        "test.yml:7: listeners[0].type: ",
        "test.yml:7: listeners[0].address: ",
        "ZVMQ__CLUSTER__COKIE: unknown key cluster.cokie; the nearest known key is cluster.cookie",
        "ZVMQ__LISTENERS: ",
        "ZVMQ__SYSTREE__INTERVAL_S: systree.interval_s: expected a whole number, not 'soon'",
        "--set store.sync: store.sync: expected always, interval or never, not 'sometimes'",
        "--set: expected KEY=VALUE",
        "--set store.snc: unknown key store.snc; the nearest known key is store.sync",
    ]
    assert len(found) == len(starts), found
    for problem, start in zip(found, starts, strict=True):
        assert problem.startswith(start)
    assert "secret" not in "\n".join(found)


@pytest.mark.parametrize("key", ["node", "node.name.x", "listeners.address", ""])
def test_an_override_of_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        load(None, {}, [f"{key}=x"])


def test_files_that_are_no_text_are_refused() -> None:
    Path("test.yml").write_bytes(b"node: \xff")
    with pytest.raises(ConfigError, match=r"test\.yml: not UTF-8"):
        load("test.yml", {})
    Path("test.yml").write_bytes(b"node: \x00")
    with pytest.raises(ConfigError, match=r"test\.yml: not YAML"):
        load("test.yml", {})


def test_no_message_holds_a_cookie() -> None:
    assert "sesame" not in str(problems("cluster:\n  cookie: 'sesame\n"))
    assert "sesame" not in str(problems("cluster: {cookie: sesame}"))
    assert "sesame" not in str(problems("cluster: {other_cookies: [sesame]}"))
    assert "sesame" not in str(problems("cluster: {cookie: [sesame]}"))
    assert "sesame" not in str(problems("", "cluster.cookie=sesame"))


def test_the_cookie_file_is_read() -> None:
    Path("cookie").write_text(f"  {COOKIE}\n")
    assert load_text("cluster: {cookie_file: cookie, discovery: [a@b]}").cluster.cookie == COOKIE
    Path("cookie").write_text("\n")
    (problem,) = problems("cluster: {cookie_file: cookie}")
    assert problem == "test.yml:1: cluster.cookie_file: the cookie has 0 characters, it needs at least 16"
    Path("cookie").write_bytes(b"\xff" * 20)
    assert problems("cluster: {cookie_file: cookie}") == ["test.yml:1: cluster.cookie_file: cookie: not UTF-8"]


def test_no_cookie_is_in_a_repr() -> None:
    config = Config(cluster=ClusterConfig(cookie=COOKIE, other_cookies=(f"{COOKIE}2",)))
    assert COOKIE not in repr(config)
    assert COOKIE not in str(config.cluster)


@pytest.mark.parametrize("address", ["127.0.0.1:1883", "127.0.0.2:1883", "[::1]:1883", "localhost:1883"])
def test_loopback_listeners_let_anybody_in_unless_told_otherwise(address: str) -> None:
    text = f"listeners: [{{type: mqtt, address: '{address}'}}, {{type: http, address: '0.0.0.0:8888'}}]"
    assert load_text(text).auth.allow_anonymous
    assert not load_text(text + "\nauth: {allow_anonymous: off}").auth.allow_anonymous
    assert not load_text(text, ZVMQ__AUTH__ALLOW_ANONYMOUS="no").auth.allow_anonymous


@pytest.mark.parametrize("address", ["0.0.0.0:1883", "[::]:1883", "10.0.0.1:1883", "broker.example:1883"])
def test_a_listener_for_everybody_needs_somebody_at_the_door(address: str) -> None:
    text = f"listeners:\n  - {{type: mqtt, address: 127.0.0.1:1883}}\n  - {{type: mqtt, address: '{address}'}}"
    for auth in ("", "\nauth: {allow_anonymous: off}"):
        (problem,) = problems(text + auth)
        assert problem.startswith(f"test.yml:3: listeners[1]: {address} is reachable from other machines")
        assert "auth.allow_anonymous: on" in problem
    assert load_text(text + "\nauth: {allow_anonymous: on}").auth.allow_anonymous


def test_a_later_list_of_listeners_replaces_the_earlier_one() -> None:
    text = "listeners:\n- {type: mqtt, address: 127.0.0.1:1}\n- {type: mqtt, address: 127.0.0.1:2, path: /x}"
    config = load_text(text, "listeners=[{type: mqtt, address: 127.0.0.1:3}]")
    assert config.listeners == (ListenerConfig("mqtt", "127.0.0.1:3"),)
    config = load_text(text, "listeners=[{address: 127.0.0.1:3, type: mqtt}, {address: 127.0.0.1:4, type: mqtt}]")
    assert config.listeners[1] == ListenerConfig("mqtt", "127.0.0.1:4")
    assert load_text(text, "listeners=[]").listeners == ()


def test_the_way_through_json_changes_nothing() -> None:
    config = load_text(f"cluster: {{cookie: {COOKIE}, discovery: [a@b]}}\nprocesses: {{listeners: 2}}")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(config.to_dict()) == config


def test_the_mesh_address() -> None:
    config = load(None, {})
    assert mesh_listen(config) == ("127.0.0.1", 44053)
    assert mesh_advertise(config) == "127.0.0.1:44053"
    config = load(None, {}, ["node.name=a@[::1]"])
    assert mesh_listen(config) == ("::1", 44053)
    assert mesh_advertise(config) == "[::1]:44053"
    config = load(None, {}, ["node.name=a@b.example", "cluster.listen=0.0.0.0:4000"])
    assert mesh_advertise(config) == "b.example:4000"
    config = load(None, {}, ["cluster.listen=0.0.0.0:4000", "cluster.advertise=a.example:5000"])
    assert mesh_listen(config) == ("0.0.0.0", 4000)
    assert mesh_advertise(config) == "a.example:5000"


def test_the_number_of_listener_processes() -> None:
    assert listener_processes(load(None, {})) == len(os.sched_getaffinity(0))
    assert listener_processes(load(None, {}, ["processes.listeners=3"])) == 3
    with pytest.raises(ConfigError, match="from 1 to 256"):
        load(None, {}, ["processes.listeners=0"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@b", ("a@b", "b:44053")),
        ("a@b:4000", ("a@b", "b:4000")),
        ("a@10.0.0.1:4000", ("a@10.0.0.1", "10.0.0.1:4000")),
        ("a@[::1]", ("a@[::1]", "[::1]:44053")),
        ("a@[::1]:4000", ("a@[::1]", "[::1]:4000")),
    ],
)
def test_node_and_address(text: str, expected: tuple[str, str]) -> None:
    assert node_and_address(text) == expected


@pytest.mark.parametrize("text", ["", "a", "@b", "a@", "a@b:", "a@b:x", "a@b:0", "a@b c", "a@b:1:2", "a/b@c", "a@b@c"])
def test_what_is_no_node_and_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected name@host"):
        node_and_address(text)


def test_an_override_that_goes_too_deep_is_refused() -> None:
    with pytest.raises(ConfigError, match="--set listeners: not YAML"):
        load(None, {}, [f"listeners={'[' * 3000}"])


def test_expirations() -> None:
    assert expiration_s("never") == math.inf
    assert [expiration_s(text) for text in ("1h", "2d", "1w", "1m", "1y")] == [
        3600,
        172800,
        604800,
        2592000,
        31536000,
    ]
