"""The sidecar's server in a thread, an app that remembers what it saw, and raw HTTP to talk to them."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from sidecar.drain import Drain
from sidecar.edge import COUNTS_KEY
from sidecar.server import Apps, ServerConfig, bind, loop_factory, run

SECOND = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"
HOST = b"Host: gateway"
CHUNKED = b"Transfer-Encoding: chunked"


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


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
