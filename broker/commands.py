"""The admin commands: their words, arguments and flags. Data, shared by the node and the command line.

Knows nothing of how a command is carried out. A command that is not `served` is known, so that the answer can
say "not served by this version" instead of "no such command".
"""

import difflib
from dataclasses import dataclass, field
from typing import Any


class UsageError(Exception):
    """The command line does not say what to do; the text is for the user."""


class NotServedError(Exception):
    """The command is known, but this version of the node does not serve it."""


@dataclass(frozen=True)
class Command:
    """One command. `required` are its `key=value` arguments, with what to say when one is missing.

    `flags` maps each flag to whether it takes a value, `short` the one-letter flags to flags. With `keys` the words
    behind the command are names, which go with the arguments as `keys`. `goes_on` is what to say to whoever interrupts
    the command, if that does not end what the node does. `explained` says of arguments and flags, as they are written,
    what they are for.
    """

    words: str
    usage: str
    summary: str
    served: bool = False
    required: dict[str, str] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    short: dict[str, str] = field(default_factory=dict)
    keys: bool = False
    time_limit_s: float = 10.0
    goes_on: str = ""
    explained: tuple[tuple[str, str], ...] = ()

    def check(self, arguments: dict[str, Any], flags: dict[str, Any]) -> None:
        """Raise UsageError or NotServedError unless this can be carried out with these arguments and flags."""
        if not self.served:
            raise NotServedError(f"`{self.words}` is not served by this version")
        for name, missing in self.required.items():
            if not arguments.get(name):
                raise UsageError(missing)
        if self.keys:
            keys = arguments.get("keys")
            if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
                raise UsageError(f"`{self.words}` needs {self.usage}")
        for name in arguments:
            if name not in self.required and not (self.keys and name == "keys"):
                raise UsageError(f"`{self.words}` has no argument {name}={near(name, self.required)}")
        for name, value in flags.items():
            if name not in self.flags:
                raise UsageError(f"`{self.words}` has no flag --{name}{near(name, self.flags, '--')}")
            if self.flags[name] == isinstance(value, bool):
                raise UsageError(f"flag --{name} needs {'a value' if self.flags[name] else 'no value'}")


