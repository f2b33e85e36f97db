"""Hash slots of Redis Cluster: which keys lie together. Sources: Redis Cluster specification, "Hash tags"."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

SLOTS: Final = 16384


def slot_of(key: str | bytes) -> int:
    """CRC16 (XMODEM) of the key, or of its first `{tag}` where that is not empty.

    >>> slot_of("123456789"), slot_of("a{x}") == slot_of("b{x}"), slot_of("a{}x") == slot_of("{}x")
    (12739, True, False)
    """
    raw = key.encode() if isinstance(key, str) else key
    start = raw.find(b"{")
    if start >= 0:
        end = raw.find(b"}", start + 1)
        if end > start + 1:
            raw = raw[start + 1 : end]
    return crc_hqx(raw, 0) % SLOTS


def tagged(tag: str, *parts: str) -> str:
    """A key whose slot depends on `tag` alone; keys that one script touches share theirs.

    >>> tagged("key-7", "rpm", "12:04")
    '{key-7}:rpm:12:04'
    """
    if not tag or "{" in tag or "}" in tag:
        raise ValueError("a hash tag is text without braces, and not empty")
    return ":".join((f"{{{tag}}}", *parts))
