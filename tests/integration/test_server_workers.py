"""`sidecar.server.serve` with several workers: shared and own ports, signals, workers and parents that die."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support import served as support
from tests.support.served import Start, body, can_connect, wait_for

start = support.start  # a fixture


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
