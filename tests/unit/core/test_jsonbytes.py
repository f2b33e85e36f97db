"""JSON at the byte level, against the standard library: same value, one change, all other bytes untouched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianji_mw import jsonbytes

KEYS = st.one_of(st.sampled_from(["model", "messages", 'a"model', "mod", "", "MODEL", "\\"]), st.text(max_size=6))
TEXTS = st.one_of(st.sampled_from(["model", '"model":"x"', "\\", '\\"', '{"model":', "é😀"]), st.text(max_size=8))
TEXTS = TEXTS.filter(lambda text: not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
KEYS = KEYS.filter(lambda text: not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e9, 1e9), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@st.composite
def written(draw: st.DrawFn, value: Any) -> bytes:
    """The value as somebody may write it: any white space, escapes or not."""
    space = draw(st.sampled_from(["", " ", "\n", "\t \r\n"]))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), separators=(f"{space},{space}", f"{space}:{space}"))
    return f"{space}{text}{space}".encode()


@settings(max_examples=150, deadline=None)
@given(st.data(), OBJECTS, TEXTS, TEXTS)
def test_replacing_a_value_changes_that_value_and_no_other_byte(data: Any, other: Any, old: str, new: str) -> None:
    items = [*((k, v) for k, v in other.items() if k != "model"), ("model", old)]
    order = data.draw(st.permutations(items))
    body = data.draw(written(dict(order)))
    span = jsonbytes.find_value(body, "model")
    changed = jsonbytes.replace_value(body, "model", json.dumps(new).encode())
    if changed is None:
        assert rb"\u00" in body  # escapes that could spell the key
        return
    assert span is not None
    assert json.loads(changed) == {**dict(order), "model": new}
    assert changed[: span[0]] == body[: span[0]]
    assert changed.endswith(body[span[1] :])
    assert json.loads(body[span[0] : span[1]]) == old


@settings(max_examples=100, deadline=None)
@given(st.data(), OBJECTS, VALUES)
def test_appending_a_field_leaves_all_that_stands_before_it(data: Any, other: Any, value: Any) -> None:
    other.pop("stream_options", None)
    body = data.draw(written(other))
    changed = jsonbytes.append_field(body, "stream_options", json.dumps(value).encode())
    assert json.loads(changed) == {**other, "stream_options": value}
    assert changed.startswith(body.rstrip()[:-1].rstrip())


@settings(max_examples=150, deadline=None)
@given(st.data(), VALUES)
def test_loads_reads_what_the_standard_library_reads(data: Any, value: Any) -> None:
    assert jsonbytes.loads(data.draw(written(value))) == json.loads(json.dumps(value))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40))
def test_loads_raises_nothing_but_value_errors(body: bytes) -> None:
    try:
        jsonbytes.loads(body)
    except ValueError:
        return


@settings(max_examples=50, deadline=None)
@given(KEYS, VALUES, VALUES, st.integers(0, 5), st.booleans())
def test_equal_keys_are_refused_at_any_depth(key: str, a: Any, b: Any, depth: int, spaced: bool) -> None:
    gap = " " if spaced else ""
    name = json.dumps(key)
    text = f"{{{name}:{gap}{json.dumps(a)},{name}:{json.dumps(b)}}}"
    for _ in range(depth):
        text = f'{{"x":[{text}]}}'
    with pytest.raises(ValueError, match="stands twice"):
        jsonbytes.loads(text.encode())


def test_equal_keys_are_refused_when_one_is_written_with_escapes() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        jsonbytes.loads(rb'{"model":"a","\u006dodel":"b"}')


def test_the_reason_does_not_quote_a_long_key() -> None:
    with pytest.raises(ValueError, match="stands twice") as caught:
        jsonbytes.loads(b'{"%b":1,"%b":2}' % (b"k" * 5000, b"k" * 5000))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("depth", [200, 300, 990, 1030, 100_000])
def test_depth_is_bounded(depth: int) -> None:
    body = b"[" * depth + b"]" * depth
    if depth < 250:
        assert jsonbytes.loads(body) is not None
    else:
        with pytest.raises(ValueError, match=r"deep|depth"):
            jsonbytes.loads(body)


@pytest.mark.parametrize("value", [b"1", b"null", b"[1]", b'{"a":1}'])
def test_a_value_that_is_no_string_is_not_replaced(value: bytes) -> None:
    assert jsonbytes.replace_value(b'{"model":%b}' % value, "model", b'"x"') is None
    assert jsonbytes.replace_value(b'{"x":"model","model":%b}' % value, "model", b'"x"') is None


def test_a_key_deeper_down_is_not_taken_for_the_top_level_one() -> None:
    body = b'{"metadata":{"model":"inner"},"tools":[{"model":"t"}],"model":"outer"}'
    assert jsonbytes.replace_value(body, "model", b'"new"') == body.replace(b'"outer"', b'"new"')
