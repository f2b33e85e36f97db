"""Starts the sidecar (or any server) as a real process on free loopback ports, and ends it by pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 30.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def free_ports() -> int:
    """A port that was free a moment ago, and the one above it too."""
    while True:
        port = free_port()
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment: no keys of the machine, no proxies."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k in ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "XDG_STATE_HOME")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(extra or {})}


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: subprocess.Popen[str]
    port: int
    admin_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")


@contextmanager
def sidecar(
    tmp_path: Path, config: str | None = None, *args: str, env: Mapping[str, str] | None = None, probe: bool = True
) -> Iterator[Running]:
    """`tianji-sidecar run` with this config (None: the embedded demo)."""
    port, admin = free_port(), free_ports()  # a second worker's admin port is the next one
    command = [sys.executable, "-m", "sidecar", "run", "--port", str(port), "--admin-port", str(admin), *args]
    if config is not None:
        path = tmp_path / f"config-{port}.yaml"
        path.write_text(config, "utf-8")
        command += ["--config", str(path)]
    with server(
        command, tmp_path, port=port, admin_port=admin, env=env, probe="/health/liveliness" if probe else ""
    ) as running:
        yield running


@contextmanager
def server(
    command: Sequence[str],
    tmp_path: Path,
    *,
    port: int,
    admin_port: int = 0,
    env: Mapping[str, str] | None = None,
    probe: str = "/",
) -> Iterator[Running]:
    """Any server process; yields when `probe` answers."""
    log = tmp_path / f"server-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment(env), cwd=ROOT, text=True
        )
    running = Running(process, port, admin_port, log)
    try:
        if probe:
            wait_until_up(running, probe)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def wait_until_up(running: Running, probe: str) -> None:
    """Poll until the server answers anything at all on `probe`."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise AssertionError(f"the server ended with {running.process.returncode}:\n{running.output()}")
        try:
            urllib.request.urlopen(running.url + probe, timeout=2)
            return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"the server did not answer within {READY_WITHIN_S} s:\n{running.output()}")
