"""Any answer at all: a valid one is read the same however the network cuts it; any other one ends in an UpstreamError.

The generator says what an answer means, so nothing here depends on a second client. `TIANJI_FUZZ=5000` for a long run.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.support.tcp import TcpServer, read_request
from tianji_mw.errors import UpstreamError, UpstreamTimeout
from tianji_mw.upstream import Deadlines, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

T = TypeVar("T")

EXAMPLES = int(os.environ.get("TIANJI_FUZZ", "100"))
PLAIN = b"HTTP/1.1 200 OK\r\nx-plain: yes\r\ncontent-length: 5\r\n\r\nplain"
PLAIN_SEEN = (200, [(b"x-plain", b"yes"), (b"content-length", b"5")], b"plain")
#: Long enough that no answer of these tests needs it: who runs into it has hung.
HUNG = Deadlines(connect_s=5, first_byte_s=5, between_bytes_s=5, total_s=8)

Seen = tuple[int, list[tuple[bytes, bytes]], bytes]


@dataclass(frozen=True)
class Said:
    """An answer on the wire, and what it means; `close` where its end is that of the connection."""

    wire: bytes
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    close: bool

    @property
    def seen(self) -> Seen:
        return self.status, self.headers, self.body


# --- valid answers

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: They say how long an answer or its connection lasts: the generator itself writes them.
FRAMING = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"proxy-connection"}
NAMES = st.text(TOKEN, min_size=1, max_size=8).map(str.encode).filter(lambda name: name.lower() not in FRAMING)
#: Visible characters, obs-text, and blanks between them (RFC 9110, section 5.5).
VALUES = st.binary(max_size=12).map(lambda raw: re.sub(rb"[^\t -~\x80-\xff]", b"v", raw).strip(b" \t"))
BLANKS = st.sampled_from([b"", b" ", b"\t", b"  "])
HEADERS = st.lists(st.tuples(NAMES, VALUES, BLANKS, BLANKS), max_size=4)
BODIES = st.binary(max_size=20)
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b c";d=e'])
INTERIM = st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 X\r\nlink: <a>\r\nx:\r\n\r\n"])


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    out = b""
    while body:
        size = draw(st.integers(1, len(body)))
        line = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % size + draw(EXTENSIONS)
        out += line + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    trailers = draw(st.sampled_from([b"", b"x-trailer: 1\r\n", b"x-trailer:\r\nx-two: 2\r\n"]))
    return out + b"0" + draw(EXTENSIONS) + b"\r\n" + trailers + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> Said:
    framing = draw(st.sampled_from(["length", "chunked", "close", "none"]))
    status = draw(st.sampled_from([204, 304]) if framing == "none" else st.sampled_from([200, 201, 400, 429, 503, 599]))
    body = b"" if framing == "none" else draw(BODIES)
    given_headers = draw(HEADERS)
    lines = [name + b":" + before + value + after for name, value, before, after in given_headers]
    headers = [(name.lower(), value) for name, value, _, _ in given_headers]
    sent = body
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
        headers.append((b"content-length", b"%d" % len(body)))
    elif framing == "chunked":
        sent = draw(chunks(body))
        lines.append(b"Transfer-Encoding: chunked")
        headers.append((b"transfer-encoding", b"chunked"))
    line = b"HTTP/1.1 %d%b" % (status, draw(st.sampled_from([b"", b" ", b" OK", b" Not so \xe9 good"])))
    wire = draw(INTERIM) + b"\r\n".join([line, *lines]) + b"\r\n\r\n" + sent
    return Said(wire, status, headers, body, framing == "close")


# --- answers that are none

PIECES = st.sampled_from(
    [
        b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0", b"-1", b"ffffffffffffffff", b" folded\r\n", b"0\r\n\r\n", PLAIN,
        b"content-length: 3\r\n", b"content-length: 99\r\n", b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\n", b"connection: upgrade\r\nupgrade: x\r\n", b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 099 X\r\ncontent-length: 4\r\n\r\nevil", b"HTTP/1.1 100 C\r\ncontent-length: 4\r\n\r\nevil",
    ]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid answer with something cut out, put in or overwritten, several times over."""
    wire = draw(answers()).wire
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(wire)))
        until = draw(st.integers(at, min(len(wire), at + 12)))
        wire = wire[:at] + draw(st.one_of(st.just(b""), PIECES, st.binary(max_size=4))) + wire[until:]
    return wire


WIRES = st.one_of(st.binary(max_size=80), damaged(), st.lists(PIECES, max_size=6).map(b"".join))


@st.composite
def cuts(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(wire)), max_size=4)))
    return [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True) if b > a]


