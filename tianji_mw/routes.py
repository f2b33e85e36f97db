"""Which requests are LLM requests: a security boundary, because what is not matched is not guarded.

A path is matched by its last segments, so that `root_path`, mounts and prefixes cannot hide a route, after the
normalisations that frameworks and proxies apply (empty segments, trailing slash, dot segments, percent-encoding,
parameters, case, absolute form). Matching too much is an error message; matching too little is a hole.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from tianji_mw.apis.base import Api

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

#: Where the first layer leaves its verdict for the inner ones: (path, root_path, api).
_MEMO: Final = "tianji_mw.route"
_ANY: Final = "{id}"

Segments = tuple[str, ...]


class Routes:
    """An immutable route table. Patterns are `*/a/b` (under any prefix) or `/a/b` (at the root of the app or mount).

    >>> from tianji_mw.apis import TEXT
    >>> Routes(TEXT).match({"method": "POST", "path": "/api/v1//chat/completions/", "root_path": ""}).name
    'chat_completions'
    """

    __slots__ = ("_entries", "_fixed", "_open", "_parents", "_roots", "_tails")

    def __init__(self, apis: Iterable[Api], *, extra: Iterable[tuple[str, Api]] = (), roots: Sequence[str] = ()) -> None:
        self._entries = [(path, api) for api in apis for path in api.paths] + list(extra)
        self._roots = {(), *(_segments(root) for root in roots)}
        self._fixed: dict[Segments, list[tuple[bool, Api]]] = {}
        self._open: list[tuple[Segments, bool, Api]] = []
        for pattern, api in self._entries:
            anywhere = pattern.startswith("*/")
            key = _segments(pattern.removeprefix("*"))
            if _ANY in key:
                self._open.append((key, anywhere, api))
            else:
                self._fixed.setdefault(key, []).append((anywhere, api))
        keys = [*self._fixed, *(key for key, _, _ in self._open)]
        self._tails = frozenset(key[-1] for key in keys)
        #: Segments that may stand before a free last segment.
        self._parents = frozenset(key[-2] for key in keys if key[-1] == _ANY)

    @classmethod
    def of(cls, paths: Sequence[str]) -> Routes:
        """The text APIs' routes, and further paths of the app: `"/path"` (chat completions) or `"api_name:/path"`."""
        from tianji_mw.apis import TEXT, by_name

        extra: list[tuple[str, Api]] = []
        for entry in paths:
            name, colon, path = entry.rpartition(":")
            extra.append((path if path.startswith("*") else f"*{path}", by_name(name if colon else "chat_completions")))
        return cls(TEXT, extra=extra)

    def seen_from(self, app: ASGIApp) -> Routes:
        """The same table, aware of root paths that the apps inside `app` strip only after the middleware has run."""
        roots: list[str] = []
        inner: object = app
        seen: set[int] = set()
        while inner is not None and id(inner) not in seen:
            seen.add(id(inner))
            root = getattr(inner, "root_path", "")
            if isinstance(root, str) and root.strip("/"):
                roots.append(root)
            inner = getattr(inner, "app", None)
        return Routes((), extra=self._entries, roots=roots) if roots else self

    def match(self, scope: Scope) -> Api | None:
        """The API of this request, or None."""
        path = scope["path"]
        memo = scope.get(_MEMO)
        if memo is not None and memo[0] is path and memo[1] == scope.get("root_path"):
            found: Api | None = memo[2]
            return found
        api = self._match(scope, path)
        scope[_MEMO] = (path, scope.get("root_path"), api)
        return api

    def _match(self, scope: Scope, path: str) -> Api | None:
        cut = path.rfind("/")
        tail = path[cut + 1 :]
        # A plain lower-case last segment that ends no route needs no closer look; anything odd gets one.
        if tail not in self._tails and tail.isalpha() and tail.islower():
            if path[path.rfind("/", 0, cut) + 1 : cut] not in self._parents:
                return None
        segments = _segments(normal(path))
        method = scope["method"]
        for start in range(max(0, len(segments) - 6), len(segments)):
            for anywhere, api in self._candidates(segments[start:]):
                if method in api.methods and (anywhere or self._at_root(segments[:start], scope)):
                    return api
        return None

    def _candidates(self, key: Segments) -> list[tuple[bool, Api]]:
        found = self._fixed.get(key)
        if found is not None:
            return found
        return [
            (anywhere, api)
            for pattern, anywhere, api in self._open
            if len(pattern) == len(key) and all(p in (_ANY, k) for p, k in zip(pattern, key, strict=True))
        ]

    def _at_root(self, prefix: Segments, scope: Scope) -> bool:
        mounted = _segments((scope.get("root_path") or "").lower())
        return prefix in self._roots or prefix == mounted or any(prefix == mounted + root for root in self._roots)


def _segments(path: str) -> Segments:
    return tuple(part for part in path.split("/") if part)


def normal(path: str) -> str:
    """The path as the most generous framework or proxy behind us might read it."""
    for _ in range(3):  # an encoded percent sign hides another round
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    if "://" in path[:16]:
        path = path.split("://", 1)[1].partition("/")[2]
    path = "/".join(segment.partition(";")[0].strip() for segment in path.replace("\\", "/").split("/"))
    return posixpath.normpath("/" + path).lower()
