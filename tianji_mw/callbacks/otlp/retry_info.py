"""How long a gRPC service asks to wait: `google.rpc.RetryInfo` out of `grpc-status-details-bin`. Pure.

The few fields are read off the wire here, as their generated classes are a package that OTLP does not need otherwise.
Source: google/rpc/status.proto and error_details.proto; protobuf encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_TYPE: Final = b"type.googleapis.com/google.rpc.RetryInfo"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIGNED64: Final = 1 << 63


def retry_delay_s(details: bytes) -> float | None:
    """Seconds of the first RetryInfo in a serialized `google.rpc.Status`; None without one, or for bytes of no sense.

    A RetryInfo without a delay means at once.
    """
    try:
        for field, value in _fields(details):
            found = dict(_fields(value)) if field == 3 and isinstance(value, bytes) else {}
            if found.get(1) == _TYPE:
                return _delay(found.get(2, b""))
    except (IndexError, ValueError):
        pass
    return None


def _delay(info: int | bytes) -> float:
    duration = dict(_fields(info)).get(1, b"") if isinstance(info, bytes) else b""
    parts = dict(_fields(duration)) if isinstance(duration, bytes) else {}
    seconds, nanos = parts.get(1, 0), parts.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int) or seconds >= _SIGNED64 or nanos >= _SIGNED64:
        return 0.0
    return seconds + nanos / 1e9


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind, size = tag & 7, 0
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(raw, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("no wire type")
        if at + size > len(raw):
            raise IndexError("cut off")
        yield tag >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
