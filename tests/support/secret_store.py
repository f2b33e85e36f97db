"""A secret store in memory that counts what it is asked, and fails when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import PrivateAttr

from tianji_mw.redact import Secret
from tianji_mw.secrets.base import SecretError, SecretNotFound, SecretStore, SecretValue, StoreUnreachable, text_of
from tianji_mw.secrets.reference import Reference
from tianji_mw.secrets.resolver import Resolver


class Memory(SecretStore):
    """`values` by path; `trouble` is raised instead of an answer."""

    name: str = "mem"
    _values: dict[str, str] = PrivateAttr(default_factory=dict)
    _expires: dict[str, float] = PrivateAttr(default_factory=dict)
    _asked: list[str] = PrivateAttr(default_factory=list)
    _trouble: Exception | None = PrivateAttr(default=None)
    _delay_s: float = PrivateAttr(default=0.0)

    async def get(self, ref: Reference) -> SecretValue:
        self._asked.append(ref.path)
        await asyncio.sleep(self._delay_s)
        if self._trouble is not None:
            raise self._trouble
        if ref.path not in self._values or ref.version:
            raise SecretNotFound(f"{self.name}: {ref.path}: no such secret")
        text = text_of(self._values[ref.path], f"{self.name}: {ref.path}")
        return SecretValue(value=Secret(text), expires=self._expires.get(ref.path))

    async def list(self, prefix: str = "") -> Sequence[str]:
        return sorted(path for path in self._values if path.startswith(prefix))

    async def health(self) -> float | None:
        if isinstance(self._trouble, SecretError):
            raise self._trouble
        return None


def memory(**values: str) -> Memory:
    """A store that holds these."""
    store = Memory()
    store._values.update(values)
    return store


def down(store: Memory) -> None:
    """From now on it cannot be reached."""
    store._trouble = StoreUnreachable(f"{store.name}: no answer")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def resolver_of(store: Memory, clock: Clock | None = None, **options: Any) -> Resolver:
    """A resolver over one store, on a clock of the test's."""
    clock = clock or Clock()
    return Resolver({store.name: store}, clock=clock, wall=clock, **options)
