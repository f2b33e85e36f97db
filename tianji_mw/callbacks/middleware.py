"""`Callbacks`: one record of every call, to every destination that wants it, and nothing lost on the way.

It stands outside of what blocks, caches and routes, so it sees the answer that the client sees. In the path of a call
it writes down what happened, at the end; records are made of that when they are delivered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

import orjson

from tianji_mw.call import Call
from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.destination import Choice, Destination
from tianji_mw.callbacks.record.finish import Finisher
from tianji_mw.callbacks.record.payload import RecordRules
from tianji_mw.callbacks.record.snapshot import ContentRules, snapshot
from tianji_mw.callbacks.record.trace_context import TraceContext, current_span, outgoing, trace_context
from tianji_mw.callbacks.record.wishes import Wishes
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import SetupError
from tianji_mw.journal import Journal
from tianji_mw.outbox import Outbox
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.alerts import Alert

log = logging.getLogger("tianji_mw.callbacks")

_OK: Final = frozenset({"ok", "cached"})


class Callbacks(LLMMiddleware):
    """Tells destinations of every call.

    >>> app.add_middleware(Callbacks, callbacks=[S3(bucket="logs")], spool="/var/spool/tianji")     # doctest: +SKIP

    `spool`: the folder in which records wait for their delivery, also over restarts; without one they wait in memory,
    and with `spool_required=False` also where it cannot be used. `flush_s`: how long the end waits for deliveries.
    `forward_trace`: providers get the trace's `traceparent`.
    """

    phase: ClassVar[int] = 300
    order_reason: ClassVar[str] = "what is refused or answered outside of it stands in no log"

    def __init__(
        self,
        app: ASGIApp,
        *,
        callbacks: Sequence[Callback | Destination],
        rules: RecordRules | None = None,
        content: ContentRules | None = None,
        wishes: Wishes | None = None,
        spool: str | Path | None = None,
        spool_required: bool = True,
        spool_max_bytes: int = 1 << 30,
        flush_s: float = 10.0,
        forward_trace: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(app, **options)
        self.destinations = _named(callbacks)
        self.outboxes: dict[str, Outbox] = {}
        self._rules = rules or RecordRules()
        self._content = content or ContentRules()
        self._wishes = wishes or Wishes()
        self._choose = Choice(destinations=self.destinations)
        self._live = [one.callback for one in self.destinations if one.callback.in_path]
        self._alert_names = tuple(one.name for one in self.destinations if "alert" in one.callback.kinds)
        self._spool = Path(spool) if spool else None
        self._spool_required = spool_required
        self._spool_max_bytes = spool_max_bytes
        self._flush_s = flush_s
        self._forward_trace = forward_trace
        self.journal: Journal | None = None

    # --- life

    async def start(self, runtime: Runtime) -> None:
        self.journal = await self._opened(runtime)
        finish = Finisher(self._rules, shared=sum(one.takes_calls for one in self.destinations) > 1)
        for one in self.destinations:
            await one.callback.start(runtime)
            outbox = Outbox(
                one.name, one.write, journal=self.journal, runtime=runtime, delivery=one.delivery, make=finish
            )
            self.outboxes[one.name] = outbox
            outbox.start()
        runtime.alert_listeners.append(self.alert)

    async def _opened(self, runtime: Runtime) -> Journal:
        spool = self._spool
        while True:
            journal = Journal(spool, max_bytes=self._spool_max_bytes, count=runtime.count)
            try:
                await journal.open(runtime.new_id())
            except SetupError as error:
                if self._spool_required or spool is None:
                    raise
                log.warning("records wait in memory, and a restart loses them: %s", error.message)
                runtime.report("spool", error.message)
                spool = None
                continue
            return journal

    async def aclose(self) -> None:
        """Deliver what there is. Destinations of calls go first: what they find may be worth an alert."""
        async with AsyncExitStack() as stack:  # each is closed, whatever another raises; the last pushed is the first
            stack.callback(self._end)
            for of_calls in (False, True):
                group = [one for one in self.destinations if one.takes_calls is of_calls]
                for one in group:
                    stack.push_async_callback(one.callback.aclose)
                stack.push_async_callback(self._drain, [one.name for one in group])

    def _end(self) -> None:
        runtime = self.runtime
        if runtime is not None and self.alert in runtime.alert_listeners:
            runtime.alert_listeners.remove(self.alert)
        self.outboxes.clear()
        journal, self.journal = self.journal, None
        if journal is not None:
            journal.close()

    async def _drain(self, names: Sequence[str]) -> None:
        """Let these outboxes deliver, all at once; after a start that failed halfway some are not there."""
        outboxes = [self.outboxes[name] for name in names if name in self.outboxes]
        left = await asyncio.gather(*(outbox.drain(self._flush_s) for outbox in outboxes))
        for outbox, count in zip(outboxes, left, strict=True):
            await outbox.aclose()
            if count:
                told = outbox.last_error or "none"
                log.warning("callback %s: %d records are not delivered; last error: %s", outbox.name, count, told)

    # --- calls

    async def on_request(self, call: Call) -> None:
        call.keep(self._content.max_bytes)
        parent = current_span()
        if parent is None and not self._live and not self._forward_trace:
            return  # the record finds the trace in the headers
        call.notes[TraceContext] = trace_context(call.headers, call.id, parent)
        if self._forward_trace:
            call.upstream_headers.append(lambda _: outgoing(call.note(TraceContext)))
        for callback in self._live:
            try:
                callback.on_request(call)
            except Exception as error:  # noqa: BLE001 - plugin failsafe: who only watches must not fail a call
                self._failed(call, callback, error)

    def on_end_now(self, call: Call) -> None:
        for callback in self._live:
            try:
                callback.on_end(call)
            except Exception as error:  # noqa: BLE001 - plugin failsafe
                self._failed(call, callback, error)
        without = self._wishes.without(call)
        if without is None:
            return
        names = self._choose(call, well=call.outcome in _OK, without=without)
        if names and self.journal is not None:
            content = self._wishes.content(call, self._content.content)
            self.journal.offer(names, call.id, "call", snapshot(call, self._content, content=content))

    def alert(self, alert: Alert) -> None:
        """Send an alert to every destination of alerts."""
        if self.journal is None or self.runtime is None or not self._alert_names:
            return
        raw = orjson.dumps(alert.as_dict(self.runtime.wall()), default=str)
        self.journal.offer(self._alert_names, self.runtime.new_id(), "alert", raw)

    def _failed(self, call: Call, callback: Callback, error: Exception) -> None:
        call.runtime.count("callback_errors", f"{type(callback).__name__} {type(error).__name__}")
        log.error("call %s: the callback %s raised %s", call.id, type(callback).__name__, type(error).__name__)

    def report(self) -> dict[str, Any]:
        """The state of the spool and of every destination, for people."""
        journal = self.journal
        known = {name: outbox.report() for name, outbox in self.outboxes.items()}
        if journal is None:
            return {"spool": None, "destinations": known}
        absent = {place.name: place.waiting for place in journal.subscribers if place.name not in known}
        spool = {
            "folder": str(journal.root) if journal.root else None,
            "durable": journal.durable,
            "bytes": journal.size,
            "max_bytes": journal.max_bytes,
            "trouble": journal.trouble,
            "waiting_for_absent": absent,
        }
        return {"spool": spool, "destinations": known}


def _named(callbacks: Sequence[Callback | Destination]) -> list[Destination]:
    """Destinations with names of their own. Raises ValueError for a name that stands twice."""
    found: list[Destination] = []
    for one in callbacks:
        if isinstance(one, Callback):
            name = type(one).__name__.lower()
            count = sum(other.name.partition("-")[0] == name for other in found)
            one = Destination(callback=one, name=f"{name}-{count + 1}" if count else name)
        if any(other.name == one.name for other in found):
            raise ValueError(f"two callbacks have the name {one.name!r}")
        found.append(one)
    return found
