"""What every Transport promises, shown on each against real sockets: errors, deadlines, bounds."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tianji_mw.errors import UpstreamMalformed, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Received, Reply
from tianji_mw.upstream import Deadlines, Transport, UpstreamRequest, UpstreamResponse
from tianji_mw.upstream.aiohttp import AiohttpTransport
from tianji_mw.upstream.http1 import Http1Transport
from tianji_mw.upstream.http2 import Http2Transport

QUERY = "key=sk-canary-0123456789"
KINDS: list[Callable[..., Transport]] = [Http1Transport, AiohttpTransport, Http2Transport]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    made: Transport = request.param()
    yield made
    await made.aclose()


def post(url: str, body: Any = b"{}", *, path: str = "/v1/x", **deadlines: Any) -> UpstreamRequest:
    headers = [("authorization", "Bearer sk-canary-0123456789"), ("content-type", "application/json")]
    return UpstreamRequest("POST", f"{url}{path}?{QUERY}", headers, body, Deadlines(**deadlines))


async def read_all(response: UpstreamResponse) -> bytes:
    out = b""
    while chunk := await response.chunk():
        out += chunk
    return out


def clean(error: BaseException) -> str:
    """The error's text, which must hold neither the query nor a key."""
    assert "canary" not in str(error)
    assert "canary" not in repr(error)
    return str(error)


# --- answers


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_arrives_as_it_was_sent(transport: Transport, llm: FakeLLM, chunked: bool) -> None:
    parts = [b"one", b"two", b"\x00\xff"]
    llm.replies.append(Reply(status=201, headers={"X-Odd": "a"}, parts=parts, chunked=chunked, pause_s=0.005))
    response = await transport.send(post(llm.url))
    assert response.status == 201
    assert (b"x-odd", b"a") in response.headers
    assert await read_all(response) == b"".join(parts)
    assert await response.chunk() == b""
    response.close()


async def test_the_request_arrives_as_it_was_given(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply())
    body = b'{"a": "\\u00e9"}'
    await read_all(await transport.send(post(llm.url, body, path="/v1/%63hat/a%2Fb/../c;d")))
    got = llm.requests[0]
    assert got.body == body
    assert got.path == f"/v1/%63hat/a%2Fb/../c;d?{QUERY}"
    assert set(got.headers) == {"host", "authorization", "content-type", "content-length"}


async def test_a_path_that_is_not_clean_is_quoted_and_cannot_end_its_line(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply())
    await read_all(await transport.send(UpstreamRequest("GET", f"{llm.url}/a b\r\nx: y/é", [])))
    assert llm.requests[0].path == "/a%20bx:%20y/%C3%A9"
    assert "x" not in llm.requests[0].headers


async def test_a_body_may_stream(transport: Transport, llm: FakeLLM) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one", b"two"):
            await asyncio.sleep(0)
            yield part

    llm.replies.append(Reply(parts=[b"ok"]))
    assert await read_all(await transport.send(post(llm.url, parts()))) == b"ok"
    assert llm.requests[0].body == b"onetwo"


async def test_connections_are_kept(transport: Transport, llm: FakeLLM) -> None:
    for _ in range(3):
        llm.replies.append(Reply(parts=[b"x"], chunked=True))
        await read_all(await transport.send(post(llm.url)))
    assert llm.connections == 1


async def test_an_unfinished_answer_costs_its_connection_and_no_other(transport: Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"x"] * 100, pause_s=0.01, chunked=True), Reply(parts=[b"y"])]
    response = await transport.send(post(llm.url))
    assert await response.chunk() == b"x"
    response.close()
    response.close()
    assert await read_all(await transport.send(post(llm.url))) == b"y"
    assert llm.connections == 2


async def test_a_connection_that_was_closed_while_idle_is_not_used(transport: Transport, llm: FakeLLM) -> None:
    for _ in range(20):
        llm.replies += [Reply(parts=[b"x"], hang_up=True)]
        assert await read_all(await transport.send(post(llm.url))) == b"x"
        await asyncio.sleep(0.002)
    assert len(llm.requests) == 20


async def test_redirects_are_not_followed(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply(status=307, headers={"location": f"{llm.url}/elsewhere"}))
    response = await transport.send(post(llm.url))
    assert response.status == 307
    response.close()
    assert len(llm.requests) == 1


async def test_cookies_are_not_kept(transport: Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(headers={"set-cookie": "a=b"}), Reply()]
    for _ in range(2):
        await read_all(await transport.send(post(llm.url)))
    assert "cookie" not in llm.requests[1].headers


@pytest.mark.parametrize("limit", [10, 11])
async def test_reading_is_bounded(transport: Transport, llm: FakeLLM, limit: int) -> None:
    llm.replies.append(Reply(parts=[b"12345", b"678901"], chunked=True, pause_s=0.005))
    response = await transport.send(post(llm.url))
    if limit == 11:
        assert await response.read(limit) == b"12345678901"
    else:
        with pytest.raises(UpstreamMalformed, match="larger than 10 bytes") as caught:
            await response.read(limit)
        clean(caught.value)


# --- no connection


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_refused_connection(transport: Transport) -> None:
    with pytest.raises(UpstreamUnreachable, match="is not reachable") as caught:
        await transport.send(post(f"http://127.0.0.1:{closed_port()}"))
    clean(caught.value)


