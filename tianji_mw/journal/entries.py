"""How one entry of the journal looks as bytes. Pure.

length  u32, little endian: bytes of the head and the content together
sum     u32: CRC-32 of the head and the content
head    `targets id kind` and a line feed; targets are names with commas between
content the record
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

_PREFIX: Final = struct.Struct("<II")
PREFIX: Final = _PREFIX.size
#: No entry is longer; a length above is damage.
MAX_ENTRY: Final = 256 << 20


class Entry(NamedTuple):
    """One record of the journal. `targets`: who shall have it, as the head says it (`b"s3,slack"`)."""

    targets: bytes
    record_id: str
    kind: str
    raw: bytes
    #: Where it begins in its segment, and where the next one does.
    start: int = 0
    end: int = 0


class Damaged(Exception):
    """The bytes at `at` are no entry. `skip`: where the next one may begin; None when nothing says it."""

    def __init__(self, at: int, skip: int | None) -> None:
        super().__init__(f"damaged at byte {at}")
        self.at = at
        self.skip = skip


def encode(targets: bytes, record_id: str, kind: str, raw: bytes) -> tuple[bytes, bytes, bytes]:
    """The bytes of an entry in pieces, so that the content is not copied here."""
    head = b"%b %b %b\n" % (targets, record_id.encode(), kind.encode())
    return _PREFIX.pack(len(head) + len(raw), zlib.crc32(raw, zlib.crc32(head))), head, raw


def decode(data: bytes, base: int = 0) -> Iterator[Entry]:
    """The whole entries in `data`, which begins at byte `base` of its segment; a rest that is too short is left.

    Raises Damaged after the entries before the damage.
    """
    at, size = 0, len(data)
    while at + PREFIX <= size:
        length, check = _PREFIX.unpack_from(data, at)
        end = at + PREFIX + length
        if not 0 < length <= MAX_ENTRY:
            raise Damaged(base + at, None)
        if end > size:
            return
        body = data[at + PREFIX : end]
        head, found, raw = body.partition(b"\n")
        parts = head.split(b" ")
        if zlib.crc32(body) != check or not found or len(parts) != 3:
            raise Damaged(base + at, base + end)
        yield Entry(parts[0], parts[1].decode(), parts[2].decode(), raw, base + at, base + end)
        at = end


def length_at(data: bytes) -> int:
    """Bytes of the entry that `data` begins with, whole or not; 0 when even its length is not there."""
    return PREFIX + int(_PREFIX.unpack_from(data)[0]) if len(data) >= PREFIX else 0
