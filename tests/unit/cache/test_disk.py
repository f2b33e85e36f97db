"""The store on disk: it survives what processes and disks do."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.disk import Disk
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime


async def started(folder: Path, **fields: int) -> Disk:
    store = Disk(folder=folder, **fields)
    await store.start(Runtime())
    return store


async def test_a_restart(tmp_path: Path) -> None:
    store = await started(tmp_path)
    await store.put("k", b"kept", 60)
    await store.aclose()
    store = await started(tmp_path)
    assert await store.get("k") == b"kept"
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    await store.aclose()


async def test_the_bound_holds_and_the_least_used_go(tmp_path: Path) -> None:
    store = await started(tmp_path, max_bytes=100_000)
    for number in range(200):
        await store.put(f"k{number}", bytes(2000), 60)
    report = await store.report()
    assert report["bytes"] <= 102_000
    assert report["evicted"] >= 100
    assert await store.get("k199") is not None
    assert await store.get("k0") is None
    await store.aclose()


WRITER = """
import asyncio, sys
from pathlib import Path
from tianji_mw.cache.disk import Disk
from tianji_mw.runtime import Runtime

async def main():
    store = Disk(folder=Path(sys.argv[1]))
    await store.start(Runtime())
    print("up", flush=True)
    number = 0
    while True:
        await store.put(f"{sys.argv[2]}{number % 500}", b"%d" % number * 100, 600)
        number += 1

asyncio.run(main())
"""


def writer(folder: Path, name: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def test_a_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    process = writer(tmp_path, "k")
    await asyncio.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store = await started(tmp_path)
    found = [await store.get(f"k{number}") for number in range(500)]
    whole = [value for value in found if value is not None]
    assert whole
    assert all(value == value[: len(value) // 100] * 100 for value in whole), "in full or not at all"
    await store.aclose()


async def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    processes = [writer(tmp_path, name) for name in ("a", "b")]
    store = await started(tmp_path)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (await store.get("a5") and await store.get("b5")):
        await asyncio.sleep(0.05)
    await store.put("mine", b"x", 60)
    assert await store.get("a5")
    assert await store.get("b5")
    assert await store.get("mine") == b"x"
    for process in processes:
        process.kill()
        process.wait()
    await store.aclose()


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "cache.sqlite").write_bytes(damage)
    runtime = Runtime()
    store = Disk(folder=tmp_path)
    await store.start(runtime)
    await store.put("k", b"x", 60)
    assert await store.get("k") == b"x"
    assert runtime.counts["cache_errors", "open corrupt"] == 1
    assert [path for path in tmp_path.iterdir() if "damaged" in path.name]
    await store.aclose()


async def test_a_file_that_is_damaged_while_it_is_used(tmp_path: Path) -> None:
    store = await started(tmp_path)
    for number in range(300):
        await store.put(f"k{number}", bytes(5000), 60)
    await store.aclose()
    raw = bytearray(store.path.read_bytes())
    raw[8192:-8192] = b"\xaa" * (len(raw) - 16384)
    store.path.write_bytes(raw)
    store = await started(tmp_path)
    for number in range(300):
        try:
            await store.get(f"k{number}")
        except StoreFailed:
            break
    await store.put("after", b"x", 60)
    assert await store.get("after") == b"x"
    await store.aclose()


async def test_a_folder_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match=r"set cache_params\.disk_cache_dir"):
        await started(tmp_path / "file" / "folder")


async def test_a_full_disk_is_full(tmp_path: Path) -> None:
    store = await started(tmp_path)

    def bound() -> None:
        pages = store._opened().execute("pragma page_count").fetchone()[0]
        store._opened().execute(f"pragma max_page_count={pages + 2}")

    await store._in_thread(bound)
    with pytest.raises(StoreFailed) as error:
        await store.put_many([(f"k{number}", bytes(5000), 60.0) for number in range(50)])
    assert error.value.kind == "full"
    assert await store.get("none") is None, "reading goes on"
    await store.aclose()


async def test_a_locked_file_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    store = await started(tmp_path)
    await store.put("k", b"x", 60)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("begin immediate")
    assert await store.get("k") == b"x", "readers do not wait for a writer"
    with pytest.raises(StoreFailed) as error:
        await store.put("k", b"y", 60)
    assert error.value.kind == "timeout"
    other.execute("rollback")
    other.close()
    await store.aclose()


async def test_a_file_that_another_process_holds_is_told_at_the_start(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(SetupError, match="another process holds the file"):
        await started(tmp_path)
    other.close()
