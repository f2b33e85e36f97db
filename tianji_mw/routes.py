"""Which requests are LLM requests: a security boundary, because what is not matched is not guarded.

A path is matched by its last segments, so that `root_path`, mounts and prefixes cannot hide a route, and in several
readings: as the frameworks route it (empty segments, trailing slash, absolute form, root path cut off) and as a more
generous proxy might (dot segments, percent-encoding, parameters, case, backslash). One reading that matches is enough:
matching too much is an error message; matching too little is a hole.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlparse

from tianji_mw.apis.base import Api
from tianji_mw.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

#: Where the first layer leaves what it found for the inner ones: (path, root_path, table, apis).
_MEMO: Final = "tianji_mw.route"
_ANY: Final = "{id}"
#: A path that every reading takes the same way.
_PLAIN: Final = re.compile(r"(?:/[a-z0-9_~-][a-z0-9_~.-]*)+")
#: Methods whose requests usually have no body, and then nothing to guard.
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})
#: Headers by which middlewares of the app may turn one method into another.
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})

Segments = tuple[str, ...]


class Routes:
    """An immutable route table. Patterns are `*/a/b` (under any prefix) or `/a/b` (at the root of the app or mount).

    `{name}` stands for one segment.

    >>> from tianji_mw.apis import TEXT
    >>> Routes(TEXT).match({"method": "POST", "path": "/api/v1//chat/completions/", "root_path": ""}).name
    'chat_completions'
    """

    __slots__ = ("_entries", "_fixed", "_key", "_longest", "_open", "_parents", "_roots", "_tails")

    def __init__(
        self, apis: Iterable[Api], *, extra: Iterable[tuple[str, Api]] = (), roots: Sequence[str] = ()
    ) -> None:
        self._entries = [(path, api) for api in apis for path in api.paths] + list(extra)
        self._roots = {(), *(_segments(normal(root)) for root in roots)}
        self._fixed: dict[Segments, list[tuple[bool, Api]]] = {}
        self._open: list[tuple[Segments, bool, Api]] = []
        for pattern, api in self._entries:
            anywhere = pattern.startswith("*/")
            key = _key_of(pattern)
            if _ANY in key:
                self._open.append((key, anywhere, api))
            else:
                self._fixed.setdefault(key, []).append((anywhere, api))
        keys = [*self._fixed, *(key for key, _, _ in self._open)]
        self._longest = max(map(len, keys), default=0)
        self._tails = frozenset(key[-1] for key in keys)
        #: Segments that may stand before a free last segment; None where such a segment is free itself.
        parents = {key[-2] if len(key) > 1 else _ANY for key in keys if key[-1] == _ANY}
        self._parents = None if _ANY in parents else frozenset(parents)
        # Equal tables have the same key object: layers compare it by identity.
        self._key = sys.intern(repr(([(path, api.name, id(api)) for path, api in self._entries], sorted(self._roots))))

    @classmethod
    def of(cls, paths: Sequence[str]) -> Routes:
        """The text APIs' routes, and further paths of the app: `"/path"` (chat completions) or `"api_name:/path"`."""
        from tianji_mw.apis import TEXT, by_name

        extra: list[tuple[str, Api]] = []
        for entry in paths:
            head, colon, rest = entry.partition(":")
            name, path = (head, rest) if colon and "/" not in head else ("chat_completions", entry)
            if not path.lstrip("*").startswith("/"):
                raise ConfigError(f"the route {entry!r} must be '/path' or 'api:/path'", key="routes")
            extra.append((path if path.startswith("*") else f"*{path}", by_name(name)))
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
        path, root = scope["path"], scope.get("root_path")
        memo = scope.get(_MEMO)
        # Valid for the same path, root and table only: a layer between may have rewritten them, or know more routes.
        if memo is not None and memo[0] is path and memo[1] == root and memo[2] is self._key:
            apis: Sequence[Api] = memo[3]
        else:
            apis = self._find(path, root or "")
            scope[_MEMO] = (path, root, self._key, apis)
        if not apis:
            return None
        method = scope["method"]
        for api in apis:
            if method in api.methods:
                return api
        return _other_method(apis, method.upper(), scope.get("headers", ()))

    def _find(self, path: str, root: str) -> Sequence[Api]:
        """The APIs of this path, whatever the method."""
        if self._plainly_foreign(path, root):
            return ()
        for segments, roots in self._readings(path, root):
            if found := self._look(segments, roots):
                return found
        return ()

    def _plainly_foreign(self, path: str, root: str) -> bool:
        """Whether a look at the last segment settles it: an ordinary path, and no route ends like this."""
        if self._parents is None or not _PLAIN.fullmatch(path) or (root and not path.startswith(f"{root}/")):
            return False
        cut = path.rfind("/")
        if path[cut + 1 :] in self._tails:
            return False
        return not self._parents or path[path.rfind("/", 0, cut) + 1 : cut] not in self._parents

    def _readings(self, path: str, root: str) -> Iterator[tuple[Segments, set[Segments]]]:
        """The ways in which somebody may read the path, and what may stand before a route at the root."""
        roots = self._roots
        if root:
            mounted = _segments(normal(root))
            roots = {*roots, mounted, *(mounted + inner for inner in roots)}
        # A `$` in a framework's pattern lets a line feed pass at the end.
        for whole in dict.fromkeys((path, path.removesuffix("\n"), _without_host(path))):
            yield _segments(whole.lower()), roots
            yield _segments(normal(whole)), roots
            if root and root in whole:
                # Litestar cuts the root path out wherever it stands; Django and Quart do not mind a segment's end.
                rest = whole.split(root, 1)[1]
                yield _segments(rest.lower()), self._roots
                yield _segments(normal(rest)), self._roots

    def _look(self, segments: Segments, roots: set[Segments]) -> Sequence[Api]:
        starts = range(max(0, len(segments) - self._longest), len(segments))
        for start in starts:
            found = self._fixed.get(segments[start:], ())
            if apis := [api for anywhere, api in found if anywhere or segments[:start] in roots]:
                return apis
        for start in starts if self._open else ():
            key, rooted = segments[start:], segments[:start] in roots
            found = [(a, api) for pattern, a, api in self._open if (a or rooted) and _fits(pattern, key)]
            if found:
                return [api for _, api in found]
        return ()


