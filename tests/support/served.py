"""A small gateway under `sidecar.server.serve` as a real process, and what asks it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidecar.server import ServerConfig, bind
from tianji_mw.errors import SetupError

ROOT = Path(__file__).resolve().parents[2]

# A gateway in small: what it does at each step of its life is written to stdout, a line each.
PROGRAM = """
import asyncio, os, sys, time
from functools import partial
from sidecar.server import Apps, ServerConfig, serve

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class App:
    def __init__(self, name, mood):
        self.name, self.mood, self.ready = name, mood, True

    def drained(self):
        self.ready = False
        say("drain", os.getpid())

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.lifespan(scope, receive, send)
            return
        path = scope["path"]
        if path == "/stream":
            await self.stream(send)
            return
        if path == "/die":
            os._exit(9)
        if path == "/block":
            time.sleep(20)
        if path == "/hang":
            await asyncio.sleep(60)
        said = {"/ready": str(self.ready), "/pid": str(os.getpid()), "/name": self.name,
                "/state": str(scope["state"].get("who"))}
        await self.answer(send, said.get(path, "ok").encode())

    async def answer(self, send, body):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def stream(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(15):
            await send({"type": "http.response.body", "body": b"tick ", "more_body": True})
            await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"end"})

    async def lifespan(self, scope, receive, send):
        await receive()
        if self.mood == "refuse":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        if self.mood == "broken":
            raise ValueError("broken at start")
        if self.mood == "endless":
            say("starting")
            await asyncio.sleep(60)
        scope["state"]["who"] = "main"
        say("up", os.getpid(), self.name)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        say("down", os.getpid())
        if self.mood == "stuck":
            await asyncio.sleep(60)
        await send({"type": "lifespan.shutdown.complete"})

def factory(mood):
    main, admin = App("main", mood), App("admin", mood)
    return Apps(main, admin, main.drained)

if __name__ == "__main__":
    serve(partial(factory, sys.argv[1]), ServerConfig.model_validate_json(sys.argv[2]))
    say("returned")
"""


class Served:
    """The program above, running."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, admin_port: int) -> None:
        self.process = process
        self.port = port
        self.admin_port = admin_port
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    def said(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]

    def connect(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=20)

    def get(self, path: str, port: int | None = None, *, close: bool = True) -> bytes:
        with contextlib.closing(self.connect(port)) as sock:
            return ask(sock, path, close=close)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        status = self.process.wait(seconds)
        self.reader.join(5)
        return status


def ask(sock: socket.socket, path: str, *, close: bool = False) -> bytes:
    """One request; the whole answer, to the end of the connection if `close`."""
    extra = "Connection: close\r\n" if close else ""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: gateway\r\n{extra}\r\n".encode())
    if not close:
        return sock.recv(65_536)
    return b"".join(iter(partial(sock.recv, 65_536), b""))


def body(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[2].decode()


def free_ports(count: int) -> int:
    """The first of some ports in a row nobody listens on now."""
    for base in range(20_000 + os.getpid() % 10_000, 60_000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(contextlib.closing(bind("127.0.0.1", port)))
            except SetupError:
                continue
            return base
    raise AssertionError("no free ports")


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program; everything started is gone after the test."""
    script = tmp_path / "served.py"
    script.write_text(PROGRAM)
    all_served: list[Served] = []

    def go(mood: str = "", *, up: int | None = None, **options: Any) -> Served:
        port = free_ports(8)
        options = {"port": port, "admin_port": port + 1, "drain_delay_s": 0, "grace_s": 10, "flush_s": 3, **options}
        config = ServerConfig(**options)
        process = subprocess.Popen(
            [sys.executable, str(script), mood, config.model_dump_json()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        served = Served(process, port, port + 1)
        all_served.append(served)
        expected = config.workers if up is None else up
        wait_for(lambda: len(served.said("up")) >= expected or process.poll() is not None, 30)
        if expected:
            # "up" is said in the lifespan; each worker has the admin port open as its last step.
            for index in range(config.workers):
                wait_for(lambda index=index: can_connect(served.admin_port + index))
        return served

    yield go
    for served in all_served:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait(10)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
