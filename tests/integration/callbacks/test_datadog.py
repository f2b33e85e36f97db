"""Datadog's logs and LLM Observability against scripted intakes that hold every limit of the documentation."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import jsonschema
import orjson
import pytest

from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.datadog import Datadog
from tianji_mw.callbacks.datadog_llm_observability import DatadogLLMObservability
from tianji_mw.callbacks.datadog_shared import DatadogCallback, tag
from tianji_mw.errors import SetupError
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Received, Reply

KEY = "dd-very-secret-key"
TEXT = {"type": "string"}
TAG = re.compile(r"[a-z0-9_\-:./]{1,200}")
ENTRY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["ddsource", "ddtags", "hostname", "service", "status", "message"],
    "properties": {
        "ddsource": TEXT, "ddtags": TEXT, "hostname": TEXT, "service": TEXT, "message": TEXT, "timestamp": TEXT,
        "status": {"enum": ["info", "warning", "error"]},
        "dd.trace_id": {"pattern": "^[0-9a-f]{32}$"},
        "dd.span_id": {"pattern": "^[0-9]{1,20}$"},
    },
}  # fmt: skip
NUMBER = {"type": "number", "minimum": 0}
TOOL_CALL = {
    "additionalProperties": False,
    "properties": {"name": TEXT, "arguments": {"type": "object"}, "tool_id": TEXT, "type": TEXT},
}
TOOL_RESULT = {
    "additionalProperties": False,
    "properties": {"name": TEXT, "result": TEXT, "tool_id": TEXT, "type": TEXT},
}
MESSAGE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["role", "content"],
    "properties": {
        "role": TEXT, "content": TEXT, "reasoning_content": TEXT,
        "tool_calls": {"type": "array", "items": TOOL_CALL},
        "tool_results": {"type": "array", "items": TOOL_RESULT},
    },
}  # fmt: skip
IO = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {"messages": {"type": "array", "items": MESSAGE}, "value": TEXT},
}
META = {
    "type": "object",
    "additionalProperties": False,
    "required": ["kind", "input", "output", "metadata"],
    "properties": {
        "kind": {"enum": ["llm", "embedding", "tool", "task", "workflow", "agent", "retrieval"]},
        "input": IO,
        "output": IO,
        "metadata": {"type": "object"},
        "error": {
            "additionalProperties": False,
            "required": ["message", "type", "stack"],
            "properties": {"message": TEXT, "type": TEXT, "stack": TEXT},
        },
        "tool_definitions": {
            "type": "array",
            "items": {
                "additionalProperties": False,
                "required": ["name"],
                "properties": {"name": TEXT, "description": TEXT, "schema": {"type": "object"}},
            },
        },
    },
}
METRICS = (
    "input_tokens", "output_tokens", "total_tokens", "total_cost", "time_to_first_token", "time_per_output_token",
    "cache_read_input_tokens", "cache_write_input_tokens", "non_cached_input_tokens", "reasoning_output_tokens",
)  # fmt: skip
SPAN = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "trace_id",
        "span_id",
        "parent_id",
        "name",
        "start_ns",
        "duration",
        "status",
        "tags",
        "meta",
        "metrics",
    ],
    "properties": {
        "trace_id": {"pattern": "^[0-9a-f]{32}$"},
        "span_id": {"pattern": "^[0-9a-f]{16}$"},
        "parent_id": {"pattern": "^([0-9a-f]{16}|undefined)$"},
        "name": {"type": "string", "minLength": 1},
        "start_ns": {"type": "integer", "minimum": 0},
        "duration": {"type": "integer", "minimum": 0},
        "status": {"enum": ["ok", "error"]},
        "session_id": TEXT,
        "tags": {"type": "array", "items": TEXT},
        "meta": META,
        "metrics": {"additionalProperties": False, "properties": dict.fromkeys(METRICS, NUMBER)},
    },
}
SPANS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["data"],
    "properties": {
        "data": {
            "additionalProperties": False,
            "required": ["type", "attributes"],
            "properties": {
                "type": {"const": "span"},
                "attributes": {
                    "additionalProperties": False,
                    "required": ["ml_app", "spans"],
                    "properties": {
                        "ml_app": {"type": "string", "minLength": 1},
                        "session_id": TEXT,
                        "tags": {"type": "array", "items": TEXT},
                        "spans": {"type": "array", "minItems": 1, "items": SPAN},
                    },
                },
            },
        },
    },
}


class Intake:
    """Both intakes. `at_most`: entries of a request above which it answers 413."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []
        self.logs: list[dict[str, Any]] = []
        self.attributes: list[dict[str, Any]] = []
        self.spans: dict[str, dict[str, Any]] = {}
        self.sizes: list[int] = []
        self.at_most = 1000
        self.paths: tuple[str, ...] = ("/api/v2/logs", "/api/intake/llm-obs/v1/trace/spans")
        #: An agent has its own key, and wants none.
        self.agent = False

    def __call__(self, request: Received) -> Reply:
        key = request.headers.get("dd-api-key")
        if key != (None if self.agent else KEY):
            return Reply.json({"errors": [f"Forbidden {key}"]}, status=403)
        assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
        if request.path not in self.paths:
            return Reply(status=404)
        return (self._logs if request.path == "/api/v2/logs" else self._spans)(request)

    def _logs(self, request: Received) -> Reply:
        assert request.headers["content-encoding"] == "gzip"
        plain = gzip.decompress(request.body)
        entries = orjson.loads(plain)
        assert len(plain) <= 5_000_000
        assert 0 < len(entries) <= 1000
        self.sizes.append(len(entries))
        for entry in entries:
            jsonschema.validate(entry, ENTRY)
            assert len(orjson.dumps(entry)) <= 1_000_000
            assert isinstance(orjson.loads(entry["message"]), dict)
            assert datetime.fromisoformat(entry["timestamp"]).tzinfo is not None
            assert all(TAG.fullmatch(one) for one in entry["ddtags"].split(","))
        if self.answers:
            return self.answers.pop(0)
        if len(entries) > self.at_most:
            return Reply.json({"errors": ["Payload too large"]}, status=413)
        self.logs += entries
        return Reply.json({}, status=202)

    def _spans(self, request: Received) -> Reply:
        assert len(request.body) <= 5_000_000
        jsonschema.validate(request.json, SPANS)
        attributes = request.json["data"]["attributes"]
        spans = attributes.pop("spans")
        self.sizes.append(len(spans))
        for span in spans:
            assert ("error" in span["meta"]) == (span["status"] == "error")
            assert span["start_ns"] > (time.time() - 24 * 3600) * 1e9
            assert all(TAG.fullmatch(one) for one in span["tags"])
            is_llm = span["meta"]["kind"] == "llm"
            assert ("messages" in span["meta"]["input"]) == is_llm
        if self.answers:
            return self.answers.pop(0)
        self.attributes.append(attributes)
        self.spans |= {span["span_id"]: span for span in spans}
        return Reply(status=202)


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
async def server(intake: Intake) -> AsyncIterator[FakeLLM]:
    async with FakeLLM(intake) as fake:
        yield fake


