"""Where an answer ends, and what may be held of one that does not: framing, floods, backpressure, TLS, deadlines."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import pytest
import trustme
import uvloop

from tests.support.tcp import OK, TcpServer, ask, read_request, reset, until
from tianji_mw.errors import UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamTruncated
from tianji_mw.upstream import Deadlines, TransportOptions, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nx-evil: 1\r\ncontent-length: 4\r\n\r\nevil"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def transport(authority: trustme.CA) -> AsyncIterator[Http1Transport]:
    """It trusts `authority`."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    made = Http1Transport(TransportOptions(ssl_context=context))
    yield made
    await made.aclose()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest, authority: trustme.CA) -> ssl.SSLContext | None:
    if not request.param:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def sends(*packets: bytes, pause_s: float = 0.0) -> Callable[..., object]:
    """A handler that answers each request with these packets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for packet in packets:
                writer.write(packet)
                await writer.drain()
                await asyncio.sleep(pause_s)

    return serve


def request(url: str, method: str = "POST", **limits: float) -> UpstreamRequest:
    return UpstreamRequest(method, url, (), b"{}" if method == "POST" else b"", Deadlines(**limits))


# --- framing


@pytest.mark.parametrize(
    "behind", [b"", EVIL, EVIL[:30], b"evil", b"\r\n" + EVIL], ids=["no", "all", "half", "text", "line"]
)
@pytest.mark.parametrize(
    ("method", "answer", "status", "body"),
    [
        ("POST", CHUNKED + b"2\r\nok\r\n0\r\n\r\n", 200, b"ok"),
        ("POST", CHUNKED + b"2;a=b\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n", 200, b"ok"),
        ("POST", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b""),
        ("POST", b"HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\n", 204, b""),
        ("POST", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 999\r\n\r\n", 304, b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", 200, b""),
        ("HEAD", CHUNKED, 200, b""),
        ("HEAD", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK, 200, b"ok"),
    ],
)
async def test_an_answer_is_what_its_head_says(
    transport: Http1Transport, method: str, answer: bytes, status: int, body: bytes, behind: bytes
) -> None:
    async with TcpServer(sends(answer + behind)) as server:
        for _ in range(3):
            response = await transport.send(request(server.url, method, first_byte_s=2, between_bytes_s=2))
            assert (response.status, await response.read(100)) == (status, body)
            assert not {name for name, _ in response.headers} & {b"x-evil", b"x-trailer", b"link"}
            response.close()
        assert server.connections <= 3
        assert not behind or server.connections == 3, "what nobody asked for costs the connection"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_until_the_end_of_its_connection(transport: Http1Transport, version: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/%b 200 OK\r\n\r\n" % version)
        for _ in range(100):
            writer.write(b"x" * 9_999)
            await writer.drain()

    async with TcpServer(serve) as server:
        for n in (1, 2):
            assert await ask(transport, server.url) == b"x" * 999_900
            assert server.connections == n


async def test_a_reset_ends_no_body(transport: Http1Transport) -> None:
    """Only an orderly end is one: a body that lasts until the end of its connection is not whole after a reset."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await asyncio.sleep(0.02)
        reset(writer)

    async with TcpServer(serve) as server:
        with pytest.raises(UpstreamTruncated):
            await ask(transport, server.url)


