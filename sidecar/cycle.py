"""One request and its answer on a connection: the ASGI channels of the app, and the bytes of the answer.

It parses nothing and keeps no deadlines; both are the protocol's. `send` raises when nobody listens any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tianji_mw.channel import Channel
from tianji_mw.taps import FOLLOWED_KEY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

    from sidecar.protocol import StrictProtocol

log = logging.getLogger("tianji_mw.sidecar")

_STATUS_LINES: Final = {int(s): b"HTTP/1.1 %d %s\r\n" % (s, s.phrase.encode()) for s in HTTPStatus}
_BODILESS: Final = frozenset({204, 304})
#: A request body that waits for the app up to this size is read ahead; then the socket is not read.
_READ_AHEAD: Final = 64 << 10
_FAILED: Final = b"Internal Server Error"


class ClientGone(ConnectionError):
    """`send` after the client left. An OSError, as ASGI 2.4 asks for.

    The scope still announces 2.3: Starlette then also listens for the disconnect, so that a stream whose upstream is
    silent is cancelled at once and not at its next chunk.
    """


class Cycle(Channel):
    """State of one exchange. The protocol adds the body's parts and says when the client has left."""

    __slots__ = (
        "_body", "_chunked", "_ended", "_event", "_head", "_left", "_on_gone", "_protocol", "_size", "complete",
        "disconnected", "expects_continue", "keep_alive", "linger", "more_body", "scope", "started", "task",
    )  # fmt: skip

    def __init__(self, protocol: StrictProtocol, scope: Scope, *, keep_alive: bool, expects_continue: bool) -> None:
        self._protocol = protocol
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.task: asyncio.Task[None] | None = None
        self.disconnected = False
        #: The answer was complete before the request was: the rest of the request is read and dropped, then we close.
        self.linger = False
        # The request's body.
        self._body: list[bytes] = []
        self._size = 0
        self.more_body = True
        self._ended = False
        self._event: asyncio.Event | None = None
        self._on_gone: Callable[[], None] | None = None
        # The answer.
        self.started = False
        self.complete = False
        self._head = b""
        self._chunked = False
        self._left = 0

    # --- the protocol's side

    def add(self, part: bytes) -> bool:
        """Take a part of the body in; True when no more should be read for now."""
        self._body.append(part)
        self._size += len(part)
        if self._event is not None:
            self._event.set()
        return self._size > _READ_AHEAD

    def body_ended(self) -> None:
        """The body is complete."""
        self.more_body = False
        if self._event is not None:
            self._event.set()

    def client_left(self) -> None:
        """Nobody takes the answer any more."""
        self.disconnected = True
        if self._event is not None:
            self._event.set()
        if self._on_gone is not None:
            self._on_gone()

    async def run(self, app: ASGIApp) -> None:
        """Run the app to its end. What it raises because the client left is logged at debug level only."""
        protocol = self._protocol
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:  # an app's exceptions end at the server: logged, and answered with 500
            if self.disconnected and isinstance(error, Exception):
                log.debug("the app ended after its client had left: %r", error)
            else:
                log.error("the app failed", exc_info=error)
                self._give_up()
        else:
            if not self.complete and not self.disconnected:
                log.error("the app returned without %s its answer", "completing" if self.started else "starting")
                self._give_up()
        if self.task is not None:
            protocol.tasks.discard(self.task)
        if not self.complete and protocol.transport.is_closing():
            protocol.on_response_complete()  # cut short: whoever watches the connection must know that it is closing

    def _give_up(self) -> None:
        """A 500 where nothing has left yet; otherwise only a broken connection can tell the client."""
        if self.started or self.disconnected:
            self._flush()
            self._protocol.transport.close()
            return
        length = b"%d" % len(_FAILED)
        self.keep_alive = False
        self._start(500, [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", length)])
        self._send_body(_FAILED, more=False)

    # --- the app's side

    def take_body(self) -> bytes | None:
        if self.more_body or self._ended or self.disconnected:
            return None
        self._ended = True
        self._size = 0
        return self._body.pop() if len(self._body) == 1 else self._joined()

    def _joined(self) -> bytes:
        body = b"".join(self._body)
        self._body.clear()
        return body

    def on_gone(self, tell: Callable[[], None] | None) -> None:
        self._on_gone = tell
        if self.disconnected and tell is not None:
            tell()

    async def receive(self) -> Message:
        """The body in the parts in which it arrives; then waits for the client's leaving, or for the answer's end."""
        if self.expects_continue and not self._protocol.transport.is_closing():
            self.expects_continue = False
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.disconnected or self.complete):
            if self._body or not (self.more_body or self._ended):
                body = self._joined()
                self._size = 0
                self._ended = not self.more_body
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            self._protocol.flow.resume_reading()
            if self._event is None:
                self._event = asyncio.Event()
            self._event.clear()
            await self._event.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send one ASGI message; waits while the client does not read. Raises ClientGone when it has left."""
        flow = self._protocol.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            raise ClientGone("the client closed the connection before the answer was complete")
        kind = message["type"]
        if kind == "http.response.body" and self.started and not self.complete:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
            if FOLLOWED_KEY not in message:
                self._protocol.loop.call_soon(self._flush)
        else:
            raise RuntimeError(f"unexpected ASGI message '{kind}'")

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head. It leaves with the first bytes of the body, or at the end of the loop's turn.

        Apart they are two system calls and two packets; but a stream whose first token takes long shows its status.
        """
        if self.more_body:
            # What follows on this connection may be this body or the next request: do not guess. It also covers a
            # client that waits for "100 Continue" and gets a final answer (RFC 9110, 10.1.1).
            self.keep_alive = False
        length, chunked = -1, False
        edge = self._protocol.edge
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for given, value in headers:
            name = edge.header_names.get(given) or edge.learn_name(given)
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = chunked or value.lower() == b"chunked"
            elif name == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head_only = self.scope["method"] == "HEAD"
        if length < 0 and not chunked and not head_only and status not in _BODILESS:
            chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise RuntimeError("the app sent a header value that would end its line")
        self._chunked = chunked
        self._left = 0 if chunked or head_only else max(length, 0)
        self.started = True
        self.expects_continue = False
        self._head = b"%b%b\r\n" % (head, edge.head_lines())

    def _flush(self) -> None:
        """Write a head that still waits for its body."""
        if self._head:
            head, self._head = self._head, b""
            self._protocol.transport.write(head)

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError(f"the body is {'longer' if self._left < 0 else 'shorter'} than its content-length")
            data = body
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._protocol.transport.write(data)
        if not more:
            self._end()

    def _end(self) -> None:
        self.complete = True
        if self.more_body:
            # Closing with unread input makes the kernel send RST, which can destroy the answer on its way.
            self.linger = True
        elif not self.keep_alive:
            self._protocol.transport.close()
        if self._event is not None:
            self._event.set()
        self._protocol.on_response_complete()
