"""The stream client, a process of its own: N connections, each one stream after another, every stream checked.

    BODY=... HEADERS=... python sse.py PORT PATH CONNECTIONS SECONDS

A raw asyncio protocol, so that it costs little; it reads chunked transfer coding only, and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, cast

CHUNKS: Final = 103  # 100 with content, finish, usage, [DONE]
_LAST: Final = b"\r\n0\r\n\r\n"
_TOKEN: Final = re.compile(rb'"content": ?" tok(\d+)"')
_TOKENS: Final = [str(i).encode() for i in range(1, 101)]
_TYPE: Final = re.compile(rb"\r\ncontent-type: *text/event-stream[;\r]", re.IGNORECASE)


@dataclass(eq=False)
class Tally:
    """What all connections saw."""

    request: bytes
    until: float
    streams: int = 0
    bad: int = 0
    ttft_s: list[float] = field(default_factory=list)


class Streams(asyncio.Protocol):
    """One connection: asks again when a stream ends, until the time is over or an answer is bad."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        self.running = True
        self.parts: list[bytes] = []
        self.tail = b""
        self.ttft_s = 0.0
        self.began = perf_counter()
        self.transport.write(self.tally.request)

    def data_received(self, data: bytes) -> None:
        if not self.ttft_s and b"data: " in data:
            self.ttft_s = perf_counter() - self.began
        self.parts.append(data)
        self.tail = (self.tail + data)[-len(_LAST) :]
        if self.tail == _LAST:
            self.finish()
        elif len(self.parts) == 1 and not data.startswith(b"HTTP/1.1 200 "):
            self.transport.close()  # counted as bad in connection_lost

    def finish(self) -> None:
        if is_whole(b"".join(self.parts)):
            self.running = False
            self.tally.streams += 1
            self.tally.ttft_s.append(self.ttft_s)
            if perf_counter() < self.tally.until:
                self.ask()
                return
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.tally.bad += self.running
        if not self.closed.done():
            self.closed.set_result(None)


def is_whole(answer: bytes) -> bool:
    """Whether the answer is the mock's stream: right status, type, all tokens in order, one [DONE] at the end."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or not _TYPE.search(head + b"\r\n"):
        return False
    try:
        body = b"".join(dechunk(rest))
    except ValueError:
        return False
    return body.count(b"data: ") == CHUNKS and body.endswith(b"data: [DONE]\n\n") and _TOKEN.findall(body) == _TOKENS


def dechunk(rest: bytes) -> list[bytes]:
    """The pieces of a whole chunked body."""
    pieces: list[bytes] = []
    at = 0
    while True:
        line = rest.index(b"\r\n", at)
        size = int(rest[at:line].partition(b";")[0], 16)
        if not size:
            return pieces
        pieces.append(rest[line + 2 : line + 2 + size])
        at = line + 4 + size


def percentile(values: list[float], share: float) -> float | None:
    """In milliseconds; None of nothing."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3 if values else None


async def main(port: int, path: str, connections: int, secs: float) -> None:
    """Drive the load and print what was seen."""
    body = os.environ["BODY"].encode()
    headers = os.environ["HEADERS"].splitlines() + [f"host: 127.0.0.1:{port}", f"content-length: {len(body)}"]
    request = "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode() + body
    loop = asyncio.get_running_loop()
    began = perf_counter()
    tally = Tally(request, began + secs)
    clients = [(await loop.create_connection(lambda: Streams(tally), "127.0.0.1", port))[1] for _ in range(connections)]
    _, unfinished = await asyncio.wait([client.closed for client in clients], timeout=secs + 15)
    seen = {
        "streams": tally.streams,
        "chunks": tally.streams * CHUNKS,
        "secs": perf_counter() - began,
        "ttft_p50_ms": percentile(tally.ttft_s, 0.5),
        "ttft_p99_ms": percentile(tally.ttft_s, 0.99),
        "bad": tally.bad + len(unfinished),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        pass
    else:
        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
