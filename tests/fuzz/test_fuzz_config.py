"""Any bytes as a configuration file, and any text as what overrides it.

Documented: `load` raises ConfigError and nothing else. A configuration that was read goes through JSON unharmed.
"""

import json
import os
import tempfile

from fuzzing import Target, examples, near
from hypothesis import given

from broker.config import Config, listener_processes, mesh_advertise, mesh_listen
from broker.config_load import ConfigError, load
from broker.config_values import expiration_s, protocol_versions, will_delay_s

# Between the file, and each `--set`.
NEXT = b"\0"


def check(data: bytes) -> None:
    """Load the file and the overrides."""
    if b"/dev" in data or b"/proc" in data:
        # A cookie of a device has no end, and that is not the parser's fault.
        return
    text, *overrides = data.split(NEXT)
    descriptor, path = tempfile.mkstemp(prefix="zvmq-fuzz-", suffix=".yml")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        try:
            loaded = load(path, {}, [override.decode(errors="replace") for override in overrides])
        except ConfigError as error:
            assert error.messages and all(error.messages)
            assert str(error)
            return
    finally:
        os.unlink(path)
    # What a start asks of it.
    mesh_listen(loaded)
    mesh_advertise(loaded)
    assert listener_processes(loaded) >= 1
    assert expiration_s(loaded.mqtt.persistent_client_expiration) >= 0.0
    assert will_delay_s(loaded.mqtt.max_last_will_delay) >= 0.0
    assert protocol_versions(loaded.mqtt.allowed_protocol_versions)
    assert Config.from_dict(json.loads(json.dumps(loaded.to_dict()))) == loaded


TARGET = Target(
    "config",
    check,
    [
        b"node:\n  name: a@127.0.0.1\n  data_dir: ./data\n",
        b"cluster:\n  listen: 127.0.0.1:44053\n  cookie: sixteen-letters-or-more\n  discovery: [b@127.0.0.2, dns:x]\n",
        b"listeners:\n- {type: mqtt, address: '127.0.0.1:1883'}\n- type: mqtt\n  address: '[::1]:1884'\n",
        b"auth:\n  allow_anonymous: on\nprocesses:\n  listeners: auto\n",
        b"mqtt:\n  max_inflight_messages: 20\n  persistent_client_expiration: 1w\n  protocol_versions: '3,4,5'\n",
        b"store:\n  sync: always\nlog:\n  level: debug\nsystree:\n  enabled: no\n",
        b"\0mqtt.max_message_size=100\0node.name=a@b\0cluster.other_cookies=['x', y]",
        b"&a [*a]",
        b"a: &a {b: *a}\n<<: *a\n? [x]\n: y\n",
        b"%YAML 1.2\n--- !!map\nnode: !!str x\n...\n--- b\n",
        b"cluster: {cookie_file: /nowhere}\n",
        b"mqtt: {persistent_client_expiration: " + b"9" * 400 + b"y}",
        b'cluster: {cookie_file: "\\0"}',
        b'node: {data_dir: "\\uD800"}',
        b"[" * 600,
        b"{a: " * 600,
        b"- " * 1000,
        b"\0listeners=" + b"[" * 600,
        b"\xef\xbb\xbfnode:\n\tname: x\n",
    ],
)


def test_the_seeds() -> None:
    for seed in TARGET.seeds:
        check(seed)


@given(near(TARGET.seeds))
@examples(150)
def test_near_configurations(data: bytes) -> None:
    check(data)
