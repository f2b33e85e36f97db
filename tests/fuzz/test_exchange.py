"""Random requests and upstreams through the whole stack: no exception, no silent success, one end for each call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.test_apis import JSONS, OBJECTS
from tests.fault.test_streams import CHAT_EVENTS, MESSAGES_EVENTS, WIRES, told
from tests.support.stack import Ends, anthropic, gateway, guarded
from tianji_mw.errors import UpstreamTruncated
from tianji_mw.runtime import Runtime
from tianji_mw.testing import Driven, drive, started
from tianji_mw.upstream import UpstreamRequest


class Scripted:
    """A transport in memory: the status, the type and the chunks of one answer; `cut` ends it before its end."""

    def __init__(self, status: int, kind: str, chunks: Sequence[bytes], cut: bool) -> None:
        self.status = status
        self.headers = [(b"content-type", kind.encode("latin-1", "replace"))]
        self._chunks, self._cut = list(chunks), cut

    async def send(self, request: UpstreamRequest) -> Scripted:
        return self

    async def chunk(self) -> bytes:
        await asyncio.sleep(0)
        while self._chunks:
            if chunk := self._chunks.pop(0):
                return chunk
        if self._cut:
            raise UpstreamTruncated("cut")
        return b""

    async def read(self, limit: int) -> bytes:
        out = b""
        while chunk := await self.chunk():
            out += chunk
        return out

    def close(self) -> None:
        self._chunks.clear()

    async def aclose(self) -> None: ...


def run(name: str, body: Any, upstream: Scripted, guard: bool) -> tuple[Driven, list[str | None]]:
    """One call through the stack; fails when anything in it failed in a way that nobody meant."""
    _, path, _, wire, _ = WIRES[name]

    async def once() -> tuple[Driven, list[str | None]]:
        inner: Any = gateway("http://x", provider=anthropic("http://x") if wire == "anthropic" else None)
        runtime = Runtime(transport_factory=lambda: upstream)
        app = Ends(guarded(inner) if guard else inner, runtime=runtime)
        async with started(app):
            driven = await drive(app, body, path=path)
        assert driven.error is None
        assert driven.complete
        assert len(app.outcomes) == 1
        assert not [event for event in runtime.counts if event[0].endswith("_failures")]
        return driven, app.outcomes

    return asyncio.run(once())


#: `TIANJI_FUZZ=5000` for a long run.
EXAMPLES = int(os.environ.get("TIANJI_FUZZ", "50"))
NAMES = st.sampled_from(sorted(WIRES))
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 304, 400, 429, 500, 599])
TYPES = st.sampled_from(["text/event-stream", "application/json", "text/html", "", "application/x-ndjson"])
PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [*CHAT_EVENTS, *MESSAGES_EVENTS, b"\n", b"\r\n\r\n", b": ping\n\n", b"data: \n\n", b"\xef\xbb\xbf"]
    ),
    JSONS.map(lambda data: b"data: %b\n\n" % orjson.dumps(data)),
    JSONS.map(orjson.dumps),
)
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(NAMES, STATUSES, TYPES, st.lists(PIECES, max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_any_upstream(
    name: str, status: int, kind: str, chunks: list[bytes], cut: bool, stream: bool, guard: bool
) -> None:
    api, _, request, _, _ = WIRES[name]
    driven, outcomes = run(name, {**request, "stream": stream}, Scripted(status, kind, chunks, cut), guard)
    if stream and outcomes != ["ok"]:
        assert told(driven, api) == "error"
    if outcomes == ["ok"]:
        assert driven.status == 200
        assert not stream or told(driven, api) == "ok"


@quick
@given(NAMES, OBJECTS, st.booleans(), st.booleans())
def test_any_request(name: str, extra: dict[str, Any], stream: bool, guard: bool) -> None:
    _, _, request, _wire, events = WIRES[name]
    body = {**request, **extra, "stream": stream}
    run(name, body, Scripted(200, "text/event-stream", events, False), guard)


@quick
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_as_a_request(body: bytes, guard: bool) -> None:
    driven, _ = run("chat", body, Scripted(200, "application/json", [b"{}"], False), guard)
    assert 400 <= driven.status < 500 or driven.status == 502
