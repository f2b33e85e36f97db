"""Arize AX against receivers of OTLP over HTTP and gRPC that look at every field which it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.otlp_receiver import OtlpReceiver, plain
from tests.support.records import a_failure, a_record
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.arize import Arize
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

KEY = "ak-very-secret-1"


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as found:
        yield found


def over(protocol: str, receiver: OtlpReceiver, **more: Any) -> Arize:
    where = {"endpoint": f"http://{receiver.target}"} if protocol == "grpc" else {"http_endpoint": receiver.url}
    return Arize(space_id="space-1", api_key=KEY, project_name="gateway", **{**where, **more})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_spans_arrive(receiver: OtlpReceiver, protocol: str) -> None:
    arize = over(protocol, receiver)
    async with Runtime() as runtime:
        await arize.start(runtime)
        await arize.write([a_record(), a_failure()])
        await arize.aclose()
    assert dict(runtime.counts) == {}
    (got,) = receiver.received
    assert (got.headers["api_key"], got.headers["arize-space-id"]) == (KEY, "space-1")
    if protocol == "grpc":
        assert got.headers["space_id"] == "space-1"
    else:
        assert (got.path, got.headers["content-encoding"]) == ("/v1/traces", "gzip")
    (whole,) = got.message.resource_spans
    resource = plain(whole.resource.attributes)
    assert (resource["openinference.project.name"], resource["model_id"]) == ("gateway", "gateway")
    spans = receiver.spans()
    kinds = [plain(span.attributes)["openinference.span.kind"] for span in spans]
    assert kinds == ["LLM", "LLM", "CHAIN"]
    assert [span.status.code for span in spans] == [1, 2, 2]
    assert [event.name for event in spans[1].events] == ["exception"]


@pytest.mark.parametrize(("status", "retry"), [(401, True), (429, True), (503, True), (400, False), (413, False)])
async def test_answers(receiver: OtlpReceiver, status: int, retry: bool) -> None:
    receiver.script.append(lambda: (status, {"retry-after": "7"}, f"no {KEY}".encode()))
    arize = over("http", receiver)
    async with Runtime() as runtime:
        await arize.start(runtime)
        with pytest.raises(NotDelivered) as caught:
            await arize.write([a_record(), a_record()])
        await arize.aclose()
    assert (caught.value.retry, caught.value.retry_after_s, caught.value.failed) == (retry, 7.0, None)
    assert KEY not in str(caught.value)


async def test_a_key_that_is_refused_over_grpc(receiver: OtlpReceiver) -> None:
    async def refuse(context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"bad key {KEY}")

    receiver.script.append(refuse)
    arize = over("grpc", receiver)
    async with Runtime() as runtime:
        await arize.start(runtime)
        with pytest.raises(NotDelivered) as caught:
            await arize.write([a_record()])
        await arize.aclose()
    assert caught.value.retry
    assert KEY not in str(caught.value)


async def test_a_sample_of_none_sends_nothing(receiver: OtlpReceiver) -> None:
    arize = over("http", receiver, success_sampling_rate=0)
    async with Runtime() as runtime:
        await arize.start(runtime)
        await arize.write([a_record()])
        await arize.write([a_record(), a_failure()])
        await arize.aclose()
    assert len(receiver.spans()) == 2


@pytest.mark.parametrize("missing", ["space_id", "api_key"])
async def test_keys_are_needed(missing: str) -> None:
    given = {"space_id": "s", "api_key": "k"}
    del given[missing]
    async with Runtime() as runtime:
        with pytest.raises(SetupError, match=missing):
            await Arize(**given).start(runtime)


async def test_from_a_config(tmp_path: Path, serve: Serve, receiver: OtlpReceiver) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list:
  - {{model_name: gpt-4o, litellm_params: {{model: openai/gpt-4o, api_base: '{llm.url}/v1', api_key: sk-key}}}}
litellm_settings: {{callbacks: [arize]}}
""")
        env = {
            "ARIZE_SPACE_KEY": "space-1", "ARIZE_API_KEY": KEY, "ARIZE_PROJECT_NAME": "p",
            "ARIZE_HTTP_ENDPOINT": f"{receiver.url}/v1/traces", "DEFAULT_FLUSH_INTERVAL_SECONDS": "0.05",
        }  # fmt: skip
        app = await serve(Stack.from_config(path, env=env).app)
        assert (await drive(app, CHAT)).status == 200
        async with asyncio.timeout(20):
            while not receiver.received:
                await asyncio.sleep(0.02)
    (span,) = receiver.spans()
    assert plain(span.attributes)["output.value"] == "Hello you"
