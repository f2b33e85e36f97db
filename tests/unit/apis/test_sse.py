"""Event streams: the cutter must give the same events wherever the network cut the bytes."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tianji_mw.apis import sse
from tianji_mw.errors import UpstreamMalformed

LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
FIELDS = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data:  two",
        b": ping",
        b"event: a",
        b"event",
        b"id: 7",
        b"retry: 1",
        b"",
        b"odd",
    ]
)
#: Lines with every kind of end, so that blank lines, CRLF halves and runs of ends come up often.
STREAMS = st.lists(st.tuples(FIELDS, LINE_ENDS).map(b"".join), max_size=12).map(b"".join)
#: Bytes in which line ends are frequent.
BYTES = st.lists(st.sampled_from([b"\r", b"\n", b"a", b":", b" ", b"data: ", b"\xff", b"\xef\xbb\xbf"]), max_size=24)


def cut(pieces: list[bytes], limit: int = 1 << 20) -> list[bytes]:
    splitter = sse.Splitter(limit)
    events = [event for piece in pieces for event in splitter.feed(piece)]
    rest = splitter.finish()
    assert splitter.tail == b""
    return [*events, rest] if rest else events


def reference(stream: bytes) -> list[tuple[str, bytes]]:
    """WHATWG HTML 9.2.6, written for clarity: whole stream, line by line."""
    found, name, data = [], b"", None
    for line in re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf")):
        if not line:
            if data is not None:
                found.append((name.decode(), data))
            name, data = b"", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            data = value if data is None else data + b"\n" + value
    if data is not None:  # an event without its blank line: ours is given as the tail
        found.append((name.decode(), data))
    return found


@given(STREAMS)
@example(b"data: 1\r\n\r\ndata: 2\r\n\r\n")
@example(b"data: 1\n\n\ndata: 2\n\n\n\n\n")
@example(b"data: 1\r\rdata: 2\n\r\ndata: 3\r\n\ndata: 4\n\r")
@example(b"\xef\xbb\xbfdata: a\ndata: b\n: c\nevent: e\n\n")
def test_every_cut_gives_the_same_events(stream: bytes) -> None:
    whole = cut([stream])
    assert b"".join(whole) == stream
    assert cut([bytes([byte]) for byte in stream]) == whole
    for i in range(len(stream) + 1):
        assert cut([stream[:i], stream[i:]]) == whole
    assert [(name, data) for name, data in map(sse.parse, whole) if data is not None] == reference(stream)


@given(BYTES, st.data())
def test_any_bytes_in_any_pieces(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    events = cut(pieces)
    assert events == cut([stream])
    assert b"".join(events) == stream
    for event in events:
        sse.parse(event)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_fail(stream: bytes) -> None:
    events = cut([stream[:7], stream[7:]])
    assert b"".join(events) == stream
    for event in events:
        name, payload = sse.parse(event)
        assert isinstance(name, str)
        if payload is not None:
            assert sse.parse(sse.encode(payload.replace(b"\n", b""), name))[0] == name


def test_a_spare_line_end_opens_the_next_event() -> None:
    assert cut([b"data: 1\n\n\ndata: 2\n\n"]) == [b"data: 1\n\n", b"\ndata: 2\n\n"]
    assert cut([b"data: 1\n\n\n"]) == [b"data: 1\n\n", b"\n"]


def test_a_cr_at_the_end_waits_for_its_lf() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\n") == [b"data: 1\r\n\r\n"]
    assert splitter.feed(b"data: 2\r\r") == []
    assert splitter.feed(b"data: 3") == [b"data: 2\r\r"]
    assert splitter.tail == b"data: 3"


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b""])
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_an_event_over_the_limit_is_refused_however_it_comes(end: bytes, size: int) -> None:
    stream = b"data: ok\n\ndata: " + b"x" * 2000 + end
    splitter = sse.Splitter(1000)
    kept = []

    def feed_all() -> None:
        for i in range(0, len(stream), size):
            splitter.feed(stream[i : i + size])
            kept.append(len(splitter.tail))

    with pytest.raises(UpstreamMalformed, match="1000 bytes"):
        feed_all()
    assert max(kept, default=0) <= 1000
    assert splitter.tail == b""
    assert splitter.feed(b"data: 1\n\n") == [b"data: 1\n\n"]


def test_many_small_events_pass_under_a_small_limit() -> None:
    stream = b"data: 1\n\n" * 1000
    assert len(cut([stream], limit=20)) == 1000


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'data: {"a":1}\n\n', ("", b'{"a":1}')),
        (b'data:{"a":1}\n\n', ("", b'{"a":1}')),
        (b"data: a\ndata: b\n\n", ("", b"a\nb")),
        (b"event: x\r\ndata: 1\r\n\r\n", ("x", b"1")),
        (b": ping\n\n", ("", None)),
        (b"data\n\n", ("", b"")),
        (b"data: \n\n", ("", b"")),
        (b"event: a\nevent\ndata: 1\n\n", ("", b"1")),
        (b"\xef\xbb\xbfdata: 1\n\n", ("", b"1")),
        (b"data: \xff\n\n", ("", b"\xff")),
        (b"data: \xe2\x80\xa8x\n\n", ("", b"\xe2\x80\xa8x")),
        (b"", ("", None)),
    ],
)
def test_parse(raw: bytes, found: tuple[str, bytes | None]) -> None:
    assert sse.parse(raw) == found


@settings(max_examples=50)
@given(st.dictionaries(st.text(), st.text() | st.integers(-9, 9)), st.sampled_from(["", "response.created", "ü"]))
def test_encode_and_parse_are_inverse(value: dict[str, object], name: str) -> None:
    raw = sse.encode(orjson.dumps(value), name)
    assert cut([raw]) == [raw]
    found, data = sse.parse(raw)
    assert (found, orjson.loads(data or b"")) == (name, value)


def test_a_name_that_is_no_utf8_survives_an_edit() -> None:
    name, data = sse.parse(b"event: \xff\xfe\ndata: 1\n\n")
    assert data is not None
    assert sse.encode(data, name) == b"event: \xff\xfe\ndata: 1\n\n"
