"""The Transport over httpx with HTTP/2, for https upstreams: many exchanges share a connection.

A server that offers no HTTP/2 is spoken to in HTTP/1.1. It costs more per request than the lean client: it is for
upstreams that limit connections. Proxies have their own transport.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tianji_mw.errors import (
    MissingExtra,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from tianji_mw.upstream.address import address_of
from tianji_mw.upstream.base import HEADERS_LIMIT, TransportOptions, UpstreamRequest, fault, read_whole, reason, sooner
from tianji_mw.upstream.connect import make_context


class Http2Transport:
    """Raises MissingExtra where `h2` is not installed."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        try:
            import h2  # noqa: F401
        except ImportError:
            raise MissingExtra("h2", "http2") from None
        self._options = options or TransportOptions()
        self._client: httpx.AsyncHTTPTransport | None = None

    def _open(self) -> httpx.AsyncHTTPTransport:
        options = self._options
        given = options.ssl_context
        limits = httpx.Limits(
            max_connections=options.max_connections,
            max_keepalive_connections=options.max_connections,
            keepalive_expiry=options.keep_alive_s,
        )
        context = given if isinstance(given, ssl.SSLContext) else make_context(given)
        self._client = httpx.AsyncHTTPTransport(verify=context, http2=True, limits=limits, trust_env=False)
        return self._client

    async def send(self, request: UpstreamRequest) -> _Http2Response:
        """The answer's head. Raises UpstreamUnreachable, UpstreamTimeout, UpstreamMalformed."""
        client = self._client or self._open()
        limits, url = request.deadlines, request.url
        began = asyncio.get_running_loop().time()
        whole = sooner(limits.first_byte_s, limits.total_s)
        try:
            made = _request(request)
            async with asyncio.timeout(whole):
                response = await client.handle_async_request(made)
        except (httpx.ConnectTimeout, httpx.PoolTimeout):
            raise fault(UpstreamTimeout, url, f"took no connection within {limits.connect_s:g} s") from None
        except TimeoutError:
            which = "total" if whole == limits.total_s else "first-byte"
            raise fault(UpstreamTimeout, url, f"sent no answer within {whole or 0:g} s ({which} limit)") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise fault(UpstreamUnreachable, url, "has an address that no request can be sent to") from None
        except httpx.LocalProtocolError:
            raise fault(UpstreamUnreachable, url, "cannot be asked: a header holds a line end or is none") from None
        except httpx.RemoteProtocolError as error:
            raise fault(UpstreamMalformed, url, f"sent an answer that is not HTTP ({type(error).__name__})") from None
        except (httpx.TransportError, OSError) as error:
            raise fault(UpstreamUnreachable, url, f"is not reachable ({reason(error)})") from None
        if len(response.headers) > HEADERS_LIMIT:
            await response.aclose()
            raise fault(UpstreamMalformed, url, "sent a head that is too large")
        return _Http2Response(response, request, began)

    async def aclose(self) -> None:
        """End all connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _request(request: UpstreamRequest) -> httpx.Request:
    address, limits = address_of(request.url), request.deadlines
    headers = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in request.headers
    ]
    if address.auth and not any(name.lower() == b"authorization" for name, _ in headers):
        headers.append((b"authorization", address.auth.encode()))
    return httpx.Request(
        request.method,
        f"{'https' if address.origin.tls else 'http'}://{address.host}",
        headers=headers,
        content=request.body or None,
        extensions={
            "target": address.target.encode("ascii"),  # httpx would write some paths anew
            "timeout": {"connect": limits.connect_s, "pool": limits.connect_s},
        },
    )


class _Http2Response:
    __slots__ = ("_closing", "_deadline", "_ended", "_limits", "_parts", "_response", "_url", "headers", "status")

    def __init__(self, response: httpx.Response, request: UpstreamRequest, began: float) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        self._response = response
        self._limits = request.deadlines
        self._url = request.url
        self._deadline = None if self._limits.total_s is None else began + self._limits.total_s
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._parts: AsyncIterator[bytes] = aiter(response.stream)
        self._ended = False
        self._closing: asyncio.Task[Any] | None = None

    async def chunk(self) -> bytes:
        """The next bytes; `b""` at the end."""
        if self._ended:
            return b""
        between, loop = self._limits.between_bytes_s, asyncio.get_running_loop()
        left = None if self._deadline is None else max(0.0, self._deadline - loop.time())
        try:
            async with asyncio.timeout(sooner(between, left)):
                while not (data := await anext(self._parts, b"")):
                    self._ended = True
                    await self._response.aclose()
                    return b""
                return data
        except TimeoutError:
            self.close()
            total = self._deadline is not None and loop.time() >= self._deadline
            what = (
                f"did not finish within {self._limits.total_s or 0:g} s (total limit)"
                if total
                else f"sent nothing for {between or 0:g} s (between-bytes limit)"
            )
            raise fault(UpstreamTimeout, self._url, what) from None
        except (httpx.TransportError, httpx.StreamError, OSError) as error:
            self.close()
            raise fault(UpstreamTruncated, self._url, f"broke off in its answer ({reason(error)})") from None

    async def read(self, limit: int) -> bytes:
        """The rest of the body."""
        return await read_whole(self, self._url, limit)

    def close(self) -> None:
        """Give the exchange up."""
        if not self._ended:
            self._ended = True
            self._closing = asyncio.ensure_future(self._response.aclose())  # kept: a task nobody holds may vanish
