"""From YAML, in LiteLLM's spelling and in ours, over real calls, to records at five destinations."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.stack import ANSWER, CHAT, STREAM, Serve, stream_of
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Received, Reply, drive

LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o-2024, api_base: '{llm}/v1', api_key: sk-key}}
litellm_settings:
  num_retries: 0
  callbacks: ["{name}"]
"""
OURS = """
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o-2024, api_base: '{llm}/v1', api_key: sk-key}}
settings:
  num_retries: 0
  callback_configs:
    - {{type: {name}, api_key: k-secret, api_base: '{service}', flush_interval_s: 0.02}}
"""
ENV: dict[str, dict[str, str]] = {
    "langsmith": {"LANGSMITH_API_KEY": "k-secret", "LANGSMITH_BASE_URL": "{service}", "LANGSMITH_SAMPLING_RATE": "1.0"},
    "braintrust": {"BRAINTRUST_API_KEY": "k-secret", "BRAINTRUST_API_BASE": "{service}/v1"},
    "helicone": {"HELICONE_API_KEY": "k-secret", "HELICONE_API_BASE": "{service}"},
    "datadog": {"DD_API_KEY": "k-secret", "DD_BASE_URL": "{service}", "DD_SITE": "datadoghq.eu"},
    "datadog_llm_observability": {"DD_API_KEY": "k-secret", "DD_BASE_URL": "{service}", "DD_ENV": "test"},
}
KEY_OF = {
    "langsmith": "x-api-key",
    "braintrust": "authorization",
    "helicone": "authorization",
    "datadog": "dd-api-key",
    "datadog_llm_observability": "dd-api-key",
}


def service(request: Received) -> Reply:
    """Takes everything; the answer fits all of them."""
    return Reply.json({"id": "11111111-1111-4111-8111-111111111111", "row_ids": []})


def sent(fake: FakeLLM, name: str) -> list[dict[str, Any]]:
    """The records that have arrived."""
    where: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
        "langsmith": ("/api/v1/runs/batch", lambda body: body["post"]),
        "braintrust": ("/v1/project_logs/11111111-1111-4111-8111-111111111111/insert", lambda body: body["events"]),
        "helicone": ("/custom/v1/log", lambda body: [body]),
        "datadog": ("/api/v2/logs", lambda body: body),
        "datadog_llm_observability": (
            "/api/intake/llm-obs/v1/trace/spans",
            lambda body: body["data"]["attributes"]["spans"],
        ),
    }
    path, records = where[name]
    found = []
    for request in fake.requests:
        if request.path == path:
            assert "k-secret" in request.headers[KEY_OF[name]]
            zipped = request.headers.get("content-encoding") == "gzip"
            found += records(orjson.loads(gzip.decompress(request.body) if zipped else request.body))
    return found


async def arrived(fake: FakeLLM, name: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while len(sent(fake, name)) < count:
            await asyncio.sleep(0.02)
    return sent(fake, name)


def app_of(folder: Path, text: str, env: dict[str, str]) -> Any:
    path = folder / "config.yaml"
    path.write_text(text)
    return Stack.from_config(path, env=env).app


@pytest.mark.parametrize("name", ENV)
async def test_litellms_config_and_variables(tmp_path: Path, serve: Serve, name: str) -> None:
    async with FakeLLM() as llm, FakeLLM(service) as fake:
        llm.replies += [Reply.json(ANSWER), Reply.events(*stream_of("Hello", " you"))]
        env = {variable: value.format(service=fake.url) for variable, value in ENV[name].items()}
        text = LITELLM.format(llm=llm.url, name=name)
        app = await serve(app_of(tmp_path, text, {**env, "DEFAULT_FLUSH_INTERVAL_SECONDS": "0.02"}))
        for body in (CHAT, STREAM):
            assert (await drive(app, body)).status == 200
        records = await arrived(fake, name, 2)
    assert len(records) == 2
    assert all(b"Hello you" in orjson.dumps(record) for record in records)
    assert b"sk-key" not in orjson.dumps(records)
    assert b"k-secret" not in orjson.dumps(records)


@pytest.mark.parametrize("name", ENV)
async def test_our_config_and_failures(tmp_path: Path, serve: Serve, name: str) -> None:
    async with FakeLLM() as llm, FakeLLM(service) as fake:
        llm.replies.append(Reply.json({"error": {"message": "busy"}}, status=500))
        base = f"{fake.url}/v1" if name == "braintrust" else fake.url
        app = await serve(app_of(tmp_path, OURS.format(llm=llm.url, service=base, name=name), {}))
        assert (await drive(app, CHAT)).status >= 500
        (record, *_) = await arrived(fake, name, 1)
    shown = orjson.dumps(record)
    assert b"UpstreamError" in shown
    assert b"gpt-4o-2024" in shown
