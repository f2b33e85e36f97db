"""Which requests are LLM requests: a security boundary, because what is not matched is not guarded.

A path is matched by its last segments, so that `root_path`, mounts and prefixes cannot hide a route, and in several
readings: as the frameworks route it (empty segments, trailing slash, absolute form, root path cut off) and as a more
generous proxy might (dot segments, percent-encoding, parameters, case, backslash). One reading that matches is enough:
matching too much is an error message; matching too little is a hole.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlparse

from tianji_mw.apis.base import Api
from tianji_mw.call import CALL_KEY
from tianji_mw.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

    from tianji_mw.call import Call

#: Paths whose answer is remembered: their length, and how many of them.
_LONGEST_KNOWN: Final = 200
_MOST_KNOWN: Final = 1_000
_ANY: Final = "{id}"
#: A path that every reading takes the same way.
_PLAIN: Final = re.compile(r"(?:/[a-z0-9_~-][a-z0-9_~.-]*)+")
#: Methods whose requests usually have no body, and then nothing to guard.
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})
#: Headers by which middlewares of the app may turn one method into another.
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})

#: Mounts in mounts in mounts are looked into so far.
_DEEPEST: Final = 8

Segments = tuple[str, ...]


class Routes:
    """An immutable route table. Patterns are `*/a/b` (under any prefix) or `/a/b` (at the root of the app or mount).

    `{name}` stands for one segment. A table made by `of` learns from the others: it takes in what the gateways and
    layers inside of the app serve, mounted ones with their prefix, and every call that an outer layer has opened. So
    nobody has to declare a route twice, and none is served unguarded. A table made here holds what it is given.

    >>> from tianji_mw.apis import TEXT
    >>> Routes(TEXT).match({"method": "POST", "path": "/api/v1//chat/completions/", "root_path": ""}).name
    'chat_completions'
    """

    __slots__ = ("_adopts", "_app", "_entries", "_fixed", "_known", "_longest", "_open", "_parents", "_roots", "_tails")

    def __init__(
        self, apis: Iterable[Api], *, extra: Iterable[tuple[str, Api]] = (), roots: Sequence[str] = ()
    ) -> None:
        self._roots = {(), *(_segments(normal(root)) for root in roots)}
        self._adopts = False
        #: The app whose own routes have still to be taken in: at the first request, when all mounts are made.
        self._app: object = None
        self._index([(path, api) for api in apis for path in api.paths] + list(extra))

    def _index(self, entries: list[tuple[str, Api]]) -> None:
        self._entries = entries
        self._known: dict[tuple[str, str | None], Sequence[Api]] = {}
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
        table = cls(TEXT, extra=extra)
        table._adopts = True
        return table

    def seen_from(self, app: ASGIApp) -> Routes:
        """The same table, aware of root paths that the apps inside `app` strip only after the middleware has run."""
        roots = [root for layer in _chain(app) if (root := _root_path(layer))]
        if not roots and not self._adopts:
            return self
        seen = Routes((), extra=self._entries, roots=roots)
        seen._adopts, seen._app = self._adopts, app if self._adopts else None
        return seen

    def _adopt(self) -> None:
        app, self._app = self._app, None
        own = set(self._entries)
        if more := [entry for entry in dict.fromkeys(_served_in(app)) if entry not in own]:
            self._index(self._entries + more)

    def match(self, scope: Scope) -> Api | None:
        """The API of this request, or None."""
        if self._app is not None:
            self._adopt()
        path, root = scope["path"], scope.get("root_path")
        apis = self._known.get((path, root))
        if apis is None:
            apis = self._find(path, root or "")
            self._remember(path, root, apis)
        if not apis:
            # Another layer knows better: what it takes for an LLM request is one for all.
            call: Call | None = scope.get(CALL_KEY) if self._adopts else None
            return call.api if call is not None else None
        method = scope["method"]
        for api in apis:
            if method in api.methods:
                return api
        return _other_method(apis, method.upper(), scope)

    def _remember(self, path: str, root: str | None, apis: Sequence[Api]) -> None:
        """Keep an answer; few and short paths only, so that clients cannot fill the memory."""
        if len(path) <= _LONGEST_KNOWN:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[path, root] = apis

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


def _chain(app: object) -> Iterator[object]:
    """The app and what it wraps, as far as `.app` attributes lead."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        yield app
        app = getattr(app, "app", None)


def _root_path(app: object) -> str:
    root = getattr(app, "root_path", "")
    return root if isinstance(root, str) and root.strip("/") else ""


def _served_in(app: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Api]]:
    """The routes of our layers inside of `app`, also of those mounted in a Starlette or FastAPI app."""
    for layer in _chain(app):
        routes = getattr(layer, "routes", None)
        if isinstance(routes, Routes):
            yield from ((path if path.startswith("*/") else prefix + path, api) for path, api in routes._entries)
        elif isinstance(routes, list) and depth < _DEEPEST:
            for route in routes:
                if (mounted := getattr(route, "app", None)) is not None:
                    yield from _served_in(mounted, prefix + _mount_path(route), depth + 1)


def _mount_path(route: object) -> str:
    path = getattr(route, "path", "")
    return path.rstrip("/") if isinstance(path, str) else ""


def _other_method(apis: Sequence[Api], method: str, scope: Scope) -> Api | None:
    """The API for a method that is not its own: guarded where it brings a body, since an app may take any method."""
    headers: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())
    for api in apis:
        if method in api.methods:
            return api
    if method not in _BODILESS:
        return apis[0]
    if not scope.get("http_version", "1.1").startswith("1"):
        # From HTTP/2 on a body needs no header. Only a browser's preflight is let through unasked.
        preflight = method == "OPTIONS" and any(k.lower() == b"access-control-request-method" for k, _ in headers)
        return None if preflight else apis[0]
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
