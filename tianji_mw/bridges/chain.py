"""Two bridges in a row: A over B over C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Bridge, Context, Event, StreamBridge


class Chain:
    """Serves A by way of B on an upstream that speaks C."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: Bridge, inner: Bridge) -> None:
        self._outer = outer
        self._inner = inner

    def request(self, body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
        return self._inner.request(self._outer.request(body, context), context)

    def answer(self, body: JSON, context: Context) -> JSON:
        return self._outer.answer(self._inner.answer(body, context), context)

    def stream(self, context: Context) -> StreamBridge:
        return _ChainStream(self._outer.stream(context), self._inner.stream(context))


class _ChainStream:
    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: StreamBridge, inner: StreamBridge) -> None:
        self._outer = outer
        self._inner = inner

    def feed(self, event: Event) -> Iterator[Event]:
        for middle in self._inner.feed(event):
            yield from self._outer.feed(middle)

    def finish(self) -> Iterable[Event]:
        out = [event for middle in self._inner.finish() for event in self._outer.feed(middle)]
        return [*out, *self._outer.finish()]

    @property
    def ended(self) -> bool:
        return self._inner.ended
