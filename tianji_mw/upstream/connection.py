"""One HTTP/1.1 connection to an upstream: sends a request, and fills the `Answer` that comes back.

The bytes are cut by llhttp (through httptools); this file decides what an answer's end is, and when reading pauses.
One exchange at a time: a connection is used again only after a complete answer with nothing behind it (RFC 9112). It
opens nothing and keeps no pool.
"""

from __future__ import annotations

import asyncio
import math
import re
import select
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, cast

import httptools

from tianji_mw.errors import UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.upstream.answer import ROUNDING_S, Answer
from tianji_mw.upstream.base import HEAD_LIMIT, HEADERS_LIMIT, Deadlines, reason

if TYPE_CHECKING:
    from tianji_mw.upstream.pool import Pool

#: A body up to this size goes out in one piece with its head; copying a larger one costs more than a second write.
_JOINED: Final = 64 << 10
_TIMEOUT: Final = re.compile(rb"(?:^|[,\s])timeout=(\d{1,9})")
_ON_THE_WAY_S: Final = 0.5


class _HeadTooLarge(Exception):  # from inside of the parser's callbacks to the one who feeds it
    pass


class Connection(asyncio.Protocol):
    """A connection of a pool. `ask` begins an exchange; after a complete answer the pool has it back."""

    __slots__ = (
        "_answer", "_due", "_keep", "_parser", "_paused", "_pool", "_readable", "_ring_at", "_spare", "_timer",
        "_transport", "_unpaused", "_upload", "closed", "idle_since", "keep_alive_s", "loop",
    )  # fmt: skip

    def __init__(self, pool: Pool, sock: socket.socket, keep_alive_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.idle_since = 0.0
        self.keep_alive_s = keep_alive_s
        self._pool = pool
        self._readable = _probe(sock)
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        #: The connection may be used again after this answer.
        self._keep = False
        #: Bytes that came and were no body: heads, chunk sizes and extensions, trailers.
        self._spare = 0
        self._paused = False
        # One timer for all deadlines of all exchanges: it is moved only when a deadline comes before it, so that most
        # requests touch none.
        self._timer: asyncio.TimerHandle | None = None
        self._ring_at = math.inf
        self._due = math.inf
        self._upload: asyncio.Task[None] | None = None
        self._unpaused: asyncio.Event | None = None

    # --- the pool's side

    def ask(
        self, answer: Answer, head: bytes, body: bytes | AsyncIterator[bytes], limits: Deadlines, *, chunked: bool
    ) -> None:
        """Send a request; `head` ends with its blank line."""
        self._answer = answer
        self._keep = True
        self._spare = 0
        if not isinstance(body, bytes):
            self._transport.write(head)
            self._upload = self.loop.create_task(self._send_parts(body, limits, chunked=chunked))
        elif len(body) <= _JOINED:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def usable(self) -> bool:
        """Whether an idle connection can take a request: not too old, and nothing has come, its end least of all."""
        if self.closed or self._transport.is_closing() or self.loop.time() - self.idle_since >= self.keep_alive_s:
            return False
        # The loop may not have read yet that the upstream has closed: ask the kernel.
        return not self._readable()

    def rest(self) -> None:
        """Idle from now on; end it when nobody wants it for too long."""
        self.idle_since = self.loop.time()
        self.arm(self.idle_since + self.keep_alive_s)

    def abort(self) -> None:
        """End it at once."""
        if self._upload is not None:
            self._upload.cancel()
        self._transport.abort()

    # --- deadlines

    def arm(self, due: float) -> None:
        """From now on only this deadline holds (loop time)."""
        self._due = due
        if due < self._ring_at:
            if self._timer is not None:
                self._timer.cancel()
            self._ring_at = due
            self._timer = self.loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer, self._ring_at = None, math.inf
        now = self.loop.time()
        if self._due > now + ROUNDING_S:
            if self._due < math.inf:
                self.arm(self._due)
            return
        answer, self._due = self._answer, math.inf
        if answer is None:
            self.abort()  # idle for too long
        elif answer.waiting:
            answer.expire(now)
            self.abort()

    # --- the upload of a body that streams through

    async def _send_parts(self, body: AsyncIterator[bytes], limits: Deadlines, *, chunked: bool) -> None:
        answer = self._answer
        assert answer is not None
        transport = self._transport
        try:
            async for part in body:
                if part:
                    transport.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                    await self._drained(limits)
            if chunked:
                transport.write(b"0\r\n\r\n")
        except TimeoutError:
            answer.fail(UpstreamTimeout, f"took nothing for {limits.between_bytes_s or 0:g} s (between-bytes limit)")
            transport.abort()
        except (OSError, UpstreamError) as error:
            answer.fail(UpstreamUnreachable, f"did not get the whole request ({reason(error)})")
            transport.abort()
        except BaseException:  # a fault of the iterator's own, or a cancelled exchange
            answer.fail(UpstreamUnreachable, "did not get the whole request")
            transport.abort()
            raise
        else:
            if not answer.started and self._answer is answer and limits.first_byte_s is not None:
                answer.due = min(answer.total_at, self.loop.time() + limits.first_byte_s)
                self.arm(answer.due)
        finally:
            self._upload = None
            if isinstance(body, AsyncGenerator):
                await body.aclose()

    async def _drained(self, limits: Deadlines) -> None:
        if self._unpaused is not None:
            async with asyncio.timeout(limits.between_bytes_s):
                await self._unpaused.wait()

    def pause_writing(self) -> None:
        self._unpaused = asyncio.Event()

    def resume_writing(self) -> None:
        if self._unpaused is not None:
            self._unpaused.set()
            self._unpaused = None

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            # Bytes that nobody asked for: whoever sent them could put words into the next answer.
            self.abort()
            return
        self._spare += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken(answer, error)
            return
        if answer.done:
            self._release(answer)
        elif self._spare > HEAD_LIMIT:
            self._refuse(answer, "sent a head, chunk extensions or trailers that are too large")
        else:
            answer.wake()

    def eof_received(self) -> None:
        answer = self._answer
        if answer is not None and answer.started and not answer.done and answer.until_close:
            self._keep = False
            answer.finish()
        # The upstream has said its last word; what still waits to be sent must not keep the connection.
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._upload is not None:
            self._upload.cancel()
        self.resume_writing()
        answer, self._answer = self._answer, None
        if answer is not None:
            why = f" ({reason(error)})" if error is not None else ""
            if answer.started:
                answer.fail(UpstreamTruncated, f"broke off in its answer{why}")
            else:
                answer.fail(UpstreamUnreachable, f"is not reachable{why or ' (it closed the connection)'}")
        self._pool.forget(self)

    def resume_reading(self) -> None:
        """The reader has taken everything that was read ahead."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    # --- the parser's side

    def on_message_begin(self) -> None:
        answer = self._answer
        if answer is not None and answer.done:
            self._keep = False  # something follows an answer that is complete: it was not asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        answer = self._answer
        if answer is not None and not answer.started:  # trailers come here too
            answer.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.started:
            return
        answer.status = status = self._parser.get_status_code()
        if status < 200:
            return  # an interim answer (RFC 9110, 15.2); its end is no end of ours
        if len(answer.headers) > HEADERS_LIMIT or self._spare > HEAD_LIMIT:
            self._check_head(answer)
        if not self._parser.should_keep_alive():
            self._keep = False
        elif not self.idle_since:
            self.keep_alive_s = min(self.keep_alive_s, _offered(answer.headers))
        answer.started = True
        if answer.bodiless:
            self._keep = False  # llhttp waits for the body of which the head speaks
            answer.done = True

    def on_body(self, body: bytes) -> None:
        self._spare = 0
        answer = self._answer
        if answer is not None and not answer.done and answer.add(body) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None:
            return
        if answer.started:
            answer.done = True
        else:
            answer.headers.clear()

    def _check_head(self, answer: Answer) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in answer.headers)
        if size > HEAD_LIMIT or len(answer.headers) > HEADERS_LIMIT:
            raise _HeadTooLarge

    # --- ends

    def _release(self, answer: Answer) -> None:
        """The answer is complete; only now may another request have the connection."""
        self._answer = None
        answer.finish()
        if self._keep and self._upload is None and not self._unpaused:
            if self._paused:
                self.resume_reading()
            self._pool.give_back(self)
        else:
            self._due = math.inf
            self.abort()

    def _refuse(self, answer: Answer, what: str) -> None:
        answer.fail(UpstreamMalformed, what)
        self.abort()

    def _broken(self, answer: Answer, error: Exception) -> None:
        if answer.done:
            # Complete, and what follows it is no HTTP: the answer stands, the connection does not.
            self._keep = False
            self._release(answer)
        elif isinstance(error.__context__, _HeadTooLarge):
            self._refuse(answer, "sent a head that is too large")
        elif answer.started:
            self._refuse(answer, "sent a body that is not HTTP")
        else:
            # The text of this error quotes the upstream's bytes, which may echo a key.
            self._refuse(answer, f"sent an answer that is not HTTP ({type(error).__name__})")


def _offered(headers: list[tuple[bytes, bytes]]) -> float:
    """For how long the upstream keeps an idle connection, where it says so, less the way of a request to it."""
    for name, value in headers:
        if name == b"keep-alive" and (found := _TIMEOUT.search(value.lower())):
            return max(0.0, int(found[1]) - _ON_THE_WAY_S)
    return math.inf


def _probe(sock: socket.socket) -> Callable[[], bool]:
    """A cheap question to the kernel: has anything come on this socket, its end included?"""
    if not hasattr(select, "poll"):  # Windows
        return lambda: bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda: bool(poll.poll(0))
