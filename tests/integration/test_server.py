"""`sidecar.server.serve` as a real process: ports, signals, drain, exit status; and its settings without one."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import signal
import time
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from sidecar.drain import Drain, Watchdog
from sidecar.server import Apps, ServerConfig, bind, loop_factory, run, serve, serve_app
from tests.support import served as support
from tests.support.served import Start, ask, body, can_connect, wait_for
from tianji_mw.errors import SetupError

start = support.start  # a fixture


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
