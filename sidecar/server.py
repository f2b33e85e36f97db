"""Serves the gateway: main and admin port in one process and event loop, one or several processes, ended gracefully.

The apps come from a factory, called in every worker process, so that `serve` is the same for 1 and N workers. It
loads no configuration, knows no gateway and writes no access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from sidecar.drain import FORCED_EXIT_S, Drain, Watchdog
from sidecar.edge import EdgeServer, StartFailed
from sidecar.limits import EdgeLimits
from sidecar.strict import HeadRules
from tianji_mw.errors import SetupError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger("tianji_mw.sidecar")

#: The exit status when the app does not start, as uvicorn's.
START_FAILED: Final = 3
#: What the end of a process may take beyond its configured parts.
_MARGIN_S: Final = 2.0


class ServerConfig(BaseModel):
    """Ports, processes, deadlines. `ServerConfig(port=8080, workers=2)`; every value is checked, unknown keys too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=4000, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    #: 0 switches the admin port off. Worker n of several listens on admin_port + n: each has its own metrics.
    admin_port: int = Field(default=0, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    #: For a whole request head, from its first byte; also for a new connection that sends nothing.
    header_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    max_header_bytes: int = Field(default=16_384, ge=1_024, le=1 << 20)
    max_headers: int = Field(default=100, ge=8, le=10_000)
    keep_alive_s: float = Field(default=75.0, gt=0, le=3600)
    #: A client that does not take what we have for it is cut after this time.
    send_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    #: Readiness is off and the port still open, for load balancers to notice.
    drain_delay_s: float = Field(default=5.0, ge=0, le=3600)
    #: What running requests get to end by themselves.
    grace_s: float = Field(default=120.0, ge=0, le=86_400)
    #: What the app's own shutdown gets.
    flush_s: float = Field(default=10.0, ge=0, le=3600)
    backlog: int = Field(default=2048, ge=1, le=65_535)
    #: Per worker; above it a client gets 503. None: no limit.
    max_connections: int | None = Field(default=None, ge=1)
    #: Names besides the usual ones that say who calls: never repeated, never spelt with `_`.
    identity_headers: tuple[str, ...] = ()
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"

    def limits(self) -> EdgeLimits:
        """The part the protocol needs."""
        return EdgeLimits(
            header_timeout_s=self.header_timeout_s,
            keep_alive_s=self.keep_alive_s,
            send_timeout_s=self.send_timeout_s,
            max_header_bytes=self.max_header_bytes,
            max_connections=self.max_connections,
            head=HeadRules.of(self.identity_headers, max_headers=self.max_headers),
        )

    @property
    def exit_within_s(self) -> float:
        """The longest a process takes to end after the first signal."""
        return self.drain_delay_s + self.grace_s + self.flush_s + _MARGIN_S


@dataclass(frozen=True)
class Apps:
    """What a process serves. `on_drain` is called once, at once, in the event loop (switch readiness off there)."""

    app: ASGIApp
    admin: ASGIApp | None = None
    on_drain: Callable[[], None] | None = None


#: Called once per worker process; for `workers > 1` it must pickle: a top-level function, or a partial of one.
AppFactory = Callable[[], Apps]


def serve(factory: AppFactory, config: ServerConfig) -> None:
    """Serve until a signal; returns after a clean end. Must run in the main thread.

    Raises SetupError when a port is taken, SystemExit(3) when the app does not start, SystemExit(1) when the end was
    not clean: running requests were cut, or the app's shutdown failed.
    """
    main = bind(config.host, config.port)
    if config.workers > 1:
        from sidecar.workers import supervise

        status = supervise(factory, config, main)
    else:
        status = serve_here(factory, config, main)
    if status:
        raise SystemExit(status)


def serve_app(
    app: ASGIApp,
    admin_app: ASGIApp | None = None,
    config: ServerConfig | None = None,
    *,
    on_drain: Callable[[], None] | None = None,
) -> None:
    """`serve` for apps that exist already: one process only."""
    config = config or ServerConfig()
    if config.workers != 1:
        raise SetupError("several workers need a factory: use serve(factory, config)")
    serve(lambda: Apps(app, admin_app, on_drain), config)


def serve_here(factory: AppFactory, config: ServerConfig, main: socket.socket, *, drain: Drain | None = None) -> int:
    """Serve in this process, on a bound socket; the exit status."""
    logging.basicConfig(level=config.log_level.upper())  # does nothing where logging is configured already
    watchdog = Watchdog()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            clean = runner.run(_serve_signalled(factory(), config, main, watchdog, drain))
    except StartFailed:
        return START_FAILED
    finally:
        watchdog.disarm()
    return 0 if clean else 1


async def _serve_signalled(
    apps: Apps, config: ServerConfig, main: socket.socket, watchdog: Watchdog, drain: Drain | None
) -> bool:
    drain = drain or Drain()
    with drain.signals():
        admin = bind(config.admin_host, config.admin_port) if apps.admin and config.admin_port else None
        return await run(apps, config, drain, main, admin, watchdog=watchdog, on_ready=_settle)


def _settle() -> None:
    """Tell the garbage collector that what the start has built stays: it need not look through it again.

    With its usual thresholds it looks at the young objects every few requests, a tenth of their CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def run(
    apps: Apps,
    config: ServerConfig,
    drain: Drain,
    main_socket: socket.socket,
    admin_socket: socket.socket | None = None,
    *,
    watchdog: Watchdog | None = None,
    on_ready: Callable[[], None] | None = None,
) -> bool:
    """Serve in the running event loop until `drain` asks for the end; True if that end was clean."""
    limits = config.limits()
    main = EdgeServer(apps.app, limits, backlog=config.backlog, log_level=config.log_level)
    ports = [main]
    start = asyncio.ensure_future(main.open(main_socket))
    if not await _started(start, drain):
        if watchdog is not None:
            watchdog.arm(_MARGIN_S)
        return False
    log.info("serving on %s", describe(main_socket))
    tending = asyncio.ensure_future(_tend(ports, config))
    try:
        if apps.admin is not None and admin_socket is not None:
            state = main.lifespan.state
            admin = EdgeServer(apps.admin, limits, backlog=128, log_level=config.log_level, state=state)
            ports.append(admin)
            await admin.open(admin_socket)
            log.info("admin on %s", describe(admin_socket))
        if on_ready is not None:
            on_ready()
        await drain.requested.wait()
        if watchdog is not None:
            watchdog.arm(config.exit_within_s)
        clean = await _end(main, ports[1:], apps, config, drain)
        if watchdog is not None:
            watchdog.arm(_MARGIN_S)  # the loop's own end: tasks and threads that ignore it
        return clean
    finally:
        tending.cancel()


async def _started(start: asyncio.Future[None], drain: Drain) -> bool:
    """Wait for the app's start; a signal meanwhile gives it up, since nothing is served yet."""
    asked = asyncio.ensure_future(drain.requested.wait())
    await asyncio.wait((start, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if start.done():
        start.result()
        return True
    start.cancel()
    log.warning("asked to end before the app had started")
    return False


async def _tend(ports: list[EdgeServer], config: ServerConfig) -> None:
    tick = min(config.header_timeout_s, config.keep_alive_s, config.send_timeout_s) / 20
    tick = min(0.5, max(0.02, tick))
    loop = asyncio.get_running_loop()
    while True:
        for port in tuple(ports):
            await port.tend(loop.time())
        await asyncio.sleep(tick)


async def _end(main: EdgeServer, others: list[EdgeServer], apps: Apps, config: ServerConfig, drain: Drain) -> bool:
    """Readiness off, delay, stop accepting, grace, cut, flush. The admin port stays open for the metrics of it all."""
    loop = asyncio.get_running_loop()
    log.info("draining: %d requests run", len(main.edge.tasks))
    if apps.on_drain is not None:
        loop.call_soon(apps.on_drain)  # what it raises goes to the loop's handler and does not stop the drain
    main.drain()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(drain.hurried.wait(), config.drain_delay_s)
    main.stop_accepting()
    clean = await main.idle(config.grace_s, drain.forced)
    forced = drain.forced.is_set()
    cut = await main.cut(0.3 if forced else 1.0)
    flushed = await main.close(min(config.flush_s, FORCED_EXIT_S - 0.7) if forced else config.flush_s)
    for port in others:
        port.stop_accepting()
        await port.cut(0.1)
    log.info("ended%s", f", {cut} requests cut" if cut else "")
    return clean and flushed


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed; None is asyncio's own."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: connections are refused until the app has started."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SetupError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return sock


def describe(sock: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
