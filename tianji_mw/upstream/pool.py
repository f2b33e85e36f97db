"""The connections to one origin: idle ones are used again, the newest first; above the limit requests wait in line."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from tianji_mw.errors import UpstreamTimeout, UpstreamUnreachable
from tianji_mw.upstream.address import Origin
from tianji_mw.upstream.base import Deadlines, TransportOptions, fault, reason, sooner
from tianji_mw.upstream.connect import Connector
from tianji_mw.upstream.connection import Connection


class Pool:
    """`take` an idle connection, or `open` one. Connections come back by themselves when their answer is complete."""

    __slots__ = ("_all", "_closes", "_connector", "_idle", "_opening", "_options", "_waiting", "origin")

    def __init__(self, origin: Origin, connector: Connector, options: TransportOptions) -> None:
        self.origin = origin
        self._connector = connector
        self._options = options
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        #: How often it was closed: what was opened before is not kept.
        self._closes = 0
        #: Who waits for a connection, in order; a result of None is the right to open one.
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()

    def take(self) -> Connection | None:
        """An idle connection that works, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def open(self, url: str, limits: Deadlines) -> Connection:
        """A connection for this request. Raises UpstreamUnreachable, UpstreamTimeout."""
        whole = sooner(limits.first_byte_s, limits.total_s)
        seconds = sooner(limits.connect_s, whole)
        try:
            async with asyncio.timeout(seconds):
                again = False
                while (connection := await self._place(first=again)) is not None:
                    if connection.usable():
                        return connection
                    # It broke on its way here: wait for another, before those who came later. An upstream that ends
                    # its connections in silence would else let some of them wait until their deadline.
                    connection.abort()
                    again = True
                return await self._connect()
        except TimeoutError:
            raise fault(UpstreamTimeout, url, f"took no connection within {seconds or 0:g} s") from None
        except ssl.SSLCertVerificationError as error:
            # Behind a comma OpenSSL quotes the name that was asked for, and clients are told no addresses.
            why = error.verify_message.partition(",")[0]
            what = f"has a certificate that is not to be trusted ({why})"
            raise fault(UpstreamUnreachable, url, what) from None
        except (OSError, UnicodeError) as error:  # a host that cannot be a name is a UnicodeError
            raise fault(UpstreamUnreachable, url, f"is not reachable ({reason(error)})") from None

    async def _place(self, *, first: bool) -> Connection | None:
        """None when a connection may be opened, which `_opening` then counts; else a connection that came back.

        Who has had a turn already is the `first` of those who wait.
        """
        most = self._options.max_connections
        if most is None or len(self._all) + self._opening < most:
            self._opening += 1
            return None
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was our turn, and we are gone: the next one's.
                connection = turn.result()
                if connection is None:
                    self._opening -= 1
                    self._admit()
                else:
                    self.give_back(connection)
            raise

    async def _connect(self) -> Connection:
        closes = self._closes
        try:
            made = await self._connector.open(
                self.origin, lambda sock: Connection(self, sock, self._options.keep_alive_s)
            )
            # Between the end of the handshake and this line the upstream may have closed it (an alert about our
            # certificate), or the pool was closed: nobody would be told of that end again.
            if closes != self._closes or made.closed:
                made.abort()
                raise ConnectionAbortedError
            self._all.add(made)
            return made
        finally:
            self._opening -= 1
            self._admit()

    def give_back(self, connection: Connection) -> None:
        """The connection is free: for the first who waits, else idle."""
        connection.rest()
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._admit()

    def _admit(self) -> None:
        """Let those who wait open connections, as far as the limit allows."""
        most = self._options.max_connections
        while self._waiting and (most is None or len(self._all) + self._opening < most):
            turn = self._waiting.popleft()
            if not turn.done():
                self._opening += 1
                turn.set_result(None)

    @property
    def size(self) -> int:
        """Open connections, idle ones included."""
        return len(self._all)

    def close(self) -> None:
        """End all connections; exchanges that still run fail, and so do requests that wait in line."""
        self._closes += 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(ConnectionAbortedError())
        for connection in tuple(self._all):
            connection.abort()
