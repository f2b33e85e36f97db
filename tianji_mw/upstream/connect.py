"""From a host and a port to a connection, perhaps with TLS: DNS with a short memory, happy eyeballs, verification.

It holds no connections and speaks no HTTP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

import aiohappyeyeballs

from tianji_mw.upstream.address import Origin

#: An address that did not answer for so long lets the next one try beside it (RFC 8305, section 5).
_EYEBALLS_S: Final = 0.25
#: A burst of new connections asks the resolver once; a name that moved is noticed after this.
_DNS_MEMORY_S: Final = 10.0

AddrInfo = tuple[int, int, int, str, Any]
P = TypeVar("P", bound=asyncio.BaseProtocol)


class Connector:
    """Opens connections. One instance serves all origins of a transport."""

    def __init__(self, ssl_context: ssl.SSLContext | bool = True) -> None:
        self._ssl = ssl_context
        self._context: asyncio.Future[ssl.SSLContext] | None = None
        self._known: dict[tuple[str, int], tuple[float, asyncio.Future[list[AddrInfo]]]] = {}

    async def open(self, origin: Origin, protocol: Callable[[socket.socket], P]) -> P:
        """A connected protocol; `protocol` is called with the socket. Raises OSError, ssl.SSLError included."""
        loop = asyncio.get_running_loop()
        context = await self._tls() if origin.tls else None
        addresses = await self._addresses(origin.host, origin.port)
        sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_EYEBALLS_S)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _, made = await loop.create_connection(
                lambda: protocol(sock),
                sock=sock,
                ssl=context,
                server_hostname=origin.host if context is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        return made

    async def _addresses(self, host: str, port: int) -> list[AddrInfo]:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            where: Any = (host, port, 0, 0) if address.version == 6 else (host, port)
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)]
        loop = asyncio.get_running_loop()
        asked_at, asking = self._known.get((host, port), (0.0, None))
        if asking is None or loop.time() - asked_at > _DNS_MEMORY_S or _failed(asking):
            asking = asyncio.ensure_future(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # type: ignore[arg-type]
            asking.add_done_callback(_failed)
            self._known[host, port] = loop.time(), asking
        # Shielded: whoever asked first may be cancelled without harm to the others.
        return await asyncio.shield(asking)

    async def _tls(self) -> ssl.SSLContext:
        if isinstance(self._ssl, ssl.SSLContext):
            return self._ssl
        if self._context is None:
            # Reading the authorities takes some 20 ms: not in the event loop.
            self._context = asyncio.get_running_loop().run_in_executor(None, make_context, self._ssl)
            self._context.add_done_callback(_failed)
        return await asyncio.shield(self._context)


def make_context(verify: bool) -> ssl.SSLContext:
    """A client's TLS context for HTTP/1.1; without `verify` anybody may answer in the upstream's name."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _failed(done: asyncio.Future[Any]) -> bool:
    """Whether it is over without a result. Reading the exception also marks it as seen, should nobody wait any more."""
    return done.done() and (done.cancelled() or done.exception() is not None)
