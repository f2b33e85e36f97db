"""Records at a steady rate into one destination that fails in some way: is any lost, and when is it there?

    python -m tests.benchmarks.callback_load TYPE URL FAULT [--rate 1000] [--seconds 60]

TYPE: s3, dynamodb, sqs, gcs, azure_blob or any other callback; URL: of its emulator; OPTIONS by `--set name=value`.
FAULT: none, down (for the first half), throttled, fails (30% of the requests), slow, kill (the writer is killed with
signal 9 in the middle and started again). Faults are made by a proxy in front of the emulator. The records are counted
at the destination by whoever calls this; the numbers of the outbox are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import ClientSession, web

from tests.support.records import a_payload
from tianji_mw import plugins
from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.destination import Destination
from tianji_mw.journal import Journal
from tianji_mw.outbox import Outbox
from tianji_mw.runtime import Runtime

FAULTS = ("none", "down", "throttled", "fails", "slow", "kill")


async def proxy(url: str, fault: str, seconds: float, port: int) -> None:
    """Hands requests on to `url`, unless the fault says otherwise."""
    began, rng = time.monotonic(), random.Random(7)
    ended = began + seconds

    async def handle(request: web.Request) -> web.StreamResponse:
        body, now = await request.read(), time.monotonic()
        if fault == "down" and now < began + seconds / 2:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        if fault == "throttled" and now < ended and rng.random() < 0.5:
            return web.Response(status=503, headers={"retry-after": "1"}, text="<Error><Code>SlowDown</Code></Error>")
        if fault == "fails" and now < ended and rng.random() < 0.3:
            return web.Response(status=500, text="failed")
        if fault == "slow" and now < ended:
            await asyncio.sleep(2)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        headers["Host"] = urlsplit(url).netloc
        target = url.rstrip("/") + request.raw_path
        async with session.request(request.method, target, data=body, headers=headers, allow_redirects=False) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async with ClientSession(auto_decompress=False) as session:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.sleep(seconds * 20)


async def write(options: argparse.Namespace) -> None:
    """Offer records, numbered from `--start`, and print each second how many the journal has."""
    kind = plugins.find("callbacks", options.type, Callback)  # type: ignore[type-abstract]
    callback = kind(**dict(pair.split("=", 1) for pair in options.set))
    runtime, destination = Runtime(), Destination(callback=callback, name="load")
    journal = Journal(Path(options.spool), count=runtime.count)
    await journal.open(runtime.new_id())
    await callback.start(runtime)
    outbox = Outbox("load", destination.write, journal=journal, runtime=runtime, delivery=destination.delivery)
    outbox.start()
    began, offered, total = time.monotonic(), options.start, options.start + int(options.rate * options.seconds)
    while offered < total:
        due = min(total, options.start + int((time.monotonic() - began) * options.rate))
        for number in range(offered, due):
            record_id = f"{options.run}-{number:07d}"
            journal.offer(
                ("load",), record_id, "call", orjson.dumps(a_payload(litellm_call_id=record_id, id=record_id))
            )
        journal.flush()
        offered = max(offered, due)
        print(orjson.dumps({"offered": offered, **outbox.report()}).decode(), flush=True)
        await asyncio.sleep(0.02)
    peak = time.monotonic()
    while outbox.pending and time.monotonic() - peak < 240:
        await asyncio.sleep(0.05)
    print(
        orjson.dumps({"offered": offered, "behind_s": time.monotonic() - peak, **outbox.report()}).decode(), flush=True
    )
    await outbox.aclose()
    await callback.aclose()
    journal.close()


def writer(options: argparse.Namespace, start: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmarks.callback_load", options.type, options.url, "write"]
    command += ["--spool", options.spool, "--start", str(start), "--seconds", str(seconds), "--rate", str(options.rate)]
    command += ["--run", options.run, *(f"--set={pair}" for pair in options.set)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], until: float) -> dict[str, Any]:
    """The last line that the writer printed before it ended or `until`."""
    last = "{}"
    assert process.stdout is not None
    for line in process.stdout:
        last = line
        if time.monotonic() > until:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    found: dict[str, Any] = orjson.loads(last)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("type")
    parser.add_argument("url")
    parser.add_argument("fault", choices=(*FAULTS, "write", "proxy"))
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--spool", default="")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--run", default=str(int(time.time())))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if options.fault == "write":
        asyncio.run(write(options))
    elif options.fault == "proxy":
        asyncio.run(proxy(options.url, options.run, options.seconds, options.port))
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    """One run: the proxy, the writer, perhaps twice."""
    command = [sys.executable, "-m", "tests.benchmarks.callback_load", options.type, options.url, "proxy"]
    between = subprocess.Popen(
        [*command, "--run", options.fault, "--seconds", str(options.seconds), "--port", str(options.port)]
    )
    time.sleep(1.5)
    try:
        if options.fault == "kill":
            half = options.seconds / 2
            first = told(writer(options, 0, options.seconds), time.monotonic() + half)
            print("killed", first)
            last = told(writer(options, int(first["offered"]), half), float("inf"))
        else:
            last = told(writer(options, 0, options.seconds), float("inf"))
        print(options.type, options.fault, last)
    finally:
        between.kill()
        between.wait()


if __name__ == "__main__":
    main()
