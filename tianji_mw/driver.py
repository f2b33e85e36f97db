"""The driver: all ASGI machinery of the suite. Middlewares subclass `LLMMiddleware` and write hooks only.

One request, one screen: `__call__` matches the route, `_serve` opens the Call or joins the one an outer layer opened,
`_run` reads the body and runs the hooks around the inner app. `taps.py` holds what happens to the messages of the
answer, `witness.py` how a call ends. Requests that are no LLM route cost one dict lookup.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, TypedDict

from tianji_mw import taps
from tianji_mw.call import CALL_KEY, Call, ClientGone, Limits, _current, open_call
from tianji_mw.errors import OrderError, SetupError, TianjiError
from tianji_mw.lifespan import Lifespan
from tianji_mw.routes import Routes
from tianji_mw.runtime import Runtime
from tianji_mw.witness import Broken, Witness, conclude, end_all_at_once, shielded

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.apis.base import Api
    from tianji_mw.frames import Frame
    from tianji_mw.taps import Batch, Head

log = logging.getLogger("tianji_mw.driver")

#: The app inside of a layer; what it answers goes to the `send` it is given.
Inner = Callable[["Send"], Awaitable[None]]

RUNTIME_KEY: Final = "tianji_mw.runtime"


class LayerOptions(TypedDict, total=False):
    """What every layer takes, by keyword, besides its own settings."""

    routes: Routes | Sequence[str]
    limits: Limits | None
    runtime: Runtime | None
    allow_order: bool


class LLMMiddleware:
    """Base of every middleware: subclass it, set `phase`, write the hooks you need.

    >>> class Shout(LLMMiddleware):
    ...     phase = 600
    ...     async def on_request(self, call):
    ...         call.edit()["temperature"] = 2
    """

    #: Place in the stack, outermost first: 100 limits, 200 identity, 300 callbacks, 400 spend, 500 prompts,
    #: 600 guardrails, 700 cache, 800 routing, 900 secrets, 1000 the terminal app.
    phase: ClassVar[int] = 500
    #: What opens when an inner phase stands outside of this one; part of OrderError's text.
    order_reason: ClassVar[str] = ""
    #: True: `on_request` runs before the body is read (it may still await `call.load()`).
    early: ClassVar[bool] = False

    #: Read by the layer outside: this one takes the request from the Call, so no header has to be rewritten for it.
    shares_call: ClassVar[bool] = True
    #: Whether `on_frames` is written; without it an answer is not decoded for this layer.
    reads_frames: ClassVar[bool] = False
    _taps: ClassVar[bool] = False
    _surrounds: ClassVar[bool] = False
    #: Whether `on_end_now` is written.
    ends_at_once: ClassVar[bool] = False
    #: Whether `on_end` is written; a layer that seldom has a use for it may say so for itself.
    _ends: bool = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        # Decided once per class: a layer without a hook must cost nothing for it.
        base = LLMMiddleware
        cls.reads_frames = cls.on_frames is not base.on_frames
        cls._taps = cls.reads_frames or cls.on_start is not base.on_start
        cls._surrounds = cls.around is not base.around
        cls.ends_at_once = cls.on_end_now is not base.on_end_now
        cls._ends = cls.ends_at_once or cls.on_end is not base.on_end

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Routes | Sequence[str] = (),
        limits: Limits | None = None,
        runtime: Runtime | None = None,
        allow_order: bool = False,
    ) -> None:
        self.app = app
        self.routes = (routes if isinstance(routes, Routes) else Routes.of(routes)).seen_from(app)
        self.limits = limits or Limits()
        self.runtime = runtime
        self._inner_shares = bool(getattr(app, "shares_call", False))
        self._owns_runtime = False
        #: The event loop in which this layer has started; what it holds belongs to that loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        if not allow_order:
            _check_order(self)

    # --- hooks, all optional

    async def on_request(self, call: Call) -> None:
        """Read or edit the request, or refuse it by raising a TianjiError."""

    async def around(self, call: Call, inner: Inner, send: Send) -> None:
        """Answer through `send` in the place of the inner app, or let it answer: `await inner(send)`, also repeatedly.

        For what keeps answers or tries again. What it sends goes through this layer's own `on_start` and `on_frames`.
        """
        await inner(send)

    async def on_start(self, call: Call, head: Head) -> None:
        """Status and headers of the answer, before they leave; may raise to refuse the answer."""

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        """Frames of the answer; what is returned goes on. Hold back, edit, or `call.close(refusal)`.

        `batch.last` is true once, with the last frames (perhaps none): nothing may be held back then. An answer that
        breaks off has no last batch; what was held back is dropped.
        """
        return batch.frames

    async def on_end(self, call: Call) -> None:
        """Exactly once per call that reached this layer, whatever happened; shielded from cancellation."""

    def on_end_now(self, call: Call) -> None:
        """`on_end` for what waits for nothing: it needs no task of its own. Write one of the two."""

    async def start(self, runtime: Runtime) -> None:
        """Open what the layer needs; raise SetupError to stop the start. Runs before the first request."""

    async def aclose(self) -> None:
        """Close it again; also after a start that failed halfway."""

    # --- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http" and (api := self.routes.match(scope)) is not None:
            call: Call | None = scope.get(CALL_KEY)
            if call is not None and call.loop is self._loop:
                await self._run(call, scope, receive, send)
            else:
                await self._serve(api, scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Start the layer if it has not started in this loop; open the Call if no layer outside did."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            await self._start_late(scope)
        call: Call | None = scope.get(CALL_KEY)
        if call is not None:
            await self._run(call, scope, receive, send)
            return
        assert self.runtime is not None
        call = open_call(api, scope, receive, runtime=self.runtime, limits=self.limits)
        call.loop, call.origin = loop, (self, scope)
        inner = dict(scope)
        inner[CALL_KEY] = call
        inner[RUNTIME_KEY] = self.runtime
        if "accept-encoding" in call.headers:
            inner["headers"] = taps.without_accept_encoding(scope["headers"])
        if "extensions" in scope:
            inner["extensions"] = taps.without_file_sends(scope["extensions"])
        token = _current.set(call)
        witness = Witness(call, send)
        call.runtime.inflight += 1
        try:
            await self._run(call, inner, receive, witness)
        finally:
            if call.enders or not call.complete:
                if call.complete and all(layer.ends_at_once for layer in call.enders):
                    end_all_at_once(call)
                else:
                    await shielded(conclude(call, witness))
            call.runtime.inflight -= 1
            call.runtime.count("calls", f"{api.name} {call.settle()}")
            _current.reset(token)
        if witness.open:
            raise Broken("the answer stopped short")

    async def _run(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        if self._ends and self not in call.enders:
            call.enders.append(self)
        tap = taps.Tap(self, call, send) if self._taps else None
        try:
            if await self._admit(call, receive, send):
                if self._surrounds:
                    await self.around(call, partial(self._inner, call, scope, receive), tap or send)
                else:  # what `_inner` does the first time, without the cost of entering it
                    if call.edited and not self._inner_shares:
                        scope = {**scope, "headers": taps.with_length(scope["headers"], len(call.body))}
                    await self.app(scope, call.receive if call.loaded else receive, tap or send)
            if tap is not None:
                await tap.finish()
        except ClientGone as gone:
            call.fail(gone)
        except Exception as error:
            if (tap is not None and tap.closed) or (call.gone and isinstance(error, OSError)):
                log.debug("call %s: the inner app ended after its answer was closed: %r", call.id, error)
            else:
                call.fail(error)
                if isinstance(send, Witness):
                    await send.fail()
                raise
        except BaseException as cancelled:
            call.fail(cancelled)
            raise

    async def _inner(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """The inner app for `around`; run again, it is given the whole request again."""
        if call.edited and not self._inner_shares:
            scope = {**scope, "headers": taps.with_length(scope["headers"], len(call.body))}
        call.rewind()
        await self.app(scope, call.receive if call.loaded else receive, send)

    async def _admit(self, call: Call, receive: Receive, send: Send) -> bool:
        """Read the body, run `on_request`; False when the request was answered with a refusal instead."""
        try:
            if self.early:
                call.listen(receive)
            elif not (call.loaded and receive == call.receive):
                await call.load(receive)
            await self.on_request(call)
            if call.closed and isinstance(call.error, TianjiError):
                raise call.error
        except TianjiError as error:
            call.fail(error)
            call.ended_by = self
            await taps.send_error(call, send, error)
            return False
        return True

    # --- lifecycle

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._join_runtime(scope)
        inner = {**scope, RUNTIME_KEY: self.runtime}
        await Lifespan(self.app, start=self._open, stop=self._close)(inner, receive, send)

    def _join_runtime(self, scope: Scope) -> None:
        """Use the runtime of an outer layer, or own one: ten layers share one."""
        outer: Runtime | None = scope.get(RUNTIME_KEY)
        if outer is not None:
            self.runtime = outer
        elif self.runtime is None:
            self.runtime = Runtime()
            self._owns_runtime = True

    async def _open(self) -> None:
        assert self.runtime is not None
        await self.start(self.runtime)
        self._loop = asyncio.get_running_loop()

    async def _start_late(self, scope: Scope) -> None:
        loop = asyncio.get_running_loop()
        if self._starting is None or self._starting[0] is not loop:
            self._starting = (loop, asyncio.Lock())
        async with self._starting[1]:
            if self._loop is loop:
                return
            name = type(self).__name__
            if self._loop is not None and not self._loop.is_closed():
                raise SetupError(f"{name} runs in another event loop already; build one stack for each loop.")
            log.warning("%s starts at its first request: the server sent no lifespan", name)
            if self._owns_runtime:
                self.runtime, self._owns_runtime = None, False  # what it held went with its loop
            self._join_runtime(scope)
            try:
                await self._open()
            except BaseException:
                await self._close()
                raise
            if self.runtime is not None and not self._owns_runtime:
                self.runtime.on_close(self._close)

    async def _close(self) -> None:
        self._loop = None
        try:
            await self.aclose()
        finally:
            if self._owns_runtime and self.runtime is not None:
                runtime, self.runtime, self._owns_runtime = self.runtime, None, False
                await runtime.aclose()


def inner_layers(app: object) -> list[LLMMiddleware]:
    """The layers inside `app`, outermost first, as far as `.app` attributes lead."""
    found: list[LLMMiddleware] = []
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        if isinstance(app, LLMMiddleware):
            found.append(app)
        app = getattr(app, "app", None)
    return found


def _check_order(layer: LLMMiddleware) -> None:
    for inner in inner_layers(layer.app):
        if inner.phase < layer.phase:
            outer_name, inner_name = type(layer).__name__, type(inner).__name__
            reason = inner.order_reason or layer.order_reason or "each layer must see what the outer ones let through"
            raise OrderError(
                f"{outer_name} (phase {layer.phase}) stands outside of {inner_name} (phase {inner.phase}): {reason}. "
                f"Put {inner_name} outside, or pass allow_order=True if this is meant."
            )
