"""One request and its answer on a connection: uvicorn's cycle, with a send that tells the app when nobody listens.

It parses nothing and keeps no deadlines; both are the protocol's.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

log = logging.getLogger("tianji_mw.sidecar")


class ClientGone(ConnectionError):
    """`send` after the client left. An OSError, as ASGI 2.4 asks for.

    The scope still announces 2.3: Starlette then also listens for the disconnect, so that a stream whose upstream is
    silent is cancelled at once and not at its next chunk.
    """


class StrictCycle(RequestResponseCycle):
    """Differs from uvicorn's in three things: early answers close, late sends raise, a gone client is no error."""

    #: The answer was complete before the request was: the rest of the request is read and dropped, then we close.
    linger = False

    async def send(self, message: ASGISendEvent) -> None:
        """Send one ASGI message; waits while the client does not read."""
        if self.more_body:
            if not self.response_started:
                # What follows on this connection may be this body or the next request: do not guess. It also covers
                # a client that waits for "100 Continue" and gets a final answer (RFC 9110, 10.1.1).
                self.keep_alive = False
            elif not message.get("more_body", False):
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
