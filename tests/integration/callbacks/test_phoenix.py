"""Phoenix, the real server: spans over HTTP and gRPC, read back by its REST API; and what is not delivered."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.support.otlp_receiver import OtlpReceiver
from tests.support.phoenix_server import phoenix as real_phoenix
from tests.support.processes import Running
from tests.support.records import a_failure, a_payload, a_record
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.phoenix import Phoenix
from tianji_mw.runtime import Runtime
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("phoenix")]
KEY = "px-very-secret-1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with real_phoenix(tmp_path_factory.mktemp("phoenix")) as running:
        yield running


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as found:
        yield found


def ids() -> dict[str, Any]:
    """A trace and a span of its own: Phoenix knows a span by its id, whatever its trace."""
    return {"trace_id": uuid.uuid4().hex, "tianji": {**a_payload()["tianji"], "span_id": uuid.uuid4().hex[:16]}}


async def sent(phoenix: Phoenix, *batches: list[Record]) -> None:
    async with Runtime() as runtime:
        await phoenix.start(runtime)
        for batch in batches:
            await phoenix.write(batch)
        await phoenix.aclose()
    assert dict(runtime.counts) == {}


async def spans_in(server: Running, project: str, count: int) -> list[dict[str, Any]]:
    """The project's spans, by their start, once there are so many: Phoenix writes them a moment later."""
    async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(60):
        while True:
            answer = await client.get(f"/v1/projects/{project}/spans", params={"limit": 100})
            if answer.status_code == 200 and len(found := answer.json()["data"]) >= count:
                return sorted(found, key=lambda span: (span["start_time"], span["name"]))
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_spans_are_read_back(server: Running, protocol: str) -> None:
    endpoint = server.url if protocol == "http" else f"grpc://127.0.0.1:{server.admin_port}"
    project = f"gateway-{protocol}"
    good, bad = a_record(**ids(), session_id="s-1"), a_failure(trace_id=uuid.uuid4().hex)
    key = {**a_payload()["metadata"], "user_api_key_auth_metadata": {"phoenix_project_name": f"team-{protocol}"}}
    other = a_record(**ids(), metadata=key)
    phoenix = Phoenix(endpoint=endpoint, project_name=project)
    # Twice: the second time it is the same spans.
    failing = Record.of(bad.id, {**bad.data, "tianji": {**bad.data["tianji"], "span_id": uuid.uuid4().hex[:16]}})
    await sent(phoenix, [good, failing, other], [good, failing, other])
    spans = await spans_in(server, project, 3)
    assert sorted((span["name"], span["span_kind"], span["status_code"]) for span in spans) == [
        ("attempt 1 gpt-4o-mini", "CHAIN", "ERROR"),
        ("chat gpt-4o-mini", "LLM", "ERROR"),
        ("chat gpt-4o-mini", "LLM", "OK"),
    ]
    (call,) = [span for span in spans if span["context"]["trace_id"] == good.data["trace_id"]]
    found = call["attributes"]
    assert (found["llm.token_count.prompt"], found["llm.token_count.completion"]) == (12, 5)
    assert (found["output.value"], found["session.id"], found["user.id"]) == ("hello", "s-1", "customer-7")
    assert found["llm.model_name"] == "gpt-4o-mini-2024-07-18"
    messages = found.get("llm.input_messages") or [found["llm.input_messages.0.message.content"]]
    assert "Be brief." in orjson.dumps(messages).decode()
    (failed,) = [span for span in spans if span["status_code"] == "ERROR" and span["span_kind"] == "LLM"]
    assert [event["name"] for event in failed["events"]] == ["exception"]
    (theirs,) = await spans_in(server, f"team-{protocol}", 1)
    assert theirs["context"]["trace_id"] == other.data["trace_id"]


async def test_odd_records_arrive(server: Running) -> None:
    odd: list[dict[str, Any]] = [
        {"messages": None, "response": None, "metadata": None},
        {"messages": "text", "response": ["x"]},
        {"messages": [{"role": "user", "content": "\U0001f600\x00" * 40_000}]},
    ]
    batch = [a_record(**{**ids(), **one}) for one in odd]
    await sent(Phoenix(endpoint=server.url, project_name="odd"), batch)
    assert len(await spans_in(server, "odd", 3)) == 3


async def test_from_a_config(tmp_path: Path, serve: Serve, server: Running) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list:
  - {{model_name: gpt-4o, litellm_params: {{model: openai/gpt-4o, api_base: '{llm.url}/v1', api_key: sk-key}}}}
litellm_settings: {{callbacks: [arize_phoenix]}}
""")
        env = {
            "PHOENIX_COLLECTOR_HTTP_ENDPOINT": f"{server.url}/v1/traces", "PHOENIX_PROJECT_NAME": "whole",
            "PHOENIX_API_KEY": KEY, "DEFAULT_FLUSH_INTERVAL_SECONDS": "0.05",
        }  # fmt: skip
        app = await serve(Stack.from_config(path, env=env).app)
        assert (await drive(app, CHAT)).status == 200
        (span,) = await spans_in(server, "whole", 1)
    assert span["attributes"]["output.value"] == "Hello you"


@pytest.mark.parametrize(("status", "retry"), [(401, True), (429, True), (503, True), (422, False)])
async def test_answers(receiver: OtlpReceiver, status: int, retry: bool) -> None:
    receiver.script.append(lambda: (status, {"retry-after": "2"}, f"no {KEY}".encode()))
    phoenix = Phoenix(endpoint=receiver.url, api_key=KEY)
    async with Runtime() as runtime:
        await phoenix.start(runtime)
        with pytest.raises(NotDelivered) as caught:
            await phoenix.write([a_record()])
        await phoenix.aclose()
    assert receiver.received[0].headers["authorization"] == f"Bearer {KEY}"
    assert (caught.value.retry, caught.value.retry_after_s) == (retry, 2.0)
    assert KEY not in str(caught.value)
