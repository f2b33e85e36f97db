"""Entries come back as they were, and what a store has damaged is no entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.apis.base import Usage
from tianji_mw.cache.entry import Entry, NoEntry, decode

ENTRY = Entry(
    body=b'{"id":1}', form="whole", content_type=b"application/json", api="chat_completions", model="m", created=5.5,
    fresh_s=10, stale_s=3, if_error_s=7, usage=Usage(1, 2, 3, 4, 5, "provider"), tags=("a", "b"),
)  # fmt: skip


def test_a_round_trip() -> None:
    back = decode(ENTRY.encode())
    for name in Entry.__slots__:
        assert getattr(back, name) == getattr(ENTRY, name), name
    assert back.kept_s == 17


@given(st.binary(max_size=200))
def test_garbage_is_no_entry(raw: bytes) -> None:
    with pytest.raises(NoEntry):
        decode(raw)


@given(st.data())
def test_a_flipped_bit_is_found(data: st.DataObject) -> None:
    raw = bytearray(ENTRY.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(NoEntry):
        decode(bytes(raw))


@given(st.integers(0, 200))
def test_a_cut_is_found(size: int) -> None:
    raw = ENTRY.encode()
    if size < len(raw):
        with pytest.raises(NoEntry):
            decode(raw[:size])


def test_another_version_is_told_from_damage() -> None:
    with pytest.raises(NoEntry) as error:
        decode(b"TJC0" + ENTRY.encode()[4:])
    assert error.value.reason == "version"


def test_no_answer_is_younger_than_now() -> None:
    assert ENTRY.age_s(1.0) == 0
    assert ENTRY.age_s(10.0) == 4.5
