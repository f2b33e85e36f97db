"""The Transport over aiohttp's client: for requests that go through a proxy of the environment."""

from __future__ import annotations

import asyncio
from typing import Any

from tianji_mw.errors import UpstreamMalformed, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.upstream.address import clean
from tianji_mw.upstream.base import (
    HEAD_LIMIT,
    READ_AHEAD,
    Deadlines,
    TransportOptions,
    UpstreamRequest,
    UpstreamResponse,
    fault,
    read_whole,
    reason,
    sooner,
)
from tianji_mw.upstream.proxies import Proxies


class AiohttpTransport:
    """Keep-alive pool per origin, TLS verification, proxies of the environment."""

    def __init__(self, options: TransportOptions | None = None, proxies: Proxies | None = None) -> None:
        self._options = options or TransportOptions()
        self._session: Any = None
        self._proxies = proxies or Proxies(trust_env=self._options.trust_env)

    def _open(self) -> Any:
        import aiohttp

        options = self._options
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=options.max_connections or 0,
            ssl=options.ssl_context,
            keepalive_timeout=options.keep_alive_s,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_AHEAD,
            max_line_size=HEAD_LIMIT,
            max_field_size=HEAD_LIMIT,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        return self._session

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        import aiohttp
        from yarl import URL

        session = self._session or self._open()
        limits = request.deadlines
        timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect_s, sock_connect=None, sock_read=None)
        where = request.url
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(sooner(limits.first_byte_s, limits.total_s)):
                response = await session.request(
                    request.method,
                    # A URL that is clean as it stands goes out as it stands: what was judged is what is sent.
                    URL(request.url, encoded=clean(request.url)),
                    data=request.body or None,
                    headers=request.headers,
                    timeout=timeout,
                    allow_redirects=False,
                    proxy=self._proxies.of(request.url) if self._proxies else None,
                )
        except aiohttp.ConnectionTimeoutError:
            raise fault(UpstreamTimeout, where, f"took no connection within {limits.connect_s:g} s") from None
        except TimeoutError:
            seconds = sooner(limits.first_byte_s, limits.total_s) or 0.0
            which = "total" if seconds == limits.total_s else "first-byte"
            raise fault(UpstreamTimeout, where, f"sent no answer within {seconds:g} s ({which} limit)") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise fault(UpstreamUnreachable, where, "has an address that no request can be sent to") from None
        except aiohttp.ClientHttpProxyError as error:
            what = f"is behind a proxy that refused to connect to it ({error.status})"
            raise fault(UpstreamUnreachable, where, what) from None
        except aiohttp.ClientResponseError as error:
            # The text of this error quotes the upstream's bytes, which may echo a key.
            raise fault(UpstreamMalformed, where, f"sent an answer that is not HTTP ({type(error).__name__})") from None
        except (aiohttp.ClientError, OSError) as error:
            raise fault(UpstreamUnreachable, where, f"is not reachable ({reason(error)})") from None
        except ValueError:
            raise fault(UpstreamUnreachable, where, "cannot be asked: a header holds a line end") from None
        return _AiohttpResponse(response, limits, where, began)

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
        patience: float | None = None
        try:
            # What already lies in the buffer costs no timer.
            if content.at_eof():
                data = b""
            elif content._buffer:
                data = content.read_nowait(-1)
            else:
                patience = self._patience()
                async with asyncio.timeout(patience):
                    data = await content.readany()
        except TimeoutError:
            self.close()
            raise fault(UpstreamTimeout, self._where, self._lateness(patience)) from None
        except (aiohttp.ClientError, OSError) as error:
            self.close()
            raise fault(UpstreamTruncated, self._where, f"broke off in its answer ({reason(error)})") from None
        if not data:
            self._ended = True
        return data

    def _lateness(self, patience: float | None) -> str:
        # By which was the sooner: timers of some loops fire a moment before their time.
        if self._deadline is not None and patience != self._limits.between_bytes_s:
            return f"did not finish within {self._limits.total_s:g} s (total limit)"
        return f"sent nothing for {self._limits.between_bytes_s or 0:g} s (between-bytes limit)"

    def _patience(self) -> float | None:
        if self._deadline is None:
            return self._limits.between_bytes_s
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        return sooner(self._limits.between_bytes_s, left)

    async def read(self, limit: int) -> bytes:
        return await read_whole(self, self._where, limit)

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._response.close()
