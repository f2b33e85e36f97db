"""The cache as operators and clients of a sidecar meet it: LiteLLM's YAML, the OpenAI SDK, endpoints, command line."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.support.cached import USAGE, answer
from tests.support.processes import ROOT, Running, environment, free_port, sidecar
from tests.support.redis_servers import redis_server
from tianji_mw.testing import FakeLLM, Received, Reply

pytestmark = pytest.mark.slow

MASTER = {"authorization": "Bearer sk-master"}
#: As LiteLLM's documentation writes it, apart from the address of the provider.
CONFIG = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      {{model: openai/gpt-4o, api_base: "{url}/v1", api_key: sk-up,
        input_cost_per_token: 0.001, output_cost_per_token: 0.002}}
  - model_name: other
    litellm_params: {{model: openai/other, api_base: "{url}/v1", api_key: sk-up}}
litellm_settings:
  cache: true
  cache_params: {{{params}}}
{keys}
"""
KEYS = """
general_settings: {master_key: sk-master, drain_delay_s: 0}
virtual_keys:
  - {key: sk-red, key_alias: red, team_id: red}
  - {key: sk-blue, key_alias: blue, team_id: blue, allowed_cache_controls: [no-cache]}
"""
OPEN = "general_settings: {drain_delay_s: 0}"


def config(llm: FakeLLM, params: str = "type: local, ttl: 600", keys: str = KEYS) -> str:
    return CONFIG.format(url=llm.url, params=params, keys=keys)


@pytest.fixture
async def llm() -> AsyncIterator[FakeLLM]:
    """Every answer is another one."""
    numbers = itertools.count(1)

    def reply(request: Received) -> Reply:
        return Reply.json(answer(f"answer {next(numbers)}"))

    async with FakeLLM(reply) as made:
        yield made


class Client:
    """The OpenAI SDK before a sidecar."""

    def __init__(self, running: Running, key: str = "sk-red") -> None:
        self.sdk = AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)

    async def ask(self, text: str = "hello", *, model: str = "gpt-4o", **cache: Any) -> tuple[str, str, str]:
        """Text, `x-cache` and the key of an answer; `cache` are controls, with `_` for `-`."""
        controls = {name.replace("_", "-"): value for name, value in cache.items()}
        raw = await self.sdk.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            extra_body={"cache": controls} if controls else None,
        )
        headers = raw.headers
        content = raw.parse().choices[0].message.content or ""
        return content, headers["x-cache"], headers.get("x-litellm-cache-key", "")

    async def seen(self, *texts: str, **more: Any) -> str:
        """The first letters of what the cache did."""
        return "".join([(await self.ask(text, **more))[1][0] for text in texts])


