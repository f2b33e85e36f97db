"""Outgoing HTTP for integrations (httpx): explicit deadlines, bounded answers, and a guard against internal addresses.

For upstream LLM traffic there is `upstream/`. Only this, `transport.py` and `upstream/http2.py` name httpx.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx

from tianji_mw.errors import UpstreamError, UpstreamMalformed

#: What calls of a `client` raise, for integrations that must tell a silent service from a wrong answer.
HTTPError: Final = httpx.HTTPError
TimeoutException: Final = httpx.TimeoutException
BROKEN: Final = (httpx.NetworkError, httpx.RemoteProtocolError)

#: Largest answer that an integration reads.
MAX_BYTES: Final = 16 << 20


class ForbiddenHost(UpstreamError):
    """The address is inside a network that a request must not reach."""


def client(
    *,
    timeout_s: float = 10.0,
    connect_s: float = 3.0,
    headers: Mapping[str, str] | None = None,
    guard: bool = False,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> httpx.AsyncClient:
    """An httpx client with all four deadlines set, bounded answers and no redirects.

    `guard` refuses hosts in private networks, and connects to the very address that was judged.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout_s, connect=connect_s, pool=timeout_s),
        headers=dict(headers or {}),
        follow_redirects=False,
        transport=_Bounded(guard=guard, max_bytes=max_bytes),
        **options,
    )


class _Bounded(httpx.AsyncHTTPTransport):
    """Counts what an answer holds; with `guard`, pins the connection to a checked address (no DNS rebinding)."""

    def __init__(self, *, guard: bool, max_bytes: int) -> None:
        super().__init__()
        self._guard = guard
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._guard:
            host = request.url.host
            address = await check_public(str(request.url))
            # The name stays in the Host header and in the certificate check.
            request.extensions = {**request.extensions, "sni_hostname": host}
            request.url = request.url.copy_with(host=address)
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Counted(response.stream, self._max_bytes)
        return response


class _Counted(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise UpstreamMalformed("An integration's answer is larger than its limit.")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def check_public(url: str) -> str:
    """An address of the URL's host. Raises ForbiddenHost unless all are public: no SSRF into the pod's network."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ForbiddenHost("Only http and https addresses with a host are allowed.")
    try:
        found = await anyio.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ForbiddenHost(f"The host '{parts.hostname}' cannot be resolved.") from error
    addresses = [str(address[0]) for *_, address in found]
    if not all_public(addresses):
        raise ForbiddenHost(f"The host '{parts.hostname}' is inside a private network.")
    return addresses[0]


def all_public(addresses: Iterable[str]) -> bool:
    """Whether all addresses are public, seen through IPv6 transition forms (mapped, 6to4, NAT64, Teredo)."""
    return all(_public(ipaddress.ip_address(address.partition("%")[0])) for address in addresses)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def _public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _public(inner)
    return address.is_global and not address.is_multicast
