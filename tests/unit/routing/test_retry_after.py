"""How long an upstream asks to wait: every spelling, and anything that is none."""

from __future__ import annotations

import math
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.routing.retry_after import duration_s, wait_s

NOW = 1_700_000_000.0


def google(delay: Any) -> bytes:
    return orjson.dumps({"error": {"code": 429, "details": [{"@type": "x"}, {"retryDelay": delay}]}})


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, b"", None),
        ({"retry-after": "20"}, b"", 20.0),
        ({"retry-after": "0.5"}, b"", 0.5),
        ({"retry-after": "0"}, b"", 0.0),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, b"", 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, b"", 0.0),
        ({"retry-after": "2023-11-14T22:13:50Z"}, b"", 30.0),
        ({"retry-after": "2023-11-14T22:13:50"}, b"", 30.0),
        ({"retry-after": "2023-11-15T00:13:50+02:00"}, b"", 30.0),
        ({"retry-after-ms": "1500"}, b"", 1.5),
        ({"x-ms-retry-after-ms": "250"}, b"", 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, b"", 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, b"", 9.0),
        ({"x-ratelimit-reset-requests": "1m12s", "x-ratelimit-remaining-requests": "0"}, b"", 72.0),
        ({"x-ratelimit-reset-requests": "1m12s", "x-ratelimit-remaining-requests": "3"}, b"", None),
        ({"x-ratelimit-reset-requests": "1m12s"}, b"", None),
        (
            {
                "x-ratelimit-reset-requests": "6ms", "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "1h2m3s", "x-ratelimit-remaining-tokens": "0",
            },
            b"", 3723.0,
        ),
        ({"llm_provider-x-ratelimit-reset-tokens": "8", "llm_provider-x-ratelimit-remaining-tokens": "0"}, b"", 8.0),
        (
            {
                "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:14:20Z",
                "anthropic-ratelimit-input-tokens-remaining": "0",
            },
            b"", 60.0,
        ),
        ({}, google("17s"), 17.0),
        ({}, google("17.5s"), 17.5),
        ({}, b"[" + google("17s") + b"]", 17.0),
        ({"retry-after": "3"}, google("17s"), 3.0),
        ({}, google(17), None),
        ({}, b'{"error": "retryDelay"}', None),
        ({}, b'["retryDelay"]', None),
        ({}, b'{"error": {"details": {"retryDelay": "1s"}}}', None),
        ({}, b'retryDelay: "17s"', None),
        ({}, b"[" * 5000 + b'"retryDelay"', None),
    ],
)  # fmt: skip
def test_what_it_says(headers: dict[str, str], body: bytes, expected: float | None) -> None:
    found = wait_s(headers, body, NOW)
    assert found == expected if expected is None or found is None else found == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "-1", "-0.001", "nan", "inf", "-inf", "1e308", "1e400", "9" * 400, "0x10", "1s", "\ud800", "٣٤ s",
        "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 32 Foo 2024 99:99:99 GMT", "9999-12-31T23:59:59-23:59",
        "Fri, 31 Dec 9999 23:59:59 -9999", f"Mon, 01 Jan 2024 00:00:00 +{'9' * 30}", "0001-01-01T00:00:00+14:00x",
        "2024-13-01", ",", "Mon,", "²²²²",
    ],
)  # fmt: skip
def test_garbage_says_nothing(text: str) -> None:
    assert wait_s({"retry-after": text}, b"", NOW) is None
    assert wait_s({"retry-after-ms": text}, b"", NOW) is None


@pytest.mark.parametrize("delay", ["9" * 400 + "s", "1e9s", "-1s", "s", "", "1", "1 s", "1m-1s", "99999999999h", "1d"])
def test_no_duration(delay: str) -> None:
    assert duration_s(delay) is None
    assert wait_s({}, google(delay), NOW) is None


def test_a_long_text_is_read_in_linear_time() -> None:
    assert duration_s("1" * 100_000) is None
    assert duration_s("1m" * 50_000 + "x") is None


def test_the_oldest_time_is_over() -> None:
    assert wait_s({"retry-after": "0001-01-01T00:00:00Z"}, b"", NOW) == 0.0


NAMES = st.sampled_from(
    [
        "retry-after", "retry-after-ms", "x-ms-retry-after-ms", "x-ratelimit-reset-requests",
        "x-ratelimit-remaining-requests", "anthropic-ratelimit-requests-reset",
        "anthropic-ratelimit-requests-remaining",
    ]
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=40),
    st.floats().map(str),
    st.integers().map(str),
    st.datetimes().map(str),
    st.datetimes(timezones=st.timezones()).map(lambda when: when.isoformat()),
    st.from_regex(r"\A(\d{1,20}(ms|h|m|s)){1,4}\Z"),
    st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} (Jan|Dec) \d{1,6} \d{1,3}:\d{1,3}:\d{1,3} ([A-Z]{1,5}|[+-]\d{1,30})\Z"),
)


@given(st.dictionaries(NAMES, VALUES), st.one_of(st.binary(), VALUES.map(google)), st.floats(0, 4e9))
def test_total_and_finite(headers: dict[str, str], body: bytes, now: float) -> None:
    found = wait_s(headers, body, now)
    assert found is None or (math.isfinite(found) and 0 <= found < 1e9)


@given(st.integers(0, 1000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations(h: int, m: int, s: int, ms: int) -> None:
    assert duration_s(f"{h}h{m}m{s}s{ms}ms") == pytest.approx(h * 3600 + m * 60 + s + ms / 1000)
