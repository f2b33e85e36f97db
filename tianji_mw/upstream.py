"""Outgoing HTTP for the hot path: the small `Transport` protocol, and its implementation over aiohttp.

A transport sends one request and hands back an answer whose body is read chunk by chunk under deadlines. It knows
nothing of LLMs; retries and error texts for clients are made elsewhere. Redirects are never followed: no upstream may
move a request that carries a key to another host.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from tianji_mw import redact
from tianji_mw.errors import UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable

log = logging.getLogger("tianji_mw.upstream")

RawHeaders = Sequence[tuple[str, str]]


@dataclass(slots=True, frozen=True, kw_only=True)
class Deadlines:
    """Seconds. `first_byte` and `total` run from the start of the attempt; `None` means no limit."""

    connect_s: float = 10.0
    first_byte_s: float | None = 600.0
    between_bytes_s: float | None = 120.0
    total_s: float | None = None


@dataclass(slots=True, frozen=True)
class UpstreamRequest:
    """One request, ready to be sent. `body` is bytes, or an iterator for bodies that stream through unread."""

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


_CLEAN_URL: Final = re.compile(r"https?://[!-~]+")
_HEAD_LIMIT: Final = 64 << 10
#: Bytes read ahead from an upstream while a slow client takes its time (aiohttp pauses reading at twice this).
_READ_AHEAD: Final = 64 << 10


class AiohttpTransport:
    """The Transport over aiohttp's client: keep-alive pool per origin, TLS verification, proxies of the environment."""

    def __init__(self, *, ssl_context: ssl.SSLContext | bool = True, limit: int = 0, trust_env: bool = True) -> None:
        self._ssl = ssl_context
        self._limit = limit
        self._trust_env = trust_env
        self._session: Any = None
        self._proxies: dict[str, str] = {}

    def _open(self) -> Any:
        import aiohttp

        # Read once: aiohttp's own `trust_env` asks a thread for proxies and for ~/.netrc at every request, and a netrc
        # entry would put its credentials in the place of ours.
        self._proxies = urllib.request.getproxies() if self._trust_env else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, ssl=self._ssl, keepalive_timeout=30),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_AHEAD,
            max_line_size=_HEAD_LIMIT,
            max_field_size=_HEAD_LIMIT,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        return self._session

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        import aiohttp
        from yarl import URL

        session = self._session or self._open()
        limits = request.deadlines
        timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect_s, sock_connect=None, sock_read=None)
        where = redact.url(request.url)  # for the operator's log alone: a client learns no address
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_sooner(limits.first_byte_s, limits.total_s)):
                response = await session.request(
                    request.method,
                    # A URL that is clean as it stands goes out as it stands: what was judged is what is sent.
                    URL(request.url, encoded=_CLEAN_URL.fullmatch(request.url) is not None),
                    data=request.body or None,
                    headers=request.headers,
                    timeout=timeout,
                    allow_redirects=False,
                    proxy=self._proxy(request.url) if self._proxies else None,
                )
        except aiohttp.ConnectionTimeoutError:
            raise _fault(UpstreamTimeout, where, f"took no connection within {limits.connect_s:g} s") from None
        except TimeoutError:
            seconds = _sooner(limits.first_byte_s, limits.total_s) or 0.0
            which = "total" if seconds == limits.total_s else "first-byte"
            raise _fault(UpstreamTimeout, where, f"sent no answer within {seconds:g} s ({which} limit)") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise _fault(UpstreamUnreachable, where, "has an address that no request can be sent to") from None
        except aiohttp.ClientResponseError as error:
            # The text of this error quotes the upstream's bytes, which may echo a key.
            raise _fault(
                UpstreamMalformed, where, f"sent an answer that is not HTTP ({type(error).__name__})"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _fault(UpstreamUnreachable, where, f"is not reachable ({_reason(error)})") from None
        except ValueError:
            raise _fault(UpstreamUnreachable, where, "cannot be asked: a header holds a line end") from None
        return _AiohttpResponse(response, limits, where, began)

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme)
        if proxy is None or (parts.hostname and urllib.request.proxy_bypass(parts.hostname)):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class _AiohttpResponse:
    __slots__ = ("_content", "_deadline", "_ended", "_limits", "_response", "_where", "headers", "status")

    def __init__(self, response: Any, limits: Deadlines, where: str, began: float) -> None:
        self._response = response
        self._content = response.content
        self._limits = limits
        self._where = where
        self._ended = False
        self._deadline = None if limits.total_s is None else began + limits.total_s
        self.status: int = response.status
        self.headers: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in response.raw_headers]

    async def chunk(self) -> bytes:
        import aiohttp

        content = self._content
        data: bytes
        try:
            # What already lies in the buffer costs no timer.
            if content.at_eof():
                data = b""
            elif content._buffer:
                data = content.read_nowait(-1)
            else:
                async with asyncio.timeout(self._patience()):
                    data = await content.readany()
        except TimeoutError:
            self.close()
            raise _fault(UpstreamTimeout, self._where, self._lateness()) from None
        except (aiohttp.ClientError, OSError) as error:
            self.close()
            raise _fault(UpstreamTruncated, self._where, f"broke off in its answer ({_reason(error)})") from None
        if not data:
            self._ended = True
        return data

    def _lateness(self) -> str:
        if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
            return f"did not finish within {self._limits.total_s:g} s (total limit)"
        return f"sent nothing for {self._limits.between_bytes_s or 0:g} s (between-bytes limit)"

    def _patience(self) -> float | None:
        if self._deadline is None:
            return self._limits.between_bytes_s
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        return _sooner(self._limits.between_bytes_s, left)

    async def read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while data := await self.chunk():
            size += len(data)
            if size > limit:
                self.close()
                raise _fault(UpstreamMalformed, self._where, f"sent an answer larger than {limit} bytes")
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._response.close()


def _sooner(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


E = TypeVar("E", bound=UpstreamError)


def _fault(kind: type[E], where: str, what: str) -> E:
    """The error for clients, without the address; the log gets it with the address."""
    log.warning("%s %s", where, what)
    return kind(f"The provider {what}.")


def _reason(error: BaseException) -> str:
    """What went wrong, in words of ours or of the operating system: other texts quote addresses, or what was sent."""
    for found in (error, error.__cause__):
        if isinstance(found, socket.gaierror):
            return f"{type(error).__name__}: {found.strerror}"
        if isinstance(found, OSError) and found.errno:
            return f"{type(error).__name__}: {os.strerror(found.errno)}"
    return type(error).__name__
