"""Outgoing HTTP for integrations (httpx): explicit deadlines, bounded answers, and a guard against internal addresses.

For upstream LLM traffic there is `upstream.py`. This and `transport.py` are the only files that name httpx.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx

from tianji_mw.errors import UpstreamError

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
    **options: Any,
) -> httpx.AsyncClient:
    """An httpx client with all four deadlines set, without redirects; `guard` refuses private and link-local hosts."""
    timeout = httpx.Timeout(timeout_s, connect=connect_s, pool=timeout_s)
    hooks = {"request": [_refuse_private]} if guard else {}
    return httpx.AsyncClient(
        timeout=timeout, headers=dict(headers or {}), follow_redirects=False, event_hooks=hooks, **options
    )


async def _refuse_private(request: httpx.Request) -> None:
    await check_public(str(request.url))


async def check_public(url: str) -> None:
    """Raise ForbiddenHost unless every address of the URL's host is public (no SSRF into the pod's network)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ForbiddenHost("Only http and https addresses with a host are allowed.")
    try:
        found = await anyio.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ForbiddenHost(f"The host '{parts.hostname}' cannot be resolved.") from error
    if not all_public(str(address[0]) for *_, address in found):
        raise ForbiddenHost(f"The host '{parts.hostname}' is inside a private network.")


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
