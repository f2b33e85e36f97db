"""Four sidecars that share a Redis Cluster: limits and budgets hold for all of them together, also when a primary dies.

Each test's load takes less than the minute of its limits, so that what was admitted can simply be counted.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.processes import Running, sidecar
from tests.support.redis_servers import Cluster, redis_cluster
from tests.support.routed import entry
from tests.support.stack import ANSWER, CHAT
from tianji_mw.testing import FakeLLM, Received, Reply

pytestmark = pytest.mark.slow

SIDECARS = 4
RPM = 500
#: Ten tokens a call, as the upstream tells.
TPM = 5_000
USAGE = {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10}
#: US dollars; a call costs a cent.
BUDGET = 3.0
COST = 0.01


def says(request: Received) -> Reply:
    if request.path.startswith("/dead"):
        return Reply.json({"error": {"message": "no more today"}}, status=429)
    return Reply.json({**ANSWER, "usage": USAGE})


def config(url: str, cluster: Cluster) -> str:
    price = {"input_cost_per_token": COST / 10, "output_cost_per_token": COST / 10}
    nodes = [{"host": host, "port": port} for host, port in cluster.nodes]
    return yaml.safe_dump(
        {
            "model_list": [
                entry("requests", url, rpm=RPM, info={"id": "requests"}),
                entry("tokens", url, tpm=TPM, info={"id": "tokens"}),
                entry("pair", url, info={"id": "alive"}),
                entry("pair", f"{url}/dead", cooldown_time=600, info={"id": "dead"}),
                entry("money", url, max_budget=BUDGET, budget_duration="1d", **price, info={"id": "money"}),
            ],
            "router_settings": {
                "optional_pre_call_checks": ["enforce_model_rate_limits"],
                "redis_startup_nodes": nodes,
            },
            "general_settings": {"drain_delay_s": 0},
        }
    )


@pytest.fixture
async def llm() -> Any:
    async with FakeLLM(says) as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with redis_cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def fleet(llm: FakeLLM, cluster: Cluster, tmp_path: Path) -> Any:
    with ExitStack() as stack:
        text = config(llm.url, cluster)
        yield await asyncio.to_thread(lambda: [stack.enter_context(sidecar(tmp_path, text)) for _ in range(SIDECARS)])


class Load:
    """Calls over all sidecars in turn; the statuses by model."""

    def __init__(self, fleet: list[Running]) -> None:
        self._fleet = fleet
        self.statuses: dict[str, Counter[int]] = {}

    async def send(self, model: str, count: int, *, at_once: int = 16) -> Counter[int]:
        found = self.statuses.setdefault(model, Counter())
        turns = zip(range(count), itertools.cycle(self._fleet), strict=False)
        body = {**CHAT, "model": model, "max_tokens": 2}

        async def sender(client: httpx.AsyncClient) -> None:
            for _, running in turns:
                answer = await client.post(f"{running.url}/v1/chat/completions", json=body)
                found[answer.status_code] += 1

        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as client:
            await asyncio.gather(*(sender(client) for _ in range(at_once)))
        return found


async def test_limits_and_budgets_hold_over_four_sidecars(fleet: list[Running], llm: FakeLLM) -> None:
    load = Load(fleet)
    requests = await load.send("requests", 800)
    assert set(requests) == {200, 429}
    assert abs(requests[200] - RPM) <= RPM * 0.01, requests
    tokens = await load.send("tokens", 800)
    assert set(tokens) == {200, 429}
    # What is reserved for a call on its way is an estimate: one too high is given back at its end.
    assert abs(tokens[200] * 10 - TPM) <= TPM * 0.01, tokens
    money = await load.send("money", 500)
    assert set(money) == {200, 429}
    assert BUDGET - COST <= money[200] * COST <= BUDGET + COST + 1e-9, money
    assert len(llm.requests) == requests[200] + tokens[200] + money[200]


async def test_they_hold_while_a_primary_dies(fleet: list[Running], llm: FakeLLM, cluster: Cluster) -> None:
    load = Load(fleet)
    tasks = [asyncio.ensure_future(load.send(model, 1_000, at_once=8)) for model in ("requests", "money")]
    while sum(load.statuses.get("requests", Counter()).values()) < 200:
        await asyncio.sleep(0.02)
    key = next(key for server in cluster.live() for key in server.client().scan_iter("*requests*"))
    await asyncio.to_thread(cluster.owner(key.decode()).kill)
    requests, money = await asyncio.gather(*tasks)
    assert set(requests) | set(money) <= {200, 429}, (requests, money)
    assert requests[200] <= RPM * 1.01, requests
    # Never more than one call past it.
    assert money[200] * COST <= BUDGET + COST + 1e-9, money
    assert len(llm.requests) == requests[200] + money[200]


async def test_a_cooldown_is_everybodys(fleet: list[Running]) -> None:
    async def reported(running: Running, wanted: Any) -> None:
        for _ in range(400):
            report = (await client.get(f"{running.admin_url}/-/routing")).json()
            if wanted(report):
                return
            await asyncio.sleep(0.05)
        pytest.fail(str(report))

    async with httpx.AsyncClient() as client:
        for running in fleet:
            await reported(running, lambda report: report["shared"] == {"replicas": SIDECARS})
        for _ in range(40):
            body = {**CHAT, "model": "pair"}
            assert (await client.post(f"{fleet[0].url}/v1/chat/completions", json=body)).status_code == 200
        for running in fleet:
            await reported(running, _dead_is_out)


def _dead_is_out(report: Any) -> bool:
    deployments = [one for group in report["groups"] for one in group["deployments"]]
    return [one["state"] for one in deployments if one["id"] == "dead"] == ["open"]
