"""Which transport serves a request: the lean client, unless a proxy of the environment or HTTP/2 is asked for."""

from __future__ import annotations

from tianji_mw.upstream.base import Transport, TransportOptions, UpstreamRequest, UpstreamResponse
from tianji_mw.upstream.http1 import Http1Transport
from tianji_mw.upstream.proxies import Proxies


def transport_of(options: TransportOptions | None = None) -> Transport:
    """The transport for these options and this environment. Raises MissingExtra when HTTP/2 is not installed."""
    options = options or TransportOptions()
    lean = Http1Transport(options)
    proxies = Proxies(trust_env=options.trust_env)
    if not options.http2 and not proxies:
        return lean
    return ChoosingTransport(lean, options, proxies)


class ChoosingTransport:
    """Sends each request through the transport that its address asks for."""

    def __init__(self, lean: Transport, options: TransportOptions, proxies: Proxies) -> None:
        self._lean = lean
        self._options = options
        self._proxies = proxies
        self._proxied: Transport | None = None
        self._http2: Transport | None = None
        if options.http2:
            from tianji_mw.upstream.http2 import Http2Transport

            self._http2 = Http2Transport(options)

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        return await self._for(request.url).send(request)

    def _for(self, url: str) -> Transport:
        if self._proxies.of(url):
            if self._proxied is None:
                from tianji_mw.upstream.aiohttp import AiohttpTransport

                self._proxied = AiohttpTransport(self._options, self._proxies)
            return self._proxied
        return self._http2 if self._http2 is not None and url.startswith("https:") else self._lean

    async def aclose(self) -> None:
        """Close them all."""
        for transport in (self._http2, self._proxied, self._lean):
            if transport is not None:
                await transport.aclose()
