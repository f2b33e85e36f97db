"""An upstream whose every connection is one coroutine of the test's, and what tests of the lean client share."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from tianji_mw.upstream import Deadlines, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TcpServer:
    """Runs `handler` per connection, closes the connection after it, and counts."""

    def __init__(
        self, handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, limit: int = 65536
    ) -> None:
        self._handler, self._host, self._tls, self._limit = handler, host, tls, limit
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.open = 0
        #: The most connections that were open at the same time.
        self.most = 0

    async def __aenter__(self) -> TcpServer:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls, limit=self._limit)
        self.port: int = self._server.sockets[0].getsockname()[1]
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{'https' if self._tls else 'http'}://{shown}:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._run(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self._handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            self.open -= 1
            writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """One request's head; its body, if any, is left to the handler."""
    return await reader.readuntil(b"\r\n\r\n")


async def read_request(reader: asyncio.StreamReader) -> str:
    """The path of one request whose body is `{}` or nothing."""
    head = await read_head(reader)
    if b"content-length: 2" in head:
        await reader.readexactly(2)
    return head.split(b" ", 2)[1].decode()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close by a TCP reset: SO_LINGER with zero seconds."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def ask(
    transport: Http1Transport, url: str, body: Any = b"{}", *, method: str = "POST", headers: Any = (), **limits: Any
) -> bytes:
    """The body of one whole exchange."""
    response = await transport.send(UpstreamRequest(method, url, headers, body, Deadlines(**limits)))
    try:
        return await response.read(64 << 20)
    finally:
        response.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)