Start = Callable[..., Any]


@pytest.fixture
async def start(server: FakeLLM) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(kind: type[DatadogCallback], **fields: Any) -> Any:
            callback = kind(**{"api_key": Secret(KEY), "api_base": server.url, "timeout_s": 5, **fields})
            await callback.start(Runtime())
            stack.push_async_callback(callback.aclose)
            return callback

        yield started


async def problem(callback: DatadogCallback, batch: list[Record]) -> NotDelivered:
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch)
    assert KEY not in caught.value.message
    return caught.value


def now(record: Record, ago: float = 0.0) -> Record:
    """The same record, as if it were of just now."""
    begun = time.time() - ago
    shift = begun - START
    ours = dict(record.data["tianji"] or {})
    moved = [
        {**one, "startTime": one["startTime"] + shift, "endTime": one["endTime"] + shift}
        for one in ours.get("attempts", ())
    ]
    times = {"startTime": begun, "endTime": begun + 0.82}
    return Record.of(record.id, {**record.data, **times, "tianji": {**ours, "attempts": moved}})


# --- logs


async def test_a_call_is_a_log(start: Start, intake: Intake) -> None:
    logs = await start(Datadog, env="Prod", version="1.2", hostname="Node-1", pod_name="pod/7")
    record = a_record()
    await logs.write([record, a_failure()])
    well, failed = intake.logs
    assert orjson.loads(well["message"]) == record.data
    assert (well["ddsource"], well["service"], well["hostname"]) == ("litellm", "litellm-server", "Node-1")
    assert (well["status"], failed["status"]) == ("info", "error")
    assert well["ddtags"].split(",") == [
        "env:prod", "service:litellm-server", "version:1.2", "hostname:node-1", "pod_name:pod/7",
        "request_tag:team:ml", "request_tag:user-agent:_curl", "team:ml",
    ]  # fmt: skip
    assert (well["dd.trace_id"], well["dd.span_id"]) == (record.data["trace_id"], str(0x00F067AA0BA902B7))
    assert datetime.fromisoformat(well["timestamp"]).timestamp() == pytest.approx(START + 0.82)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Team:ML Ops", "team:ml_ops"),
        ("a,b;c=\u00e9", "a_b_c"),
        ("x" * 300, "x" * 200),
        ("ok_-:./9", "ok_-:./9"),
    ],
)
def test_tags_are_normalised(text: str, kept: str) -> None:
    assert tag(text) == kept


