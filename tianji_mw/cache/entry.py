"""What is kept of an answer: its bytes as they left, in the form they left in, and what is needed to use them again.

    magic    4 bytes, with the format's version
    check    CRC-32 of all that follows
    length   of the facts, u32
    facts    JSON
    body     the rest

Bytes of another version, or that a store has damaged, are no entry: whoever asked takes it for a miss.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

import orjson

from tianji_mw.apis.base import Usage
from tianji_mw.frames import Form

_MAGIC: Final = b"TJC1"
_HEAD: Final = struct.Struct("<4sII")


class NoEntry(Exception):
    """The bytes are no entry of this version. `reason`: `version` or `corrupt`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One answer that may be given again."""

    body: bytes
    #: One JSON document, or the events of a stream.
    form: Form
    content_type: bytes
    api: str
    model: str
    #: Seconds since 1970.
    created: float
    #: For so many seconds after `created` it may be given as it is.
    fresh_s: float
    #: After that for so many more while a new one is fetched; and where no new one can be had.
    stale_s: float = 0.0
    if_error_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    tags: tuple[str, ...] = ()

    @property
    def kept_s(self) -> float:
        """How long a store has to keep it."""
        return self.fresh_s + max(self.stale_s, self.if_error_s)

    def age_s(self, now: float) -> float:
        """Seconds since it was made; clocks of pods differ, and no answer is younger than now."""
        return max(0.0, now - self.created)

    def encode(self) -> bytes:
        """The bytes for a store."""
        used = self.usage
        facts = orjson.dumps(
            {
                "form": self.form,
                "type": self.content_type.decode("latin-1"),
                "api": self.api,
                "model": self.model,
                "at": self.created,
                "life": (self.fresh_s, self.stale_s, self.if_error_s),
                "usage": (
                    used.input_tokens, used.output_tokens, used.cached_tokens, used.cache_write_tokens,
                    used.reasoning_tokens, used.source,
                ),
                "tags": self.tags,
            }
        )  # fmt: skip
        check = zlib.crc32(self.body, zlib.crc32(facts))
        return b"".join((_HEAD.pack(_MAGIC, check, len(facts)), facts, self.body))


def decode(raw: bytes) -> Entry:
    """The entry in these bytes. Raises NoEntry."""
    try:
        magic, check, length = _HEAD.unpack_from(raw)
    except struct.error:
        raise NoEntry("corrupt") from None
    if magic != _MAGIC:
        raise NoEntry("version" if magic[:3] == _MAGIC[:3] else "corrupt")
    if zlib.crc32(memoryview(raw)[_HEAD.size :]) != check:
        raise NoEntry("corrupt")
    try:
        facts = orjson.loads(raw[_HEAD.size : _HEAD.size + length])
        fresh, stale, if_error = facts["life"]
        return Entry(
            body=raw[_HEAD.size + length :],
            form=facts["form"],
            content_type=facts["type"].encode("latin-1"),
            api=facts["api"],
            model=facts["model"],
            created=facts["at"],
            fresh_s=fresh,
            stale_s=stale,
            if_error_s=if_error,
            usage=Usage(*facts["usage"]),
            tags=tuple(facts["tags"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise NoEntry("corrupt") from None
