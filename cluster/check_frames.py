"""Frames of checks: the question whether a node holds what the others say of themselves, and the answer.

Owns how these frames look; `checks` decides what is said. Integers, number and text are as in `wire`.

    CHECK    u32 number, u8 flags (1 repair)
    CHECKED  u32 number, u32 count, (text name of the owner, u8 table, number version, u64 checksum, u64 rows,
             u8 flags (1 agrees, 2 known))*
"""

from typing import Final

from cluster.audit import Finding
from cluster.frames import FrameType, frame_body, frame_head
from cluster.wire import pack_text, pack_u32, pack_u64

_REPAIR: Final = 1
_AGREES: Final = 1
_KNOWN: Final = 2


def pack_check(number: int, repair: bool) -> bytes:
    """Pack a CHECK frame."""
    return bytes(frame_head(FrameType.CHECK) + pack_u32(number) + bytes((_REPAIR if repair else 0,)))


def unpack_check(frame: bytes) -> tuple[int, bool]:
    """Return number and repair of a CHECK frame."""
    reader = frame_body(frame, FrameType.CHECK)
    number = reader.u32()
    flags = reader.u8()
    reader.end()
    return number, flags & _REPAIR != 0


def pack_checked(number: int, findings: list[Finding]) -> bytes:
    """Pack a CHECKED frame."""
    packed = frame_head(FrameType.CHECKED) + pack_u32(number) + pack_u32(len(findings))
    for each in findings:
        packed += pack_text(each.owner) + bytes((each.table,)) + pack_u64(each.version) + pack_u64(each.checksum)
        flags = (_AGREES if each.agrees else 0) | (_KNOWN if each.known else 0)
        packed += pack_u64(each.rows) + bytes((flags,))
    return bytes(packed)


def unpack_checked(frame: bytes) -> tuple[int, list[Finding]]:
    """Return number and findings of a CHECKED frame."""
    reader = frame_body(frame, FrameType.CHECKED)
    number = reader.u32()
    findings = []
    for _ in range(reader.u32()):
        owner = reader.node_name()
        table = reader.u8()
        version = reader.number()
        checksum = reader.u64()
        rows = reader.u64()
        flags = reader.u8()
        findings.append(Finding(owner, table, version, checksum, rows, flags & _AGREES != 0, flags & _KNOWN != 0))
    reader.end()
    return number, findings
