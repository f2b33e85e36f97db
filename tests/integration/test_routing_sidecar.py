"""Routing as an operator of a sidecar sees it: reports, explanations, health and metrics of a real process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import ROOT, Running, environment, sidecar
from tests.support.stack import ANSWER
from tianji_mw.testing import FakeLLM, Received, Reply

pytestmark = pytest.mark.slow

MASTER = {"authorization": "Bearer sk-master"}
#: What clients of these tests say; health checks say something else.
SAID = "a client's words"
CONFIG = """
model_list:
  - model_name: gpt
    litellm_params: {{model: openai/up-good, api_base: "{good}/v1", api_key: sk-upstream, weight: 1}}
    model_info: {{id: good}}
  - model_name: gpt
    litellm_params: {{model: openai/up-dead, api_base: "{dead}/v1?code=hidden", api_key: sk-upstream, weight: 1}}
    model_info: {{id: dead, mode: chat}}
  - model_name: wild/*
    litellm_params: {{model: openai/*, api_base: "{dead}/v1", api_key: sk-upstream}}
    model_info: {{id: wild}}
  - model_name: pictures
    litellm_params: {{model: openai/dall-e-3, api_base: "{good}/v1", api_key: sk-upstream}}
    model_info: {{id: pictures, mode: image_generation}}
router_settings:
  routing_strategy: simple-shuffle
  model_group_alias: {{gpt-4: gpt}}
  cooldown_time: 300
  retry_after: 0
  fallbacks: [{{"wild/*": [gpt]}}, {{"*": [gpt]}}]
  {router}
general_settings: {{drain_delay_s: 0, {general}}}
litellm_settings: {{callbacks: [prometheus]}}
"""


class Upstreams:
    """One that works, and one that does not until `heal` is called."""

    def __init__(self, good: FakeLLM, dead: FakeLLM) -> None:
        self.good, self.dead = good, dead

    def config(self, router: str = "", general: str = "master_key: sk-master") -> str:
        return CONFIG.format(good=self.good.url, dead=self.dead.url, router=router, general=general)

    def asked(self, llm: FakeLLM) -> int:
        """Requests of clients."""
        return sum(SAID in request.body.decode() for request in llm.requests)


@asynccontextmanager
async def upstreams() -> AsyncIterator[tuple[Upstreams, list[bool]]]:
    healed: list[bool] = []

    def dead(request: Received) -> Reply:
        return Reply.json(ANSWER) if healed else Reply.json({"error": {"message": "no sk-upstream here"}}, status=500)

    async with FakeLLM(lambda request: Reply.json(ANSWER)) as good, FakeLLM(dead) as bad:
        yield Upstreams(good, bad), healed


async def chat(running: Running, model: str = "gpt", times: int = 1) -> list[int]:
    body = {"model": model, "messages": [{"role": "user", "content": SAID}]}
    async with httpx.AsyncClient(headers=MASTER, timeout=30) as client:
        return [(await client.post(f"{running.url}/v1/chat/completions", json=body)).status_code for _ in range(times)]


async def get(url: str, headers: dict[str, str] | None = None, **params: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.get(url, headers=headers or {}, params=params)


async def deployments(running: Running) -> dict[str, Any]:
    found = (await get(f"{running.admin_url}/-/routing")).json()
    return {one["id"]: one for group in found["groups"] for one in group["deployments"]}


async def until(check: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await check():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.1)


async def cli(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *args]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60, check=False
    )


async def test_failures_cool_a_deployment_and_everybody_can_see_why(tmp_path: Path) -> None:
    async with upstreams() as (ups, _):
        with sidecar(tmp_path, ups.config("allowed_fails: 0")) as running:

            async def cooled() -> bool:
                assert set(await chat(running, times=4)) == {200}
                return bool((await deployments(running))["dead"]["state"] == "open")

            await until(cooled)
            before = ups.asked(ups.dead)
            assert set(await chat(running, times=10)) == {200}
            assert ups.asked(ups.dead) == before
            told = (await deployments(running))["dead"]
            assert [(block["reason"], block["seconds_left"] > 200) for block in told["blocks"]] == [("cooldown", True)]
            report = (await get(f"{running.admin_url}/-/routing")).json()
            assert report["retries"] == [{"group": "gpt", "kind": "InternalServer", "count": 1}]
            await explanations(running)
            assert (await chat(running, "wild/one", 1), await chat(running, "wild/two", 1)) == ([200], [200])
            await metrics(running)


async def explanations(running: Running) -> None:
    """Of the live state: by HTTP on both ports, and by the command line."""
    for url, headers in ((f"{running.admin_url}/-/routing/explain", {}), (f"{running.url}/router/explain", MASTER)):
        found = (await get(url, headers, model="gpt-4", tags="a,b")).json()
        assert (found["group"], found["strategy"], found["way"]) == ("gpt", "simple-shuffle", ["gpt"])
        verdicts = {one["id"]: one["removed"] and one["removed"]["step"] for one in found["deployments"]}
        assert verdicts == {"good": None, "dead": "cooldown"}
    assert (await get(f"{running.url}/router/explain", MASTER)).status_code == 400
    assert (await get(f"{running.url}/router/explain", MASTER, model="nobody")).status_code == 404
    assert (await get(f"{running.url}/router/explain", model="gpt")).status_code == 401
    told = await cli("explain", "--model", "gpt-4", "--url", running.admin_url)
    assert told.returncode == 0, told.stderr
    assert "gpt-4 is an alias of gpt" in told.stdout
    [dead] = [line for line in told.stdout.splitlines() if "up-dead" in line]
    assert "out: it is in cooldown (InternalServer 500)" in dead
    [good] = [line for line in told.stdout.splitlines() if "up-good" in line]
    assert "candidate, 100.0%" in good
    unknown = await cli("explain", "--model", "nobody", "--url", running.admin_url)
    assert (unknown.returncode, "does not exist" in unknown.stderr) == (1, True)


async def metrics(running: Running) -> None:
    """In both formats, as Prometheus reads them."""
    url = f"{running.admin_url}/metrics"
    page = (await get(url)).text
    found = {family.name: family for family in text_string_to_metric_families(page)}
    opened = (await get(url, {"accept": "application/openmetrics-text"})).text
    families = openmetrics.text_string_to_metric_families(opened)  # type: ignore[no-untyped-call]
    assert "tianji_routing_retries" in {family.name for family in families}
    states = {sample.labels["deployment"]: sample.value for sample in found["tianji_deployment_state"].samples}
    assert states == {"good": 0, "dead": 2, "wild": 0, "pictures": 0}
    assert {sample.value for sample in found["tianji_deployment_inflight"].samples} == {0}
    # Names that clients made up count under the pattern that took them.
    retries = {sample.labels["group"]: sample.value for sample in found["tianji_routing_retries"].samples}
    assert retries == {"gpt": 1, "wild/*": 4}
    fallbacks = [(sample.labels, sample.value) for sample in found["tianji_routing_fallbacks"].samples]
    assert fallbacks == [({"from": "wild/*", "to": "gpt", "kind": "InternalServer"}, 2)]


async def test_explain_by_the_config_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(good="http://127.0.0.1:9", dead="http://127.0.0.1:9", router="", general=""))
    told = await cli("explain", "-c", str(path), "--model", "wild/some")
    assert told.returncode == 0, told.stderr
    assert "served by the pattern wild/*" in told.stdout
    assert "openai/some" in told.stdout
    assert "wild/some > gpt" in told.stdout
    alone = await cli("explain", "-c", str(path), "--tag", "x")
    assert (alone.returncode, "--model" in alone.stderr) == (1, True)
    nobody = await cli("explain", "--model", "gpt", "--url", "http://127.0.0.1:9")
    assert (nobody.returncode, "no admin port of a sidecar answers there" in nobody.stderr) == (1, True)


async def test_health_as_litellm_tells_it(tmp_path: Path) -> None:
    async with upstreams() as (ups, _):
        with sidecar(tmp_path, ups.config()) as running:
            assert (await get(f"{running.url}/health")).status_code == 401
            found = (await get(f"{running.url}/health", MASTER)).json()
            assert (found["healthy_count"], found["unhealthy_count"], found["skipped_count"]) == (1, 1, 2)
            [good], [dead] = found["healthy_endpoints"], found["unhealthy_endpoints"]
            assert (good["model"], good["model_id"], good["model_name"]) == ("openai/up-good", "good", "gpt")
            assert (good["api_base"], good["mode"]) == (f"{ups.good.url}/v1", "chat")
            assert (dead["model_id"], dead["api_base"]) == ("dead", f"{ups.dead.url}/v1")
            assert dead["error"] == "no ******** here"
            assert ups.asked(ups.good) == ups.asked(ups.dead) == 0
            seen = len(ups.good.requests)
            for params in ({"model": "gpt"}, {"model": "openai/up-dead"}, {"model_id": "dead"}):
                part = (await get(f"{running.url}/health", MASTER, **params)).json()
                assert part["unhealthy_count"] == 1
            assert len(ups.good.requests) == seen + 1
            assert (await get(f"{running.url}/health", MASTER, model="nobody")).status_code == 404
            latest = (await get(f"{running.url}/health/latest", MASTER)).json()
            assert latest["total_models"] == 4
            assert latest["latest_health_checks"]["dead"]["status"] == "unhealthy"
            assert len(ups.good.requests) == seen + 1
            assert (await get(f"{running.url}/health/readiness")).json() == {"status": "healthy"}
            assert (await get(f"{running.url}/health/liveliness")).status_code == 200
            assert (await get(f"{running.url}/health/else", MASTER)).status_code == 404


async def test_without_a_key_only_the_admin_port_has_them(tmp_path: Path) -> None:
    async with upstreams() as (ups, _):
        with sidecar(tmp_path, ups.config(general="health_check_details: false")) as running:
            refused = await get(f"{running.url}/health")
            assert (refused.status_code, "/-/routing" in refused.text) == (403, True)
            found = (await get(f"{running.admin_url}/-/routing/health", model="gpt")).json()
            assert found["unhealthy_endpoints"] == [{"model": "openai/up-dead", "model_id": "dead"}]


async def test_background_checks_find_a_dead_upstream_before_a_client_does(tmp_path: Path) -> None:
    async with upstreams() as (ups, healed):
        general = "master_key: sk-master, background_health_checks: true, health_check_interval: 0.3"
        with sidecar(tmp_path, ups.config("enable_health_check_routing: true", general)) as running:

            async def known() -> bool:
                found = await deployments(running)
                return all(found[one]["health"] is not None for one in ("good", "dead"))

            await until(known)
            told = await deployments(running)
            assert (told["good"]["health"]["state"], told["dead"]["health"]["state"]) == ("healthy", "unhealthy")
            assert set(await chat(running, times=20)) == {200}
            assert (ups.asked(ups.good), ups.asked(ups.dead)) == (20, 0)
            latest = (await get(f"{running.url}/health", MASTER)).json()
            assert [one["model_id"] for one in latest["unhealthy_endpoints"]] == ["dead"]

            async def heard() -> bool:
                return bool((await deployments(running))["good"]["health"]["how"] == "traffic")

            await until(heard)
            quiet = len(ups.good.requests)
            failed = len(ups.dead.requests)
            await until(lambda: more(ups.dead, failed))
            assert len(ups.good.requests) == quiet  # clients told enough of it
            healed.append(True)

            async def lifted() -> bool:
                found = (await deployments(running))["dead"]
                return bool(
                    found["health"]["state"] == "healthy" and all(b["reason"] != "health" for b in found["blocks"])
                )

            await until(lifted)


async def more(llm: FakeLLM, than: int) -> bool:
    """Whether it was asked again."""
    return len(llm.requests) > than
