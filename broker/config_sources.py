"""What the sources of a configuration say: a YAML file, the environment, the command line.

Owns how a source is read and where in it a problem lies; knows nothing of the order of the sources, nor of rules that
concern several keys. A value is read from its text as written, never through YAML's guesses: a cookie of digits stays
text, and `off` is false where a switch is wanted and a word where a word is wanted. No message holds the value of a
secret.
"""

import dataclasses
import difflib
import re
from typing import Any

import yaml

from broker.config import Config, fields_of, known_keys, section_of


class Sources:
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
            field = fields_of(kind).get(name)
            if field is None:
                self._unknown(".".join(path), source)
                return
            last = depth == len(path) - 1
            if last:
                self._read_override(field, text, ".".join(path), source)
            elif (section := section_of(field)) is not None:
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
        fields = fields_of(kind)
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
        if (section := section_of(field)) is not None:
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
            for name, field in fields_of(kind).items():
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

    def config(self) -> Config:
        """Return the configuration that the sources make; what has a problem is as by default."""
        config: Config = _build(Config, "", self)
        return config

    def was_set(self, section: str) -> bool:
        """Tell whether any source has set a key of `section`."""
        return any(key.startswith(f"{section}.") for key in self.places)


def _build(kind: type[Any], prefix: str, reader: Sources) -> Any:
    values = {}
    for name, field in fields_of(kind).items():
        if (section := section_of(field)) is not None:
            values[name] = _build(section, f"{prefix}{name}.", reader)
        elif prefix + name in reader.values:
            values[name] = reader.values[prefix + name]
    return kind(**values)


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
