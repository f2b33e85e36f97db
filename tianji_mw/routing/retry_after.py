"""How long an upstream asks to wait, in every spelling that is in use. Pure.

Sources: RFC 9110, section 10.2.3 (`retry-after`); OpenAI's SDKs (`retry-after-ms`); Azure (`x-ms-retry-after-ms`);
OpenAI "Rate limits" (`x-ratelimit-reset-requests: 1m12s`); Anthropic "Rate limits" (`anthropic-ratelimit-*-reset`, RFC
3339); Google's `google.rpc.RetryInfo` (`retryDelay: "17s"`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import orjson

from tianji_mw.apis.base import JSON

_MILLISECONDS: Final = ("retry-after-ms", "x-ms-retry-after-ms")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+")
_UNIT_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
#: Nobody waits longer: what asks for more says nothing.
_MOST_S: Final = 1e9
#: Our prefix of a provider's headers.
_SHOWN: Final = "llm_provider-"
_LIMITS: Final = re.compile(r"(?:x-ratelimit-(remaining|reset)-(.+)|anthropic-ratelimit-(.+)-(remaining|reset))")


def wait_s(headers: Mapping[str, str], body: bytes, now: float) -> float | None:
    """Seconds that the upstream asks to wait; None where it says nothing. `now`: seconds since 1970.

    >>> wait_s({"retry-after": "20"}, b"", 0)
    20.0
    """
    for name in _MILLISECONDS:
        if (found := _number(headers.get(name, ""))) is not None:
            return found / 1000
    if given := headers.get("retry-after"):
        found = _number(given)
        if found is None:
            found = _until(given, now)
        if found is not None:
            return found
    found = _google(body)
    return _reset(headers, now) if found is None else found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return _sane(value)


def _sane(seconds: float) -> float | None:
    """What can be counted with: no infinity, no NaN, nothing below 0."""
    return seconds if 0 <= seconds < _MOST_S else None


def _until(text: str, now: float) -> float | None:
    """Seconds until an HTTP date or an RFC 3339 time; 0 where it is over."""
    try:
        when = datetime.fromisoformat(text) if text[:4].isdigit() else parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):  # the parser of e-mail dates lets all of them out
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return _sane(max(0.0, when.timestamp() - now))


def duration_s(text: str) -> float | None:
    """Seconds of `1m12s`, `17s`, `6ms` or `0.5s`; None for anything else.

    >>> duration_s("1m12s")
    72.0
    """
    if not _DURATION.fullmatch(text):
        return None
    return _sane(sum(float(amount) * _UNIT_S[unit] for amount, unit in _PART.findall(text)))


def _google(body: bytes) -> float | None:
    if b"retryDelay" not in body:
        return None
    try:
        found: JSON = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = (found[0] if isinstance(found, list) and found else found) or {}
    error = error.get("error") if isinstance(error, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (seconds := duration_s(delay)) is not None:
            return seconds
    return None


def _reset(headers: Mapping[str, str], now: float) -> float | None:
    """When the limits begin anew that are used up; the last of them counts."""
    remaining: dict[str, str] = {}
    resets: dict[str, float] = {}
    for what, limit, value in _limits(headers):
        if what == "remaining":
            remaining[limit] = value
            continue
        for read in (duration_s, _number, lambda text: _until(text, now)):
            if (seconds := read(value)) is not None:
                resets[limit] = seconds
                break
    return max((seconds for limit, seconds in resets.items() if remaining.get(limit) == "0"), default=None)


def _limits(headers: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name, value in headers.items():
        if found := _LIMITS.fullmatch(name.removeprefix(_SHOWN)):
            yield (found[1], found[2], value) if found[1] else (found[4], found[3], value)