async def test_a_name_that_does_not_exist(transport: Transport) -> None:
    with pytest.raises((UpstreamUnreachable, UpstreamTimeout)) as caught:
        await transport.send(post("http://no-such-host.invalid", connect_s=5.0))
    clean(caught.value)


@pytest.mark.parametrize("url", ["http://[oops", "http://:0x", "ftp://host/x", "nonsense", "http://host:99999999"])
async def test_what_is_no_address(transport: Transport, url: str) -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        await transport.send(post(url))
    clean(caught.value)


async def test_a_header_that_would_end_its_line_is_not_sent(transport: Transport, llm: FakeLLM) -> None:
    request = UpstreamRequest("POST", llm.url, [("authorization", "Bearer sk-canary\n")], b"{}")
    with pytest.raises(UpstreamUnreachable, match="line end") as caught:
        await transport.send(request)
    clean(caught.value)
    assert not llm.requests


async def test_a_connection_that_is_never_accepted(transport: Transport) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # The queue of a listener that accepts nothing fills up; further connections wait.
        waiting = [socket.socket() for _ in range(4)]
        try:
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            with pytest.raises(UpstreamTimeout, match="took no connection within") as caught:
                await transport.send(post(f"http://127.0.0.1:{full.getsockname()[1]}", connect_s=0.2))
            clean(caught.value)
        finally:
            for each in waiting:
                each.close()


# --- deadlines


async def test_the_first_byte_deadline(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply(delay_s=30))
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s \(first-byte limit\)") as caught:
        await transport.send(post(llm.url, first_byte_s=0.1))
    assert time.monotonic() - began < 2
    clean(caught.value)
    await asyncio.sleep(0.05)
    assert llm.open_connections == 0


async def test_the_between_bytes_deadline(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply(parts=[b"x", b"y"], chunked=True, pause_s=0.3))
    response = await transport.send(post(llm.url, between_bytes_s=0.1))
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s \(between-bytes limit\)") as caught:
        await read_all(response)
    clean(caught.value)


@pytest.mark.parametrize("between", [None, 5.0])
async def test_the_total_deadline(transport: Transport, llm: FakeLLM, between: float | None) -> None:
    llm.replies.append(Reply(parts=[b"x"] * 100, chunked=True, pause_s=0.02))
    response = await transport.send(post(llm.url, total_s=0.15, between_bytes_s=between))
    with pytest.raises(UpstreamTimeout, match=r"within 0\.15 s \(total limit\)") as caught:
        await read_all(response)
    clean(caught.value)


async def test_the_total_deadline_before_the_head(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply(delay_s=30))
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s \(total limit\)"):
        await transport.send(post(llm.url, total_s=0.1))


# --- broken answers


async def test_closed_or_reset_before_the_head(transport: Transport, llm: FakeLLM) -> None:
    llm.replies += [Reply(refuse=True), Reply(garbage=b"HTTP/1.1 200 OK\r\nx: y"), Reply(garbage=b"")]
    for _ in range(3):
        with pytest.raises((UpstreamUnreachable, UpstreamMalformed)) as caught:
            await transport.send(post(llm.url))
        clean(caught.value)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [0, 3, 5, 9])
async def test_a_body_that_is_cut(transport: Transport, llm: FakeLLM, chunked: bool, reset: bool, cut: int) -> None:
    llm.replies.append(Reply(parts=[b"12345", b"67890"], chunked=chunked, cut_after=cut, reset=reset))
    with pytest.raises((UpstreamTruncated, UpstreamUnreachable)) as caught:  # a reset may overtake the head
        await read_all(await transport.send(post(llm.url)))
    assert reset or isinstance(caught.value, UpstreamTruncated)
    clean(caught.value)


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>sk-canary-0123456789</html>\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header: x\x00sk-canary-0123456789\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: sk-canary-0123456789\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 20) + b"\r\n\r\n",
    ],
    ids=["html", "tls", "ssh", "status", "nul", "length", "two lengths", "10,000 headers", "huge header"],
)
async def test_what_is_no_http(transport: Transport, llm: FakeLLM, garbage: bytes) -> None:
    llm.replies.append(Reply(garbage=garbage))
    with pytest.raises(UpstreamMalformed) as caught:
        await transport.send(post(llm.url))
    clean(caught.value)


@pytest.mark.parametrize("chunk", [b"zz\r\nabc\r\n", b"sk-canary-0123456789\r\n", b"5\r\nabcdefg\r\n", b"-1\r\n"])
async def test_chunks_that_are_no_chunks(transport: Transport, llm: FakeLLM, chunk: bytes) -> None:
    llm.replies.append(Reply(garbage=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk))
    with pytest.raises((UpstreamMalformed, UpstreamTruncated)) as caught:
        await read_all(await transport.send(post(llm.url)))
    clean(caught.value)


async def test_a_cancelled_wait_gives_its_connection_up(transport: Transport, llm: FakeLLM) -> None:
    llm.replies.append(Reply(delay_s=30))
    task = asyncio.create_task(transport.send(post(llm.url)))
    while not llm.requests:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if not llm.open_connections:
            break
        await asyncio.sleep(0.01)
    assert llm.open_connections == 0


def test_a_request_shows_neither_query_nor_headers() -> None:
    assert repr(post("https://u:p@host")) == "UpstreamRequest(POST https://host/v1/x)"


def test_received_requests_are_read_as_json() -> None:
    assert Received("POST", "/", {}, b"[1]").json == [1]