# --- the laboratory


@dataclass
class Lab:
    """A loop with a transport and a server whose next answer is what the test puts into `packets`."""

    runner: asyncio.Runner
    packets: Sequence[bytes] = ()
    close: bool = False
    #: How often `packets` were sent to their end.
    sent: int = 0
    requests: list[str] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = await read_request(reader)
            self.requests.append(path)
            if path == "/plain":
                writer.write(PLAIN)
                continue
            packets, close = self.packets, self.close
            try:
                await apart(writer, packets)
            finally:
                self.sent += 1
            if close:
                return

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[tuple[Http1Transport, TcpServer]]:
        transport = Http1Transport()
        async with TcpServer(self) as server:
            yield transport, server
            await transport.aclose()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def apart(writer: asyncio.StreamWriter, packets: Sequence[bytes]) -> None:
    """Each packet is read by itself: with one turn of asyncio's loop between them, two would arrive together."""
    for packet in packets:
        writer.write(packet)
        await turns(3)


async def ask(transport: Http1Transport, url: str, method: str = "POST") -> Seen:
    body = b"{}" if method == "POST" else b""
    response = await transport.send(UpstreamRequest(method, url, (), body, HUNG))
    try:
        return response.status, response.headers, await response.read(1 << 20)
    finally:
        response.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield Lab(runner)


def few(share: int = 1) -> Callable[[Any], Any]:
    return settings(
        max_examples=max(1, EXAMPLES // share),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


# --- the properties


async def test_packets_arrive_apart() -> None:
    """What the other tests of this file stand on."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await apart(writer, [b"%d" % n for n in range(9)])

    async with TcpServer(serve) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        got = []
        while data := await reader.read(100):
            got.append(data)
        writer.close()
        assert got == [b"%d" % n for n in range(9)]


@few(4)
@given(answers())
def test_an_answer_is_the_same_wherever_it_is_cut(lab: Lab, said: Said) -> None:
    """At every position, into single bytes, and not at all."""
    wire = said.wire
    ways = [[wire], [wire[n : n + 1] for n in range(len(wire))], *([wire[:n], wire[n:]] for n in range(1, len(wire)))]

    async def every() -> None:
        lab.close = said.close
        async with lab.started() as (transport, server):
            for lab.packets in ways:
                assert await ask(transport, server.url) == said.seen, lab.packets
            # An answer that says where it ends costs no connection.
            assert server.connections == (len(ways) if said.close else 1)

    lab.run(every())


@few(4)
@given(answers().filter(lambda said: not said.close))
def test_half_an_answer_is_never_a_whole_one(lab: Lab, said: Said) -> None:
    """Cut off at every position."""

    async def every() -> None:
        lab.close = True
        async with lab.started() as (transport, server):
            for length in range(len(said.wire)):
                lab.packets = [said.wire[:length]] if length else []
                with pytest.raises(UpstreamError) as caught:
                    await ask(transport, server.url)
                assert not isinstance(caught.value, UpstreamTimeout), "the end was noticed"

    lab.run(every())


@few(1)
@given(st.data(), WIRES, st.sampled_from(["POST", "POST", "HEAD"]))
def test_any_bytes_end_well_and_leave_nothing_behind(lab: Lab, data: st.DataObject, wire: bytes, method: str) -> None:
    packets = data.draw(cuts(wire))

    async def once() -> None:
        lab.packets, lab.close, lab.sent = packets, True, 0
        lab.requests.clear()
        async with lab.started() as (transport, server):
            # Two that stay: whatever comes over the one in use must touch neither.
            assert await asyncio.gather(*(ask(transport, f"{server.url}/plain") for _ in range(2))) == [PLAIN_SEEN] * 2
            [seen] = await asyncio.gather(ask(transport, server.url, method), return_exceptions=True)
            event(type(seen).__name__)
            if isinstance(seen, BaseException):
                assert isinstance(seen, UpstreamError), repr(seen)
                assert not isinstance(seen, UpstreamTimeout), "the end was noticed"
            else:
                status, headers, body = seen
                assert 200 <= status <= 999
                assert all(re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name) for name, _ in headers)
                assert not any(re.search(rb"[\r\n\0]", value) for _, value in headers), "it would split our own answer"
                assert len(body) <= len(wire)
            while not lab.sent:
                await turns(1)
            await turns(3)
            for _ in range(3):
                assert await ask(transport, f"{server.url}/plain") == PLAIN_SEEN
            assert lab.requests == ["/plain", "/plain", "/", "/plain", "/plain", "/plain"], "each was sent once"

    lab.run(once())
