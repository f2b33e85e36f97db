"""Bodies that stream up to an upstream: framing, sources that break, upstreams that stall or answer early."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.tcp import OK, TcpServer, ask, read_head, reset, until
from tianji_mw.errors import UpstreamTimeout, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Reply
from tianji_mw.upstream import TransportOptions, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

EARLY = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    made = Http1Transport()
    yield made
    await made.aclose()


class Source:
    """An iterator of parts that counts what was taken, may end in an error, and notes that it was closed."""

    def __init__(self, *parts: bytes, error: BaseException | None = None, pause_s: float = 0.0) -> None:
        self.taken = self.closed = 0
        self._parts, self._error, self._pause_s = parts, error, pause_s

    async def run(self) -> AsyncIterator[bytes]:
        try:
            for part in self._parts:
                await asyncio.sleep(self._pause_s)
                self.taken += 1
                yield part
            if self._error is not None:
                raise self._error
        finally:
            self.closed += 1


# --- framing


@pytest.mark.parametrize("length", ["", "9"])
async def test_a_body_from_an_iterator_is_framed_byte_by_byte(transport: Http1Transport, length: str) -> None:
    wanted = b"three\r\n!!" if length else b"5\r\nthree\r\n4\r\n\r\n!!\r\n0\r\n\r\n"
    heads, bodies = [], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await read_head(reader))
            bodies.append(await reader.readexactly(len(wanted)))
            writer.write(OK)

    async with TcpServer(serve) as server:
        headers = (("content-length", length),) if length else ()
        sources = [Source(b"three", b"", b"\r\n!!") for _ in range(3)]
        for source in sources:
            assert await ask(transport, server.url, source.run(), headers=headers) == b"ok"
        await asyncio.sleep(0)
        assert bodies == [wanted] * 3, "an empty part is not the chunk that ends a body"
        for head in heads:
            assert (b"content-length: 9\r\n" in head, b"transfer-encoding: chunked\r\n" in head) == (
                bool(length),
                not length,
            )
        assert [source.closed for source in sources] == [1, 1, 1]
        assert server.connections == 1, "a whole upload costs no connection"


async def test_framing_headers_of_the_caller_are_never_sent_twice(transport: Http1Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"ok"])] * 2
    lying = [("Content-Length", "99"), ("Transfer-Encoding", "chunked"), ("Connection", "close, x-hop")]
    assert await ask(transport, llm.url, b"{}", headers=lying) == b"ok"
    assert await ask(transport, llm.url, Source(b"{}").run(), headers=lying[1:]) == b"ok"
    assert [r.body for r in llm.requests] == [b"{}", b"{}"]
    framing = [{k: v for k, v in r.headers.items() if k != "host"} for r in llm.requests]
    assert framing == [{"content-length": "2"}, {"transfer-encoding": "chunked"}]


async def test_twenty_mebibytes_arrive_as_they_were_given(transport: Http1Transport) -> None:
    body = b"".join(n.to_bytes(4, "big") for n in range(5 << 20))
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_head(reader)
            digest, left = hashlib.sha256(), len(body)
            while left:
                part = await reader.read(min(left, 1 << 20))
                digest.update(part)
                left -= len(part)
            seen.append(digest.digest())
            writer.write(OK)

    async with TcpServer(serve, limit=1 << 20) as server:
        assert await ask(transport, server.url, body) == b"ok"
        whole = Source(*(body[at : at + 300_000] for at in range(0, len(body), 300_000)))
        headers = (("content-length", str(len(body))),)
        assert await ask(transport, server.url, whole.run(), headers=headers) == b"ok"
        assert seen == [hashlib.sha256(body).digest()] * 2
        assert server.connections == 1


# --- sources that break


@pytest.mark.parametrize("after", [0, 1, 50])
async def test_a_source_that_fails_breaks_its_request_and_nothing_else(transport: Http1Transport, after: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b" /whole " in head:
                await reader.readexactly(2)
                writer.write(OK)
            else:
                got.append(await reader.read())

    got: list[bytes] = []
    async with TcpServer(serve) as server:
        broken = Source(*[b"x" * 1000] * after, error=ConnectionAbortedError("the client at 10.0.0.9 left"))
        with pytest.raises(UpstreamUnreachable, match="did not get the whole request") as caught:
            await ask(transport, server.url, broken.run())
        assert "10.0.0.9" not in str(caught.value)
        assert (broken.taken, broken.closed) == (after, 1)
        await until(lambda: server.open == 0)
        assert not any(body.endswith(b"0\r\n\r\n") for body in got), "half a body must not look whole"
        assert await ask(transport, f"{server.url}/whole") == b"ok"
        assert server.connections == 2


async def test_a_fault_of_the_sources_own_ends_the_request_and_is_seen(
    transport: Http1Transport, no_lost_exceptions: list[dict[str, Any]]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with TcpServer(serve) as server:
        broken = Source(b"x", error=LookupError("a bug"))
        with pytest.raises(UpstreamUnreachable, match="did not get the whole request"):
            await ask(transport, server.url, broken.run())
        await until(lambda: server.open == 0)
        assert broken.closed == 1
    # It reaches the loop's handler when its task is collected; that it does is no fault of this test.
    assert {type(each.get("exception")) for each in no_lost_exceptions} <= {LookupError}
    no_lost_exceptions.clear()


async def test_a_cancelled_upload_closes_its_source_and_its_connection(transport: Http1Transport) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with TcpServer(serve) as server:
        source = Source(*[b"x"] * 10_000, pause_s=0.001)
        task = asyncio.create_task(ask(transport, server.url, source.run()))
        await until(lambda: source.taken > 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open == 0 and source.closed == 1)
        assert source.taken < 1000


# --- upstreams that stall


async def stalled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)  # beyond its buffer nothing is read


@pytest.mark.parametrize(("limit", "said"), [("between_bytes_s", "took nothing for"), ("total_s", "total limit")])
async def test_an_upstream_that_stops_reading(transport: Http1Transport, limit: str, said: str) -> None:
    async with TcpServer(stalled, limit=1024) as server:
        source = Source(*[b"x" * (1 << 20)] * 200)
        with pytest.raises(UpstreamTimeout, match=said):
            await ask(transport, server.url, source.run(), **{limit: 0.2})
        await until(lambda: source.closed == 1)
        assert source.taken < 50, "what the upstream does not take is not read from the client"


async def test_an_upstream_that_stops_reading_a_body_of_bytes(transport: Http1Transport) -> None:
    async with TcpServer(stalled, limit=1024) as server:
        with pytest.raises(UpstreamTimeout, match="first-byte limit"):
            await ask(transport, server.url, b"x" * (20 << 20), first_byte_s=0.2)


# --- the first byte


async def test_the_first_byte_is_due_after_the_upload(transport: Http1Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"ok"]), Reply(delay_s=30)]
    slow = Source(*[b"x"] * 8, pause_s=0.05)
    assert await ask(transport, llm.url, slow.run(), first_byte_s=0.25) == b"ok"
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s \(first-byte limit\)"):
        await ask(transport, llm.url, Source(b"x").run(), first_byte_s=0.1)


@pytest.mark.parametrize("sign", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nx-half: "])
@pytest.mark.parametrize("streams", [True, False])
async def test_a_sign_of_life_does_not_lift_the_first_byte_limit(
    transport: Http1Transport, sign: bytes, streams: bool
) -> None:
    """An interim answer, or half a head, after the upload: the head is still due."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await reader.read(100)
        await asyncio.sleep(0.05)
        writer.write(sign)
        await asyncio.sleep(30)

    async with TcpServer(serve) as server:
        body = Source(b"{}").run() if streams else b"{}"
        with pytest.raises(UpstreamTimeout, match="first-byte limit"):
            # The outer limit makes a failure of this test a quick one.
            await asyncio.wait_for(ask(transport, server.url, body, first_byte_s=0.2), 3)


