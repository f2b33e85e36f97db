"""Pieces of the journal: append-only files, or blocks of memory where there is no disk. They know bytes, no entries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

_SUFFIX: Final = ".log"


class JournalFull(Exception):
    """There is no room for another entry."""


class Segment(Protocol):
    """One piece; `number` grows by time."""

    number: int
    size: int

    def append(self, data: bytes) -> None:
        """All of it at the end, or nothing. Raises JournalFull."""

    def read(self, at: int, size: int) -> bytes:
        """Up to `size` bytes from `at`."""

    def close(self) -> None: ...

    def delete(self) -> None:
        """Close it and give its room back."""


class FileSegment:
    """A file `<number>.log`. What was appended survives the death of the process, as the kernel holds it."""

    durable: Final = True

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / f"{number:016d}{_SUFFIX}"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise JournalFull(error.strerror or type(error).__name__) from error
        if written != len(data):
            os.ftruncate(self._fd, self.size)
            raise JournalFull("the disk is full")
        self.size += written

    def read(self, at: int, size: int) -> bytes:
        return os.pread(self._fd, size, at)

    def sync(self) -> None:
        """Have it on the disk itself, not only in the kernel's memory."""
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def delete(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


class MemorySegment:
    """A block of memory; it is gone with the process."""

    durable: Final = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        self._data += data
        self.size = len(self._data)

    def read(self, at: int, size: int) -> bytes:
        return bytes(self._data[at : at + size])

    def close(self) -> None:
        pass

    def delete(self) -> None:
        self._data = bytearray()


def numbers_in(folder: Path) -> list[int]:
    """Numbers of the segments in this folder, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())


def bytes_in(root: Path) -> int:
    """Bytes of all segments in all folders of `root`."""
    total = 0
    for path in root.glob(f"*/*{_SUFFIX}"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # another process has just deleted it
            continue
    return total
