"""Topic names and topic filters: what is a good one, and which filter matches which name.

Names and filters are UTF-8 bytes. The broker's routing uses a tree; `matches` is the plain statement of the rules
that the tree is tested against.

What is ill-formed is a PROTOCOL_ERROR, or MALFORMED_PACKET where it isn't even a string. MQTT 5's reasons for topics,
TOPIC_NAME_INVALID and TOPIC_FILTER_INVALID, are for those that are correctly formed and not accepted all the same.
"""

import re
from typing import Final

from mypy_extensions import i64

from broker.mqtt.framing import STRING_BYTES_MAX, decode_utf8
from broker.mqtt.reasons import forbidden, malformed

SHARE_PREFIX: Final = b"$share/"
_MOUNT_END: Final = b"\0/"

# Control characters but U+0000, in ASCII and beyond it, and what Unicode says will never be characters.
_CONTROL_BYTES: Final = re.compile(b"[\x01-\x1f\x7f]")
_DISALLOWED: Final = re.compile(
    "[\x01-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)

# Good names. At most 8192 names of at most 256 bytes, about 3 MB; when full it starts afresh.
NAMES_REMEMBERED_MAX: Final = 8192
NAME_BYTES_REMEMBERED_MAX: Final = 256
_names_known: Final[set[bytes]] = set()


def check_name(topic: bytes) -> None:
    """Raise PROTOCOL_ERROR unless `topic` is a topic name, MALFORMED_PACKET when it isn't a good string."""
    if topic in _names_known:
        return
    _check_name_slowly(topic)
    if len(topic) <= NAME_BYTES_REMEMBERED_MAX:
        if len(_names_known) >= NAMES_REMEMBERED_MAX:
            _names_known.clear()
        _names_known.add(topic)


def _check_name_slowly(topic: bytes) -> None:
    """A name has no wildcards [MQTT311-3.3.2-2] [MQTT311-4.7.1-1]."""
    _check_common(topic)
    check_characters(topic)
    if b"+" in topic or b"#" in topic:
        raise forbidden("topic name holds a wildcard")  # [MQTT-3.3.2-2] [MQTT-4.7.0-1]


def _check_common(topic: bytes) -> None:
    """What is asked of names and filters alike: not empty, short enough, and well-formed without U+0000.

    [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3] [MQTT311-4.7.3-1] [MQTT311-4.7.3-2] [MQTT311-4.7.3-3]
    """
    if not topic:
        raise forbidden("topic is empty")
    if len(topic) > STRING_BYTES_MAX:
        raise forbidden("topic is longer than 65535 bytes")
    if b"\0" in topic:
        # [MQTT-1.5.4-2] [MQTT311-1.5.3-2]
        raise malformed("topic holds U+0000")
    if not topic.isascii():
        decode_utf8(topic)


def check_characters(topic: bytes) -> None:
    """Raise MALFORMED_PACKET when a name or filter, well-formed, holds a control character or a noncharacter.

    The specifications leave that to the server (5.0 section 1.5.4, 3.1.1 section 1.5.3), and 5.0 says in section 5.4.9
    why it should: a subscriber whose library refuses such a topic would lose its connection to a publisher's whim, and
    again with every delivery. Properties are left alone: lines and tabs in them are common.
    """
    if topic.isascii():
        if _CONTROL_BYTES.search(topic) is not None:
            raise malformed("topic holds a control character")
    elif _DISALLOWED.search(topic.decode("utf-8")) is not None:
        raise malformed("topic holds a control character or a noncharacter")


def check_filter(topic_filter: bytes) -> None:
    """Raise PROTOCOL_ERROR unless this is a topic filter, MALFORMED_PACKET when it isn't UTF-8 or holds U+0000.

    Its characters are `check_characters`' to judge: a filter of another node is as its client was allowed to write it.
    """
    _check_common(topic_filter)
    shared = shared_group(topic_filter)
    wanted = topic_filter if shared is None else shared[1]
    if b"#" in wanted and b"#" in wanted.removesuffix(b"/#") and wanted != b"#":
        # [MQTT311-4.7.1-2]
        raise forbidden("# is not the whole last level")  # [MQTT-4.7.1-1]
    if b"+" in wanted and any(b"+" in level and level != b"+" for level in wanted.split(b"/")):
        # [MQTT311-4.7.1-3]
        raise forbidden("+ is not a whole level")  # [MQTT-4.7.1-2]


def shared_group(topic_filter: bytes) -> tuple[bytes, bytes] | None:
    """(group, filter) of a shared subscription `$share/group/filter`, None for any other filter.

    Raises PROTOCOL_ERROR when it begins like one and isn't; the filter inside is for `check_filter` to judge.
    """
    if not topic_filter.startswith(SHARE_PREFIX):
        return None
    group, _, inner = topic_filter[len(SHARE_PREFIX) :].partition(b"/")
    if not group or b"+" in group or b"#" in group:  # [MQTT-4.8.2-1] [MQTT-4.8.2-2]
        raise forbidden("shared subscription without a good group name")
    if not inner:
        raise forbidden("shared subscription without a topic filter")
    return group, inner


def mount_prefix(mountpoint: str) -> bytes:
    """What goes before the topics and filters of the clients of a mountpoint, b"" for none.

    It is a level that no client can name, for it holds U+0000, and that no wildcard matches, for it begins with $.
    """
    return b"$" + mountpoint.encode() + _MOUNT_END if mountpoint else b""


def mounted(topic_filter: bytes, prefix: bytes) -> bytes:
    """Put the prefix of a mountpoint before a filter; before the filter inside, if it is a shared subscription's."""
    if not prefix:
        return topic_filter
    shared = shared_group(topic_filter)
    if shared is None:
        return prefix + topic_filter
    return SHARE_PREFIX + shared[0] + b"/" + prefix + shared[1]


def unmounted(topic: bytes) -> bytes:
    """A topic or filter without the prefix of a mountpoint, if it has one."""
    return topic[topic.index(_MOUNT_END) + len(_MOUNT_END) :] if topic[:1] == b"$" and _MOUNT_END in topic else topic


def matches(topic_filter: bytes, topic: bytes) -> bool:
    """Whether a good filter (without `$share/group/`) matches a good name, byte for byte [MQTT-4.7.3-4]."""
    if topic[:1] == b"$" and topic_filter[:1] in (b"+", b"#"):
        return False  # [MQTT-4.7.2-1]
    filter_levels = topic_filter.split(b"/")
    topic_levels = topic.split(b"/")
    at: i64 = 0
    topic_count: i64 = len(topic_levels)
    for level in filter_levels:
        if level == b"#":
            return True  # Also when the name has ended: `a/#` matches `a`.
        if at >= topic_count or (level != b"+" and level != topic_levels[at]):
            return False
        at += 1
    return at == topic_count
