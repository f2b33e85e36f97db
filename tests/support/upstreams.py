"""What lies on the way to an upstream, on loopback: a TLS server, proxies, servers with HTTP/2."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event

from tests.support.loopback import Loopback
from tianji_mw.upstream import TransportOptions


class TLSServer:
    """Answers every connection once, with 200 and `body`. Its name is `host`, wherever it is reached."""

    def __init__(self, host: str = "localhost", *, body: bytes = b"ok", ca: trustme.CA | None = None) -> None:
        self.ca = ca or trustme.CA()
        self.heads: list[bytes] = []
        self._body = body
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(host).configure_cert(self._context)

    async def __aenter__(self) -> TLSServer:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._context)
        self.url = f"https://localhost:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        writer.write(head % len(self._body) + self._body)
        await writer.drain()
        writer.close()

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


class ConnectProxy:
    """A proxy that knows CONNECT alone, and notes where it was asked to connect to.

    With `user` it asks for that `name:password`; with `ca` it is itself reached over TLS, as `localhost`.
    """

    def __init__(self, *, user: str = "", ca: trustme.CA | None = None) -> None:
        self.asked: list[str] = []
        self._user, self._context = user, None
        if ca is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert("localhost").configure_cert(self._context)

    async def __aenter__(self) -> ConnectProxy:
        self._tasks: list[asyncio.Task[None]] = []
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"https://localhost:{self.port}" if self._context else f"http://127.0.0.1:{self.port}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        where = head.split(b" ")[1].decode()
        self.asked.append(where)
        if self._user and b"basic " + base64.b64encode(self._user.encode()).lower() not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            writer.close()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", int(where.rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        for source, sink in ((reader, to_writer), (to_reader, writer)):
            self._tasks.append(asyncio.ensure_future(_pipe(source, sink)))

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


class H2Server:
    """A hypercorn with TLS in a process of its own; `alpn` is what it offers."""

    def __init__(self, alpn: str, tmp_path: Path) -> None:
        self.ca = trustme.CA()
        self._alpn = alpn
        self._pem, self._key = tmp_path / "cert.pem", tmp_path / "key.pem"

    async def __aenter__(self) -> H2Server:
        issued = self.ca.issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(self._pem))
        issued.private_key_pem.write_to_path(str(self._key))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        script = Path(__file__).parent / "h2_server.py"
        words = [script, str(port), self._pem, self._key, self._alpn]
        self._process = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=asyncio.subprocess.DEVNULL)
        self.url = f"https://localhost:{port}"
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        return self

    async def __aexit__(self, *exc: object) -> None:
        # Asked politely it waits 30 s for the end of TLS on connections that clients keep idle.
        self._process.kill()
        await self._process.wait()

    def options(self) -> TransportOptions:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return TransportOptions(ssl_context=context, http2=True)


class H2Script(Loopback):
    """A server that speaks nothing but HTTP/2, event by event.

    `on` gets each event of `h2` with the connection it came on; what it makes the connection say is sent after it. It
    returns True to end the connection.
    """

    def __init__(self, on: Callable[[H2Connection, Event], bool | None]) -> None:
        self.ca = trustme.CA()
        self.connections = 0
        self.events: list[Event] = []
        self._on = on
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        self.ca.issue_cert("localhost").configure_cert(self._context)

    async def __aenter__(self) -> Self:
        self.url = f"https://localhost:{await self._listen(self._context)}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        h2 = H2Connection(H2Configuration(client_side=False))
        h2.initiate_connection()
        try:
            writer.write(h2.data_to_send())
            while data := await reader.read(65536):
                for event in h2.receive_data(data):
                    self.events.append(event)
                    ends = self._on(h2, event)
                    writer.write(h2.data_to_send())
                    if ends:
                        return
                await writer.drain()
        except OSError:
            pass  # the client has left
        finally:
            writer.transport.abort()

    def options(self, **more: Any) -> TransportOptions:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return TransportOptions(ssl_context=context, http2=True, **more)
