"""One request and its answer on a connection: uvicorn's cycle, with a send that tells the app when nobody listens.

It parses nothing and keeps no deadlines; both are the protocol's.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

log = logging.getLogger("tianji_mw.sidecar")


class ClientGone(ConnectionError):
    """`send` after the client left. An OSError, as ASGI 2.4 asks for.

    The scope still announces 2.3: Starlette then also listens for the disconnect, so that a stream whose upstream is
    silent is cancelled at once and not at its next chunk.
    """


class Output:
    """A connection's way out: puts the head of an answer and the body that follows at once into one write.

    Apart they are two system calls and two packets, about 5 us of the 30 a small answer costs. A head with no body
    behind it leaves at the end of the loop's turn, so that a stream whose first token takes long shows its status.
    """

    __slots__ = ("_head", "_holding", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._holding = False
        self.is_closing = transport.is_closing

    def hold(self) -> None:
        """The next write is a head."""
        self._holding = True

    def write(self, data: bytes) -> None:
        if self._holding:
            self._holding = False
            self._head = data
            self._loop.call_soon(self.flush)
        elif self._head:
            data, self._head = self._head + data, b""
            self._transport.write(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write a head that still waits for its body."""
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class StrictCycle(RequestResponseCycle):
    """Differs from uvicorn's: early answers close, late sends raise, a gone client is no error, one write for two.

    `transport` is the connection's `Output`.
    """

    #: The answer was complete before the request was: the rest of the request is read and dropped, then we close.
    linger = False

    async def send(self, message: ASGISendEvent) -> None:
        """Send one ASGI message; waits while the client does not read."""
        if not self.response_started:
            cast("Output", self.transport).hold()
            if self.more_body:
                # What follows on this connection may be this body or the next request: do not guess. It also covers
                # a client that waits for "100 Continue" and gets a final answer (RFC 9110, 10.1.1).
                self.keep_alive = False
            if not self.keep_alive:
                message = _saying_close(message)
        elif self.more_body and not message.get("more_body", False):
            # Closing with unread input makes the kernel send RST, which can destroy the answer on its way.
            self.linger = self.keep_alive = True
        await super().send(message)
        if self.disconnected:
            raise ClientGone("the client closed the connection before the answer was complete")

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the app; what it raises because the client left is logged at debug level only."""

        async def unless_gone(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                if not self.disconnected:
                    raise
                log.debug("the app ended after its client had left: %r", error)

        finish = self.on_response
        await super().run_asgi(unless_gone)
        if not self.response_complete and self.transport.is_closing():
            finish()  # cut short: whoever watches the connection must know that it is closing


def _saying_close(message: ASGISendEvent) -> ASGISendEvent:
    """The start of an answer with `connection: close`; uvicorn before 0.54 closes without saying so."""
    given = cast("Iterable[tuple[bytes, bytes]]", message.get("headers", ()))
    headers = [pair for pair in given if pair[0].lower() != b"connection"]
    return cast("ASGISendEvent", {**message, "headers": [*headers, (b"connection", b"close")]})
