"""The journal: what was written down is there after a crash, for each destination what it has not finished."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tianji_mw.errors import SetupError
from tianji_mw.journal import Journal
from tianji_mw.journal.segments import FileSegment

RAW = b'{"n":1}'


async def journal_of(root: Path | None, name: str = "one", **options: int) -> Journal:
    journal = Journal(root, **options)  # type: ignore[arg-type]
    await journal.open(name)
    return journal


def crash(journal: Journal) -> None:
    """What `kill -9` leaves: the descriptors are gone, and with them the lock; nothing else happens."""
    for held in journal._held:
        held.segment.close()
    if journal._folder is not None:
        for fd in (*journal._folder._cursors.values(), journal._folder._lock):
            os.close(fd)


async def ids(journal: Journal, name: str, most: int = 100) -> list[str]:
    return [entry.record_id for _, entry in await journal.read(journal.subscribe(name), most, 1 << 20)]


async def test_each_destination_reads_what_is_its_own(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path)
    journal.subscribe("a"), journal.subscribe("b")
    journal.offer(("a", "b"), "1", "call", RAW)
    journal.offer(("b",), "2", "alert", RAW)
    assert await ids(journal, "a") == ["1"]
    assert await ids(journal, "b") == ["1", "2"]
    assert await ids(journal, "b") == []


async def test_what_was_not_finished_comes_again_after_a_crash(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path)
    place, _ = journal.subscribe("a"), journal.subscribe("b")
    for number in range(5):
        journal.offer(("a", "b"), str(number), "call", RAW)
    read = await journal.read(place, 3, 1 << 20)
    journal.finish(place, [read[0][0], read[2][0]])  # the second is still on its way
    crash(journal)

    again = await journal_of(tmp_path, "two")
    assert await ids(again, "a") == ["1", "2", "3", "4"]
    assert await ids(again, "b") == ["0", "1", "2", "3", "4"]


async def test_a_clean_end_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path)
    place = journal.subscribe("a")
    journal.offer(("a",), "1", "call", RAW)
    journal.finish(place, [position for position, _ in await journal.read(place, 9, 1 << 20)])
    journal.close()
    assert list(tmp_path.iterdir()) == []


async def test_folders_of_several_dead_processes_become_one(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        journal = await journal_of(tmp_path, name)
        journal.subscribe("a")
        journal.offer(("a",), name, "call", RAW)
        journal.flush()
        if name != "three":
            (tmp_path / name / "lock").rename(tmp_path / name / "kept")  # hidden from the next one
        crash(journal)
    for name in ("one", "two"):
        (tmp_path / name / "kept").rename(tmp_path / name / "lock")

    journal = await journal_of(tmp_path, "four")
    assert sorted(await ids(journal, "a")) == ["one", "three", "two"]
    assert len(list(tmp_path.iterdir())) == 1


async def test_a_folder_with_an_owner_is_left_alone(tmp_path: Path) -> None:
    first = await journal_of(tmp_path, "one")
    first.subscribe("a")
    first.offer(("a",), "1", "call", RAW)
    second = await journal_of(tmp_path, "two")
    assert await ids(second, "a") == []
    assert await ids(first, "a") == ["1"]


async def test_segments_go_when_everybody_is_done(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path, segment_bytes=4096)
    fast, slow = journal.subscribe("fast"), journal.subscribe("slow")
    for number in range(30):
        journal.offer(("fast", "slow"), str(number), "call", b"x" * 1000)
        journal.flush()
    read = await journal.read(fast, 100, 1 << 20)
    journal.finish(fast, [position for position, _ in read])
    assert len(list(tmp_path.glob("*/*.log"))) > 5  # `slow` still needs them
    read = await journal.read(slow, 100, 1 << 20)
    journal.finish(slow, [position for position, _ in read])
    assert len(list(tmp_path.glob("*/*.log"))) == 1


async def test_the_oldest_are_given_up_and_counted_when_there_is_no_room(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path, segment_bytes=4096, max_bytes=20_000)
    place = journal.subscribe("a")
    lost: list[int] = []
    place.on_lost = lambda segment, count: lost.append(count)
    for number in range(50):
        journal.offer(("a",), str(number), "call", b"x" * 1000)
        journal.flush()
    assert journal.size <= 20_000
    left = await ids(journal, "a")
    assert left == [str(number) for number in range(50 - len(left), 50)]
    assert sum(lost) + len(left) == 50


async def test_a_full_disk_is_memory_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    journal = Journal(tmp_path, count=lambda event, detail: counted.append(event))
    await journal.open("one")
    journal.subscribe("a")
    journal.offer(("a",), "before", "call", RAW)
    journal.flush()
    size = journal.size
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: 0)
        journal.offer(("a",), "during", "call", RAW)
        journal.flush()
    assert not journal.durable
    assert "spool_unwritable" in counted
    assert next(tmp_path.glob("*/*1.log")).stat().st_size == size  # no half entry
    journal._retry_at = 0.0
    journal.offer(("a",), "after", "call", RAW)
    journal.flush()
    assert journal.durable
    assert await ids(journal, "a") == ["before", "during", "after"]


async def test_damage_costs_the_damaged_entries_only(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path)
    journal.subscribe("a")
    for number in range(3):
        journal.offer(("a",), str(number), "call", b"y" * 50)
    journal.flush()
    crash(journal)
    path = next(tmp_path.glob("*/*.log"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data) + b"\x10\x00\x00")  # and a torn end
    counted: list[str] = []
    again = Journal(tmp_path, count=lambda event, detail: counted.append(event))
    await again.open("two")
    assert await ids(again, "a") == ["0", "2"]
    assert "spool_damaged" in counted


async def test_records_of_a_destination_that_left_the_config_wait_for_it(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path)
    journal.subscribe("gone")
    journal.offer(("gone",), "1", "call", RAW)
    journal.close()
    again = await journal_of(tmp_path, "two")
    assert {place.name: place.waiting for place in again.subscribers} == {"gone": 1}
    again.close()
    assert await ids(await journal_of(tmp_path, "three"), "gone") == ["1"]


async def test_a_number_never_comes_again(tmp_path: Path) -> None:
    """A cursor may stand in a segment that was in memory when the process was killed: numbers go on after it."""
    journal = await journal_of(tmp_path)
    place = journal.subscribe("a")
    journal.offer(("a",), "1", "call", RAW)
    journal.finish(place, [position for position, _ in await journal.read(place, 9, 1 << 20)])
    assert journal._folder is not None
    journal._folder.move_cursor("a", 900, 17)
    crash(journal)
    again = await journal_of(tmp_path, "two")
    again.subscribe("a")
    again.offer(("a",), "2", "call", RAW)
    again.flush()
    crash(again)
    assert await ids(await journal_of(tmp_path, "three"), "a") == ["2"]


async def test_others_cannot_read_it(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    journal = await journal_of(root)
    journal.subscribe("a")
    journal.offer(("a",), "1", "call", RAW)
    journal.refuse("a", "too large", RAW)
    journal.flush()
    for path in (root, *root.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.parametrize("wrong", ["file", "open"])
async def test_a_root_that_cannot_be_used_is_an_error_with_a_cure(tmp_path: Path, wrong: str) -> None:
    root = tmp_path / "spool"
    if wrong == "file":
        root.write_text("")
    else:
        root.mkdir()
        root.chmod(0o777)
    with pytest.raises(SetupError, match=r"spool.*TIANJI_SPOOL_DIR"):
        await journal_of(root)


async def test_an_entry_larger_than_a_piece_is_read(tmp_path: Path) -> None:
    journal = await journal_of(tmp_path)
    place = journal.subscribe("a")
    journal.offer(("a",), "big", "call", b"z" * (3 << 20))
    journal.offer(("a",), "small", "call", RAW)
    read = await journal.read(place, 9, 1 << 20)
    assert [(entry.record_id, len(entry.raw)) for _, entry in read] == [("big", 3 << 20)]
    assert await ids(journal, "a") == ["small"]


def test_a_short_write_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = FileSegment(tmp_path, 1)
    segment.append(b"whole")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
    with pytest.raises(Exception, match="full"):
        segment.append(b"cut off")
    assert segment.read(0, 100) == b"whole"
    segment.close()
