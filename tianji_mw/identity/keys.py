"""Keys from the config: the master key and virtual keys, kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from starlette.datastructures import Headers

from tianji_mw.errors import ConfigError
from tianji_mw.identity.base import Identity
from tianji_mw.redact import Secret

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

    __slots__ = ("_by_hash", "_headers", "_live", "_wall")

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
        self._by_hash: dict[str, VirtualKey] = {}
        #: Keys that may change, with the value that is in the table now.
        self._live: list[tuple[VirtualKey, str]] = []
        for key in virtual_keys:
            if key.live is not None:
                self._live.append((key, ""))
                continue
            if key.identity.key_hash in self._by_hash:
                raise ConfigError(
                    f"two virtual keys have the same value ({key.identity.alias or 'no alias'})", key="virtual_keys"
                )
            self._by_hash[key.identity.key_hash] = key
        if master_key is not None:
            master = VirtualKey(identity=Identity(key_hash="", alias="master", admin=True), live=master_key)
            self._live.append((master, ""))
        self._follow()

    def _follow(self) -> None:
        """Take over keys that their secret manager has changed. One without a value opens nothing."""
        for index, (key, known) in enumerate(self._live):
            assert key.live is not None
            value = key.live.reveal() if key.live.ready else ""
            if value == known:
                continue
            if known:
                self._by_hash.pop(digest(known), None)
            if value:
                hashed = digest(value)
                self._by_hash[hashed] = replace(key, identity=replace(key.identity, key_hash=hashed))
            self._live[index] = (key, value)

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
