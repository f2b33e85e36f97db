"""One answer as it arrives over an HTTP/1.1 connection: what its reader waits for, and which deadline runs meanwhile.

The connection fills it from the parser's side; nothing here touches a socket.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from tianji_mw.errors import UpstreamError, UpstreamTimeout, UpstreamTruncated
from tianji_mw.upstream.base import READ_AHEAD, Deadlines, fault, read_whole

if TYPE_CHECKING:
    from tianji_mw.upstream.connection import Connection

#: Event loops round timers to milliseconds.
ROUNDING_S: Final = 0.002


class Answer:
    """One exchange: the `UpstreamResponse` of `http1.py`. It lets go of its connection at its end."""

    __slots__ = (
        "_buffered", "_connection", "_deadlines", "_error", "_parts", "_waiter", "bodiless", "done", "due", "headers",
        "started", "status", "total_at", "url",
    )  # fmt: skip

    def __init__(self, connection: Connection, url: str, deadlines: Deadlines, began: float, *, bodiless: bool) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        #: The head is complete.
        self.started = False
        self.done = False
        #: Whatever its head says: an answer to HEAD.
        self.bodiless = bodiless
        self.url = url
        self._connection: Connection | None = connection
        self._deadlines = deadlines
        self.total_at = math.inf if deadlines.total_s is None else began + deadlines.total_s
        #: Until when the head must come (loop time).
        self.due = math.inf
        self._parts: list[bytes] = []
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None

    # --- the reader's side

    async def head(self, due: float) -> None:
        """Wait for the head. Raises UpstreamUnreachable, UpstreamTimeout, UpstreamMalformed."""
        self.due = due
        try:
            while not self.started and self._error is None:
                await self._turn(self.due)  # an upload that ends meanwhile brings it forward
        except BaseException:
            self.close()
            raise
        if not self.started:
            assert self._error is not None
            raise self._error

    async def chunk(self) -> bytes:
        """The next bytes, all that have arrived; `b""` at the end. Raises UpstreamTimeout, UpstreamTruncated."""
        parts = self._parts
        while not parts:
            if self.done:
                return b""
            if self._error is not None:
                raise self._error
            connection = self._connection
            assert connection is not None
            between = self._deadlines.between_bytes_s
            due = self.total_at if between is None else min(self.total_at, connection.loop.time() + between)
            await self._turn(due)
        if self.total_at < math.inf and self._connection is not None:
            self._still_in_time(self._connection)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered = 0
        if self._connection is not None:
            self._connection.resume_reading()
        return data

    async def read(self, limit: int) -> bytes:
        """The rest of the body. Raises as `chunk` does, and UpstreamMalformed above `limit` bytes."""
        return await read_whole(self, self.url, limit)

    def close(self) -> None:
        """Give the exchange up; an unfinished one ends its connection."""
        connection = self._connection
        if connection is not None and not self.done:
            # Whoever still reads must not take what came so far for the whole.
            self._error = UpstreamTruncated("The exchange was given up.")
            self._connection = None
            connection.abort()
            self.wake()

    def _still_in_time(self, connection: Connection) -> None:
        """The total limit also ends an answer whose reader always finds something."""
        now = connection.loop.time()
        if now >= self.total_at:
            self.expire(now)
            connection.abort()
            assert self._error is not None
            raise self._error

    def _turn(self, due: float) -> asyncio.Future[None]:
        """What to await for something new, at the latest `due`."""
        connection = self._connection
        assert connection is not None
        connection.arm(due)
        waiter = self._waiter = connection.loop.create_future()
        return waiter

    @property
    def waiting(self) -> bool:
        """Whether its reader waits; while the reader is busy elsewhere no deadline runs."""
        return self._waiter is not None and not self._waiter.done()

    # --- the connection's side

    def add(self, body: bytes) -> bool:
        """Take bytes in; True when no more should be read for now."""
        self._parts.append(body)
        self._buffered += len(body)
        return self._buffered > READ_AHEAD

    def wake(self) -> None:
        """Tell the reader that there is something new."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def finish(self) -> None:
        """The answer is complete; the connection is nobody's any more."""
        self.started = self.done = True
        self._connection = None
        self.wake()

    def fail(self, kind: type[UpstreamError], what: str) -> None:
        """The answer ends here, without its end."""
        self._connection = None
        if self._error is None and not self.done:
            self._error = fault(kind, self.url, what)
            self.wake()

    def expire(self, now: float) -> None:
        """The deadline that its reader waited for has passed."""
        limits = self._deadlines
        if now + ROUNDING_S >= self.total_at:
            verb = "did not finish" if self.started else "sent no answer"
            what = f"{verb} within {limits.total_s or 0:g} s (total limit)"
        elif self.started:
            what = f"sent nothing for {limits.between_bytes_s or 0:g} s (between-bytes limit)"
        else:
            what = f"sent no answer within {limits.first_byte_s or 0:g} s (first-byte limit)"
        self.fail(UpstreamTimeout, what)

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection can end this body (RFC 9112, section 6.3)."""
        for name, value in self.headers:
            if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
                return False
        return True
