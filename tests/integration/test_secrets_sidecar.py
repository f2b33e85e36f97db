"""Secrets as the operator of a sidecar meets them: the start, `check --resolve`, `doctor`, the admin port."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.processes import ROOT, environment, sidecar
from tianji_mw.testing import FakeLLM, Reply

pytestmark = pytest.mark.slow

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello there"}]}
CANARY = "sk-canary-of-a-secret-manager"


def config(folder: Path, url: str = "http://127.0.0.1:9/v1") -> str:
    return f"""
secret_managers:
  mounted: {{type: file, directory: {folder}, cache_ttl: 1}}
model_list:
  - {{model_name: demo, litellm_params: {{model: openai/gpt, api_base: "{url}", api_key: "secret://mounted/key"}}}}
  - {{model_name: mock, litellm_params: {{model: mock/echo}}}}
general_settings: {{master_key: "secret://mounted/master#key", drain_delay_s: 0}}
"""


def mount(folder: Path, **secrets: str) -> None:
    for name, value in secrets.items():
        (folder / name).write_text(value)


def cli(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(env), cwd=ROOT, timeout=60, check=False
    )


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_check_asks_only_when_it_is_told_to(tmp_path: Path) -> None:
    path = written(tmp_path, config(tmp_path))
    plain = cli("check", "--config", path)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "2 secrets not asked for (--resolve asks)" in plain.stdout
    asked = cli("check", "--resolve", "--config", path)
    assert asked.returncode == 1
    assert asked.stderr == (
        f"error: {path}:5: model_list[0].litellm_params.api_key: mounted: key: there is no such file\n"
        f"error: {path}:7: general_settings.master_key: mounted: master: there is no such file\n"
    )
    mount(tmp_path, key=CANARY, master=f'{{"key": "{CANARY}-2"}}')
    good = cli("check", "--resolve", "--config", path)
    assert good.stdout == "ok: 2 deployments, 2 secrets resolved\n"
    shown = "".join(cli(*command, "--config", path).stdout for command in (["explain"], ["config"], ["doctor"]))
    assert "secrets: mounted answers" in shown
    assert CANARY not in shown


def test_an_unresolved_secret_stops_the_start(tmp_path: Path) -> None:
    mount(tmp_path, key=CANARY, master="no json")
    run = cli("run", "--config", written(tmp_path, config(tmp_path)), "--port", "0", "--admin-port", "0")
    assert run.returncode == 1
    assert "general_settings.master_key: mounted: master: the secret is no JSON object" in run.stderr
    assert "no json" not in run.stderr
    assert CANARY not in run.stderr


async def test_deferred_secrets_come_later(tmp_path: Path) -> None:
    def answer(request: object) -> Reply:
        return Reply.json({"choices": []})

    async with FakeLLM(answer) as llm:
        mount(tmp_path, master='{"key": "sk-master-1"}')
        text = config(tmp_path, f"{llm.url}/v1")
        with sidecar(tmp_path, text, "--allow-unresolved") as running:
            headers = {"authorization": "Bearer sk-master-1"}
            async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30) as client:
                refused = await client.post("/v1/chat/completions", json=CHAT)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "secret_unavailable"
                other = await client.post("/v1/chat/completions", json={**CHAT, "model": "mock"})
                assert other.status_code == 200
                ready = await client.get("/health/readiness")
                assert (ready.status_code, ready.json()) == (200, {"status": "degraded"})
                mount(tmp_path, key=CANARY)
                until = time.monotonic() + 15
                while (await client.post("/v1/chat/completions", json=CHAT)).status_code != 200:
                    assert time.monotonic() < until
                ready = await client.get("/health/readiness")
                assert ready.json() == {"status": "healthy"}
            assert llm.requests[-1].headers["authorization"] == f"Bearer {CANARY}"
            assert CANARY not in running.output()


def test_the_admin_port_shows_stores_and_refreshes(tmp_path: Path) -> None:
    mount(tmp_path, key=CANARY, master='{"key": "sk-master-1"}')
    with sidecar(tmp_path, config(tmp_path)) as running:
        admin = httpx.Client(base_url=running.admin_url)
        seen = admin.get("/-/secrets").json()
        assert seen["stores"]["mounted"] == {
            "status": "ok", "secrets": 2, "unresolved": 0, "oldest_s": seen["stores"]["mounted"]["oldest_s"],
            "last_error": None,
        }  # fmt: skip
        assert [(one["path"], one["fields"]) for one in seen["secrets"]] == [("key", []), ("master", ["key"])]
        (tmp_path / "key").unlink()
        after = admin.post("/-/secrets/refresh").json()
        assert after["stores"]["mounted"]["status"] == "degraded"
        assert admin.get("/health/readiness").json()["degraded"] == {
            "secrets": "the last good values of secrets are used"
        }
        assert 'tianji_degraded{who="secrets"} 1' in admin.get("/metrics").text
        assert 'event="secret_fetches",detail="mounted not_found"' in admin.get("/metrics").text
        assert CANARY not in repr(after) + admin.get("/-/config").text + running.output()
