"""What the interop tests share: upstreams and servers in threads or processes of their own, and answers to script."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tianji_mw.testing import FakeLLM, Received

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "sk-client-key-0123456789"
UPSTREAM_KEY = "sk-upstream-key-9876543210"


class Loop:
    """An event loop in a thread of its own: what runs in it is out of the way of clients that block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def close(self) -> None:
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


async def _cancel_all() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@contextmanager
def fake_llm(loop: Loop, default: Callable[[Received], Any] | None = None) -> Iterator[FakeLLM]:
    """A FakeLLM in that loop."""
    llm = FakeLLM(default)
    loop.run(llm.__aenter__())
    try:
        yield llm
    finally:
        loop.run(llm.__aexit__(None, None, None))


@contextmanager
def served(loop: Loop, app: Any) -> Iterator[str]:
    """The app behind a real uvicorn on loopback in that loop; its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    running = asyncio.run_coroutine_threadsafe(server.serve(), loop.loop)
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        running.result(20)


#: Command lines of the servers; `{app}` and `{port}` are filled in.
SERVERS = {
    "uvicorn-h11": "uvicorn {app} --host 127.0.0.1 --port {port} --http h11 --log-level warning",
    "uvicorn-httptools": "uvicorn {app} --host 127.0.0.1 --port {port} --http httptools --log-level warning",
    "hypercorn": "hypercorn {app} --bind 127.0.0.1:{port}",
    "granian": "granian {app} --interface asgi --host 127.0.0.1 --port {port} --no-log",
    "daphne": "daphne -b 127.0.0.1 -p {port} {app}",
}


@contextmanager
def process(server: str, app: str, **env: str) -> Iterator[str]:
    """A server as a process of its own, stopped by its pid; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *SERVERS[server].format(app=app, port=port).split()]
    started = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: _listens(port) or started.poll() is not None, 30)
        if started.poll() is not None:
            assert started.stdout is not None
            raise RuntimeError(f"{server} did not start:\n{started.stdout.read().decode()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        try:
            started.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> float:
    """Wait until it holds; the seconds it took. Fails when it does not hold in time."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - start
