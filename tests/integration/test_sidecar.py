"""`tianji-sidecar` as a user meets it: real processes, real sockets."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.processes import ROOT, environment, free_port, sidecar
from tianji_mw.testing import FakeLLM, Reply

pytestmark = pytest.mark.slow

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello there"}]}
LOCKED = """
model_list:
  - {model_name: demo, litellm_params: {model: mock/echo}}
  - {model_name: other, litellm_params: {model: mock/echo}}
general_settings: {master_key: sk-master-1, drain_delay_s: 0}
virtual_keys:
  - {key: sk-team-a, alias: ci, team: a, models: [demo]}
  - {key: sk-old, alias: old, expires: "2020-01-01T00:00:00Z"}
"""


def cli(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(env), cwd=ROOT, timeout=60, check=False
    )


def test_the_demo_needs_no_key_and_its_curl_line_works_when_pasted(tmp_path: Path) -> None:
    with sidecar(tmp_path) as running:
        output = running.output()
        assert f"http://127.0.0.1:{running.port}/v1" in output
        line = next(line for line in output.splitlines() if line.strip().startswith("curl "))
        pasted = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=20, check=True)
        assert '"content":"Hello"' in pasted.stdout
        assert httpx.get(running.url + "/health/readiness").json() == {"status": "healthy"}
        assert httpx.get(running.url + "/health/liveliness").json() == "I'm alive!"


def test_wildcards_to_real_providers_open_when_their_key_is_in_the_environment() -> None:
    shown = cli("explain", env={"OPENAI_API_KEY": "sk-canary-value", "ANTHROPIC_API_KEY": "sk-canary-value"}).stdout
    assert "openai/* -> openai/*  https://api.openai.com/v1  (key set" in shown
    assert "anthropic/* -> anthropic/*" in shown
    assert "sk-canary-value" not in shown


def test_keys_models_and_one_generic_refusal(tmp_path: Path) -> None:
    with sidecar(tmp_path, LOCKED) as running, httpx.Client(base_url=running.url) as client:

        def ask(key: str | None, model: str = "demo", path: str = "/v1/chat/completions") -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return client.post(path, json={**CHAT, "model": model}, headers=headers)

        assert ask("sk-master-1", "other").status_code == 200
        assert ask("sk-team-a").status_code == 200
        assert ask("sk-team-a", "other").status_code == 403
        refused = [ask(None), ask("sk-wrong"), ask("sk-old"), ask("not a key at all")]
        assert {answer.status_code for answer in refused} == {401}
        assert len({answer.content for answer in refused}) == 1
        assert refused[0].json()["error"]["code"] == "invalid_api_key"
        by_anthropic = client.post("/v1/messages", json={**CHAT, "max_tokens": 5}, headers={"x-api-key": "sk-team-a"})
        assert by_anthropic.status_code == 200
        wrong = client.post("/v1/messages", json={**CHAT, "max_tokens": 5}, headers={"x-api-key": "x"})
        assert wrong.json()["type"] == "error"
        assert wrong.json()["error"]["type"] == "authentication_error"
        names = client.get("/v1/models", headers={"authorization": "Bearer sk-team-a"}).json()["data"]
        assert [model["id"] for model in names] == ["demo"]
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health/readiness").status_code == 200


def test_admin_endpoints_answer_on_the_admin_port_alone(tmp_path: Path) -> None:
    with sidecar(tmp_path, LOCKED) as running:
        httpx.post(running.url + "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-master-1"})
        for path in ("/metrics", "/-/stack", "/-/config"):
            assert httpx.get(running.admin_url + path).status_code == 200
            assert httpx.get(running.url + path, headers={"authorization": "Bearer sk-master-1"}).status_code == 404
        metrics = httpx.get(running.admin_url + "/metrics").text
        assert 'tianji_calls_total{api="chat_completions",outcome="ok"} 1' in metrics
        with socket.create_connection(("127.0.0.1", running.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b" 400 " in raw.recv(4096)
        assert 'tianji_edge_total{reason="refused_400"} 1' in httpx.get(running.admin_url + "/metrics").text
        assert [layer["layer"] for layer in httpx.get(running.admin_url + "/-/stack").json()] == [
            "Authentication",
            "Routing",
            "Gateway",
        ]
        assert "sk-" not in httpx.get(running.admin_url + "/-/config").text


def test_a_stream_survives_the_drain_and_readiness_turns_off(tmp_path: Path) -> None:
    config = """