async def test_a_log_without_a_trace_names_none(start: Start, intake: Intake) -> None:
    await (await start(Datadog)).write([a_record(trace_id="my session", tianji=None)])
    assert not any(name.startswith("dd.") for name in intake.logs[0])


async def test_batches_are_of_a_thousand_and_of_five_megabytes(start: Start, intake: Intake) -> None:
    logs = await start(Datadog)
    await logs.write([a_record() for _ in range(1200)])
    assert intake.sizes == [1000, 200]
    await logs.write([a_record(messages="x" * 900_000) for _ in range(7)])
    assert intake.sizes[2:] == [5, 2]


async def test_a_log_of_more_than_a_megabyte_loses_its_content(start: Start, intake: Intake) -> None:
    logs = await start(Datadog)
    await logs.write(
        [a_record(messages="\u20ac" * 400_000, response='"' * 900_000), a_record(messages="y" * 1_100_000)]
    )
    both, one = (orjson.loads(entry["message"]) for entry in intake.logs)
    assert both["messages"] == {"truncated": True, "bytes": 1_200_002}
    assert both["response"]["truncated"]
    assert one["messages"]["truncated"]
    assert one["response"]["choices"]
    assert one["total_tokens"] == 17


async def test_too_large_a_batch_is_halved_and_a_lone_one_is_refused(start: Start, intake: Intake) -> None:
    intake.at_most = 3
    logs = await start(Datadog)
    batch = [a_record() for _ in range(10)]
    await logs.write(batch)
    assert len(intake.logs) == 10
    intake.at_most = 0
    found = await problem(logs, batch[:2])
    assert (found.failed, found.refused) == ([], batch[:2])


async def test_only_what_failed_is_offered_again(start: Start, intake: Intake) -> None:
    logs = await start(Datadog)
    batch = [a_record(messages="x" * 900_000) for _ in range(12)]
    intake.answers += [Reply(status=202), Reply(status=503)]
    found = await problem(logs, batch)
    assert (found.failed, found.refused) == (batch[5:10], [])
    assert len(intake.logs) == 2


@pytest.mark.parametrize(
    ("reply", "pause"),
    [
        (Reply(status=429, headers={"retry-after": "9"}), 9.0),
        (Reply(status=408), None),
        (Reply(status=500), None),
        (Reply(refuse=True), None),
    ],
)
@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_faults_are_tried_again(
    start: Start, intake: Intake, kind: type[DatadogCallback], reply: Reply, pause: float | None
) -> None:
    intake.answers.append(reply)
    callback = await start(kind)
    batch = [now(a_record())]
    found = await problem(callback, batch)
    assert (found.failed, found.refused, found.retry_after_s) == (batch, [], pause)
    await callback.write(batch)


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_a_request_that_is_wrong_is_given_up(start: Start, intake: Intake, kind: type[DatadogCallback]) -> None:
    intake.answers.append(Reply(status=400))
    batch = [now(a_record())]
    found = await problem(await start(kind), batch)
    assert (found.failed, found.refused) == ([], batch)


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_a_wrong_key_waits_for_a_right_one(start: Start, kind: type[DatadogCallback]) -> None:
    callback = await start(kind, api_key=Secret("wrong-secret-key"))
    batch = [now(a_record())]
    found = await problem(callback, batch)
    assert found.failed == batch
    assert "wrong-secret-key" not in found.message


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_odd_records_do_no_harm(start: Start, intake: Intake, kind: type[DatadogCallback]) -> None:
    good = now(a_record())
    times = {"startTime": time.time(), "endTime": "x"}
    odd = [
        a_record(messages=None, response=None, metadata=None, model_parameters=None, request_tags=None, **times),
        a_record(
            messages="\U0001f600\x00\u202e", response=[1], request_tags=["\U0001f600", "", 4], trace_id=None, **times
        ),
        a_record(messages=[{"role": None, "content": [None, {"type": "image"}]}], metadata=[], tianji="x", **times),
    ]
    await (await start(kind)).write([*odd, good])
    assert sum(intake.sizes) == 4
    assert (await problem(await start(kind), [Record("not-json", b"{"), good])).failed == []


