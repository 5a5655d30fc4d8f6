"""Settings as an operator looks at them: found by their names, shown with their values, described in words.

Owns the look-up of a key, dotted (`mqtt.max_inflight_messages`) or by its last name alone where that is the only one.
Knows nothing of how a command travels. A secret is never shown.
"""

import dataclasses
from typing import Any

from broker.commands import UsageError, near
from broker.config import Config


def find_setting(config: Config, key: str) -> tuple[str, Any, "dataclasses.Field[Any]"]:
    """Return (dotted key, value, field) of a setting; raises UsageError, naming the nearest known one."""
    known = _settings(config, "")
    names = [name for name in known if name == key or name.rpartition(".")[2] == key]
    if len(names) > 1:
        raise UsageError(f"{key} may be {' or '.join(names)}")
    if not names:
        raise UsageError(f"no such setting: {key}{near(key, [*known, *(name.rpartition('.')[2] for name in known)])}")
    value, field = known[names[0]]
    return names[0], value, field


def show_settings(config: Config, keys: list[str]) -> dict[str, Any]:
    """Return the table of `show`: one row for the node, one column for each key; raises UsageError."""
    row: dict[str, Any] = {"node": config.node.name}
    for key in keys:
        name, value, field = find_setting(config, key)
        if not field.repr:
            raise UsageError(f"{name} is a secret: it is never shown")
        row[key] = _text(value)
    return {"type": "table", "table": [row]}


def describe_setting(config: Config, key: str) -> dict[str, Any]:
    """Return the text of `describe`; raises UsageError."""
    name, _, field = find_setting(config, key)
    default = _text(field.default) if field.repr else ""
    return {"type": "text", "text": f"{name}: {field.metadata['doc']} (default: {default})"}


def _settings(table: Any, prefix: str) -> dict[str, tuple[Any, "dataclasses.Field[Any]"]]:
    found: dict[str, tuple[Any, dataclasses.Field[Any]]] = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if dataclasses.is_dataclass(value):
            found.update(_settings(value, f"{prefix}{field.name}."))
        elif "parse" in field.metadata:
            found[prefix + field.name] = (value, field)
    return found


def _text(value: Any) -> str:
    """The value as the configuration file would have it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
