"""The steady client, a process of its own: so many requests a second, sent by the clock whatever the answers do.

    BODY=... HEADERS=... python steady.py PORT PATH RATE SECONDS

A connection is used again when its answer is complete; a request never waits for another one's answer, so that a stall
is seen by all that it delays. It prints one line of JSON, latencies in ms from the write of each request: the event
loop's own timers are a millisecond late.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from statistics import quantiles
from time import perf_counter
from typing import cast


class Connection(asyncio.Protocol):
    """One keep-alive connection; an answer is complete when its announced length has come."""

    def __init__(self) -> None:
        self._got = b""
        self._answer: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        """True for a complete answer with status 200."""
        self._got, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, blank, body = self._got.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if blank and len(body) >= int(length or 0) and self._answer is not None and not self._answer.done():
            self._answer.set_result(head[9:12] == b"200")

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(False)


async def run(port: int, path: str, rate: float, seconds: float) -> dict[str, float]:
    """The figures of one run."""
    body = os.environ["BODY"].encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        *os.environ["HEADERS"].split("\n"),
        f"content-length: {len(body)}",
    ]
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    loop, free, tasks = asyncio.get_running_loop(), list[Connection](), list[asyncio.Task[None]]()
    took: list[float] = []

    async def one() -> None:
        connection = free.pop() if free else (await loop.create_connection(Connection, "127.0.0.1", port))[1]
        sent = perf_counter()
        if await connection.ask(request):
            took.append((perf_counter() - sent) * 1e3)
            free.append(connection)

    began = perf_counter()
    for n in range(int(rate * seconds)):
        due = began + n / rate
        await asyncio.sleep(max(0.0, due - perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.wait(tasks, timeout=30)
    cuts = quantiles(took, n=100) if len(took) > 1 else [0.0] * 99
    return {"requests": len(tasks), "p50_ms": cuts[49], "p99_ms": cuts[98], "bad": len(tasks) - len(took)}


if __name__ == "__main__":
    figures = asyncio.run(run(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
    print(json.dumps(figures))
