"""Who owns which folder of the spool: each process one of its own, held by a lock that ends with the process.

`<root>/<name>/` has `lock`, segments and one `<destination>.at` for each destination. A folder whose lock is free
belonged to a process that has ended; whoever starts next takes it over. POSIX only.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tianji_mw.errors import SetupError

_LOCK: Final = "lock"
_CURSOR: Final = ".at"


class Folder:
    """One folder, locked by this process until `release`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._cursors: dict[str, int] = {}

    def cursors(self) -> dict[str, tuple[int, int]]:
        """Destination -> segment and byte before which it needs nothing any more."""
        found = {}
        for path in self.path.glob(f"*{_CURSOR}"):
            segment, _, at = path.read_text("ascii", "replace").partition(" ")
            if segment.strip().isdecimal() and at.strip().isdecimal():
                found[path.name.removesuffix(_CURSOR)] = int(segment), int(at)
        return found

    def move_cursor(self, name: str, segment: int, at: int) -> None:
        """Remember it. One small write at one place: it is there in full or not at all after a crash."""
        fd = self._cursors.get(name)
        if fd is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            fd = self._cursors[name] = os.open(self.path / f"{name}{_CURSOR}", flags, 0o600)
        os.pwrite(fd, b"%016d %016d\n" % (segment, at), 0)

    def release(self, *, empty: bool) -> None:
        """Give the lock back; an `empty` folder is deleted."""
        for fd in self._cursors.values():
            os.close(fd)
        self._cursors.clear()
        if empty:
            for path in self.path.iterdir():
                path.unlink(missing_ok=True)
            self.path.rmdir()
        os.close(self._lock)


def prepare(root: Path) -> None:
    """Make the root. Raises SetupError, with the cure, where it cannot be used."""
    if sys.platform == "win32":
        raise SetupError("a spool folder needs a POSIX system; set spool_dir: memory")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
    except OSError as error:
        raise SetupError(f"the spool folder {root} cannot be made: {error.strerror}; {_CURE}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise SetupError(f"the spool folder {root} is no folder; {_CURE}")
    if found.st_mode & stat.S_IWOTH:
        raise SetupError(
            f"the spool folder {root} can be written by everybody: take that right away (chmod o-w), {_CURE}"
        )
    if not os.access(root, os.W_OK | os.X_OK):
        raise SetupError(f"the spool folder {root} cannot be written; {_CURE}")


_CURE: Final = "set spool_dir or TIANJI_SPOOL_DIR to a folder of this user"


def claim(root: Path, new: str) -> Iterator[Folder]:
    """The folders without an owner, then a `new` one of this name; each is locked when it is given."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and (path / _LOCK).exists() and (lock := _lock(path)) is not None:
            yield Folder(path, lock)
    path = root / new
    path.mkdir(mode=0o700)
    lock = _lock(path)
    if lock is None:
        raise SetupError(f"the spool folder {path} is locked by another process")
    yield Folder(path, lock)


def _lock(path: Path) -> int | None:
    import fcntl

    try:
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None  # deleted by its owner meanwhile
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    # Its owner may have deleted the folder between the opening and the lock.
    if not (path / _LOCK).exists():
        os.close(fd)
        return None
    return fd
