"""Metrics with the real Prometheus: it scrapes the page, answers queries, and its promtool finds nothing wrong.

And with real processes that share a folder: what a killed one had counted stays, and what it had not counts once.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.support.processes import ROOT, environment, free_port, server
from tests.support.prometheus_pages import OPENMETRICS, running, shown
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.prometheus import Prometheus

pytestmark = pytest.mark.slow

WITHIN_S = 40.0


def binary(name: str) -> str:
    found = ROOT / ".tools/prometheus/usr/bin" / name
    if not found.exists():
        raise AssertionError(f"{name} is missing: make prometheus")
    return str(found)


async def until(ask: Callable[[], Awaitable[Any]], right: Callable[[Any], bool]) -> Any:
    """What `ask` gives once it is right."""
    end = time.monotonic() + WITHIN_S
    while True:
        found = await ask()
        if right(found):
            return found
        assert time.monotonic() < end, f"after {WITHIN_S} s still {found!r}"
        await asyncio.sleep(0.1)


# --- Prometheus itself


@asynccontextmanager
async def scraped(prometheus: Prometheus) -> AsyncIterator[int]:
    """The page on a loopback port."""
    config = uvicorn.Config(prometheus.metrics_app(), port=0, log_level="warning", lifespan="off")
    page = uvicorn.Server(config)
    task = asyncio.create_task(page._serve())
    while not page.started:
        await asyncio.sleep(0.01)
    try:
        yield page.servers[0].sockets[0].getsockname()[1]
    finally:
        page.should_exit = True
        await task


@contextmanager
def prometheus_server(tmp_path: Path, *ports: int) -> Iterator[str]:
    """Prometheus, scraping these ports every second; its address."""
    targets = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: tianji, metrics_path: /metrics, static_configs: [{{targets: [{targets}]}}]}}\n"
    )
    port = free_port()
    command = [
        binary("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn",
    ]  # fmt: skip
    with server(command, tmp_path, port=port, probe="/-/ready") as process:
        yield process.url


class Queries:
    """Asks Prometheus."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def now(self, query: str, by: str = "") -> dict[str, float]:
        """The values of an instant query by the value of a label."""
        response = await self._client.get("/api/v1/query", params={"query": query})
        assert response.status_code == 200, response.text
        return {one["metric"].get(by, ""): float(one["value"][1]) for one in response.json()["data"]["result"]}

    async def exemplars(self, query: str) -> list[dict[str, Any]]:
        times = {"start": START - 3600, "end": time.time() + 3600}
        response = await self._client.get("/api/v1/query_exemplars", params={"query": query, **times})
        assert response.status_code == 200, response.text
        return [one for series in response.json()["data"] for one in series["exemplars"]]


def call(model: str, seconds: float = 0.82, **changes: Any) -> Record:
    """A call that has just ended: Prometheus takes no exemplar that is too old."""
    now = time.time()
    return a_record(model_group=model, startTime=now - seconds, endTime=now, **changes)