@pytest.mark.parametrize("notified", [True, False], ids=["close_notify", "FIN alone"])
async def test_tls_says_whether_a_body_without_a_length_is_whole(
    transport: Http1Transport, authority: trustme.CA, notified: bool
) -> None:
    """Without close_notify anybody on the way may have cut it (RFC 9112, section 9.8)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await asyncio.sleep(0.02)
        if notified:
            writer.close()
        else:
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
                raw.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.2)

    async with TcpServer(serve, tls=context) as server:
        if notified or not isinstance(asyncio.get_running_loop(), uvloop.Loop):
            # asyncio's own loop does not say whether the end was announced; a body with a length is cut on both.
            assert await ask(transport, server.url, between_bytes_s=3) == b"some"
        else:
            with pytest.raises(UpstreamTruncated):
                await ask(transport, server.url, between_bytes_s=3)


# --- what has no end


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 ", b"OK" * 500),
        (b"HTTP/1.1 200 OK\r\n", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000),
        (b"HTTP/1.1 200 OK\r\nx:", b" " * 1000),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"", b"\r\n" * 500),
        (CHUNKED + b"0\r\n", b"a: b\r\n"),
        (CHUNKED + b"0\r\nx: ", b"y" * 1000),
        (CHUNKED + b"1;", b"y" * 1000),
        (CHUNKED, b"0" * 1000),
    ],
    ids=[
        "headers", "reason", "name", "value", "spaces", "interim", "lines", "trailers", "trailer", "extension", "zeros",
    ],
)  # fmt: skip
async def test_what_has_no_end_is_refused_early(transport: Http1Transport, first: bytes, again: bytes) -> None:
    """Whatever of an answer is no body is refused after a few reads: the upstream cannot send much of it."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(first)
        part = again * (8192 // len(again))
        while True:
            writer.write(part)
            await writer.drain()
            sent += len(part)
            await asyncio.sleep(0)

    async with TcpServer(serve) as server:
        with pytest.raises(UpstreamMalformed) as caught:
            await ask(transport, server.url, first_byte_s=5, between_bytes_s=5)
        assert "yyyy" not in str(caught.value)
        await until(lambda: server.open == 0)
        assert sent < 4 << 20


# --- backpressure


async def test_a_reader_that_does_not_read_holds_its_upstream_back(
    transport: Http1Transport, tls: ssl.SSLContext | None
) -> None:
    """Of 50 MiB the upstream gets rid of what buffers of fixed size hold; ours are a small part of it."""
    size, ahead, drained = 50 << 20, 0, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal drained
        # The kernel's share is made small, so that what is measured is ours.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        if tls is None:
            writer.transport.set_write_buffer_limits(0)  # asyncio's TLS would wait for ever
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(b"x" * 65536)
            await writer.drain()
            drained += 65536

    async with TcpServer(serve, tls=tls) as server:
        response = await transport.send(request(server.url))
        for _ in range(100):
            ahead = drained
            await asyncio.sleep(0.1)
            if drained == ahead:
                break
        assert 0 < drained == ahead < 12 << 20, "it stands still"
        taken = largest = 0
        while chunk := await response.chunk():
            taken += len(chunk)
            largest = max(largest, len(chunk))
        assert taken == size
        assert largest <= 1 << 20, "read-ahead, and the one read that went over it"


# --- deadlines while the body runs


@pytest.mark.parametrize("busy_s", [0.0, 0.01])
async def test_a_body_that_never_stalls_still_has_to_end(transport: Http1Transport, busy_s: float) -> None:
    """The total limit holds for readers that always find something, too."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        while True:
            writer.write(b"4\r\nmore\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async with TcpServer(serve) as server:
        response = await transport.send(request(server.url, total_s=0.2))

        async def read() -> None:
            while await response.chunk():
                await asyncio.sleep(busy_s)

        with pytest.raises(UpstreamTimeout, match="total limit"):
            await asyncio.wait_for(read(), 2)  # without end, were there no limit
        await until(lambda: server.open == 0)


async def test_time_that_the_reader_takes_is_not_the_upstreams(transport: Http1Transport) -> None:
    async with TcpServer(sends(OK[:-1], OK[-1:], pause_s=0.02)) as server:
        for _ in range(2):
            response = await transport.send(request(server.url, between_bytes_s=0.1))
            await asyncio.sleep(0.25)
            assert await response.read(10) == b"ok"
        assert server.connections == 1


async def test_a_reader_learns_that_its_answer_was_given_up(transport: Http1Transport) -> None:
    """Closed by somebody else while it waits: it must neither wait for ever nor take half a body for a whole one."""
    async with TcpServer(sends(OK[:-1])) as server:
        response = await transport.send(request(server.url))
        assert await response.chunk() == b"o"
        reading = asyncio.create_task(response.chunk())
        await asyncio.sleep(0.01)
        response.close()
        with pytest.raises(UpstreamError):
            await asyncio.wait_for(reading, 2)
