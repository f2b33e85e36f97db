"""W&B Weave against a receiver that looks at every field of its contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.otlp_receiver import OtlpReceiver, plain
from tests.support.records import a_failure, a_record
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.wandb import Wandb
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

KEY = "wandb-very-secret-1"


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as found:
        yield found


def weave(receiver: OtlpReceiver, **more: Any) -> Wandb:
    return Wandb(**{"wandb_api_key": KEY, "weave_project_id": "me/gateway", "host": receiver.url, **more})


@pytest.mark.parametrize(
    ("host", "agents", "path"),
    [
        ("", False, "/otel/v1/traces"),
        ("/otel/v1/traces", False, "/otel/v1/traces"),
        ("/traces", False, "/traces/otel/v1/traces"),
        ("/", True, "/agents/otel/v1/traces"),
    ],
)
async def test_spans_arrive(receiver: OtlpReceiver, host: str, agents: bool, path: str) -> None:
    wandb = weave(receiver, host=receiver.url + host, agents=agents)
    async with Runtime() as runtime:
        await wandb.start(runtime)
        await wandb.write([a_record(session_id="s-1", model="meta/llama"), a_failure()])
        await wandb.aclose()
    (got,) = receiver.received
    assert (got.path, got.headers["content-type"]) == (path, "application/x-protobuf")
    assert (got.headers["wandb-api-key"], got.headers["project_id"]) == (KEY, "me/gateway")
    resource = plain(got.message.resource_spans[0].resource.attributes)
    assert (resource["wandb.entity"], resource["wandb.project"]) == ("me", "gateway")
    call, failed, attempt = (plain(span.attributes) for span in receiver.spans())
    assert call["wandb.display_name"] == "openai__meta__llama"
    assert (call["wandb.thread_id"], call["wandb.is_turn"]) == ("s-1", True)
    assert (call["gen_ai.operation.name"], call["gen_ai.usage.input_tokens"]) == ("chat", 12)
    assert (call["openinference.span.kind"], call["output.value"]) == ("LLM", "hello")
    assert "wandb.thread_id" not in failed
    assert attempt["wandb.display_name"] == "attempt 1 gpt-4o-mini"


@pytest.mark.parametrize(("status", "retry"), [(401, True), (404, True), (429, True), (500, True), (400, False)])
async def test_answers(receiver: OtlpReceiver, status: int, retry: bool) -> None:
    receiver.script.append(lambda: (status, {"retry-after": "3"}, f"no {KEY}".encode()))
    wandb = weave(receiver)
    async with Runtime() as runtime:
        await wandb.start(runtime)
        with pytest.raises(NotDelivered) as caught:
            await wandb.write([a_record()])
        await wandb.aclose()
    assert (caught.value.retry, caught.value.retry_after_s) == (retry, 3.0)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("project", ["gateway", "a/b/c", "/b", "a/"])
async def test_a_project_has_an_entity(receiver: OtlpReceiver, project: str) -> None:
    async with Runtime() as runtime:
        with pytest.raises(SetupError, match="entity/project"):
            await weave(receiver, weave_project_id=project).start(runtime)


async def test_from_a_config(tmp_path: Path, serve: Serve, receiver: OtlpReceiver) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list:
  - {{model_name: gpt-4o, litellm_params: {{model: openai/gpt-4o, api_base: '{llm.url}/v1', api_key: sk-key}}}}
litellm_settings: {{callbacks: [weave_otel]}}
""")
        env = {
            "WANDB_API_KEY": KEY, "WANDB_PROJECT_ID": "me/p", "WANDB_HOST": receiver.url,
            "DEFAULT_FLUSH_INTERVAL_SECONDS": "0.05",
        }  # fmt: skip
        app = await serve(Stack.from_config(path, env=env).app)
        assert (await drive(app, CHAT)).status == 200
        async with asyncio.timeout(20):
            while not receiver.received:
                await asyncio.sleep(0.02)
    (span,) = receiver.spans()
    assert plain(span.attributes)["wandb.display_name"].startswith("openai__")
