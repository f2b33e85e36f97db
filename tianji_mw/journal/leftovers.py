"""What processes that have ended left in the spool: the first folder is gone on with, the others are carried over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tianji_mw.journal.entries import PREFIX, Entry
from tianji_mw.journal.folder import Folder, claim, prepare
from tianji_mw.journal.journal import Journal
from tianji_mw.journal.places import Held, Position
from tianji_mw.journal.segments import FileSegment, numbers_in

log = logging.getLogger("tianji_mw.journal")

#: Entries that are carried over before other tasks get their turn.
_CARRY: Final = 256
_START: Final = Position(0, 0)


async def take(journal: Journal, root: Path, name: str) -> None:
    """Give the journal its folder under `root`: one that has no owner, or a new one of this name.

    Raises SetupError where the root cannot be used.
    """
    prepare(root)
    found = claim(root, name)
    first = next(found)
    held, after = await asyncio.to_thread(_recover, journal, first)
    journal.begin(first, held, after)
    if first.path.name == name:
        return
    for folder in found:
        left = folder.path.name == name
        try:
            if not left:
                await _carry(journal, folder)
            folder.release(empty=True)
        except OSError as error:
            log.error("the spool folder %s cannot be carried over: %s", folder.path, error.strerror)
            folder.release(empty=False)


def _recover(journal: Journal, folder: Folder) -> tuple[list[Held], int]:
    """The folder's segments with what each destination has not finished, and the highest number in use."""
    cursors = {name: Position(*at) for name, at in folder.cursors().items()}
    found = []
    for number in numbers_in(folder.path):
        held = Held(FileSegment(folder.path, number))
        for entry in _all(journal, held):
            for name in _unfinished(entry, number, cursors):
                subscriber = journal.subscribe(name)
                held.add(name, 1, len(entry.raw))
                subscriber.waiting += 1
                subscriber.waiting_bytes += len(entry.raw)
        found.append(held)
    for name, position in cursors.items():
        journal.subscribe(name).read_at = position
    # Of a segment that was in memory only the cursor has remained; its number must not come again.
    after = max([0, *(held.segment.number for held in found), *(position.segment for position in cursors.values())])
    return found, after


def _unfinished(entry: Entry, number: int, cursors: dict[str, Position]) -> list[str]:
    place = Position(number, entry.start)
    return [name for name in entry.targets.decode("utf-8", "replace").split(",") if place >= cursors.get(name, _START)]


def _all(journal: Journal, held: Held) -> Iterator[Entry]:
    """Every entry of a segment that can be read."""
    at = 0
    while at + PREFIX <= held.segment.size:
        entry = None
        for entry in journal.entries(held, at):
            yield entry
        if entry is None:
            return
        at = entry.end


async def _carry(journal: Journal, folder: Folder) -> None:
    """Offer what is unfinished anew, and delete each segment when its records are written down in ours."""
    cursors = {name: Position(*at) for name, at in folder.cursors().items()}
    for number in numbers_in(folder.path):
        held = Held(FileSegment(folder.path, number))
        for at, entry in enumerate(_all(journal, held)):
            names = tuple(_unfinished(entry, number, cursors))
            for name in names:
                journal.subscribe(name)
            if names:
                journal.offer(names, entry.record_id, entry.kind, entry.raw)
            if at % _CARRY == 0:
                journal.flush()
                await asyncio.sleep(0)
        journal.flush()
        held.segment.delete()
