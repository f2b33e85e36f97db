"""The sidecar under load while its Redis fails over, freezes or comes back: no call fails.

Over HTTP, from a config as LiteLLM has it, at about 200 calls a second.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cached import answer
from tests.support.processes import Running, sidecar
from tests.support.redis_servers import MASTER, Cluster, redis_cluster, redis_sentinel, redis_server
from tianji_mw.testing import FakeLLM, Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PER_S, QUESTIONS = 200, 60


def config(llm: FakeLLM, **params: Any) -> str:
    deployment = {"model": "openai/gpt-4o", "api_base": f"{llm.url}/v1", "api_key": "k"}
    return json.dumps(
        {
            "model_list": [{"model_name": "gpt-4o", "litellm_params": deployment}],
            "litellm_settings": {"cache": True, "cache_params": {"ttl": 600, **params}},
        }
    )


class Load:
    """Calls at a steady rate, over several connections; what came back, second by second."""

    def __init__(self, running: Running) -> None:
        self._url = f"{running.url}/v1/chat/completions"
        self.statuses: Counter[int | str] = Counter()
        self.seen: list[tuple[float, str]] = []

    async def run(self, seconds: float, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=60)) as client:
            self._began = time.perf_counter()
            tasks = [asyncio.create_task(meanwhile())] if meanwhile else []
            for number in range(int(seconds * PER_S)):
                due = self._began + number / PER_S
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(self._one(client, number % QUESTIONS)))
            await asyncio.gather(*tasks)

    async def _one(self, client: httpx.AsyncClient, question: int) -> None:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"question {question}"}]}
        began = time.perf_counter()
        try:
            found = await client.post(self._url, json=body)
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        self.statuses[found.status_code] += 1
        self.seen.append((began - self._began, found.headers.get("x-cache", "")))

    def misses(self, after: float, until: float = 1e9) -> int:
        return sum(cache == "MISS" for at, cache in self.seen if after <= at < until)


@pytest.fixture
def answering(llm: FakeLLM) -> FakeLLM:
    llm._default = lambda request: Reply.json(answer(request.json["messages"][-1]["content"]))
    return llm


async def started(run: Any) -> Running:
    """A process, started beside the event loop that answers it."""
    return await asyncio.to_thread(run.__enter__)


async def test_a_primary_of_a_cluster_is_killed_under_load(answering: FakeLLM, tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        nodes = [{"host": host, "port": str(port)} for host, port in cluster.nodes[:2]]
        process = sidecar(tmp_path, config(answering, type="redis", redis_startup_nodes=nodes))
        load = Load(await started(process))
        try:
            await load.run(14, lambda: killed(cluster, after_s=4))
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)
    assert load.statuses == {200: 14 * PER_S}
    assert load.misses(1.5, 4) == 0, "all questions were known by then"
    assert load.misses(4, 10) > 0, "the failover was felt"
    assert load.misses(11.5) == 0, "and it is over"


async def killed(cluster: Cluster, *, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await asyncio.to_thread(cluster.servers[0].kill)


async def test_sentinels_move_the_primary_under_load(answering: FakeLLM, tmp_path: Path) -> None:
    with redis_sentinel(tmp_path) as watched:
        sentinels = [[host, port] for host, port in watched.nodes]
        process = sidecar(tmp_path, config(answering, type="redis", service_name=MASTER, sentinel_nodes=sentinels))
        load = Load(await started(process))

        async def kill() -> None:
            await asyncio.sleep(3)
            await asyncio.to_thread(watched.primary.kill)

        try:
            await load.run(14, kill)
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)
    assert load.statuses == {200: 14 * PER_S}
    assert load.misses(1.5, 3) == 0
    assert load.misses(12) == 0


async def test_a_frozen_redis_costs_its_time_once(answering: FakeLLM, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        process = sidecar(tmp_path, config(answering, type="redis", host="127.0.0.1", port=server.port))
        running = await started(process)
        load = Load(running)

        async def freeze() -> None:
            await asyncio.sleep(2)
            server.freeze()
            await asyncio.sleep(2)
            server.thaw()

        try:
            await load.run(8, freeze)
            counts = httpx.get(f"{running.admin_url}/metrics").text
        finally:
            server.thaw()
            await asyncio.to_thread(process.__exit__, None, None, None)
    assert load.statuses == {200: 8 * PER_S}
    assert load.misses(1, 2) == 0
    assert load.misses(6.5) == 0, "it is used again"
    waited = [int(number) for number in re.findall(r'event="redis_errors",detail="get timeout"} (\d+)', counts)]
    assert 0 < sum(waited) < 0.6 * PER_S, "those on their way when it froze, and nobody after them"
