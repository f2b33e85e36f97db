"""Keys from the config: the master key and virtual keys, kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from starlette.datastructures import Headers

from tianji_mw.errors import ConfigError
from tianji_mw.identity.base import Identity
from tianji_mw.redact import Secret

log = logging.getLogger("tianji_mw.identity")

#: Headers that may carry the key, in the order in which they are asked.
KEY_HEADERS: Final = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key")


@dataclass(slots=True, frozen=True, kw_only=True)
class VirtualKey:
    """One key and whom it stands for. `expires` is in Unix seconds; None never expires."""

    identity: Identity
    expires: float | None = None
    #: The key itself where it comes from a secret manager, and may change there; `identity.key_hash` follows it.
    live: Secret | None = None


class Keys:
    """The `Identifier` over a fixed set of keys.

    >>> keys = Keys(master_key=Secret("sk-master"))
    """

    __slots__ = ("_by_hash", "_headers", "_live", "_shown", "_static", "_wall")

    def __init__(
        self,
        *,
        master_key: Secret | None = None,
        virtual_keys: Sequence[VirtualKey] = (),
        header_name: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wall = wall
        self._headers = (header_name.lower(), *KEY_HEADERS) if header_name else KEY_HEADERS
        keys = list(virtual_keys)
        if master_key is not None:
            hashed = "" if master_key.changes else digest(master_key.reveal())
            master = Identity(key_hash=hashed, alias="master", admin=True)
            keys.append(VirtualKey(identity=master, live=master_key))
        #: Keys that may change while we serve, and the values of them that are in the table.
        self._live = [key for key in keys if key.live is not None and key.live.changes]
        self._shown = self._values()
        self._static = [key for key in keys if key not in self._live]
        self._by_hash, twice = self._table()
        if twice:
            raise ConfigError(f"two virtual keys have the same value ({twice[0]})", key="virtual_keys")

    def _values(self) -> list[str]:
        return [key.live.reveal() if key.live is not None and key.live.ready else "" for key in self._live]

    def _table(self) -> tuple[dict[str, VirtualKey], list[str]]:
        """All keys by hash, and the aliases of those whose value another one has. One without a value opens nothing."""
        table: dict[str, VirtualKey] = {}
        changing = [
            replace(key, identity=replace(key.identity, key_hash=digest(value)))
            for key, value in zip(self._live, self._shown, strict=True)
            if value
        ]
        twice = [
            key.identity.alias or "no alias"
            for key in (*self._static, *changing)
            if table.setdefault(key.identity.key_hash, key) is not key
        ]
        return table, twice

    def _follow(self) -> None:
        """Take over keys that their secret manager has changed."""
        shown = self._values()
        if shown != self._shown:
            self._shown = shown
            self._by_hash, twice = self._table()
            for alias in twice:
                log.error("the key '%s' was changed to the value of another key and is not accepted", alias)

    def __bool__(self) -> bool:
        return bool(self._by_hash or self._live)

    async def identify(self, headers: Headers) -> Identity | None:
        """The caller behind the first key that the headers carry."""
        if self._live:
            self._follow()
        key = self._key(headers)
        # The work is the same with and without a key, and for known, unknown and expired ones.
        hashed = digest(key)
        found = self._by_hash.get(hashed)
        stored = found.identity.key_hash if found is not None else "0" * 64
        same = hmac.compare_digest(stored, hashed)
        if found is None or not same or not key:
            return None
        expired = found.expires is not None and found.expires <= self._wall()
        return None if expired else found.identity

    def _key(self, headers: Headers) -> str:
        for name in self._headers:
            if value := headers.get(name):
                scheme, _, rest = value.partition(" ")
                return rest.strip() if rest and scheme.lower() == "bearer" else value
        return ""


def digest(key: str) -> str:
    """SHA-256 in hex, LiteLLM's way of keeping keys: existing hashes go on working."""
    return hashlib.sha256(key.encode()).hexdigest()
