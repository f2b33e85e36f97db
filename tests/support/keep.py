"""A destination that keeps what it gets, for tests: a callback of the user's own, found by its dotted path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tianji_mw.callbacks.base import Callback, NotDelivered, Record


class Keep(Callback):
    """Appends each record to a file, one per line; with a `gate`, only while that file exists.

    `apart`: to a file of its own, beside that one.
    """

    path: Path
    gate: Path | None = None
    apart: bool = False
    flush_interval_s: float = 0.05

    async def write(self, batch: Sequence[Record]) -> None:
        if self.gate is not None and not self.gate.exists():
            raise NotDelivered("the gate is closed")
        if self.apart:
            for record in batch:
                self.path.with_name(f"kept-{record.id}.json").write_bytes(record.raw)
            return
        with self.path.open("ab") as file:
            file.writelines(record.raw + b"\n" for record in batch)
