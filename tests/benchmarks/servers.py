"""Processes: builds and starts the mock, starts gateways, reads their CPU time and memory, stops them by pid.

Everything runs on loopback, gateways on the first core, the rest on the second one. Sends no load but start-up probes.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from rows import HERE, OUT, Row

START_LIMIT_S: Final = 60.0
_ENV_KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR")


class BenchError(Exception):
    """The run cannot go on; the text says what to do."""


@dataclass(eq=False)
class Server:
    """One running row. Without a process (`direct`) it costs nothing and is never stopped."""

    row: Row
    port: int
    process: psutil.Popen | None = None
    live_s: float = 0.0
    chat_s: float = 0.0
    requests: int = 0

    def tree(self) -> list[psutil.Process]:
        """The process and all below it."""
        try:
            return [self.process, *self.process.children(recursive=True)] if self.process else []
        except psutil.Error:
            return []

    def cpu_s(self) -> float:
        """User and system seconds used so far."""
        return float(sum(sum(p.cpu_times()[:2]) for p in self.tree()))

    def rss_mib(self) -> float:
        """Resident memory; pages that several processes share are counted in each."""
        return float(sum(p.memory_info().rss for p in self.tree()) / 2**20)

    def settle(self, limit_s: float = 15.0) -> None:
        """Wait until a gateway that fell behind is done with what the load left behind, lest it slow the next run."""
        end = time.monotonic() + limit_s
        while self.process and time.monotonic() < end:
            before = self.cpu_s()
            time.sleep(0.15)
            if self.cpu_s() - before < 0.06:
                return

    def stop(self) -> None:
        """Terminate the tree; kill what is left after 5 s."""
        stop(self.tree())


def stop(processes: list[psutil.Process]) -> None:
    """Terminate these processes; kill what is left after 5 s."""
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            pass
    for process in psutil.wait_procs(processes, timeout=5)[1]:
        try:
            process.kill()
        except psutil.Error:
            pass
    psutil.wait_procs(processes, timeout=5)


def stop_all() -> None:
    """Stop whatever this process started and has not stopped yet, registered or not."""
    stop(psutil.Process().children(recursive=True))


def pin() -> tuple[list[str], str]:
    """Pin this process (so the mock and the load too) to the second core; the command prefix that pins a gateway."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2 or not shutil.which("taskset"):
        return [], "not pinned"
    os.sched_setaffinity(0, {cores[1]})
    return ["taskset", "-c", str(cores[0])], f"gateway on core {cores[0]}, mock and load on core {cores[1]}"


def require(rows: list[Row], sidecar: str) -> None:
    """Fail early, with the line that helps, when a program is missing."""
    os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    wanted = {"cc": "gcc", "wrk": "wrk"} | {row.program(sidecar): row.package for row in rows if row.command}
    missing = {program: package for program, package in wanted.items() if not shutil.which(program)}
    packages = [package for package in missing.values() if package]
    if packages:
        install = f"apt-get update && apt-get install -y {' '.join(packages)}"
        raise BenchError(f"Not found: {', '.join(missing)}. Install with: {install}")
    if missing:
        raise BenchError(f"Not found: {', '.join(missing)}. Install it, or choose other --rows.")


def start_mock() -> int:
    """Compile and start the mock; its port."""
    program = OUT / "mock"
    built = subprocess.run(["cc", "-O2", "-o", program, HERE / "mock.c"], capture_output=True, text=True, check=False)
    if built.returncode:
        raise BenchError(f"The mock does not compile:\n{built.stderr}")
    process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True, start_new_session=True)
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise BenchError("The mock did not start.")
    return int(line)


def start(row: Row, mock_port: int, sidecar: str, prefix: list[str]) -> Server:
    """Start a gateway and time its first 200s."""
    if not row.command:
        return Server(row, mock_port)
    port = _free_port()
    env = {name: os.environ[name] for name in _ENV_KEPT if name in os.environ} | dict(row.env)
    words = prefix + row.words(port, mock_port, sidecar)
    log = OUT / f"{row.name}.log"
    with log.open("wb") as to:
        began = time.perf_counter()
        process = psutil.Popen(words, stdout=to, stderr=to, cwd=OUT, env=env, start_new_session=True)
    server = Server(row, port, process)
    while not (server.live_s and server.chat_s):
        if process.poll() is not None or time.perf_counter() - began > START_LIMIT_S:
            raise BenchError(f"{row.name} did not start; the end of {log.name}:\n{_tail(log)}")
        if not server.live_s and _status(server, "GET", row.live_path) == 200:
            server.live_s = time.perf_counter() - began
        if not server.chat_s and _status(server, "POST", row.path) == 200:
            server.chat_s = time.perf_counter() - began
        time.sleep(0.002)
    return server


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _status(server: Server, method: str, path: str) -> int | None:
    """The status of one request over a connection of its own; None when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    headers = {**server.row.all_headers(), "connection": "close"}
    try:
        connection.request(method, path, server.row.body() if method == "POST" else None, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])