def _other_method(apis: Sequence[Api], method: str, headers: Iterable[tuple[bytes, bytes]]) -> Api | None:
    """The API for a method that is not its own: guarded where it brings a body, since an app may take any method."""
    for api in apis:
        if method in api.methods:
            return api
    if method not in _BODILESS:
        return apis[0]
    for name, value in headers:
        name = name.lower()
        if name == b"transfer-encoding" or name in _OVERRIDES or (name == b"content-length" and value.strip(b" 0")):
            return apis[0]
    return None


def _fits(pattern: Segments, key: Segments) -> bool:
    return len(pattern) == len(key) and all(p in (_ANY, k) for p, k in zip(pattern, key, strict=True))


def _key_of(pattern: str) -> Segments:
    """The segments of a pattern; any `{name}` is the same free segment."""
    key = tuple(_ANY if "{" in part else part.lower() for part in pattern.removeprefix("*").split("/") if part)
    if not key or ":path}" in pattern or "*" in pattern[1:]:
        reason = "it must name at least one segment, and {name} stands for one segment each"
        raise ConfigError(f"the route {pattern!r} cannot be matched: {reason}", key="routes")
    return key


def _segments(path: str) -> Segments:
    return tuple(part for part in path.split("/") if part)


def normal(path: str) -> str:
    """The path as the most generous framework or proxy behind us might read it."""
    for _ in range(3):  # an encoded percent sign hides another round
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    path = _without_host(path)
    for mark in "?#":
        path = path.partition(mark)[0]
    path = "/".join(segment.partition(";")[0].strip() for segment in path.replace("\\", "/").split("/"))
    return posixpath.normpath("/" + path.lstrip("/")).lower()


def _without_host(path: str) -> str:
    """The path of an absolute form (`http://host/path`), read with the same parser that Quart uses."""
    if path.startswith("/"):
        return path
    try:
        return urlparse(path).path
    except ValueError:  # a host that is none, such as `http://[/`
        return path