Connect = Callable[..., Client]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, and closes them in the loop they were used in."""
    async with AsyncExitStack() as made:

        def one(running: Running, key: str = "sk-red") -> Client:
            client = Client(running, key)
            made.push_async_callback(client.sdk.close)
            return client

        yield one


async def test_the_sdk_and_its_controls(connect: Connect, llm: FakeLLM, tmp_path: Path) -> None:
    with sidecar(tmp_path, config(llm)) as running:
        client = connect(running)
        first = await client.ask()
        assert first[:2] == ("answer 1", "MISS")
        assert await client.ask() == ("answer 1", "HIT", first[2])
        assert (await connect(running, "sk-blue").ask())[:2] == ("answer 2", "MISS")  # another team
        assert (await client.ask(no_cache=True))[:2] == ("answer 3", "MISS")
        assert (await client.ask())[:2] == ("answer 3", "HIT")
        assert (await client.ask("once", no_store=True))[1] == "MISS"
        assert (await client.ask("once"))[1] == "MISS"
        assert (await client.ask(namespace="mine"))[1] == "MISS"
        assert (await client.ask(namespace="mine"))[1] == "HIT"
        assert (await client.ask(s_maxage=0))[1] == "MISS"
        chunks = await client.sdk.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "once"}], stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
        assert "".join(pieces) == (await client.ask("once"))[0]


async def test_a_control_that_a_key_may_not_use(llm: FakeLLM, tmp_path: Path) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "cache": {"no-store": True}}
    with sidecar(tmp_path, config(llm)) as running:
        url, key = f"{running.url}/v1/chat/completions", {"authorization": "Bearer sk-blue"}
        async with httpx.AsyncClient(headers=key) as client:
            refused = await client.post(url, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cache_control_not_allowed")
            assert (await client.post(url, json={**body, "cache": {"no-cache": True}})).status_code == 200


@pytest.fixture
def running(llm: FakeLLM, tmp_path: Path) -> Iterator[Running]:
    with sidecar(tmp_path, config(llm)) as found:
        yield found


async def test_endpoints_ask_for_the_master_key(running: Running) -> None:
    for headers in ({}, {"authorization": "Bearer sk-red"}, {"authorization": "Bearer sk-maste"}):
        for method, path in (("GET", "ping"), ("GET", "stats"), ("POST", "flushall"), ("POST", "delete")):
            refused = httpx.request(method, f"{running.url}/cache/{path}", headers=headers)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert httpx.get(f"{running.url}/cache/else", headers=MASTER).status_code == 404


async def test_endpoints(connect: Connect, running: Running) -> None:
    red, blue = connect(running), connect(running, "sk-blue")
    http = httpx.Client(base_url=f"{running.url}/cache", headers=MASTER)
    found = http.get("/ping").json()
    assert (found["status"], found["cache_type"], found["ping_response"]) == ("healthy", "memory", True)
    assert found["set_cache_response"] == "success"
    assert found["health_check_cache_params"]["ttl"] == 600

    assert await red.seen("a", "b", "a", "b") == "MMHH"
    key = (await red.ask("a"))[2]
    assert http.post("/delete", json={"keys": [key]}).json() == {"status": "success", "deleted": 1}
    assert await red.seen("a", "b") == "MH"

    assert await blue.seen("a", "a") == "MH"
    assert http.post("/invalidate", json={"team_id": "blue"}).json()["deleted"] == 1
    assert await blue.seen("a") == "M"
    assert await red.seen("a") == "H"
    assert await red.seen("a", model="other") == "M"
    assert http.post("/invalidate", json={"model_group": "other", "key_alias": "red"}).json()["deleted"] == 1
    assert await red.seen("a", namespace="n") == "M"
    assert http.post("/invalidate", json={"namespace": "n"}).json()["deleted"] == 1
    assert http.get("/redis/info").json()["info"]["items"] == 3
    assert http.post("/flushall").json() == {"status": "success", "deleted": 3}
    assert http.get("/redis/info").json()["info"]["items"] == 0

    stats = http.get("/stats").json()
    assert stats["total"]["hits"] == stats["by_key"]["red"]["hits"] + stats["by_key"]["blue"]["hits"] == 6
    saved = 7 * 0.001 + 5 * 0.002
    assert (USAGE["prompt_tokens"], USAGE["completion_tokens"]) == (7, 5)
    assert stats["by_key"]["blue"]["saved_cost"] == pytest.approx(saved)
    assert stats["by_model"]["gpt-4o"]["saved_cost"] == pytest.approx(6 * saved)
    assert stats["by_model"]["gpt-4o"]["saved_tokens"] == 6 * 12


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("invalidate", {}, "say what is to go"),
        ("invalidate", {"team": "red"}, "unknown field 'team'"),
        ("invalidate", {"team_id": 5}, "are texts"),
        ("invalidate", {"key_alias": "nobody"}, "no virtual key"),
        ("invalidate", {"all": True}, "unknown field 'all'"),
        ("delete", {"keys": "x"}, "must be a list"),
        ("delete", {"model": "gpt-4o"}, "'keys' is missing"),
    ],
)
async def test_wrong_questions_are_told_what_is_wrong(running: Running, path: str, body: Any, told: str) -> None:
    refused = httpx.post(f"{running.url}/cache/{path}", json=body, headers=MASTER)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert told in refused.json()["error"]["message"]


def cli(*args: str) -> subprocess.CompletedProcess[str]:
    env = environment({"COLUMNS": "140"})
    command = [sys.executable, "-m", "sidecar", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=False)


async def test_the_command_line(connect: Connect, llm: FakeLLM, tmp_path: Path) -> None:
    with sidecar(tmp_path, config(llm, keys=OPEN)) as running:
        client, at = connect(running), ("--admin-url", running.admin_url)
        refused = httpx.get(f"{running.url}/cache/ping")
        assert (refused.status_code, "master_key" in refused.text) == (403, True)  # nobody could be told from anybody
        assert await client.seen("a", "a", "b") == "MHM"
        pinged = cli("cache", "ping", *at)
        assert (pinged.returncode, pinged.stdout) == (0, "healthy: memory\n")
        told = cli("cache", "stats", *at)
        assert told.returncode == 0, told.stderr
        row = next(line for line in told.stdout.splitlines() if "gpt-4o" in line)
        assert [cell.strip() for cell in row.strip("│ ").split("│")][:5] == ["gpt-4o", "1", "0", "2", "33.3%"]
        assert "0.0170" in row
        nothing = cli("cache", "purge", *at)
        assert (nothing.returncode, "say what is to go" in nothing.stderr) == (1, True)
        assert cli("cache", "purge", *at, "--model", "other").stdout == "0 entries gone\n"
        assert cli("cache", "purge", *at, "--all").stdout == "2 entries gone\n"
        assert await client.seen("a") == "M"
        spaced = httpx.post(f"{running.admin_url}/-/cache/purge", content=b'{"all": true}')
        assert spaced.json() == {"status": "success", "deleted": 1}
        report = httpx.get(f"{running.admin_url}/-/cache").json()
        assert (report["store"]["store"], report["store"]["left_alone"], report["waiting"]) == ("Memory", False, None)
    gone = cli("cache", "ping", "--admin-url", running.admin_url)
    assert (gone.returncode, "no sidecar answers there" in gone.stderr) == (1, True)


async def test_a_sidecar_without_a_cache(llm: FakeLLM, tmp_path: Path) -> None:
    with sidecar(tmp_path, config(llm).replace("cache: true", "cache: false")) as running:
        assert "set litellm_settings.cache: true" in cli("cache", "stats", "--admin-url", running.admin_url).stderr
        assert httpx.get(f"{running.url}/cache/ping", headers=MASTER).status_code == 404


async def test_sidecars_share_one_redis_and_go_on_without_it(connect: Connect, llm: FakeLLM, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        params = f"type: redis, host: 127.0.0.1, port: {server.port}, namespace: ours"
        text = config(llm, params)
        path = tmp_path / "doctor.yaml"
        path.write_text(text)
        server.client().set("theirs:1", "x")
        with sidecar(tmp_path, text) as one, sidecar(tmp_path, text) as two:
            first, second = connect(one), connect(two)
            assert await first.seen("a") == "M"
            assert await first.seen("a") == "H"
            assert await second.seen("a") == "H"
            assert "cache RedisStore: wrote, read and deleted a value" in cli("doctor", "-c", str(path)).stdout
            http = httpx.Client(base_url=f"{two.url}/cache", headers=MASTER)
            assert http.get("/ping").json()["cache_type"] == "redis"
            assert http.get("/redis/info").json()["info"]["server"].startswith("Redis ")
            assert http.post("/flushall").json() == {"status": "success", "deleted": 1}
            assert server.client().get("theirs:1") == b"x"
            assert await first.seen("a") == "M"
            server.kill()
            assert await first.seen("c", "d") == "MM"
            unhealthy = http.get("/ping")
            assert (unhealthy.status_code, unhealthy.json()["status"]) == (503, "unhealthy")
            assert http.post("/flushall").status_code == 503
        assert "cache RedisStore: " in cli("doctor", "-c", str(path)).stdout


async def test_a_cache_that_cannot_be_built_stops_the_start(llm: FakeLLM, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(config(llm, "type: redis, hots: 127.0.0.1"))
    run = cli("run", "-c", str(path), "--port", str(free_port()), "--admin-port", "0")
    assert run.returncode == 1
    assert f"{path}:11: litellm_settings.cache_params.hots: unknown key (did you mean 'host'?)" in run.stderr
