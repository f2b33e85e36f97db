"""Answers of upstreams that lie, flood or never end, uploads that stall, and what is held in memory meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.support.raw import RawServer, Script
from tianji_mw.errors import UpstreamError, UpstreamMalformed, UpstreamTruncated
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


async def test_errors_are_of_our_tree_and_say_no_address(transport: Http1Transport) -> None:
    async with RawServer(lambda path, n: Script([b"SSH-2.0\r\n"], close=True)) as server:
        with pytest.raises(UpstreamError) as caught:
            await ask(transport, f"{server.url}/v1?key=sk-canary")
        assert "127.0.0.1" not in str(caught.value)
        assert "canary" not in str(caught.value)
