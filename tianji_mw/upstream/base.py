"""What every transport promises: one request out, the answer's head back, its body chunk by chunk under deadlines."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from tianji_mw import redact
from tianji_mw.errors import UpstreamError, UpstreamMalformed

log = logging.getLogger("tianji_mw.upstream")

RawHeaders = Sequence[tuple[str, str]]

#: The largest head of an answer, in bytes, and the most headers it may hold.
HEAD_LIMIT: Final = 64 << 10
HEADERS_LIMIT: Final = 512
#: Bytes read ahead from an upstream while a slow client takes its time; above it the socket is not read.
READ_AHEAD: Final = 64 << 10


@dataclass(slots=True, frozen=True, kw_only=True)
class Deadlines:
    """Seconds. `first_byte` and `total` run from the start of the attempt; `None` means no limit.

    `first_byte` of a body that streams through runs from the end of its upload; `between_bytes` bounds the upload too.
    """

    connect_s: float = 10.0
    first_byte_s: float | None = 600.0
    between_bytes_s: float | None = 120.0
    total_s: float | None = None


@dataclass(slots=True, frozen=True, kw_only=True)
class TransportOptions:
    """What an operator may set for all connections to upstreams."""

    #: True checks certificates against the system's authorities, False checks nothing; or a context of one's own.
    ssl_context: ssl.SSLContext | bool = True
    #: Open connections to one origin; a request above it waits, `connect_s` at most. None: no limit.
    max_connections: int | None = 2_000
    #: An idle connection is used again for so long, less where the upstream asks for less (`keep-alive: timeout=`).
    keep_alive_s: float = 30.0
    #: Whether `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` of the environment hold.
    trust_env: bool = True
    #: HTTP/2 for https upstreams that offer it. Needs the extra `http2`.
    http2: bool = False


@dataclass(slots=True)
class UpstreamRequest:
    """One request, ready to be sent. `body` is bytes, or an iterator for bodies that stream through unread.

    A sequence of headers that is used for many requests should be one tuple: transports keep what they made of it.
    """

    method: str
    url: str
    headers: RawHeaders
    body: bytes | AsyncIterator[bytes] = b""
    deadlines: Deadlines = Deadlines()

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.method} {redact.url(self.url)})"


class UpstreamResponse(Protocol):
    """The head of an answer, and its body in the pieces in which it arrives."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Header pairs as received, names in lower case."""
        ...

    async def chunk(self) -> bytes:
        """The next bytes as soon as there are any; `b""` at the end.

        Raises UpstreamTimeout (between bytes, total), UpstreamTruncated when the body stops before its end.
        """
        ...

    async def read(self, limit: int) -> bytes:
        """The whole rest of the body. Raises UpstreamMalformed above `limit` bytes."""
        ...

    def close(self) -> None:
        """Give the exchange up; an unfinished one closes its connection. Safe to call twice."""
        ...


class Transport(Protocol):
    """Sends requests. One instance serves all calls of a process."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """The answer's head. Raises UpstreamUnreachable, UpstreamTimeout, UpstreamMalformed."""
        ...

    async def aclose(self) -> None: ...


async def read_whole(response: UpstreamResponse, url: str, limit: int) -> bytes:
    """`read`, made of `chunk`."""
    parts: list[bytes] = []
    size = 0
    while data := await response.chunk():
        size += len(data)
        if size > limit:
            response.close()
            raise fault(UpstreamMalformed, url, f"sent an answer larger than {limit} bytes")
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sooner(a: float | None, b: float | None) -> float | None:
    """The smaller of two limits, of which each may be none."""
    return b if a is None else a if b is None else min(a, b)


E = TypeVar("E", bound=UpstreamError)


def fault(kind: type[E], url: str, what: str) -> E:
    """The error for clients, without the address; the operator's log gets it with the address."""
    log.warning("%s %s", redact.url(url), what)
    return kind(f"The provider {what}.")


def reason(error: BaseException) -> str:
    """What went wrong, in words of ours or of the operating system: other texts quote addresses, or what was sent."""
    for found in (error, error.__cause__):
        if isinstance(found, socket.gaierror):
            return f"{type(error).__name__}: {found.strerror}"
        if isinstance(found, OSError) and found.errno:
            return f"{type(error).__name__}: {os.strerror(found.errno)}"
    return type(error).__name__