# --- LLM Observability


async def test_a_call_is_a_span(start: Start, intake: Intake) -> None:
    spans = await start(DatadogLLMObservability, env="prod", ml_app="gateway")
    record = now(a_record(session_id="s1"))
    await spans.write([record])
    (span,) = intake.spans.values()
    assert intake.attributes == [
        {"ml_app": "gateway", "tags": ["env:prod", "service:litellm-server"], "session_id": "s1"}
    ]
    assert (span["name"], span["parent_id"], span["trace_id"]) == (
        "litellm_llm_call",
        "undefined",
        record.data["trace_id"],
    )
    assert span["start_ns"] == round(record.data["startTime"] * 1e9)
    assert span["duration"] == pytest.approx(820_000_000, abs=1000)
    assert (span["status"], span["session_id"]) == ("ok", "s1")
    assert "team:ml" in span["tags"]
    meta = span["meta"]
    assert meta["kind"] == "llm"
    assert meta["input"]["messages"] == record.data["messages"]
    assert meta["output"]["messages"] == [{"role": "assistant", "content": "hello"}]
    told = {name: meta["metadata"][name] for name in ("model_name", "model_provider", "temperature")}
    assert told == {"model_name": "gpt-4o-mini", "model_provider": "openai", "temperature": 0.5}
    assert span["metrics"] == {
        "input_tokens": 12, "output_tokens": 5, "total_tokens": 17, "total_cost": 4.8e-06,
        "cache_read_input_tokens": 4, "non_cached_input_tokens": 8, "reasoning_output_tokens": 2,
    }  # fmt: skip


