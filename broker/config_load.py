"""Loading the configuration of a node: where it is looked up, in which order, and whether it makes sense.

Owns the look-up order and the rules that concern several keys or say what is not served yet. Knows nothing of what the
values do.

Theory of operation
-------------------
Sources are read in order, later ones win: the file, the environment (`ZVMQ__CLUSTER__COOKIE`), `--set KEY=VALUE`. Then
the rules are checked. Every problem found is reported at once, with file and line, or the name of the variable or
argument.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Final

from broker.config import Config, ListenerConfig, fields_of
from broker.config_sources import Sources
from broker.config_values import UNIX_PREFIX, host_port, is_loopback

LOOKED_UP_FILES: Final = ("./zvmq.yml", "/etc/zvmq/zvmq.yml")
ENVIRONMENT_PREFIX: Final = "ZVMQ__"

COOKIE_CHARACTERS_MIN: Final = 16
OTHER_COOKIES_MAX: Final = 4
# A client id is known by the name of its listener's mountpoint, a zero byte and itself, and has a u16 length.
CLIENT_ID_BYTES_MAX: Final = 65535
SERVED_LISTENER_TYPES: Final = ("mqtt", "http")

# Keys that are known, so that a configuration can say them, and that nothing reads yet: why another value than the
# default is refused. Accepted and not obeyed would be worse.
NOT_SERVED: Final = {
    "auth.password_file": "nothing asks clients for a password",
    "auth.acl_file": "whoever may connect may publish and subscribe to everything",
    "auth.plugins": "nothing asks plugins",
    "http.api_keys_file": "there is no administration over HTTP",
}
# Keys of a listener that mean something for some types only.
TYPES_WITH_TLS: Final = ("mqtts", "wss", "https")
TYPES_OF_KEYS: Final = {
    "path": ("ws", "wss"),
    "certfile": TYPES_WITH_TLS,
    "keyfile": TYPES_WITH_TLS,
    "cafile": TYPES_WITH_TLS,
    "require_certificate": TYPES_WITH_TLS,
    "use_identity_as_username": TYPES_WITH_TLS,
}


class ConfigError(Exception):
    """What is wrong with a configuration, one message a problem."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = list(messages)


def load(path: str | None = None, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Look up, read and check the configuration; ConfigError holds everything that is wrong with it.

    `path` is what `--config` said, `environ` defaults to the process's own, `overrides` are `KEY=VALUE` of `--set`.
    """
    environ = os.environ if environ is None else environ
    sources = Sources()
    file = find_file(path, environ)
    if file is not None:
        sources.read_file(file)
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX):
            sources.read_text(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), environ[name], name)
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals:
            sources.read_text(name.strip().split("."), value, f"--set {name}")
        else:
            sources.problems.append("--set: expected KEY=VALUE")
    config = sources.config()
    _check_served(config, sources)
    config = _check_cluster(config, sources)
    config = _check_auth(config, sources)
    _check_listeners(config, sources)
    if sources.problems:
        raise ConfigError(sources.problems)
    return config


def find_file(path: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the file that `load` reads: `--config`, $ZVMQ_CONFIG, the usual places; None: only defaults."""
    for named in (path, environ.get("ZVMQ_CONFIG")):
        if named:
            return named
    return next((name for name in LOOKED_UP_FILES if os.path.exists(name)), None)


def _check_served(config: Config, sources: Sources) -> None:
    for key, reason in NOT_SERVED.items():
        section, _, name = key.partition(".")
        table = getattr(config, section)
        if getattr(table, name) != fields_of(type(table))[name].default:
            sources.refuse(key, f"not served yet: {reason}")


def _check_cluster(config: Config, sources: Sources) -> Config:
    cluster = config.cluster
    if cluster.cookie and cluster.cookie_file:
        sources.refuse("cluster.cookie_file", "cluster.cookie is set too: set one of the two")
    elif cluster.cookie_file:
        cookie = ""
        try:
            with open(cluster.cookie_file, encoding="utf-8") as file:
                cookie = file.read().strip()
        except OSError as error:
            sources.refuse("cluster.cookie_file", f"{cluster.cookie_file}: {error.strerror}")
        except UnicodeDecodeError:
            sources.refuse("cluster.cookie_file", f"{cluster.cookie_file}: not UTF-8")
        else:
            _check_cookie("cluster.cookie_file", cookie, sources)
        config = dataclasses.replace(config, cluster=dataclasses.replace(cluster, cookie=cookie))
    elif cluster.cookie:
        _check_cookie("cluster.cookie", cluster.cookie, sources)
    for other in cluster.other_cookies:
        _check_cookie("cluster.other_cookies", other, sources)
    if cluster.other_cookies and not cluster.cookie and not cluster.cookie_file:
        sources.refuse("cluster.other_cookies", "admitting others needs cluster.cookie or cluster.cookie_file")
    if len(cluster.other_cookies) > OTHER_COOKIES_MAX:
        sources.refuse("cluster.other_cookies", f"at most {OTHER_COOKIES_MAX}: each takes half a second of every start")
    if cluster.discovery and not cluster.cookie and not cluster.cookie_file:
        sources.refuse("cluster.discovery", "joining a cluster needs cluster.cookie or cluster.cookie_file")
    return config


def _check_cookie(key: str, cookie: str, sources: Sources) -> None:
    if len(cookie) < COOKIE_CHARACTERS_MIN:
        sources.refuse(key, f"the cookie has {len(cookie)} characters, it needs at least {COOKIE_CHARACTERS_MIN}")


def _check_auth(config: Config, sources: Sources) -> Config:
    if sources.was_set("auth") or not all(_is_local(listener) for listener in config.listeners):
        return config
    return dataclasses.replace(config, auth=dataclasses.replace(config.auth, allow_anonymous=True))


def _check_listeners(config: Config, sources: Sources) -> None:
    open_to_all = not config.auth.allow_anonymous and not config.auth.password_file and not config.auth.plugins
    addresses = set()
    for index, listener in enumerate(config.listeners):
        key = f"listeners[{index}]"
        if listener.type not in SERVED_LISTENER_TYPES:
            sources.refuse(key, f"type {listener.type} is not served yet")
        elif listener.address.startswith(UNIX_PREFIX):
            sources.refuse(key, "unix addresses are not served yet")
        elif listener.type == "mqtt" and open_to_all and not _is_local(listener):
            sources.refuse(
                key,
                f"{listener.address} is reachable from other machines and nothing authenticates clients: "
                "listen on 127.0.0.1, or set auth.allow_anonymous: on if that is meant",
            )
        mounted_bytes = len(listener.mountpoint.encode()) + 1 if listener.mountpoint else 0
        if mounted_bytes + config.mqtt.max_client_id_size > CLIENT_ID_BYTES_MAX:
            sources.refuse(
                f"{key}.mountpoint",
                f"{mounted_bytes} bytes and client ids of mqtt.max_client_id_size: {config.mqtt.max_client_id_size} "
                f"are more than {CLIENT_ID_BYTES_MAX} together",
            )
        for name, types in TYPES_OF_KEYS.items():
            if listener.type not in types and getattr(listener, name) != fields_of(ListenerConfig)[name].default:
                sources.refuse(f"{key}.{name}", f"has no meaning for type {listener.type}, only for {', '.join(types)}")
        if listener.address in addresses:
            sources.refuse(key, f"{listener.address} is listened on twice")
        addresses.add(listener.address)


def _is_local(listener: ListenerConfig) -> bool:
    return (
        listener.type in ("http", "https")
        or listener.address.startswith(UNIX_PREFIX)
        or is_loopback(host_port(listener.address)[0])
    )
