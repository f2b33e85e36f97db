"""What a request costs, in counts that no machine can change: Python calls, memory in flight, nothing kept, no imports.

The bounds lie a little above what is needed today. A change that passes one has made every request dearer: raise it
only together with the figures in `docs/performance.md`.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import tianji_mw
from tests.support.stack import ANSWER, CHAT, STREAM, delta, deployment, stream_of
from tianji_mw.call import Call
from tianji_mw.driver import LLMMiddleware
from tianji_mw.gateway import Gateway
from tianji_mw.identity.middleware import Authentication
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime
from tianji_mw.testing import started
from tianji_mw.upstream import UpstreamRequest

ROOT = str(Path(tianji_mw.__file__).parent)
EVENTS = stream_of(*["word"] * 200)


class Canned:
    """A transport that answers at once, so that nothing but our own work is counted."""

    def __init__(self, kind: bytes, chunks: list[bytes]) -> None:
        self.status = 200
        self.headers = [(b"content-type", kind)]
        self._kind, self._chunks = kind, chunks
        self._left = list(chunks)

    async def send(self, request: UpstreamRequest) -> Canned:
        return Canned(self._kind, self._chunks)

    async def chunk(self) -> bytes:
        return self._left.pop(0) if self._left else b""

    async def read(self, limit: int) -> bytes:
        return b"".join(self._left)

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


class Asks(LLMMiddleware):
    """A layer that does nothing in a hook."""

    phase: ClassVar[int] = 500

    async def on_request(self, call: Call) -> None: ...


def plain() -> Canned:
    import orjson

    return Canned(b"application/json", [orjson.dumps(ANSWER)])


def streamed() -> Canned:
    return Canned(b"text/event-stream", EVENTS)


def stack(layers: int = 0, routed: int = 0) -> Any:
    """Identity, `layers` idle ones, and a gateway over two deployments, or behind `Routing` over so many."""
    table = Deployments([deployment("http://x", id=f"d{number}") for number in range(routed or 2)])
    app: Any = Gateway(table)
    if routed:
        app = Routing(app, table)
    for _ in range(layers):
        app = Asks(app)
    return Authentication(app, master_key="sk-master")


async def running(
    upstream: Canned, layers: int, body: dict[str, Any], then: Callable[[Any], Awaitable[None]], routed: int = 0
) -> None:
    import orjson

    app = stack(layers, routed)
    app.runtime = Runtime(transport_factory=lambda: upstream)
    raw = orjson.dumps(body)
    headers = [(b"authorization", b"Bearer sk-master"), (b"content-length", b"%d" % len(raw))]

    async def once() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Any) -> None: ...

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": list(headers)}
        await app(scope, receive, send)

    async with started(app):
        for _ in range(3):  # what is made once is made now
            await once()
        await then(once)


def calls_of(upstream: Canned, layers: int, body: dict[str, Any], routed: int = 0) -> int:
    """Functions of the suite that are entered for one request. What the collector or a plugin of pytest runs is not."""
    counted, counts = 0, list[int]()

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event == "call" and frame.f_code.co_filename.startswith(ROOT)

    async def count(once: Callable[[], Awaitable[None]]) -> None:
        nonlocal counted
        for _ in range(5):
            counted = 0
            sys.setprofile(profile)
            try:
                await once()
            finally:
                sys.setprofile(None)
            counts.append(counted)

    asyncio.run(running(upstream, layers, body, count, routed))
    return min(counts)  # a slow machine's clock may ring a coarse deadline in one of them


def test_a_request_enters_so_many_functions() -> None:
    assert calls_of(plain(), 0, CHAT) <= 130


@pytest.mark.parametrize(("deployments", "most"), [(1, 42), (2, 76), (1000, 120)])
def test_routing_adds_so_many_functions(deployments: int, most: int) -> None:
    assert calls_of(plain(), 0, CHAT, deployments) - calls_of(plain(), 0, CHAT) <= most


def test_an_event_of_a_routed_stream_costs_one_function_more() -> None:
    routed = calls_of(streamed(), 0, STREAM, 2) - calls_of(plain(), 0, CHAT, 2)
    assert routed - (calls_of(streamed(), 0, STREAM) - calls_of(plain(), 0, CHAT)) <= 201 * 1 + 40


def test_a_layer_with_nothing_to_do_adds_few_calls() -> None:
    assert calls_of(plain(), 10, CHAT) - calls_of(plain(), 0, CHAT) <= 10 * 7


def test_an_event_of_a_stream_enters_so_many_functions() -> None:
    assert calls_of(streamed(), 0, STREAM) - calls_of(Canned(b"text/event-stream", EVENTS[-2:]), 0, STREAM) <= 201 * 15


def test_events_that_arrive_together_cost_little_each() -> None:
    burst = Canned(b"text/event-stream", [b"".join(EVENTS[:100]), b"".join(EVENTS[100:])])
    assert calls_of(burst, 0, STREAM) <= 210 + 203 * 1.25


def test_a_request_in_flight_is_small_and_nothing_of_it_stays() -> None:
    async def measure(once: Callable[[], Awaitable[None]]) -> None:
        gc.collect()
        tracemalloc.start()
        for _ in range(200):
            await once()
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1_000):
            await once()
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert peak - before < 40_000, "one request at a time, and what the collector has not taken yet"
        assert after - before < 6_000, "a call or two that the loop still holds"

    asyncio.run(running(plain(), 3, CHAT, measure))


@pytest.mark.slow
def test_a_sidecar_under_traffic_has_imported_nothing_that_it_does_not_use(tmp_path: Any) -> None:
    """One OpenAI deployment: no other provider, no bridge, no SDK, no second HTTP client."""
    config = tmp_path / "config.yaml"
    params = "{model: openai/m, api_base: 'http://127.0.0.1:9', api_key: k}"
    config.write_text(f"model_list:\n  - {{model_name: m, litellm_params: {params}}}\n")
    code = f"""
import asyncio, sys
from sidecar.app import apps_of
from sidecar.options import RunOptions
from tianji_mw.testing import drive, started
async def main():
    app = apps_of(RunOptions(config={str(config)!r}, admin_port=0)).app
    async with started(app):
        driven = await drive(app, {{"model": "m", "messages": []}})
        assert driven.status == 502, driven.status
asyncio.run(main())
print(" ".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    unused = {"aiohttp", "httpx", "h2", "openai", "anthropic", "fastapi", "rich", "tianji_mw.upstream.aiohttp"}
    unused |= {f"tianji_mw.providers.{name}" for name in ("anthropic", "azure_openai", "mock")}
    assert not loaded & unused
    assert not [name for name in loaded if name.startswith("tianji_mw.bridges.") and name != "tianji_mw.bridges.base"]


def test_delta_is_what_the_bounds_were_made_with() -> None:
    assert len(EVENTS) == 203
    assert EVENTS[1] == delta("word")


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["plain", "stream"])
def test_a_routed_call_leaves_the_collector_nothing(body: dict[str, Any]) -> None:
    """Objects that know each other in a circle wait for the collector, which then stops everything for milliseconds."""
    found: list[int] = []

    async def count(once: Callable[[], Awaitable[None]]) -> None:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await once()
            found.append(gc.collect())
        finally:
            gc.enable()

    asyncio.run(running(streamed() if body is STREAM else plain(), 0, body, count, 2))
    assert found[0] < 20
