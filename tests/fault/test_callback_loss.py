"""No record is lost by a crash, an end, a dead destination or a full disk: the sidecar as a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.support.processes import Running, free_port, server, sidecar

pytestmark = pytest.mark.slow

KEEP = "tests.support.keep:Keep"


def config(tmp_path: Path, *, gate: bool = False, **settings: Any) -> str:
    options = {"path": str(tmp_path / "kept.jsonl"), **({"gate": str(tmp_path / "gate")} if gate else {})}
    found = {
        "model_list": [{"model_name": "demo", "litellm_params": {"model": "mock/demo"}}],
        "litellm_settings": {"callbacks": [KEEP], "spool_dir": str(tmp_path / "spool"), **settings},
        "callback_settings": {KEEP: options},
        "general_settings": {"drain_delay_s": 0, "flush_s": 5},
    }
    return orjson.dumps(found).decode()


def kept(tmp_path: Path) -> list[str]:
    """Ids of the records that came, in order; with a line that a crash cut, without it."""
    path = tmp_path / "kept.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [orjson.loads(line)["litellm_call_id"] for line in lines if line.endswith(b"}")]


def until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


async def calls(running: Running, count: int, at_once: int = 16, text: str = "hi") -> list[str]:
    """Ids of the calls that were answered in full; calls that a crash interrupts are none."""
    body = {"model": "demo", "messages": [{"role": "user", "content": text}]}
    answered: list[str] = []
    left = iter(range(count))

    async def caller(client: httpx.AsyncClient) -> None:
        for _ in left:
            try:
                response = await client.post(f"{running.url}/v1/chat/completions", json=body)
            except httpx.HTTPError:
                return
            assert response.status_code == 200
            answered.append(response.headers["x-request-id"])

    async with httpx.AsyncClient(timeout=30) as client:
        await asyncio.gather(*(caller(client) for _ in range(at_once)))
    return answered


def callbacks_of(running: Running) -> dict[str, Any]:
    (report,) = httpx.get(f"{running.admin_url}/-/callbacks").json()
    found: dict[str, Any] = report
    return found


def test_kill_9_under_load_loses_no_record_of_an_answered_call(tmp_path: Path) -> None:
    text = config(tmp_path, gate=True)
    with sidecar(tmp_path, text) as running:

        async def load() -> list[str]:
            working = asyncio.create_task(calls(running, 100_000))
            await asyncio.sleep(1.0)
            running.process.kill()
            return await working

        answered = asyncio.run(load())
        running.process.wait(5)
    assert len(answered) > 50
    assert kept(tmp_path) == []  # the destination was down all the time
    (tmp_path / "gate").touch()
    with sidecar(tmp_path, text):
        until(lambda: set(answered) <= set(kept(tmp_path)))
    assert not list((tmp_path / "spool").glob("*/*.log"))


def test_sigterm_delivers_what_waits(tmp_path: Path) -> None:
    text = config(tmp_path)
    with sidecar(tmp_path, text.replace('"path":', '"flush_interval_s": 3000, "path":')) as running:
        answered = asyncio.run(calls(running, 100))
        assert kept(tmp_path) == []
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
    assert sorted(kept(tmp_path)) == sorted(answered)


def test_a_destination_that_comes_back_gets_everything_once(tmp_path: Path) -> None:
    with sidecar(tmp_path, config(tmp_path, gate=True)) as running:
        answered = asyncio.run(calls(running, 300))
        until(lambda: callbacks_of(running)["destinations"]["Keep"]["state"] == "down")
        report = callbacks_of(running)
        assert report["destinations"]["Keep"]["pending"] == 300
        assert report["destinations"]["Keep"]["last_error"] == "the gate is closed"
        assert report["spool"]["durable"] is True
        ready = httpx.get(f"{running.admin_url}/health/readiness").json()
        assert ready["degraded"] == {"callback Keep": "the gate is closed"}
        (tmp_path / "gate").touch()
        until(lambda: len(kept(tmp_path)) == 300, 60)
        report = callbacks_of(running)["destinations"]["Keep"]
        assert (report["offered"], report["delivered"], report["dropped"]) == (300, 300, {})
    assert sorted(kept(tmp_path)) == sorted(answered)


def test_a_destination_that_is_down_at_the_end_gets_everything_at_the_next_start(tmp_path: Path) -> None:
    with sidecar(tmp_path, config(tmp_path, gate=True)) as running:
        answered = asyncio.run(calls(running, 50))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
    (tmp_path / "gate").touch()
    with sidecar(tmp_path, config(tmp_path, gate=True)):
        until(lambda: len(kept(tmp_path)) == 50)
    assert sorted(kept(tmp_path)) == sorted(answered)


def test_a_disk_that_is_full_fails_no_call_and_loses_no_record(tmp_path: Path) -> None:
    """No file may grow beyond 1 MiB (RLIMIT_FSIZE): to a writer that is a disk without room."""
    path = tmp_path / "config.yaml"
    path.write_text(config(tmp_path, gate=True).replace('"path":', '"apart": true, "path":'))
    port, admin = free_port(), free_port()
    command = f"ulimit -f 1024; exec {sys.executable} -m sidecar run -p {port} --admin-port {admin} -c {path}"
    with server(["bash", "-c", command], tmp_path, port=port, admin_port=admin, probe="/health/liveliness") as running:
        answered = asyncio.run(calls(running, 40, text="x" * 60_000))
        report = callbacks_of(running)
        assert report["spool"]["durable"] is False
        assert report["spool"]["trouble"]
        (tmp_path / "gate").touch()
        until(lambda: callbacks_of(running)["destinations"]["Keep"]["pending"] == 0, 60)
        report = callbacks_of(running)["destinations"]["Keep"]
        metrics = httpx.get(f"{running.admin_url}/metrics").text
    assert (report["offered"], report["delivered"], report["dropped"]) == (40, 40, {})
    assert {path.stem.removeprefix("kept-") for path in tmp_path.glob("kept-*.json")} == set(answered)
    assert "spool_unwritable" in metrics


def test_two_workers_share_a_spool_and_one_takes_over_what_the_other_left(tmp_path: Path) -> None:
    with sidecar(tmp_path, config(tmp_path, gate=True), "--workers", "2") as running:
        answered = asyncio.run(calls(running, 100))
        children = [
            int(pid)
            for pid in Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
        ]
        worker = next(pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        answered += asyncio.run(calls(running, 20))
        (tmp_path / "gate").touch()
        until(lambda: set(answered) <= set(kept(tmp_path)), 60)
