"""What the layers cost in process: CPU time per request and per event, without sockets, the best of several runs.

    python tests/benchmarks/layers.py

Tight loops over warm caches: in a server under load the same code costs one and a half to two times as much.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from pydantic import PrivateAttr

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Probe, deployment, stream_of
from tianji_mw.cache.middleware import Cache
from tianji_mw.cache.rules import CacheRules
from tianji_mw.call import Call
from tianji_mw.callbacks.base import Callback, Record
from tianji_mw.callbacks.middleware import Callbacks
from tianji_mw.driver import LLMMiddleware
from tianji_mw.gateway import Gateway
from tianji_mw.identity.middleware import Authentication
from tianji_mw.providers.openai import OpenAI
from tianji_mw.redact import Secret
from tianji_mw.routing.table import Deployments
from tianji_mw.testing import started
from tianji_mw.upstream import UpstreamRequest

RUNS, REQUESTS = 7, 3_000
KEYLESS = CacheRules(keyless=True)
EVENTS = stream_of(*["word"] * 200)
HEADERS = [(b"host", b"x"), (b"content-type", b"application/json"), (b"authorization", b"Bearer sk-master")]


class Canned:
    """A transport that answers at once."""

    status = 200

    def __init__(self, kind: bytes, chunks: list[bytes]) -> None:
        self.headers = [(b"content-type", kind)]
        self._kind, self._chunks = kind, chunks
        self._left = iter(chunks)

    async def send(self, request: UpstreamRequest) -> Canned:
        return Canned(self._kind, self._chunks)

    async def chunk(self) -> bytes:
        return next(self._left, b"")

    async def read(self, limit: int) -> bytes:
        return self._chunks[0]

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


class Answering(OpenAI):
    """A provider that brings its transport along."""

    _upstream: Any = PrivateAttr(default=None)

    def transport(self) -> Any:
        return self._upstream


class Idle(LLMMiddleware):
    """No hook at all."""


class Asks(LLMMiddleware):
    """One hook, which does nothing."""

    async def on_request(self, call: Call) -> None: ...


class Sink(Callback):
    """A destination that never gets to deliver: what is left is the cost in the path of a call."""

    batch_size: int = 100_000
    max_batch_bytes: int = 1 << 30
    flush_interval_s: float = 3600.0

    async def write(self, batch: Sequence[Record]) -> None: ...


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """An app that does nothing."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})


def gateway(upstream: Canned) -> Gateway:
    provider = Answering(api_base="http://127.0.0.1:9/v1", api_key=Secret("sk-key"))
    provider._upstream = upstream
    return Gateway(Deployments([deployment("", provider=provider), deployment("", provider=provider, id="d2")]))


def stacked(app: Any, kind: Callable[..., Any], count: int) -> Any:
    for _ in range(count):
        app = kind(app)
    return app


async def cost(app: Any, body: dict[str, Any], path: str = "/v1/chat/completions", requests: int = REQUESTS) -> float:
    """CPU microseconds of one request."""
    request: Any = {"type": "http.request", "body": orjson.dumps(body), "more_body": False}
    stays = asyncio.Event()

    async def send(message: Any) -> None: ...

    async def once() -> None:
        given = iter((request,))

        async def receive() -> Any:
            return next(given, None) or await stays.wait()

        await app({"type": "http", "method": "POST", "path": path, "headers": list(HEADERS)}, receive, send)

    best = float("inf")
    async with started(app):
        for _ in range(RUNS):
            began = time.process_time()
            for _ in range(requests):
                await once()
            best = min(best, (time.process_time() - began) / requests * 1e6)
    return best


def show(what: str, microseconds: float) -> None:
    print(f"{what:58s} {microseconds:7.2f} us")


async def main() -> None:
    plain = Canned(b"application/json", [orjson.dumps(ANSWER)])
    streamed, short = Canned(b"text/event-stream", EVENTS), Canned(b"text/event-stream", EVENTS[-3:])
    burst = Canned(b"text/event-stream", [b"".join(EVENTS)])
    bare = await cost(gateway(plain), CHAT)
    show("gateway alone, a plain request", bare)
    show("  and identity", await cost(Authentication(gateway(plain), master_key="sk-master"), CHAT) - bare)
    for kind, what in ((Idle, "no hook"), (Asks, "an idle on_request"), (Ends, "an idle on_end")):
        ten = await cost(stacked(gateway(plain), kind, 10), CHAT)
        show(f"  a further layer with {what}", (ten - bare) / 10)
    with TemporaryDirectory() as folder:
        for count in (1, 2, 5):
            app = Callbacks(gateway(plain), callbacks=[Sink() for _ in range(count)], spool=f"{folder}/{count}")
            show(f"  and logging to {count} destinations", await cost(app, CHAT) - bare)
    show("cache: a hit in memory, the whole call", await cost(Cache(gateway(plain), rules=KEYLESS), CHAT))
    asking = {**CHAT, "cache": {"no-cache": True}}
    kept = await cost(Cache(gateway(plain), rules=KEYLESS), asking)
    show("  and a miss that is kept, beside the gateway", kept - bare)
    few = await cost(gateway(short), STREAM, requests=500)
    alone = await cost(gateway(streamed), STREAM, requests=100)
    show("gateway alone, an event of a stream, each by itself", (alone - few) / (len(EVENTS) - 3))
    tapped = await cost(Probe(gateway(streamed)), STREAM, requests=100)
    show("  a layer that reads frames", (tapped - alone) / len(EVENTS))
    show("gateway alone, an event of a burst", (await cost(gateway(burst), STREAM, requests=500)) / len(EVENTS))
    nothing = await cost(inner, CHAT, "/health")
    show("a foreign route through ten layers", await cost(stacked(inner, Asks, 10), CHAT, "/health") - nothing)


if __name__ == "__main__":
    asyncio.run(main())
