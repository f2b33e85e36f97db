"""The load: `wrk` for plain answers, `sse.py` for streams, and a check of every field before anything is timed.

Each function drives one running server and returns one sample, a flat dict of numbers. It keeps no results.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from typing import Any, Final

import aiohttp
from rows import HERE
from servers import BenchError, Server

Sample = dict[str, Any]
_PLAIN: Final = "Hello! How can I assist you today?"
_STREAM: Final = "".join(f" tok{i}" for i in range(1, 101))
_CHECKS: Final = 400  # every eighth is a stream


def plain(server: Server, connections: int, secs: int, model: str = "mock") -> Sample:
    """`wrk` with so many keep-alive connections; rates, latencies in ms, CPU microseconds of the server per request."""
    url = f"http://127.0.0.1:{server.port}{server.row.path}"
    options = ["-t1", f"-c{connections}", f"-d{secs}s", "--timeout", "10s", "-s", str(HERE / "post.lua")]
    before = server.cpu_s()
    out = _run(["wrk", *options, url], server, server.row.body(model), secs)
    cpu_s = server.cpu_s() - before
    seen = json.loads(out.partition("JSON ")[2].splitlines()[0])
    n = seen["n"]
    server.requests += n
    server.settle()
    return {
        "rps": n / seen["us"] * 1e6,
        "p50_ms": seen["p50_us"] / 1e3,
        "p99_ms": seen["p99_us"] / 1e3,
        "cpu_us": _each(server, cpu_s, n),
        "bad": seen["bad"] + (n == 0),
    }


def streams(server: Server, connections: int, secs: int, model: str = "mock") -> Sample:
    """`sse.py` with so many streams at once; every stream is checked. A chunk is one event, [DONE] included."""
    command = [sys.executable, str(HERE / "sse.py"), str(server.port), server.row.path, str(connections), str(secs)]
    before = server.cpu_s()
    out = _run(command, server, server.row.body(model, stream=True), secs)
    cpu_s = server.cpu_s() - before
    seen: Sample = json.loads(out.splitlines()[-1])
    server.requests += seen["streams"]
    server.settle()
    return {**seen, "cps": seen["chunks"] / seen["secs"], "cpu_us": _each(server, cpu_s, seen["chunks"])}


def steady(server: Server, rate: int, secs: int) -> Sample:
    """`steady.py`: so many requests a second by the clock, as a quiet service sees them."""
    command = [sys.executable, str(HERE / "steady.py"), str(server.port), server.row.path, str(rate), str(secs)]
    seen: Sample = json.loads(_run(command, server, server.row.body(), secs).splitlines()[-1])
    server.requests += seen["requests"]
    server.settle()
    return seen


def _each(server: Server, cpu_s: float, n: int) -> float | None:
    return cpu_s / n * 1e6 if server.process and n else None


def _run(command: list[str], server: Server, body: str, secs: int) -> str:
    headers = "\n".join(f"{name}: {value}" for name, value in server.row.all_headers().items())
    env = {"PATH": os.environ["PATH"], "BODY": body, "HEADERS": headers}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=secs + 45, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        detail = getattr(exc, "stderr", None) or ""
        raise BenchError(f"{server.row.name}: the load generator {command[0]} failed: {exc}\n{detail}") from exc
    return done.stdout


def soak(server: Server, requests: int, limit_s: float = 120.0) -> int:
    """Top the server up to so many requests, for its memory afterwards; the number of bad answers."""
    end = time.monotonic() + limit_s
    bad = 0
    while server.process and server.requests < requests and time.monotonic() < end:
        bad += plain(server, 64, 3)["bad"]
    return bad


def verify(server: Server) -> None:
    """Status, content-type and body of 400 concurrent answers, read by a client that is not the load generator."""
    seen = asyncio.run(_verify(server))
    wrong = {what: n for what, n in seen.items() if what != "ok"}
    if wrong:
        raise BenchError(f"{server.row.name}: wrong answers, nothing is timed: {wrong}")


async def _verify(server: Server) -> Counter[str]:
    seen: Counter[str] = Counter()
    url = f"http://127.0.0.1:{server.port}{server.row.path}"
    todo = iter(range(_CHECKS))
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, headers=server.row.all_headers()) as session:

        async def worker() -> None:
            for i in todo:
                stream = i % 8 == 0
                try:
                    async with session.post(url, data=server.row.body(stream=stream)) as r:
                        seen[_judge(r.status, r.content_type, await r.text(), stream=stream)] += 1
                except (aiohttp.ClientError, TimeoutError) as exc:
                    seen[f"no answer: {exc!r}"] += 1

        await asyncio.gather(*[worker() for _ in range(16)])
    server.requests += _CHECKS
    return seen


def _judge(status: int, content_type: str, text: str, *, stream: bool) -> str:
    expected = (200, "text/event-stream" if stream else "application/json")
    if (status, content_type) != expected:
        return f"{status} {content_type} {text[:200]!r}"
    try:
        good = _stream_is_right(text) if stream else _plain_is_right(json.loads(text))
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        return f"unreadable body ({exc!r}): {text[:200]!r}"
    return "ok" if good else f"wrong body: {text[:200]!r}"


def _plain_is_right(answer: Any) -> bool:
    choice = answer["choices"][0]
    return bool(
        answer["object"] == "chat.completion"
        and choice["message"]["content"] == _PLAIN
        and choice["finish_reason"] == "stop"
        and answer["usage"]["total_tokens"] == 29
    )


def _stream_is_right(text: str) -> bool:
    data = [event.removeprefix("data: ") for event in text.removesuffix("\n\n").split("\n\n")]
    events = [json.loads(one) for one in data[:-1]]
    choices = [choice for event in events for choice in event["choices"]]
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    finish = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    usage = [event["usage"]["total_tokens"] for event in events if event.get("usage")]
    return data[-1] == "[DONE]" and content == _STREAM and finish == ["stop"] and usage == [119]
