"""Secrets that change: a `LiveSecret` shows the value as its store last gave it, to whoever holds it.

Deployments, headers and logins keep one for good; a rotation reaches all of them at once, and reading it costs an
attribute. The values live in an `Entry`, one for each secret of a store, whatever number of fields are used of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tianji_mw.errors import UpstreamError
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import SecretError, SecretValue, field_of

if TYPE_CHECKING:
    from tianji_mw.secrets.base import SecretStore
    from tianji_mw.secrets.reference import Reference
    from tianji_mw.secrets.resolver import Resolver

#: Former values that are still masked where texts are shown: calls that went out with them may be answered late.
_FORMER: Final = 8


class SecretUnavailable(UpstreamError):
    """A call needs a credential that could not be had yet. What exactly is missing is in the log and in `doctor`."""

    status = 503
    code = "secret_unavailable"


class Entry:
    """One secret of one store, whole, with the handles that show parts of it."""

    __slots__ = (
        "due", "error", "failures", "fetched", "handles", "ref", "store", "task", "ttl_s", "vain",
        "vain_until", "value",
    )  # fmt: skip

    def __init__(self, store: SecretStore, ref: Reference) -> None:
        self.store = store
        self.ref = ref
        self.ttl_s = ref.ttl_s or store.cache_ttl
        self.handles: list[LiveSecret] = []
        self.value: SecretValue | None = None
        #: Unix seconds of the last answer of the store; 0 for none.
        self.fetched = 0.0
        #: Monotonic seconds of the next question.
        self.due = 0.0
        self.error: SecretError | None = None
        #: Questions in a row that failed; renewals in a row that changed nothing, and until when none is tried.
        self.failures = self.vain = 0
        self.vain_until = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def where(self) -> str:
        return f"{self.store.name}: {self.ref.path}"

    def take(self, value: SecretValue) -> None:
        """Show a new value in all handles. One that cannot show it keeps what it has, and says why in its `error`."""
        self.value = value
        self.error = None
        for handle in self.handles:
            handle.take(value)
            self.error = self.error or handle.error

    def void(self) -> None:
        """Forget the value: it is too old to be used."""
        self.value = None
        for handle in self.handles:
            handle.hide()


class LiveSecret(Secret):
    """A secret of a store. Two of them are equal when they are the same one: their values change."""

    __slots__ = ("_former", "_resolver", "entry", "error", "ref")

    def __init__(self, entry: Entry, ref: Reference, resolver: Resolver) -> None:
        super().__init__("")
        self.entry = entry
        self.ref = ref
        self._resolver = resolver
        self._former: tuple[str, ...] = ()
        #: Why the secret, which its store gave, has no such field or no text in it.
        self.error: SecretError | None = None

    def reveal(self) -> str:
        """The value as it is known now. Raises SecretUnavailable while there is none."""
        if not self._value:
            raise SecretUnavailable("A credential that this call needs is not available yet; try again in a moment.")
        return self._value

    def values(self) -> tuple[str, ...]:
        return (self._value, *self._former) if self._value else self._former

    @property
    def ready(self) -> bool:
        return bool(self._value)

    @property
    def changes(self) -> bool:
        return True

    async def renew(self) -> bool:
        return await self._resolver.renew(self.entry)

    def take(self, value: SecretValue) -> None:
        """Show what a new value of the whole secret holds for this handle."""
        try:
            text = field_of(value, self.ref, self.entry.where)
        except SecretError as error:
            self.error = error
            return
        self.error = None
        if text != self._value:
            self.hide()
            self._value = text

    def hide(self) -> None:
        """Be without a value."""
        if self._value:
            self._former = (self._value, *self._former)[:_FORMER]
            self._value = ""

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


class Composed(Secret):
    """Text around secrets, such as `Bearer os.environ/KEY`; changes with them."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[str | Secret, ...]) -> None:
        super().__init__("")
        self._parts = parts

    def reveal(self) -> str:
        return "".join(part if isinstance(part, str) else part.reveal() for part in self._parts)

    def values(self) -> tuple[str, ...]:
        return tuple(value for part in self._parts if isinstance(part, Secret) for value in part.values())

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self._parts if isinstance(part, Secret))

    @property
    def changes(self) -> bool:
        return True

    async def renew(self) -> bool:
        parts = [part for part in self._parts if isinstance(part, Secret)]
        return any(await asyncio.gather(*(part.renew() for part in parts)))

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__
