"""The headers of a request: starlette's `Headers` with one dict behind the look-ups, which every layer makes."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from starlette.datastructures import Headers


class RequestHeaders(Headers):
    """Immutable. Of a header that stands twice, `get` gives the first and `getlist` all, as in starlette.

    >>> RequestHeaders([(b"x-a", b"1"), (b"x-a", b"2")])["X-A"]
    '1'
    """

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._list = raw
        self._first = dict(reversed(raw))

    def get(self, key: str, default: Any = None) -> Any:
        value = self._first.get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __getitem__(self, key: str) -> str:
        return self._first[key.lower().encode("latin-1")].decode("latin-1")

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower().encode("latin-1") in self._first

    def isdisjoint(self, names: Set[bytes]) -> bool:
        """Whether none of these names (lower case, as bytes) is among them."""
        return names.isdisjoint(self._first)