model_list:
  - {model_name: slow, litellm_params: {model: mock/echo, chunk_latency_s: 0.25}}
general_settings: {drain_delay_s: 1, grace_s: 20}
"""
    words = "one two three four five six seven eight"
    with sidecar(tmp_path, config) as running:
        body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": words}]}
        with httpx.stream("POST", running.url + "/v1/chat/completions", json=body, timeout=30) as answer:
            chunks = answer.iter_text()
            first = next(chunks)
            running.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 1
            while httpx.get(running.url + "/health/readiness").status_code == 200:
                assert time.monotonic() < deadline, "readiness stayed on"
            text = first + "".join(chunks)
        assert running.process.wait(10) == 0
    assert text.endswith("data: [DONE]\n\n")
    assert all(word in text for word in words.split())


def test_two_workers_share_the_port(tmp_path: Path) -> None:
    # No admin ports: the second worker takes the next one, which another test may hold.
    with sidecar(tmp_path, LOCKED, "--workers", "2", "--admin-port", "0") as running:
        statuses = [
            httpx.post(
                running.url + "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-master-1"}
            ).status_code
            for _ in range(20)
        ]
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
    assert statuses == [200] * 20


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["run", "--host", "0.0.0.0"], "refusing to listen on 0.0.0.0 without a key"),
        (["run", "--admin-host", "0.0.0.0"], "refusing to open the admin port on 0.0.0.0"),
        (["run", "--config", "does-not-exist.yaml"], "does-not-exist.yaml"),
        (["run", "--app-upstream", "localhost:8000"], "--app-upstream must be an address such as"),
        (["run", "--port", "70000"], "--port"),
        (["check", "--app-upstream", "ftp://x"], "--app-upstream must be an address such as"),
    ],
)
def test_a_wrong_start_is_a_sentence_and_no_traceback(args: list[str], sentence: str) -> None:
    result = cli(*args)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with sidecar(tmp_path) as running:
        result = cli("run", "--quiet", "--port", str(running.port), "--admin-port", "0")
    assert result.returncode == 1
    assert f"port {running.port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_names_every_wrong_place_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model_list:\n"
        "  - model_name: a\n"
        "    litellm_params: {model: opanai/gpt-4o}\n"
        "  - model_name: b\n"
        "    litellm_params: {model: azure/x, api_key: k1}\n"
        "guardrails:\n"
        "  - {guardrail_name: g, litellm_params: {guardrail: no_such, mode: pre_call}}\n"
    )
    result = cli("check", "--config", str(path))
    assert result.returncode == 1
    assert f"{path}:3: model_list[0].litellm_params.model: the provider 'opanai' is not known" in result.stderr
    assert "did you mean openai/gpt-4o?" in result.stderr
    assert f"{path}:5: model_list[1].litellm_params: azure needs 'api_base'" in result.stderr
    assert f"{path}:7: guardrails[0]" in result.stderr


def test_keys_without_effect_are_named_and_strict_makes_them_errors(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model_list:\n  - {model_name: a, litellm_params: {model: mock/echo}}\nlitellm_settings:\n  force_ipv4: true\n"
    )
    relaxed, strict = cli("check", "--config", str(path)), cli("check", "--strict", "--config", str(path))
    assert relaxed.returncode == 0
    assert f"{path}:4: litellm_settings.force_ipv4: not implemented yet" in relaxed.stdout
    assert strict.returncode == 1
    assert cli("run", "--strict", "--config", str(path)).returncode == 1


def test_environment_variables_of_the_config_reach_the_process(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "environment_variables: {GROQ_API_KEY: gsk-1}\n"
        "model_list:\n  - {model_name: g, litellm_params: {model: groq/llama}}\n"
    )
    assert "key set" in cli("explain", "--config", str(path)).stdout


def test_doctor_finds_an_unreachable_provider_and_probes_a_server(tmp_path: Path) -> None:
    dead = free_port()
    path = tmp_path / "c.yaml"
    params = f"{{model: openai/m, api_base: 'http://127.0.0.1:{dead}/v1', api_key: k1}}"
    path.write_text(f"model_list:\n  - {{model_name: m, litellm_params: {params}}}\n")
    result = cli("doctor", "--config", str(path))
    assert result.returncode == 1
    assert f"FAIL  http://127.0.0.1:{dead} (m):" in result.stdout
    with sidecar(tmp_path) as running:
        probed = cli("doctor", "--url", running.url)
    assert probed.returncode == 0, probed.stdout
    assert "bare LF line ends: 400" in probed.stdout


def test_start_is_quick_and_small(tmp_path: Path) -> None:
    """Figures, not limits: wall time on a shared machine says little. The limit here only catches a gross mistake."""
    begun = time.monotonic()
    with sidecar(tmp_path) as running:
        ready = time.monotonic() - begun
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        rss = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    print(f"ready after {ready:.2f} s, idle RSS {rss / 1024:.1f} MiB")
    assert rss < 80 * 1024


class Background:
    """A FakeLLM in a thread of its own, for tests that drive a process synchronously."""

    def __init__(self, *replies: Reply) -> None:
        self.llm = FakeLLM()
        self.llm.replies.extend(replies)
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        import asyncio

        async def main() -> None:
            async with self.llm:
                self._ready.set()
                while not self._stop.is_set():
                    await asyncio.sleep(0.02)

        asyncio.run(main())

    def __enter__(self) -> FakeLLM:
        self._thread.start()
        assert self._ready.wait(10)
        return self.llm

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(10)


def test_ingress_passes_everything_and_guards_llm_routes(tmp_path: Path) -> None:
    answer = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "the bluebird sings"}}]}
    fine = {"id": "2", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}]}
    page = Reply(headers={"content-type": "text/html", "set-cookie": "a=1"}, parts=[b"<p>hi</p>"])
    with Background(page, Reply.json(answer), Reply.json(fine), Reply(status=204)) as app:
        config = Path(ROOT / "examples/ingress.yaml").read_text()
        with (
            sidecar(tmp_path, config, "--app-upstream", app.url) as running,
            httpx.Client(base_url=running.url) as client,
        ):
            html = client.get(
                "/shop?item=1", headers={"cookie": "b=2", "connection": "keep-alive, x-hop", "x-hop": "1"}
            )
            assert (html.status_code, html.text, html.headers["set-cookie"]) == (200, "<p>hi</p>", "a=1")
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
            headers = {"authorization": "Bearer sk-example"}
            blocked = client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert blocked.status_code == 400
            assert "bluebird" not in blocked.text
            assert client.post("/v1/chat/completions", json=CHAT, headers=headers).json() == fine
            asked = {**CHAT, "messages": [{"role": "user", "content": "tell me of bluebird"}]}
            assert client.post("/v1/chat/completions", json=asked, headers=headers).status_code == 400
            assert client.delete("/shop/1").status_code == 204
            assert client.get("/a/%2e%2e/b").status_code == 400
    first, second, third, last = app.requests
    assert (first.method, first.path, first.headers["cookie"]) == ("GET", "/shop?item=1", "b=2")
    assert "x-hop" not in first.headers
    assert first.headers["x-forwarded-for"] == "127.0.0.1"
    assert second.json == third.json == CHAT
    assert (last.method, last.path) == ("DELETE", "/shop/1")
