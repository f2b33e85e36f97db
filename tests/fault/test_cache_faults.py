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
from tests.support.redis_servers import MASTER, Server, redis_cluster, redis_sentinel, redis_server
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
    """Calls at a steady rate, over several connections, all of which have to succeed; what the cache said of them."""

    def __init__(self, running: Running) -> None:
        self._url = f"{running.url}/v1/chat/completions"
        self.statuses: Counter[int | str] = Counter()
        self.seen: list[str] = []

    async def run(self, story: Awaitable[None]) -> None:
        """Call until the story is over."""
        async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=60)) as client:
            self._began = time.perf_counter()
            told = asyncio.ensure_future(story)
            calls: list[asyncio.Task[None]] = []
            while not told.done():
                due = self._began + len(calls) / PER_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                calls.append(asyncio.create_task(self._one(client, len(calls) % QUESTIONS)))
            await asyncio.gather(*calls)
            await told
        assert self.statuses == {200: len(calls)}

    async def _one(self, client: httpx.AsyncClient, question: int) -> None:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"question {question}"}]}
        try:
            found = await client.post(self._url, json=body)
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        self.statuses[found.status_code] += 1
        self.seen.append(found.headers.get("x-cache", ""))

    async def until_known(self, *, within_s: float) -> None:
        """Until every question was a hit, one after the other: the cache does its work."""
        start = len(self.seen)
        await self._until(
            lambda: set(self.seen[start:][-QUESTIONS:]) == {"HIT"} and len(self.seen) - start >= QUESTIONS, within_s
        )

    async def until_felt(self, *, within_s: float) -> None:
        """Until a question that was known is a miss."""
        start = len(self.seen)
        await self._until(lambda: "MISS" in self.seen[start:], within_s)

    async def _until(self, happened: Callable[[], bool], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not happened():
                await asyncio.sleep(0.02)


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
            await load.run(failover(load, cluster.servers[0]))
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)


async def test_sentinels_move_the_primary_under_load(answering: FakeLLM, tmp_path: Path) -> None:
    with redis_sentinel(tmp_path) as watched:
        sentinels = [[host, port] for host, port in watched.nodes]
        process = sidecar(tmp_path, config(answering, type="redis", service_name=MASTER, sentinel_nodes=sentinels))
        load = Load(await started(process))
        try:
            await load.run(failover(load, watched.primary))
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)


async def failover(load: Load, primary: Server) -> None:
    await load.until_known(within_s=10)
    await asyncio.to_thread(primary.kill)
    await load.until_felt(within_s=10)
    await load.until_known(within_s=30)


async def test_a_frozen_redis_costs_its_time_once(answering: FakeLLM, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        process = sidecar(tmp_path, config(answering, type="redis", host="127.0.0.1", port=server.port))
        running = await started(process)
        load = Load(running)

        async def freeze() -> None:
            await load.until_known(within_s=10)
            server.freeze()
            await load.until_felt(within_s=5)
            await asyncio.sleep(2)
            server.thaw()
            await load.until_known(within_s=15)

        try:
            await load.run(freeze())
            counts = httpx.get(f"{running.admin_url}/metrics").text
        finally:
            server.thaw()
            await asyncio.to_thread(process.__exit__, None, None, None)
    waited = [int(number) for number in re.findall(r'event="redis_errors",detail="get timeout"} (\d+)', counts)]
    assert 0 < sum(waited) < 0.6 * PER_S, "those on their way when it froze, and nobody after them"
