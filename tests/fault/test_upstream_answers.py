"""Answers of upstreams that lie, flood or never end, uploads that stall, and what is held in memory meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.support.raw import RawServer, Script
from tianji_mw.errors import UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Reply
from tianji_mw.upstream import Deadlines, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
OTHER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    made = Http1Transport()
    yield made
    await made.aclose()


async def ask(transport: Http1Transport, url: str, method: str = "POST", body: Any = b"{}", **limits: Any) -> bytes:
    response = await transport.send(UpstreamRequest(method, url, (), body, Deadlines(**limits)))
    try:
        return await response.read(64 << 20)
    finally:
        response.close()


# --- what follows an answer


@pytest.mark.parametrize(
    ("packets", "later"),
    [
        ([OK + OTHER], []),
        ([OK], [OTHER]),
        ([OK, OTHER], []),
        ([OK + OTHER[:20]], []),
        ([OK + b"HTTP/1.1 200 OK\r\nx-injected: yes\r\nx-half: "], []),
        ([OK + b"\x00\x01 no HTTP at all"], []),
        ([OK[:-1], OK[-1:] + OTHER], []),
    ],
    ids=["whole", "later", "packet", "half", "half head", "garbage", "behind the last byte"],
)
async def test_nothing_behind_an_answer_reaches_the_next_request(
    transport: Http1Transport, packets: Sequence[bytes], later: Sequence[bytes]
) -> None:
    """Response splitting: whoever can add to one answer must not be able to write another one."""
    async with RawServer(lambda path, n: Script(packets, later=later) if n % 2 else Script([OK])) as server:
        for _ in range(10):
            response = await transport.send(UpstreamRequest("POST", server.url, (), b"{}"))
            assert await response.read(100) == b"ok"
            assert response.headers == [(b"content-length", b"2")]
            # What comes after the next request was sent looks like its answer, to every client.
            await asyncio.sleep(0.02)
        assert len(server.requests) == 10
        assert server.connections == 6, "after each odd one the connection is given up"


# --- heads, chunks and interim answers without an end


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x-more: %b\r\n" % (b"y" * 100)),
        (b"HTTP/1.1 200 OK\r\nx-long: ", b"y" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\nx-y: z\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x-trailer: %b\r\n" % (b"y" * 100)),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=", b"b" * 1000),
    ],
    ids=["headers", "header", "interim", "trailers", "extension"],
)
async def test_what_has_no_end_is_refused(transport: Http1Transport, first: bytes, again: bytes) -> None:
    """Each is far below the read-ahead of a body, so none may be taken in without bound."""
    packets = [first, *[again] * (4_000_000 // len(again))]
    async with RawServer(lambda path, n: Script(packets)) as server:
        with pytest.raises(UpstreamMalformed):
            await ask(transport, server.url)
        for _ in range(200):
            if not server.open:
                break
            await asyncio.sleep(0.01)
        assert server.open == 0, "its connection is closed, and the upstream stops"


@pytest.mark.parametrize("count", [500, 600])
async def test_the_number_of_headers_is_bounded(transport: Http1Transport, count: int) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(count)) + b"content-length: 2\r\n\r\n"
    async with RawServer(lambda path, n: Script([head + b"ok"])) as server:
        if count > 512:
            with pytest.raises(UpstreamMalformed, match="head that is too large"):
                await ask(transport, server.url)
        else:
            assert await ask(transport, server.url) == b"ok"


# --- answers without a body, and other protocols


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_keep_their_connection(transport: Http1Transport, status: int) -> None:
    async with RawServer(lambda path, n: Script([b"HTTP/1.1 %d X\r\nx: y\r\n\r\n" % status])) as server:
        for _ in range(3):
            assert await ask(transport, server.url) == b""
        assert server.connections == 1


async def test_an_answer_to_head_has_no_body_whatever_it_says(transport: Http1Transport) -> None:
    async with RawServer(lambda path, n: Script([OK[:-2] if n == 1 else OK])) as server:
        response = await transport.send(UpstreamRequest("HEAD", server.url, ()))
        assert (response.status, response.headers) == (200, [(b"content-length", b"2")])
        assert await response.chunk() == b""
        assert await ask(transport, server.url) == b"ok"


async def test_a_change_of_protocol_is_refused(transport: Http1Transport) -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x00"
    async with RawServer(lambda path, n: Script([answer])) as server:
        with pytest.raises(UpstreamMalformed):
            await ask(transport, server.url)


async def test_trailers_join_no_headers(transport: Http1Transport) -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-late: 1\r\n\r\n"
    async with RawServer(lambda path, n: Script([answer])) as server:
        response = await transport.send(UpstreamRequest("POST", server.url, (), b"{}"))
        assert await response.read(10) == b"ok"
        assert response.headers == [(b"transfer-encoding", b"chunked")]
        assert await ask(transport, server.url) == b"ok"
        assert server.connections == 1


async def test_a_body_that_ends_with_its_connection(transport: Http1Transport) -> None:
    async with RawServer(lambda path, n: Script([b"HTTP/1.1 200 OK\r\n\r\n", b"o", b"k"], close=True)) as server:
        assert await ask(transport, server.url) == b"ok"


async def test_a_cut_body_gives_what_came_before_its_error(transport: Http1Transport) -> None:
    async with RawServer(lambda path, n: Script([OK[:-1]], close=True)) as server:
        response = await transport.send(UpstreamRequest("POST", server.url, (), b"{}"))
        assert await response.chunk() == b"o"
        for _ in range(2):
            with pytest.raises(UpstreamTruncated):
                await response.chunk()


# --- backpressure


async def test_a_slow_reader_slows_its_upstream_down(transport: Http1Transport) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(800):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536
        writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    response = await transport.send(UpstreamRequest("POST", url, (), b"{}"))
    await asyncio.sleep(0.3)
    ahead = sent
    # What the kernel's two buffers hold, and no more: of 50 MiB by far the most has not left the server.
    assert ahead < 16 << 20
    taken = 0
    while chunk := await response.chunk():
        taken += len(chunk)
        # Read-ahead, and the one packet that went over it.
        assert len(chunk) < 1 << 20
    assert taken == 800 * 65536
    server.close()


# --- uploads


async def parts(*chunks: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(pause)
        yield chunk


@pytest.mark.parametrize("length", ["", "6"])
async def test_a_body_that_streams_is_framed(transport: Http1Transport, llm: FakeLLM, length: str) -> None:
    llm.replies += [Reply(parts=[b"ok"])] * 2
    for _ in range(2):
        headers = [("content-length", length)] if length else []
        request = UpstreamRequest("POST", llm.url, headers, parts(b"one", b"", b"two"))
        assert await (await transport.send(request)).read(10) == b"ok"
    assert [r.body for r in llm.requests] == [b"onetwo"] * 2
    assert ("transfer-encoding" in llm.requests[0].headers) is not bool(length)
    assert llm.connections == 1


async def test_a_large_body_arrives_whole(transport: Http1Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"ok"])] * 2
    body = bytes(range(256)) * (20 << 12)
    assert await ask(transport, llm.url, body=body) == b"ok"
    assert await ask(transport, llm.url, body=body[:70_000]) == b"ok"
    assert [r.body for r in llm.requests] == [body, body[:70_000]]


async def test_an_upload_that_breaks_off_breaks_the_request(transport: Http1Transport) -> None:
    closed = []

    async def broken() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            raise ConnectionAbortedError("the client left")
        finally:
            closed.append(True)

    async with RawServer(lambda path, n: Script([OK])) as server:
        with pytest.raises(UpstreamUnreachable, match="did not get the whole request"):
            await ask(transport, server.url, body=broken())
        assert closed == [True]


async def test_an_upstream_that_takes_nothing(transport: Http1Transport) -> None:
    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(idle, "127.0.0.1", 0, limit=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(UpstreamTimeout, match=r"took nothing for 0\.2 s"):
        await ask(transport, url, body=parts(*[b"x" * (1 << 20)] * 64), between_bytes_s=0.2)
    server.close()
    for writer in writers:
        writer.close()


async def test_the_first_byte_is_waited_for_from_the_end_of_the_upload(transport: Http1Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"ok"]), Reply(delay_s=30)]
    slow = parts(b"a", b"b", b"c", b"d", pause=0.1)
    assert await ask(transport, llm.url, body=slow, first_byte_s=0.2) == b"ok"
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s \(first-byte limit\)"):
        await ask(transport, llm.url, body=parts(b"a"), first_byte_s=0.1)


@pytest.mark.parametrize("close", [True, False])
async def test_an_answer_before_the_end_of_the_upload_is_delivered(transport: Http1Transport, close: bool) -> None:
    early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"

    async def endless() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.001)
            yield b"x" * 1000

    async with RawServer(lambda path, n: Script([early if path == "/up" else OK], close=close)) as server:
        response = await transport.send(UpstreamRequest("POST", f"{server.url}/up", (), endless()))
        assert response.status == 413
        assert await response.read(10) == b"no"
        response.close()
        assert await ask(transport, f"{server.url}/next") == b"ok"
        assert server.connections == 2, "half a request must not be taken for the next one"


async def test_errors_are_of_our_tree_and_say_no_address(transport: Http1Transport) -> None:
    async with RawServer(lambda path, n: Script([b"SSH-2.0\r\n"], close=True)) as server:
        with pytest.raises(UpstreamError) as caught:
            await ask(transport, f"{server.url}/v1?key=sk-canary")
        assert "127.0.0.1" not in str(caught.value)
        assert "canary" not in str(caught.value)
