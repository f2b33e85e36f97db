"""`sidecar.server.serve` as real processes: ports, signals, drain, workers, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
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
from pydantic import ValidationError

from sidecar.drain import Drain, Watchdog
from sidecar.server import Apps, ServerConfig, bind, loop_factory, run, serve, serve_app
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


# --- one process


@pytest.mark.slow
def test_two_ports_one_lifespan_one_state(start: Start) -> None:
    served = start()
    assert body(served.get("/name")) == "main"
    assert body(served.get("/name", served.admin_port)) == "admin"
    assert body(served.get("/pid")) == body(served.get("/pid", served.admin_port))
    assert body(served.get("/state", served.admin_port)) == "main"
    served.signal(signal.SIGTERM)
    assert served.wait(10) == 0
    assert len(served.said("up")) == len(served.said("down")) == len(served.said("drain")) == 1
    assert served.lines[-1] == "returned"


@pytest.mark.slow
def test_sigterm_lets_a_running_stream_end(start: Start) -> None:
    served = start()
    with contextlib.closing(served.connect()) as idle, contextlib.closing(served.connect()) as sock:
        ask(idle, "/name")
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200 OK")
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        assert idle.recv(100) == b""
        assert time.monotonic() - begun < 1.4
        assert not can_connect(served.port)
        assert body(served.get("/name", served.admin_port)) == "admin"
        received = b"".join(iter(partial(sock.recv, 65_536), b""))
        assert received.endswith(b"3\r\nend\r\n0\r\n\r\n")
    assert served.wait(5) == 0
    assert time.monotonic() - begun < 8


@pytest.mark.slow
def test_drain_delay_keeps_accepting_and_says_close(start: Start) -> None:
    served = start(drain_delay_s=1.5)
    with contextlib.closing(served.connect()) as sock:
        assert b"connection: close" not in ask(sock, "/name")
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        wait_for(lambda: served.said("drain"))
        answer = ask(sock, "/ready")
        assert body(answer) == "False"
        assert b"connection: close" in answer
        assert sock.recv(100) == b""
    assert b"connection: close" in served.get("/ready", close=False)  # a new connection is still served
    assert served.wait(10) == 0
    assert 1.4 < time.monotonic() - begun < 8


@pytest.mark.slow
def test_sigint_skips_the_delay(start: Start) -> None:
    served = start(drain_delay_s=60)
    begun = time.monotonic()
    served.signal(signal.SIGINT)
    assert served.wait(10) == 0
    assert time.monotonic() - begun < 6


@pytest.mark.slow
def test_request_whose_head_is_on_its_way_is_served(start: Start) -> None:
    served = start()
    with contextlib.closing(served.connect()) as sock:
        sock.sendall(b"GET /name HTTP/1.1\r\nHo")
        time.sleep(0.2)
        served.signal(signal.SIGTERM)
        wait_for(lambda: not can_connect(served.port))
        sock.sendall(b"st: gateway\r\n\r\n")
        answer = b"".join(iter(partial(sock.recv, 65_536), b""))
        assert body(answer) == "main"
        assert b"connection: close" in answer
    assert served.wait(10) == 0


@pytest.mark.slow
def test_grace_ends_what_does_not_end_and_the_status_says_so(start: Start) -> None:
    served = start(grace_s=0.5)
    with contextlib.closing(served.connect()) as sock:
        sock.sendall(b"GET /hang HTTP/1.1\r\nHost: gateway\r\n\r\n")
        time.sleep(0.3)
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        assert served.wait(10) == 1
        assert 0.4 < time.monotonic() - begun < 6
    assert served.said("down")


@pytest.mark.slow
def test_second_signal_is_out_within_two_seconds(start: Start) -> None:
    served = start("stuck", grace_s=60, flush_s=60)
    with contextlib.closing(served.connect()) as sock:
        sock.sendall(b"GET /hang HTTP/1.1\r\nHost: gateway\r\n\r\n")
        time.sleep(0.3)
        served.signal(signal.SIGTERM)
        time.sleep(0.5)
        assert served.process.poll() is None
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        assert served.wait(10) == 1
        assert time.monotonic() - begun < 2.5


@pytest.mark.slow
def test_second_signal_ends_a_blocked_loop_too(start: Start) -> None:
    served = start(grace_s=60)
    with contextlib.closing(served.connect()) as sock:
        sock.sendall(b"GET /block HTTP/1.1\r\nHost: gateway\r\n\r\n")
        time.sleep(0.3)
        served.signal(signal.SIGTERM)
        time.sleep(0.3)
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        # time.sleep is one C call; the handler runs at its end or, as here, when the signal interrupts it.
        assert served.wait(10) == 1
        assert time.monotonic() - begun < 2.5


@pytest.mark.slow
def test_shutdown_of_the_app_is_bounded(start: Start) -> None:
    served = start("stuck", flush_s=0.5)
    begun = time.monotonic()
    served.signal(signal.SIGTERM)
    assert served.wait(10) == 1
    assert time.monotonic() - begun < 6


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["refuse", "broken"])
@pytest.mark.parametrize("workers", [1, 2])
def test_app_that_does_not_start_is_status_3(start: Start, mood: str, workers: int) -> None:
    served = start(mood, up=0, workers=workers)
    assert served.wait(20) == 3
    text = "\n".join(served.lines)
    assert {"refuse": "no database", "broken": "broken at start"}[mood] in text
    assert not served.said("returned")
    assert not can_connect(served.port)


@pytest.mark.slow
def test_signal_during_the_start_ends_it(start: Start) -> None:
    served = start("endless", up=0)
    wait_for(lambda: served.said("starting"))
    served.signal(signal.SIGTERM)
    assert served.wait(10) == 1


# --- several


@pytest.mark.slow
def test_workers_share_the_port_and_have_an_admin_port_each(start: Start) -> None:
    served = start(workers=2)
    pids = {body(served.get("/pid", served.admin_port + index)) for index in range(2)}
    assert len(pids) == 2
    assert {body(served.get("/pid")) for _ in range(60)} <= pids
    with contextlib.closing(served.connect()) as sock:
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n\r\n")
        sock.recv(65_536)
        served.signal(signal.SIGTERM)
        wait_for(lambda: not can_connect(served.port))
        received = b"".join(iter(partial(sock.recv, 65_536), b""))
        assert received.endswith(b"end\r\n0\r\n\r\n")
    assert served.wait(10) == 0
    assert len(served.said("drain")) == len(served.said("down")) == 2


@pytest.mark.slow
def test_dead_worker_is_replaced(start: Start) -> None:
    served = start(workers=2)
    with contextlib.suppress(ConnectionError):
        served.get("/die")
    wait_for(lambda: len(served.said("up")) == 3)
    wait_for(lambda: all(can_connect(served.admin_port + index) for index in range(2)))
    assert body(served.get("/name")) == "main"
    served.signal(signal.SIGTERM)
    assert served.wait(10) == 0


@pytest.mark.slow
def test_second_signal_ends_the_workers_too(start: Start) -> None:
    served = start("stuck", workers=2, grace_s=60, flush_s=60)
    pids = [int(line.split()[1]) for line in served.said("up")]
    served.signal(signal.SIGTERM)
    wait_for(lambda: len(served.said("down")) == 2)
    begun = time.monotonic()
    served.signal(signal.SIGTERM)
    assert served.wait(10) == 1
    assert time.monotonic() - begun < 2.5
    wait_for(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.slow
def test_terminal_interrupt_reaches_everyone_and_counts_once(start: Start) -> None:
    served = start(workers=2, drain_delay_s=60)
    with contextlib.closing(served.connect()) as sock:
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n\r\n")
        sock.recv(65_536)
        for line in served.said("up"):
            os.kill(int(line.split()[1]), signal.SIGINT)
        served.signal(signal.SIGINT)
        received = b"".join(iter(partial(sock.recv, 65_536), b""))
        assert received.endswith(b"end\r\n0\r\n\r\n")
    assert served.wait(10) == 0


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(start: Start) -> None:
    served = start(workers=2)
    pids = [int(line.split()[1]) for line in served.said("up")]
    served.signal(signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in pids), 10)
    assert len(served.said("down")) == 2


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed parent leaves zombies to whoever adopts them.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


# --- without a process


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 70_000},
        {"workers": 0},
        {"header_timeout_s": 0},
        {"max_header_bytes": 10},
        {"max_headers": 0},
        {"keep_alive_s": 0},
        {"send_timeout_s": -1},
        {"drain_delay_s": -1},
        {"grace_s": -1},
        {"flush_s": -1},
        {"backlog": 0},
        {"max_connections": 0},
        {"log_level": "loud"},
        {"prot": 80},
    ],
)
def test_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServerConfig(**wrong)


def test_settings_are_frozen_and_travel_to_workers() -> None:
    config = ServerConfig(port=1, identity_headers=("x-team-key",))
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValidationError):
        config.port = 2  # type: ignore[misc]


def test_taken_port_is_a_setup_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with contextlib.closing(bind("127.0.0.1", 0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(SetupError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            serve(lambda: Apps(app), ServerConfig(port=port))


def test_apps_cannot_be_shared_by_workers() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(SetupError, match="factory"):
        serve_app(app, config=ServerConfig(workers=2))


def test_watchdog_bites_only_when_armed() -> None:
    bitten: list[int] = []
    dog = Watchdog(bitten.append)
    dog.arm(30)
    dog.arm(0.02)
    wait_for(lambda: bitten == [1])
    dog.arm(0.05)
    dog.disarm()
    time.sleep(0.15)
    assert bitten == [1]


def test_uvloop_is_used_where_installed() -> None:
    factory = loop_factory()
    assert factory is not None
    loop = factory()
    loop.close()
    assert type(loop).__module__.startswith("uvloop")


async def test_failing_on_drain_does_not_stop_the_drain() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    def on_drain() -> None:
        raise ValueError("broken")

    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    drain = Drain()
    config = ServerConfig(drain_delay_s=0, grace_s=1, flush_s=1)
    sock = bind("127.0.0.1", 0)
    assert await run(Apps(app, on_drain=on_drain), config, drain, sock, on_ready=drain.request)
    assert [str(report["exception"]) for report in reports] == ["broken"]
