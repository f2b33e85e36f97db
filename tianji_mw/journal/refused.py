"""Records that no attempt will deliver, kept for people: `<root>/refused/<destination>.jsonl`, with the reason."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import orjson

FOLDER: Final = "refused"
#: Beyond it the file becomes `<destination>.jsonl.1`, and what that held is gone.
MAX_BYTES: Final = 16 << 20


def keep(root: Path, name: str, reason: str, raw: bytes) -> None:
    """Append one. Raises OSError."""
    folder = root / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}.jsonl"
    line = b'{"refused_at":%d,"reason":%b,"record":%b}\n' % (time.time(), orjson.dumps(reason), raw)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line)
        full = os.fstat(fd).st_size > MAX_BYTES
    finally:
        os.close(fd)
    if full:
        path.replace(path.with_suffix(".jsonl.1"))
