"""The `SecretStore` protocol: what a place that keeps secrets must be able to do. One file of this folder per store.

A store reads; it keeps nothing. Caching, single flight, rotation and the last good value are the resolver's work.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from tianji_mw.errors import UnresolvedReference
from tianji_mw.hush import THREADS
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.secrets.reference import Reference

T = TypeVar("T")

_THREADS: Final = 8


class SecretError(UnresolvedReference):
    """A secret cannot be had. `message` is for the operator: it names store and path, and never holds a value."""

    #: One word for health and metrics.
    reason: ClassVar[str] = "error"
    #: Whether another attempt in a moment may succeed, so that the last good value is used meanwhile.
    passing: ClassVar[bool] = False


class SecretNotFound(SecretError):
    """No such secret, version or field; also a version that was disabled or destroyed."""

    reason = "not_found"


class SecretDenied(SecretError):
    """The store refused who we are, or what we may read."""

    reason = "denied"


class NotAllowed(SecretDenied):
    """The store knows who we are, and does not let us do this. A login that may read but not list is well."""


class SecretMalformed(SecretError):
    """What the store gave is empty, not text, or not the JSON that a `#field` needs."""

    reason = "malformed"


class StoreMisconfigured(SecretError):
    """A setting of the store is missing or wrong."""

    reason = "misconfigured"


class StoreUnreachable(SecretError):
    """The store did not answer, failed, is sealed, or asked to be left alone for a while."""

    reason = "unreachable"
    passing = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValue:
    """One secret as its store holds it, whole. The resolver takes fields out of it."""

    value: Secret
    #: Of the store; empty where it counts none. The same version means the same value.
    version: str = ""
    #: Unix seconds after which the value is void; None when the store sets no end.
    expires: float | None = None
    #: Names of the fields in `value` when the store keeps a map (Vault): then `value` is its JSON.
    mapping: bool = False


class SecretStore(BaseModel):
    """Base of all stores. Fields are the settings; construction does nothing.

    `get` may be called from several event loops, one after the other: a store that is asynchronous by itself keeps no
    connection between calls. Stores over a blocking SDK use `BlockingStore`.

    >>> class Memory(SecretStore):
    ...     async def get(self, ref): return SecretValue(value=Secret("sk-1"))
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    #: Environment variables that fill a field which the config leaves out, in this order.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Fields that say who we are. The environment fills none of them when the config sets one: a login of the config
    #: is not mixed with another.
    login_fields: ClassVar[frozenset[str]] = frozenset()
    #: LiteLLM's and other names of our fields.
    aliases: ClassVar[Mapping[str, str]] = {}

    #: Its name in `secret_managers`; the kind where it has none.
    name: str = ""
    #: Seconds that a value counts as fresh; the config's `cache_ttl`.
    cache_ttl: float = Field(default=86_400.0, ge=1.0, allow_inf_nan=False)
    #: Seconds for one question to the store.
    timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)

    async def get(self, ref: Reference) -> SecretValue:
        """The secret at `ref.path`. Raises a SecretError."""
        raise NotImplementedError

    async def list(self, prefix: str = "") -> Sequence[str]:
        """Paths that begin with `prefix`, at most 1,000. Raises a SecretError."""
        raise NotImplementedError

    async def health(self) -> float | None:
        """Ask the cheapest question. Returns the seconds until our login ends, None when it does not.

        Raises a SecretError when the store cannot be used.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close what was opened."""

    def path_of(self, name: str) -> Reference:
        """Where a bare `os.environ/NAME` lies when this store is the default one."""
        from tianji_mw.secrets.reference import Reference

        return Reference(store=self.name, path=name)


class BlockingStore(SecretStore):
    """A store over a blocking SDK: subclasses write `read`, `names` and `ask`, which run in threads of their own."""

    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)

    def read(self, ref: Reference) -> SecretValue:
        """`get`, blocking."""
        raise NotImplementedError

    def names(self, prefix: str) -> Sequence[str]:
        """`list`, blocking."""
        raise NotImplementedError

    def ask(self) -> float | None:
        """`health`, blocking."""
        raise NotImplementedError

    async def get(self, ref: Reference) -> SecretValue:
        return await self._in_thread(lambda: self.read(ref))

    async def list(self, prefix: str = "") -> Sequence[str]:
        return await self._in_thread(lambda: self.names(prefix))

    async def health(self) -> float | None:
        return await self._in_thread(self.ask)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"{THREADS}-{self.name}")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def aclose(self) -> None:
        if self._pool is not None:
            # Not waited for: a thread in a question that nobody reads any more ends by its timeout.
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def text_of(value: str | bytes, where: str, *, as_base64: bool = False) -> str:
    """A payload as text, without the one line end that editors and command lines add.

    Raises SecretMalformed, naming `where`, for bytes that are no UTF-8 unless base64 was asked for.
    """
    if isinstance(value, bytes):
        if as_base64:
            return base64.b64encode(value).decode()
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise SecretMalformed(f"{where}: the secret is binary; add ?encoding=base64 to the reference") from None
    elif as_base64:
        return base64.b64encode(value.encode()).decode()
    return value.removesuffix("\n").removesuffix("\r")


def field_of(found: SecretValue, ref: Reference, where: str) -> str:
    """The text that `ref` asks for. Raises SecretMalformed or SecretNotFound, naming `where`.

    Without a field, a map gives its `key`, else its `value`, else its only field.
    """
    raw = found.value.reveal()
    if not ref.field and not found.mapping:
        text = raw
    else:
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise SecretMalformed(f"{where}: the secret is no JSON object, so it has no field '{ref.field}'")
        text = _text(_field(data, ref.field, where), where, ref.field)
    if not text.strip():
        raise SecretMalformed(f"{where}: the secret is empty")
    return text


def _field(data: Mapping[str, Any], name: str, where: str) -> Any:
    if not name:
        name = next((n for n in ("key", "value") if n in data), "") or (next(iter(data)) if len(data) == 1 else "")
        if not name:
            raise SecretMalformed(f"{where}: the secret has {len(data)} fields; choose one by adding #field")
    if name not in data:
        raise SecretNotFound(f"{where}: the secret has no field '{name}'")
    return data[name]


def _text(value: Any, where: str, name: str) -> str:
    if isinstance(value, str):
        return value.removesuffix("\n").removesuffix("\r")
    if isinstance(value, bool | None):
        raise SecretMalformed(f"{where}: the field '{name}' is {'null' if value is None else 'true/false'}, not text")
    return orjson.dumps(value).decode()
