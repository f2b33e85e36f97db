"""One listening port: uvicorn's server with the strict protocol, swept deadlines and an end in separate steps.

`server.run` puts two of these (main and admin) into one event loop. It handles no signals and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn

from sidecar.drain import first_of
from sidecar.limits import EdgeLimits, EdgeState
from sidecar.protocol import StrictProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger("tianji_mw.sidecar")

#: `scope["state"][COUNTS_KEY]`: what this port refused or cut before the app saw it, by reason; for metrics.
COUNTS_KEY: Final = "tianji_mw.edge_counts"
_POLL_S: Final = 0.05
_PROBE_AFTER_S: Final = 30


class StartFailed(Exception):
    """The app refused to start; the reason is in the log."""


class EdgeServer(uvicorn.Server):
    """A port that serves `app`. Steps: `open`, `tend` until the end, `drain`, `stop_accepting`, `idle`, `cut`, `close`.

    `state` is the lifespan state of another server to share; this one then runs no lifespan of its own.
    """

    servers: list[asyncio.base_events.Server]

    def __init__(
        self, app: ASGIApp, limits: EdgeLimits, *, backlog: int, log_level: str, state: dict[str, Any] | None = None
    ) -> None:
        config = uvicorn.Config(
            cast("Any", app),
            http=StrictProtocol,
            ws="none",
            interface="asgi3",
            # "auto" would take a failure at start for an app without lifespan, and serve.
            lifespan="on" if state is None else "off",
            log_config=None,
            log_level=log_level,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=backlog,
            timeout_keep_alive=int(limits.keep_alive_s) or 1,
            workers=1,
        )
        super().__init__(config)
        self.edge = EdgeState(limits)
        self.server_state = self.edge
        self._state = state
        self._next_date = 0.0
        self._sockets: list[socket.socket] = []
        self.servers = []

    async def open(self, sock: socket.socket) -> None:
        """Run the lifespan's start, then accept on `sock`; StartFailed if the app does not start."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        if self._state is not None:
            self.lifespan.state = self._state
        else:
            self.lifespan.state[COUNTS_KEY] = self.edge.counts
        self._sockets = [sock]
        _notice_dead_peers(sock, self.edge.limits.send_timeout_s)
        await self._refresh_date()
        try:
            await self.startup(sockets=self._sockets)
        except SystemExit as error:  # uvicorn's way to say so; in a task it would tear down the loop
            raise StartFailed("the app did not start; see the log") from error

    async def tend(self, now: float) -> None:
        """End the connections whose time is up; refresh the date header once a second."""
        for connection in self._connections():
            if connection.deadline <= now or connection.send_deadline <= now:
                connection.expire(now)
        if now >= self._next_date:
            self._next_date = now + 1.0
            await self._refresh_date()

    def _connections(self) -> tuple[StrictProtocol, ...]:
        return tuple(cast("set[StrictProtocol]", self.edge.connections))

    async def _refresh_date(self) -> None:
        await self.on_tick(0)  # a multiple of ten is uvicorn's "once a second"

    def drain(self) -> None:
        """Tell every client with its next answer that the connection ends; go on accepting."""
        self.edge.draining = True
        for connection in self._connections():
            connection.drain()

    def stop_accepting(self) -> None:
        """Close the port and the idle connections."""
        self.drain()
        for server in self.servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        for connection in self._connections():
            connection.shutdown()

    async def idle(self, seconds: float, hurry: asyncio.Event) -> bool:
        """Wait for the running requests, at most `seconds` or until `hurry`; True if all ended by themselves."""
        end = time.monotonic() + seconds
        while self.edge.tasks or self.edge.connections:
            left = end - time.monotonic()
            if left <= 0 or await first_of(min(_POLL_S, left), hurry):
                break
        return not self.edge.tasks

    async def cut(self, seconds: float) -> int:
        """Cancel what still runs and drop the connections; the number of requests that were cut."""
        tasks = tuple(self.edge.tasks)
        for task in tasks:
            task.cancel("the grace period is over")
        if tasks:
            log.warning("%d running requests were cut", len(tasks))
            await asyncio.wait(tasks, timeout=seconds)
        for connection in self._connections():
            connection.transport.close()
        await asyncio.sleep(0)
        for connection in self._connections():
            connection.transport.abort()
        return len(tasks)

    async def close(self, seconds: float) -> bool:
        """Run the lifespan's end; False if it took longer than `seconds`."""
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), seconds)
        except TimeoutError:
            log.error("the shutdown of the app took longer than %g s and was given up", seconds)
            return False
        return not self.lifespan.should_exit


def _notice_dead_peers(sock: socket.socket, seconds: float) -> None:
    """Let the kernel drop connections whose peer has vanished or takes nothing; accepted sockets inherit all of it.

    Otherwise a stream to a client that lost its network runs on, and is paid for, until TCP gives up after a quarter
    of an hour: its frames are too small to fill a buffer, so no write ever blocks. A stream that is silent for long
    has nothing unacknowledged, so keep-alive probes must ask.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_AFTER_S)
