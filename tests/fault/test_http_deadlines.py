"""Slow, silent and leaving clients against the sidecar's server: deadlines, limits, and what the app learns."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.support import edge as support
from tests.support.edge import HOST, Edge, Recorder, post, read_all, read_answer, running, statuses, wait_for

edge = support.edge  # a fixture


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
