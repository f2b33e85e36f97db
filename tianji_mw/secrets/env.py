"""`env://NAME`: variables of the process. The value is read once for each time to live; a process cannot be told of a
change from outside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from tianji_mw.redact import Secret
from tianji_mw.secrets.base import SecretNotFound, SecretStore, SecretValue, text_of

if TYPE_CHECKING:
    from tianji_mw.secrets.reference import Reference


class Environment(SecretStore):
    """The environment, or the mapping that stands in for it."""

    name: str = "env"
    env: Mapping[str, str] | None = Field(default=None, repr=False, exclude=True)

    async def get(self, ref: Reference) -> SecretValue:
        if ref.version:
            raise SecretNotFound(f"{self.name}: {ref.path}: the environment keeps no versions")
        found = self._variables().get(ref.path)
        if found is None:
            raise SecretNotFound(f"{self.name}: the environment variable {ref.path} is not set")
        return SecretValue(value=Secret(text_of(found, f"{self.name}: {ref.path}", as_base64=ref.base64)))

    async def list(self, prefix: str = "") -> Sequence[str]:
        return sorted(name for name in self._variables() if name.startswith(prefix))[:1000]

    async def health(self) -> None:
        """Always well."""

    def _variables(self) -> Mapping[str, str]:
        return os.environ if self.env is None else self.env
