"""The text of a setting, read: what each kind of value looks like, and what is said of text that is none.

Owns the forms of values (an address, a node name, a duration, a switch); knows no key. Each function takes the text as
written and returns the value, or raises a ValueError that says what was expected. Where the text itself is what is
kept, it is only checked.
"""

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Final

MESH_PORT: Final = 44053
UNIX_PREFIX: Final = "unix:"
DNS_PREFIX: Final = "dns://"

# Months and years are the plain ones: an expiry needs no calendar.
EXPIRATION_UNITS_S: Final = {"h": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}

# A node name is a level of $SYS topics and a label of keys and metrics.
NODE_NAME: Final = re.compile(r"[^@\s/+#\x00:]+@(\[[0-9a-fA-F:.]+\]|[^@\s/+#\x00:\[\],]+)")
HOST: Final = re.compile(r"[A-Za-z0-9_.-]+")


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


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`; an unknown name counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def expiration_s(text: str) -> float:
    """Read `never` (infinity) or a number of h, d, w, m or y, in seconds; ValueError if it is neither."""
    if text == "never":
        return math.inf
    # As many digits as everywhere; a float does not take any number of them.
    if not re.fullmatch(r"[0-9]{1,19}[hdwmy]", text):
        raise ValueError(f"expected never or a whole number followed by h, d, w, m or y, not {text!r}")
    return float(int(text[:-1]) * EXPIRATION_UNITS_S[text[-1]])


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


def protocol_versions(text: str) -> frozenset[int]:
    """Read `3,4,5,131,132` or a part of it; ValueError else."""
    words = [word.strip() for word in text.split(",")]
    if not words or not set(words) <= {"3", "4", "5", "131", "132"}:
        raise ValueError(f"expected some of 3, 4, 5, 131 and 132 with commas between them, not {text!r}")
    return frozenset(int(word) for word in words)


def any_text(text: str) -> str:
    """Take any text."""
    return text


def filled(text: str) -> str:
    """Take any text but none."""
    if not text:
        raise ValueError("expected a value")
    return text


def switch(text: str) -> bool:
    """Read `on`, `true`, `yes`, `off`, `false` or `no`."""
    word = text.lower()
    if word not in ("on", "true", "yes", "off", "false", "no"):
        raise ValueError(f"expected on or off, not {text!r}")
    return word in ("on", "true", "yes")


def whole(least: int, most: int) -> Callable[[str], int]:
    """Make the reader of a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise ValueError(f"expected a whole number, not {text!r}")
        if not least <= int(text) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}, not {text}")
        return int(text)

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """Make the reader of one of `words`."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}, not {text!r}")
        return text

    return parse


def process_count(text: str) -> int | str:
    """Read `auto` or a number of processes."""
    return text if text == "auto" else whole(1, 256)(text)


def node_name(text: str) -> str:
    """Check name@host."""
    if not NODE_NAME.fullmatch(text) or len(text.encode()) > 255:
        raise ValueError(f"expected name@host, at most 255 bytes without blanks and / + # :, not {text!r}")
    node_and_address(text)
    return text


def address_or_none(text: str) -> str:
    """Check `host:port`, or nothing."""
    if text:
        host_port(text)
    return text


def listener_address(text: str) -> str:
    """Check `host:port` or `unix:/path`."""
    if not text.startswith(UNIX_PREFIX):
        host_port(text)
    elif not text.startswith(f"{UNIX_PREFIX}/"):
        raise ValueError(f"expected unix: and an absolute path, not {text!r}")
    return text


def discovery_entry(text: str) -> str:
    """Check `name@host[:port]` or `dns://name[:port]`."""
    if not text.startswith(DNS_PREFIX):
        node_and_address(text)
        return text
    dns_name_and_port(text)
    return text


def dns_name_and_port(text: str) -> tuple[str, int]:
    """Split `dns://name[:port]`; ValueError if it is none."""
    name = text.removeprefix(DNS_PREFIX)
    return host_port(name if ":" in name else f"{name}:{MESH_PORT}")


def expiration(text: str) -> str:
    """Check what `expiration_s` reads."""
    expiration_s(text)
    return text


def will_delay(text: str) -> str:
    """Check what `will_delay_s` reads, but `never`."""
    if text == "never":
        raise ValueError("expected client or a whole number followed by s, h, d, w, m or y, not 'never'")
    will_delay_s(text)
    return text


def protocol_version_list(text: str) -> str:
    """Check what `protocol_versions` reads."""
    protocol_versions(text)
    return text


def mountpoint_name(text: str) -> str:
    """Check the name of a mountpoint: no level and no wildcard of a topic."""
    if re.search(r"[/+#\x00]", text):
        raise ValueError(f"expected a name without / + and #, not {text!r}")
    return text


def file_name(text: str) -> str:
    """Check the name of a file without a directory."""
    if not text or "/" in text or text in (".", ".."):
        raise ValueError(f"expected a file name without a directory, not {text!r}")
    return text
