"""A callback of your own, outside the package: one class, one method.

In YAML: `callbacks: ["examples.plugins.tokens_by_model:TokensByModel"]`, its settings under `callback_settings`.
"""

from collections.abc import Sequence
from pathlib import Path

from tianji_mw import Callback, Record


class TokensByModel(Callback):
    """One line per call in a file. Batches, retries, the spool and counters are not its work."""

    path: Path = Path("tokens.txt")

    async def write(self, batch: Sequence[Record]) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{record.data['model']} {record.data['total_tokens']}\n" for record in batch)