async def test_prometheus_scrapes_and_answers(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    async with running(multiproc_dir=folder) as one, running(multiproc_dir=folder) as two:
        await one.write([call("a"), call("b"), a_failure(model_group="a")])
        async with scraped(one) as first, scraped(two) as second:
            with prometheus_server(tmp_path, first, second) as url:
                async with httpx.AsyncClient(base_url=url) as client:
                    await _ask(Queries(client), one, two)


async def _ask(prometheus: Queries, one: Prometheus, two: Prometheus) -> None:
    # Each process shows what both have counted.
    by_instance = 'sum by (instance) (tianji_requests_total{outcome="ok"})'
    found = await until(lambda: prometheus.now(by_instance, "instance"), lambda it: len(it) == 2)
    assert set(found.values()) == {2.0}
    await one.write([call("a", 0.3) for _ in range(40)])
    await two.write([call("b", 3.0) for _ in range(20)])
    found = await until(lambda: prometheus.now(by_instance, "instance"), lambda it: set(it.values()) == {62.0})
    assert len(found) == 2
    ok = 'instance=~".+", outcome="ok"'
    by_model = await prometheus.now(
        f"max by (model) (sum by (instance, model) (tianji_requests_total{{{ok}}}))", "model"
    )
    assert by_model == {"a": 41.0, "b": 21.0}
    # `rate` extrapolates, not quite alike for both.
    rates = await until(
        lambda: prometheus.now(f"sum by (model) (rate(tianji_requests_total{{{ok}}}[1m]))", "model"),
        lambda it: len(it) == 2 and min(it.values()) > 0,
    )
    assert rates["a"] / rates["b"] == pytest.approx(2, rel=0.15)
    quantile = "histogram_quantile(0.5, sum by (le, model) (tianji_request_duration_seconds_bucket{outcome='ok'}))"
    medians = await prometheus.now(quantile, "model")
    # 40 of 41 between 0.25 and 0.5 s, 20 of 21 between 2 and 5.
    assert medians["a"] == pytest.approx(0.25 + 0.25 * 20.5 / 40)
    assert medians["b"] == pytest.approx(2 + 3 * (10.5 - 1) / 20)
    spend = "max(sum by (instance) (litellm_spend_metric_total))"
    assert (await prometheus.now(spend))[""] == pytest.approx(62 * 4.8e-06)
    failed = 'max(sum by (instance) (litellm_deployment_failure_responses_total{exception_status="500"}))'
    assert await prometheus.now(failed) == {"": 1.0}
    assert await prometheus.now("count(up == 1)") == {"": 2.0}
    seen = await until(
        lambda: prometheus.exemplars('tianji_request_duration_seconds_bucket{model="a"}'), lambda it: bool(it)
    )
    assert {exemplar["labels"]["trace_id"] for exemplar in seen} == {a_payload()["trace_id"]}


async def test_promtool_finds_nothing_wrong() -> None:
    async with running() as prometheus:
        prometheus._runtime.count("log_dropped", 'a "quoted"\\ detail', 1)
        await prometheus.write([call("a\nb", cache_hit=True), call('"\\'), a_failure()])
        page = (await shown(prometheus)).text
        await shown(prometheus, OPENMETRICS)
    done = subprocess.run([binary("promtool"), "check", "metrics"], input=page, capture_output=True, text=True)
    # Names that LiteLLM gave are not ours to mend; promtool has opinions on some, and exits with 3.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("litellm_")]
    assert not complaints
    assert done.returncode in (0, 3)
    assert "error while linting" not in done.stderr + done.stdout


# --- several processes

WORKER = """
import asyncio, sys
from pathlib import Path
from tests.support.records import a_record
from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.runtime import Runtime

async def main(folder, name):
    async with Runtime() as runtime:
        prometheus = Prometheus(multiproc_dir=Path(folder))
        await prometheus.start(runtime)
        runtime.inflight = 1
        for batch in range(1_000_000):
            await prometheus.write([a_record(litellm_call_id=f"{name}-{batch}-{n}") for n in range(20)])
            print(batch, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def worker(folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), name], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def written(process: subprocess.Popen[str], batches: int) -> None:
    """Wait until it has written so many more."""
    assert process.stdout is not None
    for _ in range(batches):
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, "the worker ended"


async def test_what_a_killed_process_counted_stays(tmp_path: Path) -> None:
    async with running(multiproc_dir=tmp_path) as prometheus:
        seen = [0.0]

        async def look() -> float:
            total = (await shown(prometheus)).sum("tianji_requests_total")
            assert total >= seen[-1], "counters fell"
            seen.append(total)
            return total

        with worker(tmp_path, "one") as one, worker(tmp_path, "two") as two:
            await asyncio.gather(written(one, 5), written(two, 5))
            await until(look, lambda total: total >= 200)
            page = await until(lambda: shown(prometheus), lambda it: it.sum("tianji_inflight_calls") == 2)
            for process in (one, two):
                process.send_signal(signal.SIGKILL)
                process.wait()
                await look()
            last = {name: _last(process) for name, process in (("one", one), ("two", two))}
        counted = await look()
        # What was acknowledged is there, and at most one batch of each more: counted, but not yet acknowledged.
        acknowledged = {name: max(5, number + 1) * 20 for name, number in last.items()}
        assert sum(acknowledged.values()) <= counted <= sum(acknowledged.values()) + 40
        # Their journals offer again what was not acknowledged; here even more than that.
        for name, number in last.items():
            for batch in range(max(0, number - 1), number + 2):
                await prometheus.write([a_record(litellm_call_id=f"{name}-{batch}-{n}") for n in range(20)])
        assert await look() == sum(acknowledged.values()) + 40
        page = await shown(prometheus)
        assert page.sum("litellm_requests_metric_total") == seen[-1]
        assert page.sum("tianji_request_duration_seconds_count") == seen[-1]


def _last(process: subprocess.Popen[str]) -> int:
    """The last batch that a dead worker said it had written."""
    assert process.stdout is not None
    lines = process.stdout.read().split()
    return int(lines[-1]) if lines else 4


async def test_processes_that_start_together_find_one_file(tmp_path: Path) -> None:
    names = [f"w{n}" for n in range(4)]
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(tmp_path, name)) for name in names]
        await asyncio.gather(*(written(process, 2) for process in workers))
        async with running(multiproc_dir=tmp_path) as prometheus:
            page = await shown(prometheus)
    assert page.sum("tianji_requests_total") >= 4 * 2 * 20
    assert len(list(tmp_path.glob("*.sqlite3"))) == 1