# --- answers before the end of the upload


@pytest.mark.parametrize("how", ["closes", "resets", "stays"])
@pytest.mark.parametrize("streams", [True, False], ids=["iterator", "bytes"])
async def test_an_early_answer_is_delivered_and_costs_the_connection(
    transport: Http1Transport, how: str, streams: bool
) -> None:
    """The server answers from the head alone; whatever it does next, half a request must not precede another one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b" /next " in await read_head(reader):
            await reader.readexactly(2)
            writer.write(OK)
            await asyncio.sleep(30)
        writer.write(EARLY)
        await writer.drain()
        if how == "stays":
            await asyncio.sleep(30)
        elif how == "resets":
            await asyncio.sleep(0.05)  # the answer has arrived; unread bytes of the body make the close a reset
            reset(writer)

    async with TcpServer(serve, limit=1024) as server:
        for n in range(1, 4):
            source = Source(*[b"x" * 100_000] * 300, pause_s=0.001)
            body = source.run() if streams else b"x" * 30_000_000
            response = await transport.send(UpstreamRequest("POST", f"{server.url}/up", (), body))
            assert response.status == 413
            assert await response.read(10) == b"no"
            response.close()
            assert await ask(transport, f"{server.url}/next") == b"ok"
            assert server.connections == 2 * n
            if streams:
                await until(lambda source=source: source.closed == 1)  # type: ignore[misc]
                assert source.taken < 300
            await transport.aclose()


@pytest.mark.parametrize("streams", [True, False], ids=["iterator", "bytes"])
async def test_the_end_of_a_connection_is_its_end_whatever_was_not_sent(streams: bool) -> None:
    """The upstream has said its last word and reads no more: what waits to be sent must not hold the place."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\n\r\nno")
        writer.write_eof()
        await asyncio.sleep(30)

    async with TcpServer(serve, limit=1024) as server:
        transport = Http1Transport(TransportOptions(max_connections=1))
        for n in (1, 2):
            source = Source(*[b"x" * 100_000] * 300)
            body = source.run() if streams else b"x" * 30_000_000
            assert await ask(transport, server.url, body, connect_s=1) == b"no"
            assert server.connections == n
            if streams:
                await until(lambda source=source: source.closed == 1)  # type: ignore[misc]
                assert source.taken < 300
        await transport.aclose()