async def test_streams_tools_and_failures(start: Start, intake: Intake) -> None:
    spans = await start(DatadogLLMObservability)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    asked = [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
    ours = {**a_payload()["tianji"], "time_to_first_token": 0.02}
    record = now(a_record(messages=asked, model_parameters={"tools": [tool]}, tianji=ours))
    await spans.write([record, now(a_failure("It broke."))])
    streamed, failed = intake.spans.values()
    said, result = streamed["meta"]["input"]["messages"]
    expected = {"name": "weather", "arguments": {"city": "Oslo"}, "tool_id": "c1", "type": "function"}
    assert (said["tool_calls"], said["reasoning_content"]) == ([expected], "hm")
    assert result["tool_results"] == [{"name": "", "result": "rain", "tool_id": "c1", "type": "function"}]
    assert streamed["meta"]["tool_definitions"] == [
        {"name": "weather", "description": "d", "schema": {"type": "object"}}
    ]
    assert streamed["metrics"]["time_to_first_token"] == 0.02
    assert streamed["metrics"]["time_per_output_token"] == pytest.approx(0.2)
    assert (failed["status"], failed["meta"]["error"]["type"]) == ("error", "UpstreamError")
    assert failed["meta"]["error"]["message"] == "It broke."


async def test_other_kinds_have_values(start: Start, intake: Intake) -> None:
    ours = a_payload()["tianji"]
    answer = {"object": "list", "data": [{"embedding": [0.5, 0.5]}]}
    records = [now(a_record(messages=["a", "b"], response=answer, tianji={**ours, "api": "embeddings"}))]
    records.append(now(a_record(messages={"query": "q"}, response={"results": []}, tianji={**ours, "api": "rerank"})))
    await (await start(DatadogLLMObservability)).write(records)
    vectors, ranked = (span["meta"] for span in intake.spans.values())
    assert (vectors["kind"], vectors["input"]) == ("embedding", {"value": "a\nb"})
    assert vectors["output"] == {"value": "1 embeddings of 2 numbers"}
    assert (ranked["kind"], ranked["input"]) == ("retrieval", {"value": '{"query":"q"}'})


async def test_attempts_are_children_and_the_last_one_is_billed(start: Start, intake: Intake) -> None:
    ours = a_payload()["tianji"]
    second = ours["attempts"][0]
    first = {**second, "model": "gpt-4o", "status_code": 503, "error": "UpstreamError", "endTime": START + 0.2}
    record = now(a_record(tianji={**ours, "attempts": [first, {**second, "startTime": START + 0.2}]}))
    spans = await start(DatadogLLMObservability)
    await spans.write([record])
    known = dict(intake.spans)
    root, one, two = known.values()
    assert (root["meta"]["kind"], root["parent_id"]) == ("workflow", "undefined")
    assert [span["parent_id"] for span in (one, two)] == [root["span_id"]] * 2
    assert ["total_cost" in span["metrics"] for span in (root, one, two)] == [False, False, True]
    assert [span["status"] for span in (root, one, two)] == ["ok", "error", "ok"]
    assert one["meta"]["metadata"]["model_name"] == "gpt-4o"
    await spans.write([record])
    assert intake.spans == known


async def test_several_sessions_stand_in_their_spans(start: Start, intake: Intake) -> None:
    await (await start(DatadogLLMObservability)).write([now(a_record(session_id=name)) for name in ("a", "b", "")])
    assert "session_id" not in intake.attributes[0]
    assert [span.get("session_id") for span in intake.spans.values()] == ["a", "b", None]


async def test_spans_of_yesterday_are_refused_at_once(start: Start, intake: Intake) -> None:
    old, new = now(a_record(), ago=25 * 3600), now(a_record())
    found = await problem(await start(DatadogLLMObservability), [old, new])
    assert (found.failed, list(found.refused)) == ([], [old])
    assert len(intake.spans) == 1


async def test_spans_of_more_than_a_megabyte_are_cut(start: Start, intake: Intake) -> None:
    batch = [now(a_record(messages="x" * 2_000_000)) for _ in range(3)]
    batch += [now(a_record(messages="x" * 900_000)) for _ in range(6)]
    await (await start(DatadogLLMObservability)).write(batch)
    lengths = [len(span["meta"]["input"]["messages"][0]["content"]) for span in intake.spans.values()]
    assert lengths == [10_000] * 3 + [900_000] * 6
    assert len(intake.sizes) == 2


# --- where it goes


def test_the_addresses() -> None:
    assert Datadog(dd_site="us5.datadoghq.com").base("api") == "https://api.us5.datadoghq.com"
    assert Datadog().base("http-intake.logs") == "https://http-intake.logs.datadoghq.com"
    assert Datadog(dd_agent_host="agent").base("api") == "http://agent:10518"
    assert DatadogLLMObservability(agent_host="::1").base("api") == "http://[::1]:8126"
    assert Datadog(agent_host="agent", dd_agent_port="99").base("api") == "http://agent:99"


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_an_agent_gets_no_key(start: Start, server: FakeLLM, intake: Intake, kind: type[DatadogCallback]) -> None:
    intake.agent = True
    port = int(server.url.rpartition(":")[2])
    callback = await start(kind, agent_host="127.0.0.1", agent_port=port, api_base="")
    await callback.write([now(a_record())])
    assert intake.sizes == [1]


async def test_an_agent_that_has_a_proxy_alone(start: Start, server: FakeLLM, intake: Intake) -> None:
    """Datadog's own test agent answers 404 at the intake's path, and passes on what comes to `/evp_proxy/v2`."""
    intake.agent = True
    intake.paths = ("/evp_proxy/v2/api/intake/llm-obs/v1/trace/spans",)
    port = int(server.url.rpartition(":")[2])
    callback = await start(DatadogLLMObservability, agent_host="127.0.0.1", agent_port=port, api_base="")
    await callback.write([now(a_record())])
    await callback.write([now(a_record())])
    assert [request.path.startswith("/evp_proxy") for request in server.requests] == [False, True, True]
    assert server.requests[-1].headers["x-datadog-evp-subdomain"] == "api"


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_what_is_missing_or_wrong_stops_the_start(kind: type[DatadogCallback]) -> None:
    with pytest.raises(SetupError, match="DD_API_KEY"):
        await kind().start(Runtime())
    with pytest.raises(SetupError, match="site is no host"):
        await kind(api_key="k", site="evil.com/x?").start(Runtime())
    with pytest.raises(SetupError, match="agent_host is no host"):
        await kind(agent_host="user@host/x").start(Runtime())
