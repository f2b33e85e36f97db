"""`file:///run/secrets/name`: files, such as the secrets that Kubernetes mounts. Read again every other second, so that
a change of the mount is seen without a restart.

Kubernetes swaps a symbolic link when it changes a mounted secret; a read never sees half of one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from tianji_mw.redact import Secret
from tianji_mw.secrets.base import (
    BlockingStore,
    SecretDenied,
    SecretMalformed,
    SecretNotFound,
    SecretValue,
    StoreUnreachable,
    text_of,
)

if TYPE_CHECKING:
    from tianji_mw.secrets.reference import Reference

_MAX_BYTES: Final = 1 << 20


class Files(BlockingStore):
    """Files below `directory`, or anywhere by an absolute path when there is none."""

    name: str = "file"
    #: A path of the config stays inside of it.
    directory: Path | None = None
    cache_ttl: float = Field(default=2.0, ge=1.0, allow_inf_nan=False)

    def read(self, ref: Reference) -> SecretValue:
        where = f"{self.name}: {ref.path}"
        if ref.version:
            raise SecretNotFound(f"{where}: files keep no versions")
        path = self._path(ref.path)
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                raw = file.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise SecretNotFound(f"{where}: there is no such file") from None
        except (PermissionError, IsADirectoryError) as error:
            raise SecretDenied(f"{where}: the file cannot be read ({type(error).__name__})") from None
        except OSError as error:
            raise StoreUnreachable(f"{where}: the file cannot be read ({error.strerror})") from None
        if len(raw) > _MAX_BYTES:
            raise SecretMalformed(f"{where}: the file is larger than {_MAX_BYTES} bytes")
        text = text_of(raw, where, as_base64=ref.base64)
        return SecretValue(value=Secret(text), version=f"{stat.st_mtime_ns}-{stat.st_ino}")

    def names(self, prefix: str) -> Sequence[str]:
        base = self.directory or Path("/")
        start = self._path(prefix).parent if prefix and not prefix.endswith("/") else self._path(prefix or ".")
        if not start.is_dir():
            return []
        found = (str(path.relative_to(base) if self.directory else path) for path in start.iterdir() if path.is_file())
        return sorted(name for name in found if name.startswith(prefix))[:1000]

    def ask(self) -> None:
        """Whether the directory is there."""
        if self.directory is not None and not self.directory.is_dir():
            raise StoreUnreachable(f"{self.name}: the directory {self.directory} is not there")

    def _path(self, path: str) -> Path:
        if self.directory is None:
            return Path(path)
        return self.directory / path.lstrip("/")