_ALL = (
    Command(
        "cluster show",
        "[--verbose]",
        "members of the cluster and whether they run",
        served=True,
        flags={"verbose": False},
        short={"v": "verbose"},
        explained=(("-v, --verbose", "also their addresses, links, outboxes and versions"),),
    ),
    Command(
        "cluster join",
        "discovery-node=NAME@HOST[:PORT]",
        "make this node a member of that node's cluster",
        served=True,
        required={
            "discovery-node": "You have to provide a discovery node (example discovery-node=node1@127.0.0.1)",
        },
        time_limit_s=35.0,
        explained=(
            ("discovery-node=NAME@HOST[:PORT]", "a member of the cluster, and its mesh port if that is another"),
        ),
    ),
    Command(
        "cluster leave",
        "node=NAME@HOST [-k] [-i SECONDS] [-t SECONDS] [--force] [--rate=N] [--force-targets=NODE,...] [--yes] "
        "[--dry-run] [--abort] [--status]",
        "take a node out of the cluster, its sessions moved to others",
        served=True,
        required={"node": "You have to provide a node (example node=node1@127.0.0.1)"},
        flags={
            "kill_sessions": False,
            "summary-interval": True,
            "timeout": True,
            "force": False,
            "rate": True,
            "force-targets": True,
            "yes": False,
            "dry-run": False,
            "abort": False,
            "status": False,
            # Of the command line on a terminal, which can pass a question on.
            "ask": False,
        },
        short={"k": "kill_sessions", "i": "summary-interval", "t": "timeout"},
        # Of silence: while a node leaves it says something every few seconds.
        time_limit_s=60.0,
        goes_on="interrupted: the leave goes on without this command; --status shows how far it is, --abort ends it",
        explained=(
            ("node=NAME@HOST", "the node that leaves; without a flag its MQTT listeners stop accepting, and no more"),
            ("-k", "disconnect its clients too, and wait until their queues are claimed at other nodes"),
            ("", "given again after that failed, it waits once more and then moves the rest to the other nodes"),
            ("-i SECONDS", "between two lines of progress (5)"),
            ("-t SECONDS", "how long to wait for the queues to be claimed (60)"),
            ("--force", "move the queues at once rather than wait"),
            ("--rate=N", "disconnect at most N clients a second"),
            ("--force-targets=NODE,...", "move the queues to these members only; others may be down then"),
            ("--yes", "do not ask before a node that does not run is removed"),
            ("--dry-run", "say what would go where, and what would be lost"),
            ("--abort", "end the leave, and put the node back in service"),
            ("--status", "show how far the leave of each member is"),
        ),
    ),
    Command(
        "cluster check",
        "[--repair]",
        "compare registry and interest of all nodes",
        served=True,
        flags={"repair": False},
        time_limit_s=60.0,
        explained=(("--repair", "have the nodes that differ ask for what they lack"),),
    ),
    Command("cluster cookie", "", "print a fresh random cookie", served=True),
    Command("node status", "", "counts of this node", served=True),
    Command("node stop", "", "stop this node cleanly", served=True),
    Command(
        "store backup",
        "directory=DIR",
        "copy the store of this node, as it is now, to a new directory on its machine",
        served=True,
        required={"directory": "You have to provide a directory (example directory=/var/backups/node1)"},
        time_limit_s=600.0,
        explained=(("directory=DIR", "where the copy goes; it must not be there yet"),),
    ),
    Command("session show", "[--COLUMN[=VALUE] ...]", "sessions of the cluster"),
    Command("session disconnect", "client-id=ID [--cleanup]", "disconnect a client"),
    Command("session unsubscribe", "client-id=ID topic=FILTER", "end a subscription"),
    Command("retain show", "[--topic=FILTER] [--payload]", "retained messages"),
    Command("retain delete", "--topic=TOPIC", "delete a retained message"),
    Command("listener show", "", "listeners of this node"),
    Command("listener start", "address=A port=P", "start a listener"),
    Command("listener stop", "address=A port=P [-k]", "stop a listener"),
    Command("listener restart", "address=A port=P", "start a stopped listener again"),
    Command("listener delete", "address=A port=P", "delete a listener"),
    Command(
        "metrics show",
        "[--with-descriptions]",
        "counters of this node",
        served=True,
        flags={"with-descriptions": False},
        short={"d": "with-descriptions"},
        explained=(("-d, --with-descriptions", "also what each of them counts"),),
    ),
    Command("trace client", "client-id=ID", "packets of a client, live"),
    Command("show", "KEY ...", "settings of this node", served=True, keys=True),
    Command("set", "KEY=VALUE [--all]", "change a runtime setting"),
    Command("describe", "KEY", "what a setting does", served=True, keys=True),
    Command("api-key create", "", "make an API key"),
    Command("api-key delete", "key=KEY", "delete an API key"),
    Command("api-key show", "", "API keys"),
    Command("log level", "level=LEVEL", "change what is logged"),
    Command("tls show", "", "certificates of this node"),
    Command("plugin show", "", "plugins of this node"),
)

COMMANDS: dict[str, Command] = {command.words: command for command in _ALL}


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that `words` begin with and the words left over; raises UsageError, naming the nearest known."""
    for count in range(min(len(words), 3), 0, -1):
        command = COMMANDS.get(" ".join(words[:count]))
        if command is not None:
            return command, words[count:]
    said = " ".join(words[:2])
    group = [name for name in COMMANDS if words and name.startswith(words[0] + " ")]
    if len(words) == 1 and group:
        raise UsageError(f"`{said}` needs one of: {', '.join(name.split(' ', 1)[1] for name in group)}")
    raise UsageError(f"no such command: {said}{near(said, COMMANDS)}")


def near(word: str, known: Any, prefix: str = "") -> str:
    """`; did you mean X?` for the known word that is nearest to `word`, or nothing."""
    names = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{names[0]}?" if names else ""
