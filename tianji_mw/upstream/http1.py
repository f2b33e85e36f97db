"""The lean HTTP/1.1 client: what every request of the hot path goes through.

A pool per origin, no work per request that could be done once per address or per set of headers. It follows no
redirects, keeps no cookies, decompresses nothing and reads no `~/.netrc`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from tianji_mw.errors import UpstreamUnreachable
from tianji_mw.upstream.address import Address, Origin, address_of
from tianji_mw.upstream.answer import Answer
from tianji_mw.upstream.base import RawHeaders, TransportOptions, UpstreamRequest, fault
from tianji_mw.upstream.connect import Connector
from tianji_mw.upstream.pool import Pool

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection"})
#: Addresses and sets of headers that are remembered; a client's ids in paths must not fill the memory.
_REMEMBERED: Final = 1_000
#: Methods whose requests announce no length when they have no body (RFC 9110, section 8.6).
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class Target:
    """An address: its pool, and the request heads that were made for it."""

    __slots__ = ("_address", "_heads", "pool")

    def __init__(self, pool: Pool, address: Address) -> None:
        self.pool = pool
        self._address = address
        # By the identity of the headers, which the entry keeps alive: making the key costs no look at their text.
        self._heads: dict[tuple[str, int], tuple[RawHeaders, bytes]] = {}

    def head(self, request: UpstreamRequest) -> bytes:
        """Request line and headers, without framing and the blank line. Raises UpstreamUnreachable."""
        headers = request.headers
        found = self._heads.get((request.method, id(headers)))
        if found is not None:
            return found[1]
        address = self._address
        lines = [f"{request.method} {address.target} HTTP/1.1"]
        names = {name.lower() for name, _ in headers}
        if "host" not in names:
            lines.append(f"host: {address.host}")
        if address.auth and "authorization" not in names:
            lines.append(f"authorization: {address.auth}")
        for name, value in headers:
            if not _TOKEN.fullmatch(name) or _FORBIDDEN.search(value):
                raise fault(UpstreamUnreachable, request.url, "cannot be asked: a header holds a line end or is none")
            if name.lower() not in _FRAMING:
                lines.append(f"{name}: {value}")
        head = _encode("\r\n".join(lines)) + b"\r\n"
        if isinstance(headers, tuple):  # a list may be changed by whoever holds it
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            self._heads[request.method, id(headers)] = headers, head
        return head


class Http1Transport:
    """The Transport over plain asyncio and llhttp."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        self._options = options or TransportOptions()
        self._connector = Connector(self._options.ssl_context)
        self._pools: dict[Origin, Pool] = {}
        self._targets: dict[str, Target] = {}

    async def send(self, request: UpstreamRequest) -> Answer:
        """The answer's head. Raises UpstreamUnreachable, UpstreamTimeout, UpstreamMalformed."""
        url, limits, body = request.url, request.deadlines, request.body
        target = self._targets.get(url) or self._target(url)
        head = target.head(request)
        pool = target.pool
        connection = pool.take()
        if connection is not None:
            began = connection.loop.time()
        else:
            began = asyncio.get_running_loop().time()
            connection = await pool.open(url, limits)
        answer = Answer(connection, url, limits, began, bodiless=request.method == "HEAD")
        due = answer.total_at
        if isinstance(body, bytes):
            if limits.first_byte_s is not None:
                due = min(due, began + limits.first_byte_s)
            framed = b"%bcontent-length: %d\r\n\r\n" % (head, len(body))
            if not body and request.method in _BODILESS:
                framed = head + b"\r\n"
            connection.ask(answer, framed, body, limits, chunked=False)
        else:
            length = _length(request.headers)
            framing = b"transfer-encoding: chunked\r\n\r\n" if length < 0 else b"content-length: %d\r\n\r\n" % length
            connection.ask(answer, head + framing, body, limits, chunked=length < 0)
        await answer.head(due)
        return answer

    def _target(self, url: str) -> Target:
        address = address_of(url)
        target = Target(self._pool(address.origin), address)
        if len(self._targets) >= _REMEMBERED:
            self._targets.clear()
        self._targets[url] = target
        return target

    def _pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self._connector, self._options)
        return pool

    async def aclose(self) -> None:
        """End all connections."""
        for pool in self._pools.values():
            pool.close()
        # Transports close in the loop's next turns.
        for _ in range(2):
            await asyncio.sleep(0)


def _encode(text: str) -> bytes:
    """Latin-1, as headers come from clients; what it cannot say is the operator's own, and goes out as UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _length(headers: RawHeaders) -> int:
    """The length that the headers announce for a body that streams; -1 where they announce none."""
    for name, value in headers:
        if name.lower() == "content-length" and value.isdecimal() and len(value) <= 18:
            return int(value)
    return -1
