"""Frames and their Reader: total on any bytes, lazy, bounded, and honest about what cannot be read."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stack import ANSWER, DONE, delta, stream_of
from tests.unit.core.test_call import call_over
from tianji_mw.apis import by_name
from tianji_mw.call import Limits
from tianji_mw.errors import UpstreamMalformed
from tianji_mw.frames import Form, Frame, Reader, form_of

CALL = call_over([])


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (b"text/event-stream", "sse"),
        (b"Text/Event-Stream; charset=utf-8", "sse"),
        (b"application/json", "whole"),
        (b" application/json;x=1", "whole"),
        (b"application/problem+json", "whole"),
        (b"text/html", "opaque"),
        (b"audio/mpeg", "opaque"),
        (b"application/x-ndjson", "opaque"),
        (b"", "opaque"),
    ],
)
def test_the_form_follows_the_content_type(kind: bytes, form: str) -> None:
    assert form_of(kind) == form


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=8), st.sampled_from(["sse", "whole", "opaque"]))
def test_any_bytes_give_frames_and_no_byte_is_lost(parts: list[bytes], form: Form) -> None:
    reader = Reader(CALL, form)
    frames = [frame for part in parts for frame in reader.feed(part, True)] + reader.feed(b"", False)
    assert b"".join(frame.raw for frame in frames) == b"".join(parts)
    for frame in frames:
        assert isinstance(frame.text, str)
        assert frame.kind
        assert frame.readable in (True, False)
        assert repr(frame) == f"Frame({form}, {len(frame.raw)} bytes)"
    assert reader.failed in (True, False)
    assert reader.ended in (True, False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=8))
def test_frames_do_not_depend_on_where_the_packets_were_cut(cuts: list[int]) -> None:
    whole = b"".join(stream_of("Hel", "lo", "é"))
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    reader = Reader(CALL, "sse")
    frames = [f for a, b in itertools.pairwise(edges) for f in reader.feed(whole[a:b], b < len(whole))]
    assert [frame.text for frame in frames] == ["", "Hel", "lo", "é", "", ""]
    assert reader.ended


@pytest.mark.parametrize(
    ("raw", "form", "readable"),
    [
        (b'data: {"a":1}\n\n', "sse", True),
        (b"data: [DONE]\n\n", "sse", True),
        (b": comment\n\n", "sse", True),
        (b"\n\n", "sse", True),
        (b"event: ping\n\n", "sse", True),
        (b"data: \n\n", "sse", True),
        (b"data: hidden text\n\n", "sse", False),
        (b'data: {"a":\n\n', "sse", False),
        (b"data: null\n\n", "sse", False),
        (b"data: \xff\n\n", "sse", False),
        (b'{"a":1}', "whole", True),
        (b"", "whole", True),
        (b"plain", "whole", False),
        (b"bytes", "opaque", False),
    ],
)
def test_what_nobody_can_read_says_so(raw: bytes, form: Form, readable: bool) -> None:
    assert Frame(raw, CALL, form).readable is readable


def test_a_frame_is_decoded_at_most_once() -> None:
    call = call_over([])
    frame = Frame(delta("a"), call)
    assert call.counters.decoded == 0
    for _ in range(3):
        _ = frame.data, frame.event, frame.kind, frame.text, frame.readable
    assert call.counters.decoded == 1
    frame.edit({"choices": [{"delta": {"content": "b"}}]})
    assert (frame.text, frame.dirty, call.counters.decoded, call.counters.encoded) == ("b", True, 1, 1)


def test_an_edit_keeps_the_name_of_the_event() -> None:
    call = call_over([])
    call.api = by_name("messages")
    frame = Frame(b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n', call)
    frame.edit({"type": "content_block_delta", "delta": {}})
    assert frame.raw.startswith(b"event: content_block_delta\ndata: {")


def test_a_made_frame_is_never_decoded() -> None:
    call = call_over([])
    frame = Frame.made(call, {"choices": [{"delta": {"content": "x"}}]})
    assert (frame.text, call.counters.decoded, call.counters.encoded) == ("x", 0, 1)
    assert frame.raw == b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    assert Frame.made(call, {"a": 1}, form="whole").raw == b'{"a":1}'


@pytest.mark.parametrize(
    ("form", "limits", "body"),
    [
        ("sse", Limits(max_event_bytes=50), b"data: " + b"x" * 60),
        ("sse", Limits(max_event_bytes=50), b"data: " + b"x" * 60 + b"\n\n"),
        ("sse", Limits(max_answer_bytes=50), b"data: x\n\n" * 10),
        ("whole", Limits(max_answer_bytes=50), b"x" * 51),
    ],
)
def test_limits_hold_whatever_the_packets(form: Form, limits: Limits, body: bytes) -> None:
    for size in (1, 7, len(body)):
        reader = Reader(call_over([], limits=limits), form)
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        with pytest.raises(UpstreamMalformed, match="larger than 50 bytes"):
            feed_all(reader, parts)


def feed_all(reader: Reader, parts: list[bytes]) -> None:
    for part in parts:
        reader.feed(part, True)


def test_usage_is_noted_wherever_it_stands() -> None:
    call = call_over([])
    reader = Reader(call, "sse")
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    for raw in [*stream_of("a")[:-1], b"data: %b\n\n" % orjson.dumps({"choices": [], "usage": usage}), DONE]:
        reader.feed(raw, True)
    assert (call.usage.input_tokens, call.usage.output_tokens, call.usage.source) == (5, 7, "provider")
    whole = call_over([])
    Reader(whole, "whole").feed(orjson.dumps(ANSWER), False)
    assert whole.usage.input_tokens == 3


@pytest.mark.parametrize(
    ("events", "ended", "failed"),
    [
        ([delta("a"), DONE], True, False),
        ([delta("a"), delta(finish="stop")], True, False),
        ([delta("a")], False, False),
        ([], False, False),
        ([b'data: {"error":{"message":"x"}}\n\n'], True, True),
    ],
)
def test_a_reader_knows_whether_the_client_was_told_of_the_end(events: list[Any], ended: bool, failed: bool) -> None:
    reader = Reader(call_over([]), "sse")
    for event in events:
        reader.feed(event, True)
    assert (reader.ended, reader.failed) == (ended, failed)
