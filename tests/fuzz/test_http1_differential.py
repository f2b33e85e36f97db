"""The lean client against aiohttp's: the same random exchanges give the same status, headers and body, or both fail.

`TIANJI_FUZZ_EXCHANGES=10000` for the long run. A failure prints the exchange's number and bytes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tests.support.raw import RawServer, Script
from tianji_mw.errors import UpstreamError
from tianji_mw.upstream import Deadlines, Transport, UpstreamRequest
from tianji_mw.upstream.aiohttp import AiohttpTransport
from tianji_mw.upstream.http1 import Http1Transport

EXCHANGES = int(os.environ.get("TIANJI_FUZZ_EXCHANGES", "400"))
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
LIMITS = Deadlines(connect_s=10, first_byte_s=10, between_bytes_s=10)

Seen = tuple[int, list[tuple[bytes, bytes]], bytes] | None


def exchange(seed: int) -> Script:
    """One answer, made from its seed alone."""
    rng = random.Random(seed)
    body = rng.randbytes(rng.choice([0, 1, 5, 100, 1000, 70_000]))
    status = rng.choice([200, 200, 200, 201, 204, 304, 400, 404, 429, 500, 503, 599])
    version = rng.choice([b"1.1"] * 9 + [b"1.0"])
    framing = rng.choice(["length", "chunked", "close"])
    if version == b"1.0" and framing == "chunked":
        framing = "close"  # HTTP/1.0 has no chunks; what a reader makes of them is anybody's choice
    if status in (204, 304):
        body = b""
    lines = [b"HTTP/%b %d %b" % (version, status, rng.choice([b"OK", b"", b"Some Reason"])), *headers(rng)]
    close = framing == "close" or rng.random() < 0.2
    if framing == "length":
        lines.append(b"%b: %d" % (rng.choice([b"Content-Length", b"content-length"]), len(body)))
    elif framing == "chunked" and status not in (204, 304):
        lines.append(rng.choice([b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked"]))
        body = chunks(rng, body)
    if close or version == b"1.0":
        lines.append(rng.choice([b"Connection: close", b"connection: Close"]))
        close = True
    wire = interim(rng) + b"\r\n".join(lines) + b"\r\n\r\n" + body
    fate = rng.random()
    if fate < 0.08 and framing != "close":
        # Of a body that ends with the connection nobody can tell a part from the whole.
        wire, close = wire[: rng.randrange(len(wire))], True
    elif fate < 0.12:
        wire, close = rng.randbytes(rng.randrange(1, 200)) + wire, True
    return Script(packets(rng, wire), close)


def headers(rng: random.Random) -> list[bytes]:
    names = [b"x-a", b"X-Request-Id", b"retry-after", b"Content-Type", b"set-cookie", b"x-odd.name", b"x_under"]
    values = [b"", b"1", b"a b\tc", b"text/event-stream; charset=utf-8", b"\xe9\xff", b"v" * 300, b'"quoted, list"']
    return [
        b"%b:%b%b%b" % (rng.choice(names), rng.choice([b" ", b"", b"  "]), rng.choice(values), rng.choice([b"", b" "]))
        for _ in range(rng.randrange(8))
    ]


def chunks(rng: random.Random, body: bytes) -> bytes:
    out = b""
    while body:
        size = min(len(body), rng.choice([1, 2, 17, 1000, 40_000]))
        extension = rng.choice([b"", b"", b";a=b", b';name="va lue"'])
        size_line = rng.choice([b"%x", b"%X", b"000%x"]) % size
        out += size_line + extension + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    # No framing headers among the trailers: both clients refuse them, aiohttp only after its deadline.
    trailers = rng.choice([b"", b"", b"x-trailer: 1\r\n", b"x-trailer: 1\r\nX-Two:\r\n"])
    return out + b"0\r\n" + trailers + b"\r\n"


def interim(rng: random.Random) -> bytes:
    if rng.random() < 0.9:
        return b""
    return rng.choice([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-a: 1\r\n\r\n"])


def packets(rng: random.Random, wire: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.choice([0, 0, 1, 2, 8])))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if b > a]


async def ask(transport: Transport, url: str) -> Seen:
    """What a client sees of an exchange; None when it fails, in which way ever."""
    request = UpstreamRequest("POST", url, [("content-type", "application/json")], b"{}", LIMITS)
    try:
        response = await transport.send(request)
        try:
            body = b""
            while chunk := await response.chunk():
                body += chunk
            return response.status, sorted(response.headers), body
        finally:
            response.close()
    except UpstreamError:
        return None


async def compare(seeds: range) -> dict[str, int]:
    counts = {"answers": 0, "failures": 0}

    def script(path: str, number: int) -> Script:
        return exchange(int(path[1:]))

    lean, other = Http1Transport(), AiohttpTransport()
    async with RawServer(script) as server:
        for seed in seeds:
            url = f"{server.url}/{seed}"
            seen, expected = await ask(lean, url), await ask(other, url)
            wire = b"".join(exchange(seed).packets)
            assert seen == expected, f"exchange {seed}: {seen!r:.300} against {expected!r:.300}\n{wire[:600]!r}"
            counts["answers" if seen else "failures"] += 1
        await lean.aclose()
        await other.aclose()
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(LOOPS)), ids=["asyncio", "uvloop"])
@pytest.mark.timeout(900)
def test_random_exchanges_look_the_same_as_through_aiohttp(number: int) -> None:
    half = EXCHANGES // len(LOOPS)
    with asyncio.Runner(loop_factory=LOOPS[number]) as runner:
        counts: dict[str, Any] = runner.run(compare(range(number * half, (number + 1) * half)))
    assert counts["answers"] > half * 0.7
    assert counts["failures"] > 0
