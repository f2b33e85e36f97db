"""Hostile and broken HTTP against the sidecar's server: raw sockets, a real loop, an app that remembers what it saw."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sidecar.drain import Drain
from sidecar.edge import COUNTS_KEY
from sidecar.server import Apps, ServerConfig, bind, loop_factory, run

SECOND = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"


class Recorder:
    """An ASGI app that notes what reaches it and how it ends."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.bodies: list[bytes] = []
        self.ends: list[str] = []
        self.counts: dict[str, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self.counts = scope["state"][COUNTS_KEY]
            for _ in range(2):
                message = await receive()
                await send({"type": message["type"] + ".complete"})
            return
        self.paths.append(scope["path"])
        self.headers.append(scope["headers"])
        if scope["path"] == "/flood":
            await self.flood(send)
        elif scope["path"] == "/early":
            await self.answer(send, 413)
        elif scope["path"] == "/wait":
            await self.body(receive)
            self.ends.append((await receive())["type"])
        elif scope["path"] == "/slow":
            await self.body(receive)
            await asyncio.sleep(0.3)
            await self.answer(send, 200)
        else:
            await self.body(receive)
            await self.answer(send, 200)

    async def body(self, receive: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ends.append("http.disconnect")
                return
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)

    async def answer(self, send: Any, status: int) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def flood(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        except OSError as error:
            self.ends.append(type(error).__name__)
            raise


class Edge:
    """A running server: its port, its app, its counters."""

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        self.port = port

    def connect(self, timeout: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def talk(self, *parts: bytes, pause: float = 0.0, timeout: float = 10.0) -> bytes:
        """Send, then read until the server closes."""
        with closing(self.connect(timeout)) as sock:
            for part in parts:
                sock.sendall(part)
                time.sleep(pause)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    received = b""
    try:
        while data := sock.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def read_answer(sock: socket.socket) -> bytes:
    """One answer with content-length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += (data := sock.recv(65_536))
        assert data, received
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head).group(1))  # type: ignore[union-attr]
    while len(body) < length:
        body += sock.recv(65_536)
    return head + b"\r\n\r\n" + body


def statuses(received: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


@contextmanager
def running(app: Any, **options: Any) -> Iterator[Edge]:
    """The server in a thread with its own loop, as `serve` sets it up."""
    config = ServerConfig(**{"port": 0, "drain_delay_s": 0, "grace_s": 1, "flush_s": 1, **options})
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    ready = threading.Event()
    ends: list[Callable[[], None]] = []

    async def main() -> None:
        drain, loop = Drain(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(drain.request))
        await run(Apps(app), config, drain, sock, on_ready=ready.set)

    def serve() -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield Edge(app, port)
    finally:
        ends[0]()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def edge() -> Iterator[Edge]:
    with running(Recorder(), header_timeout_s=2) as server:
        yield server


def post(*headers: bytes, body: bytes = b"", target: bytes = b"/v1", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join((b"POST " + target + b" HTTP/" + version, *headers)) + b"\r\n\r\n" + body


HOST = b"Host: gateway"
CHUNKED = b"Transfer-Encoding: chunked"
BAD: dict[str, tuple[int, bytes]] = {
    "content-length and transfer-encoding": (400, post(HOST, b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    "transfer-encoding and content-length": (400, post(HOST, CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n")),
    "two different content-lengths": (400, post(HOST, b"Content-Length: 5", b"Content-Length: 6", body=b"hello")),
    "two equal content-lengths": (400, post(HOST, b"Content-Length: 5", b"Content-Length: 5", body=b"hello")),
    "content-length list": (400, post(HOST, b"Content-Length: 5, 5", body=b"hello")),
    "content-length +5": (400, post(HOST, b"Content-Length: +5", body=b"hello")),
    "content-length -1": (400, post(HOST, b"Content-Length: -1", body=b"hello")),
    "transfer-encoding xchunked": (400, post(HOST, b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "transfer-encoding chunked, identity": (400, post(HOST, b"Transfer-Encoding: chunked, identity")),
    "transfer-encoding gzip, chunked": (400, post(HOST, b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "two transfer-encodings": (400, post(HOST, CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "transfer-encoding in HTTP/1.0": (400, post(HOST, CHUNKED, body=b"0\r\n\r\n", version=b"1.0")),
    "space before colon": (400, post(HOST, b"X-A : b")),
    "bare LF everywhere": (400, b"GET / HTTP/1.1\nHost: gateway\n\n"),
    "bare LF after one header": (400, b"GET / HTTP/1.1\r\nHost: gateway\nX-A: b\r\n\r\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: gateway\rX-A: b\r\n\r\n"),
    "obs-fold": (400, post(HOST, b"X-A: b\r\n c")),
    "NUL in a header value": (400, post(HOST, b"X-A: b\0c")),
    "control character in a header value": (400, post(HOST, b"X-A: b\x01c")),
    "header without colon": (400, post(HOST, b"X-A")),
    "no host": (400, post(b"X-A: b")),
    "empty host": (400, post(b"Host:")),
    "two hosts": (400, post(HOST, b"Host: other")),
    "64 KiB chunk extension": (400, post(HOST, CHUNKED, body=b"5;" + b"a" * 65_536 + b"\r\nhello\r\n0\r\n\r\n")),
    "2 KiB chunk extension": (400, post(HOST, CHUNKED, body=b"5;" + b"a" * 2_048 + b"\r\nhello\r\n0\r\n\r\n")),
    "64 KiB of trailers": (400, post(HOST, CHUNKED, body=b"0\r\n" + b"X-T: %s\r\n" % (b"a" * 250) * 260 + b"\r\n")),
    "wrong CRLF after a chunk": (400, post(HOST, CHUNKED, body=b"5\r\nhelloXX0\r\n\r\n")),
    "LF after a chunk size": (400, post(HOST, CHUNKED, body=b"5\nhello\r\n0\r\n\r\n")),
    "chunk size 2^64+5": (400, post(HOST, CHUNKED, body=b"10000000000000005\r\nhello\r\n0\r\n\r\n")),
    "one 1 MiB header": (431, post(HOST, b"X-A: " + b"a" * 1_048_576)),
    "head one byte too large": (431, post(HOST, b"X-A: " + b"a" * (16_385 - len(post(HOST, b"X-A: "))))),
    "a 64 KiB target": (431, b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "20,000 headers": (431, post(HOST, *(b"a: b" for _ in range(20_000)))),
    "101 headers": (431, post(HOST, *(b"x-%d: b" % number for number in range(100)))),
    "absolute form": (400, b"GET http://evil/admin HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "absolute form of our own host": (400, b"GET http://gateway/v1 HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "asterisk form": (400, b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "CONNECT": (400, b"CONNECT evil:443 HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "fragment in the target": (400, b"GET /v1#x HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "byte above 127 in the target": (400, b"GET /\xff HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "X_Api_Key and X-Api-Key": (400, post(HOST, b"X-Api-Key: a", b"X_Api_Key: b")),
    "X_Api_Key alone": (400, post(HOST, b"X_Api_Key: b")),
    "Content_Length": (400, post(HOST, b"Content_Length: 5")),
    "custom identity header with _": (400, post(HOST, b"X_Team_Key: b")),
    "two authorizations": (400, post(HOST, b"Authorization: Bearer a", b"Authorization: Bearer b")),
    "two x-api-keys": (400, post(HOST, b"X-Api-Key: a", b"x-api-key: a")),
    "two content-types": (400, post(HOST, b"Content-Type: application/json", b"Content-Type: text/plain")),
    "unknown expectation": (417, post(HOST, b"Expect: the-unexpected", b"Content-Length: 0")),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nHost: gateway\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS hello": (400, bytes.fromhex("16030100c8010000c40303")),
    "not HTTP": (400, b"\0\1\2\3\4\5\6\7\r\n\r\n"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Edge]:
    with running(Recorder(), header_timeout_s=5, identity_headers=("X-Team-Key",)) as server:
        yield server


@pytest.mark.parametrize("row", BAD)
def test_ambiguous_request_is_refused_once(shared: Edge, row: str) -> None:
    status, request = BAD[row]
    shared.app.paths.clear()
    received = shared.talk(request, SECOND)
    assert statuses(received) == [status]
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["message"].startswith("HTTP request refused: ")
    assert shared.app.paths == []


@pytest.mark.parametrize("row", ["64 KiB chunk extension", "wrong CRLF after a chunk", "one 1 MiB header", "no host"])
def test_refused_alike_when_it_comes_in_pieces(shared: Edge, row: str) -> None:
    status, request = BAD[row]
    size = max(7, len(request) // 40)
    shared.app.ends.clear()
    with closing(shared.connect()) as sock:
        try:
            for start in range(0, len(request), size):
                sock.sendall(request[start : start + size])
                time.sleep(0.002)
            sock.sendall(SECOND)
        except ConnectionError:
            pass
        assert statuses(read_all(sock)) == [status]
    # An app that was already reading such a body is told that nothing more comes.
    assert shared.app.ends in ([], ["http.disconnect"])
    assert "/smuggled" not in shared.app.paths


GOOD: dict[str, tuple[bytes, bytes]] = {
    "plain": (post(HOST, b"Content-Length: 5", body=b"hello"), b"hello"),
    "HTTP/1.0 without host": (post(b"Content-Length: 5", body=b"hello", version=b"1.0"), b"hello"),
    "chunked": (post(HOST, CHUNKED, body=b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), b"hello"),
    "chunked, capitals": (post(HOST, b"Transfer-Encoding: Chunked", body=b"5\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "short chunk extension": (post(HOST, CHUNKED, body=b"5;a=b\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "10,000 chunks of one byte": (post(HOST, CHUNKED, body=b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"), b"x" * 10_000),
    "leading line ends": (b"\r\n\r\n" + post(HOST, b"Content-Length: 0"), b""),
    "head of the largest size": (post(HOST, b"X-A: " + b"a" * (16_384 - len(post(HOST, b"X-A: ")))), b""),
    "100 headers": (post(HOST, *(b"x-%d: b" % number for number in range(99))), b""),
    "other underscores": (post(HOST, b"my_header: b"), b""),
    "repeated list header": (post(HOST, b"X-Forwarded-For: a", b"X-Forwarded-For: b"), b""),
    "2 MiB body behind a long head": (
        post(HOST, b"X-A: " + b"a" * 15_000, b"Content-Length: 2097152", body=b"y" * 2_097_152),
        b"y" * 2_097_152,
    ),
    "h2c upgrade with a body (Java)": (
        post(HOST, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 5", body=b"hello"),
        b"hello",
    ),
    "websocket upgrade": (post(HOST, b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 0"), b""),
}


@pytest.mark.parametrize("row", GOOD)
@pytest.mark.parametrize("pieces", [1, 3])
def test_legitimate_request_passes_and_the_connection_stays(shared: Edge, row: str, pieces: int) -> None:
    request, body = GOOD[row]
    shared.app.bodies.clear()
    with closing(shared.connect()) as sock:
        size = len(request) // pieces + 1
        for start in range(0, len(request), size):
            sock.sendall(request[start : start + size])
            time.sleep(0.01 * (pieces - 1))
        assert statuses(read_answer(sock)) == [200]
        assert shared.app.bodies == [body]
        if "1.0" not in row:
            sock.sendall(SECOND)
            assert statuses(read_answer(sock)) == [200]


def test_second_request_sent_too_early_gets_no_answer(shared: Edge) -> None:
    shared.app.paths.clear()
    received = shared.talk(post(HOST, b"Content-Length: 5", body=b"hello" + SECOND), SECOND)
    assert statuses(received) == [200]
    received = shared.talk(post(HOST, b"Content-Length: 0", target=b"/slow"), SECOND, pause=0.05)
    assert statuses(received) == [200]
    assert b"connection: close" in received
    assert shared.app.paths == ["/v1", "/slow"]


def test_pipelining_client_that_leaves_is_noticed(shared: Edge) -> None:
    shared.app.ends.clear()
    with closing(shared.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 0", target=b"/wait") + SECOND)
        time.sleep(0.1)
    wait_for(lambda: shared.app.ends == ["http.disconnect"])


def test_trailers_do_not_become_headers(shared: Edge) -> None:
    shared.app.headers.clear()
    request = post(HOST, CHUNKED, b"Connection: close", body=b"5\r\nhello\r\n0\r\nX-Api-Key: stolen\r\n\r\n")
    assert statuses(shared.talk(request)) == [200]
    assert b"x-api-key" not in dict(shared.app.headers[0])


def test_upgrade_body_is_not_taken_for_a_request(shared: Edge) -> None:
    shared.app.paths.clear()
    head = post(HOST, b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(SECOND))
    with closing(shared.connect()) as sock:
        sock.sendall(head)
        time.sleep(0.05)
        sock.sendall(SECOND)
        assert statuses(read_answer(sock)) == [200]
    assert shared.app.paths == ["/v1"]
    assert shared.app.bodies[-1] == SECOND


def test_early_answer_reaches_a_client_that_is_still_sending(shared: Edge) -> None:
    with closing(shared.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 8388608", target=b"/early"))
        for _ in range(128):  # urllib3 and others send all of the body before they read
            sock.sendall(b"z" * 65_536)
        received = read_all(sock)
    assert statuses(received) == [413]
    assert b"connection: close" in received


def test_final_answer_instead_of_100_continue_closes(shared: Edge) -> None:
    request = post(HOST, b"Content-Length: 5", b"Expect: 100-continue", target=b"/early")
    received = shared.talk(request, SECOND, pause=0.1)
    assert statuses(received) == [413]
    assert b"connection: close" in received


def test_100_continue_is_sent_to_who_asks(shared: Edge) -> None:
    with closing(shared.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 5", b"Expect: 100-continue"))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert statuses(read_answer(sock)) == [200]


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_slow_heads_end_at_the_deadline_while_others_are_served() -> None:
    with running(Recorder(), header_timeout_s=1.5, keep_alive_s=60) as server:
        slow = [server.connect() for _ in range(200)]
        begun = time.monotonic()
        head = b"GET /slow-head HTTP/1.1\r\nHost: gateway\r\nX-Fill: " + b"a" * 100
        ended: dict[int, float] = {}
        for position in range(len(head)):
            for number, sock in enumerate(slow):
                if number in ended:
                    continue
                sock.setblocking(False)
                try:
                    if sock.recv(4096):
                        ended[number] = time.monotonic() - begun
                        continue
                except BlockingIOError:
                    pass
                sock.send(head[position : position + 1])
            assert statuses(server.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))) == [200]
            if len(ended) == len(slow):
                break
            time.sleep(0.1)
        for sock in slow:
            sock.close()
        assert len(ended) == 200
        assert min(ended.values()) > 1.3
        assert max(ended.values()) < 3.5
        assert server.app.counts["header_timeout"] == 200
        assert "/slow-head" not in server.app.paths


@pytest.mark.slow
def test_slow_head_is_told_408_and_a_silent_connection_nothing(edge: Edge) -> None:
    with closing(edge.connect()) as silent, closing(edge.connect()) as slow:
        slow.sendall(b"GET / HT")
        received = read_all(slow)
        assert statuses(received) == [408]
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["type"] == "timeout_error"
        assert read_all(silent) == b""


@pytest.mark.slow
def test_deadline_covers_the_second_head_of_a_connection_too(edge: Edge) -> None:
    with closing(edge.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 0"))
        assert statuses(read_answer(sock)) == [200]
        sock.sendall(b"POST /v1 HTTP/1.1\r\n")
        assert statuses(read_all(sock)) == [408]


@pytest.mark.slow
def test_idle_connection_ends_after_keep_alive() -> None:
    with running(Recorder(), keep_alive_s=0.5) as server, closing(server.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 0"))
        read_answer(sock)
        begun = time.monotonic()
        assert read_all(sock) == b""
        assert 0.3 < time.monotonic() - begun < 3


@pytest.mark.slow
def test_client_that_reads_nothing_is_cut_and_the_app_learns_it() -> None:
    with running(Recorder(), send_timeout_s=0.7) as server, closing(server.connect()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /flood HTTP/1.1\r\nHost: gateway\r\n\r\n")
        wait_for(lambda: server.app.ends == ["ClientGone"], 8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_USER_TIMEOUT")
def test_client_that_reads_no_small_frames_is_cut_too() -> None:
    """Frames that all fit into the kernel's buffers: no write ever blocks, only the kernel knows."""
    ends: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 500, "more_body": True})
                await asyncio.sleep(0.02)
        except OSError as error:
            ends.append(type(error).__name__)

    with running(app, send_timeout_s=1) as server, closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
        wait_for(lambda: ends == ["ClientGone"], 20)


@pytest.mark.slow
def test_stream_that_has_no_data_is_not_cut() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(1.5)
        await send({"type": "http.response.body", "body": b"b"})

    options = {"send_timeout_s": 0.4, "header_timeout_s": 0.4, "keep_alive_s": 0.4}
    with running(app, **options) as server:
        received = server.talk(b"GET / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
        assert received.endswith(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")


@pytest.mark.slow
def test_body_that_stops_after_the_answer_does_not_hold_the_connection(edge: Edge) -> None:
    with closing(edge.connect(15)) as sock:
        sock.sendall(post(HOST, b"Content-Length: 1000", target=b"/early", body=b"z"))
        assert statuses(read_all(sock)) == [413]
        begun = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - begun < 12:  # our side still sends, a byte at a time
                sock.sendall(b"z")
                time.sleep(0.1)
        assert time.monotonic() - begun < 10


def test_too_many_connections_get_503() -> None:
    with running(Recorder(), max_connections=2) as server:
        with closing(server.connect()) as first, closing(server.connect()) as second:
            for sock in (first, second):
                sock.sendall(post(HOST, b"Content-Length: 0"))
                assert statuses(read_answer(sock)) == [200]
            received = server.talk()
            assert statuses(received) == [503]
            assert b"retry-after: 1" in received
        wait_for(lambda: statuses(server.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))) == [200])


def test_disconnect_reaches_a_waiting_app(edge: Edge) -> None:
    with closing(edge.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 0", target=b"/wait"))
        wait_for(lambda: edge.app.paths == ["/wait"])
    wait_for(lambda: edge.app.ends == ["http.disconnect"])


def test_starlette_stream_that_waits_is_cancelled_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[str] = []

    async def tokens() -> AsyncIterator[bytes]:
        yield b"first"
        try:
            await asyncio.sleep(60)
        except BaseException as error:
            ends.append(type(error).__name__)
            raise

    async def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(tokens())

    with running(Starlette(routes=[Route("/", endpoint)])) as server:
        with closing(server.connect()) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert b"first" in sock.recv(65_536)
        wait_for(lambda: ends == ["CancelledError"])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_head_of_a_stream_does_not_wait_for_its_first_chunk() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        await receive()  # returns when the client has gone

    with running(app) as server, closing(server.connect()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200 OK")


def test_broken_bytes_never_get_two_answers_nor_break_the_server(shared: Edge) -> None:
    """Known requests with bytes changed, dropped or doubled: one answer or none each, then the server still serves."""
    rng = random.Random(20)
    seeds = [request for request, _ in GOOD.values() if len(request) < 2000]
    with ExitStack() as stack:
        asked = []
        for _ in range(150):
            request = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(len(request))
                request[place : place + rng.randint(0, 3)] = rng.choice((b"", b"\r\n", b"\n", b"\0", b":", b"0", b" "))
            sock = stack.enter_context(closing(shared.connect()))
            sock.sendall(bytes(request) + SECOND)
            asked.append((sock, bytes(request)))
        time.sleep(0.7)
        answers = []
        for sock, sent in asked:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                answers.append((sent, statuses(sock.recv(65_536))))
    assert [(sent, codes) for sent, codes in answers if len(codes) > 1] == []
    assert {code for _, codes in answers for code in codes} >= {200, 400}
    assert statuses(shared.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))) == [200]


@pytest.mark.parametrize("row", ["no host", "64 KiB chunk extension", "one 1 MiB header", "NUL in a header value"])
def test_refused_alike_on_the_loop_of_asyncio(monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setattr(sys.modules[__name__], "loop_factory", lambda: None)
    status, request = BAD[row]
    with running(Recorder()) as server:
        assert statuses(server.talk(request, SECOND)) == [status]
        assert statuses(server.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))) == [200]


def test_server_header_is_off_and_date_is_on(edge: Edge) -> None:
    received = edge.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))
    assert b"\r\ndate: " in received
    assert b"\r\nserver:" not in received
    assert b"\r\ndate: " in edge.talk(b"nonsense\r\n\r\n")
