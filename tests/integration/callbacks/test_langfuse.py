"""Langfuse against scripted servers that look at every field, and beside what its own SDK sends for the same call."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from langfuse import Langfuse as Sdk
from langfuse import propagate_attributes

from tests.support.otlp_receiver import OtlpReceiver, plain
from tests.support.records import a_failure, a_payload, a_record
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.langfuse import Langfuse
from tianji_mw.callbacks.langfuse_batch import event_ids
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Received, Reply, drive

PUBLIC, SECRET = "pk-lf-1", "sk-lf-very-secret-1"
LOGIN = "Basic " + base64.b64encode(f"{PUBLIC}:{SECRET}".encode()).decode()
KEYS: dict[str, Any] = {"langfuse_public_key": PUBLIC, "langfuse_secret": SECRET}
TEXT = {"type": "string", "minLength": 1}
#: Of an observation over OTLP; everything else of `langfuse.*` is an error.
OBSERVATION = {
    "type": "object",
    "required": ["langfuse.observation.type", "langfuse.observation.level", "langfuse.observation.model.name"],
    "properties": {
        "langfuse.observation.type": {"enum": ["generation", "embedding", "retriever", "guardrail"]},
        "langfuse.observation.level": {"enum": ["DEBUG", "DEFAULT", "WARNING", "ERROR"]},
        "langfuse.trace.tags": {"type": "array", "items": TEXT},
        "langfuse.internal.is_app_root": {"const": True},
        "langfuse.observation.prompt.version": {"type": "integer"},
        "user.id": {**TEXT, "maxLength": 200},
        "session.id": {**TEXT, "maxLength": 200},
    },
    "patternProperties": {
        r"^langfuse\.(trace|observation)\.metadata\..+": TEXT,
        r"^langfuse\.observation\.(input|output|status_message|completion_start_time)$": TEXT,
        r"^langfuse\.observation\.(usage_details|cost_details)$": TEXT,
        r"^langfuse\.observation\.(model\.name|model\.parameters|prompt\.name)$": TEXT,
        r"^langfuse\.(trace\.name|environment|release|version)$": TEXT,
    },
    "additionalProperties": False,
}
JSONS = ("input", "output", "model.parameters", "usage_details", "cost_details", "completion_start_time")
UUID = {"pattern": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
TIME = {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
BODIES: dict[str, Any] = {
    "trace-create": {
        "additionalProperties": False,
        "required": ["id", "timestamp"],
        "properties": {
            "id": {"pattern": "^[0-9a-f]{32}$"}, "timestamp": TIME, "name": TEXT, "userId": TEXT, "sessionId": TEXT,
            "input": {}, "output": {}, "tags": {"type": "array"}, "metadata": {"type": "object"}, "release": TEXT,
            "version": TEXT, "environment": TEXT,
        },
    },
    "generation-create": {
        "additionalProperties": False,
        "required": ["id", "traceId", "startTime", "endTime"],
        "properties": {
            "id": {"pattern": "^[0-9a-f]{16}$"}, "traceId": {"pattern": "^[0-9a-f]{32}$"}, "startTime": TIME,
            "endTime": TIME, "completionStartTime": TIME, "parentObservationId": {"pattern": "^[0-9a-f]{16}$"},
            "name": TEXT, "model": TEXT, "input": {}, "output": {}, "metadata": {"type": "object"},
            "modelParameters": {"additionalProperties": {"type": ["string", "number", "boolean"]}},
            "usageDetails": {"additionalProperties": {"type": "integer"}},
            "costDetails": {"additionalProperties": {"type": "number"}},
            "level": {"enum": ["DEBUG", "DEFAULT", "WARNING", "ERROR"]}, "statusMessage": TEXT, "version": TEXT,
            "environment": TEXT, "promptName": TEXT, "promptVersion": {"type": "integer"},
        },
    },
}  # fmt: skip
EVENT = {
    "additionalProperties": False,
    "required": ["id", "timestamp", "type", "body"],
    "properties": {"id": UUID, "timestamp": TIME, "type": {"enum": list(BODIES)}, "body": {"type": "object"}},
}


class Server:
    """Langfuse before version 4: health, batches, and OTLP where `otlp` is set."""

    def __init__(self) -> None:
        self.version: str | None = "2.95.1"
        self.otlp = 404
        #: The status of an event, by its id; of all others `status`.
        self.statuses: dict[str, int] = {}
        self.status = 201
        self.answer: Reply | None = None
        self.events: dict[str, Any] = {}
        self.sizes: list[int] = []
        self.paths: list[str] = []

    def __call__(self, request: Received) -> Reply:
        self.paths.append(request.path)
        if request.headers.get("authorization") != LOGIN:
            return Reply.json({"message": f"Invalid credentials {SECRET}"}, status=401)
        if request.path == "/api/public/health":
            return Reply.json({"status": "OK", "version": self.version}) if self.version else Reply(status=404)
        if request.path == "/api/public/otel/v1/traces":
            return Reply(status=self.otlp, headers={"content-type": "application/x-protobuf"})
        assert request.path == "/api/public/ingestion"
        if self.answer is not None:
            return self.answer
        assert len(request.body) <= 3_500_000
        self.sizes.append(len(request.body))
        good, bad = [], []
        for event in request.json["batch"]:
            jsonschema.validate(event, EVENT)
            jsonschema.validate(event["body"], BODIES[event["type"]])
            status = self.statuses.get(event["id"], self.status)
            if status < 300:
                self.events[event["id"]] = event
            told = {"id": event["id"], "status": status}
            (good if status < 300 else bad).append(told if status < 300 else {**told, "message": "no", "error": "x"})
        return Reply.json({"successes": good, "errors": bad}, status=207)


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as found:
        yield found


@pytest.fixture
async def old() -> AsyncIterator[tuple[Server, FakeLLM]]:
    server = Server()
    async with FakeLLM(server) as fake:
        yield server, fake


async def sent(langfuse: Langfuse, *batches: list[Record]) -> Runtime:
    async with Runtime() as runtime:
        await langfuse.start(runtime)
        try:
            for batch in batches:
                await langfuse.write(batch)
        finally:
            await langfuse.aclose()
    return runtime


async def problem(langfuse: Langfuse, *batch: Record) -> NotDelivered:
    with pytest.raises(NotDelivered) as caught:
        await sent(langfuse, list(batch))
    assert SECRET not in str(caught.value)
    assert LOGIN not in str(caught.value)
    return caught.value


def asking(**metadata: Any) -> dict[str, Any]:
    return {**a_payload()["metadata"], "requester_metadata": metadata}


def valid(span: Any) -> dict[str, Any]:
    found = plain(span.attributes)
    jsonschema.validate(found, OBSERVATION)
    for name in JSONS:
        if (text := found.get(f"langfuse.observation.{name}")) is not None:
            found[f"langfuse.observation.{name}"] = orjson.loads(text)
    return found


# --- OTLP


async def test_an_observation(receiver: OtlpReceiver) -> None:
    langfuse = Langfuse(**KEYS, host=receiver.url, environment="prod", release="r-1")
    stream = {**a_payload()["tianji"], "time_to_first_token": 0.25}
    good, bad = a_record(tianji=stream, session_id="s-1"), a_failure()
    assert dict((await sent(langfuse, [good, bad])).counts) == {}
    (got,) = receiver.received
    assert got.path == "/api/public/otel/v1/traces"
    assert got.headers["authorization"] == LOGIN
    assert got.headers["x-langfuse-ingestion-version"] == "4"
    assert got.headers["x-langfuse-public-key"] == PUBLIC
    assert (got.headers["content-type"], got.headers["content-encoding"]) == ("application/x-protobuf", "gzip")
    # `llm_only`: an attempt that failed is no span, which Langfuse would bill.
    call, failed = receiver.spans()
    found = valid(call)
    assert found["langfuse.observation.input"] == good.data["messages"]
    assert found["langfuse.observation.output"] == {"role": "assistant", "content": "hello"}
    # `input` is without the four tokens that were cached.
    assert found["langfuse.observation.usage_details"] == {
        "input": 8, "output": 5, "cache_read_input_tokens": 4, "total": 17,
    }  # fmt: skip
    assert found["langfuse.observation.cost_details"] == {"input": 1.8e-06, "output": 3e-06, "total": 4.8e-06}
    first = datetime.fromisoformat(found["langfuse.observation.completion_start_time"])
    assert first.timestamp() == pytest.approx(good.data["startTime"] + 0.25, abs=0.002)
    assert (found["user.id"], found["session.id"]) == ("customer-7", "s-1")
    assert (found["langfuse.environment"], found["langfuse.release"]) == ("prod", "r-1")
    assert (found["langfuse.trace.name"], found["langfuse.internal.is_app_root"]) == ("greeting", True)
    found = valid(failed)
    assert found["langfuse.observation.level"] == "ERROR"
    assert found["langfuse.observation.status_message"] == "The provider 'openai' answered 500."


async def test_the_official_sdk_sends_the_same_names(receiver: OtlpReceiver) -> None:
    """Headers, path and attributes are those of SDK 5 for the same generation; ours may have more."""

    def official() -> None:
        sdk = Sdk(
            public_key=PUBLIC, secret_key=SECRET, base_url=receiver.url, environment="prod", release="r-1"
        )  # fmt: skip
        common: dict[str, Any] = {"user_id": "u", "session_id": "s", "tags": ["a"], "metadata": {"k": "v"}}
        with propagate_attributes(**common, version="1", trace_name="t"):
            sdk.start_observation(
                name="g", as_type="generation", input=[{"role": "user", "content": "hi"}], model="m",
                output={"role": "assistant"},
                model_parameters={"temperature": 0.5}, usage_details={"input": 1}, cost_details={"total": 0.1},
                completion_start_time=datetime.now().astimezone(), level="ERROR", status_message="bad",
                metadata={"x": {"y": 1}},
            ).end()  # fmt: skip
        sdk.shutdown()

    await asyncio.to_thread(official)
    wishes = asking(trace_name="t", trace_metadata={"k": "v"}, version="1", session_id="s", x={"y": 1})
    stream = {**a_payload()["tianji"], "time_to_first_token": 0.25}
    failed = a_failure(
        metadata=wishes, tianji=stream, response=a_payload()["response"], cost_breakdown={"input_cost": 1.0}
    )
    await sent(Langfuse(**KEYS, host=receiver.url, environment="prod", release="r-1"), [failed])
    theirs, ours = receiver.received
    assert theirs.path == ours.path
    for name in ("authorization", "content-type", "content-encoding", "x-langfuse-ingestion-version"):
        assert theirs.headers[name] == ours.headers[name]
    assert {name for name in theirs.headers if name.startswith("x-")} <= ours.headers.keys()
    official_span, own_span = (valid(span) for span in receiver.spans())
    assert official_span.keys() <= own_span.keys()
    for name in ("langfuse.trace.metadata.k", "langfuse.observation.metadata.x", "langfuse.version"):
        assert official_span[name] == own_span[name]
    for name in official_span:
        assert type(official_span[name]) is type(own_span[name])


async def test_what_a_request_wants(receiver: OtlpReceiver) -> None:
    wishes = asking(
        trace_id="order 7", trace_name="t", trace_user_id="u" * 300, session_id="s", generation_name="g",
        generation_id="mine", parent_observation_id="00f067aa0ba902b8", tags=["x"], mask_input=True, version="2",
        trace_metadata={"a": 1}, trace_release="r-2", prompt={"name": "p", "version": 3}, kept="yes",
    )  # fmt: skip
    wishes["requester_custom_headers"] = {"langfuse_trace_name": "of the header", "langfuse_mask_output": "true"}
    await sent(Langfuse(**KEYS, host=receiver.url, span_scope="full"), [a_record(metadata=wishes)])
    (span,) = receiver.spans()
    found = valid(span)
    assert (span.name, span.parent_span_id.hex()) == ("g", "00f067aa0ba902b8")
    assert span.trace_id == hashlib.sha256(b"order 7").digest()[:16]
    assert found["langfuse.trace.name"] == "of the header"
    assert found["langfuse.observation.input"] == found["langfuse.observation.output"] == "redacted-by-litellm"
    assert found["user.id"] == "u" * 200
    assert found["langfuse.trace.tags"] == ["team:ml", "User-Agent: curl", "x"]
    assert (found["langfuse.trace.metadata.a"], found["langfuse.release"], found["langfuse.version"]) == (
        "1",
        "r-2",
        "2",
    )
    assert (found["langfuse.observation.prompt.name"], found["langfuse.observation.prompt.version"]) == ("p", 3)
    # The ids as they were given.
    assert found["langfuse.observation.metadata.requested_trace_id"] == '"order 7"'
    assert found["langfuse.observation.metadata.kept"] == '"yes"'
    assert "langfuse.internal.is_app_root" not in found


async def test_a_trace_that_exists_keeps_its_name(receiver: OtlpReceiver) -> None:
    trace = uuid.uuid4().hex
    batch = [
        a_record(metadata=asking(existing_trace_id=trace, trace_name="n", trace_metadata={"a": 1})),
        a_record(metadata=asking(existing_trace_id=trace, trace_name="n", update_trace_keys=["name"])),
    ]
    await sent(Langfuse(**KEYS, host=receiver.url), batch)
    first, second = receiver.spans()
    assert first.trace_id.hex() == second.trace_id.hex() == trace
    assert not [name for name in valid(first) if name.startswith("langfuse.trace.") and name != "langfuse.trace.tags"]
    assert valid(second)["langfuse.trace.name"] == "n"


async def test_full_scope_has_attempts_below_the_call(receiver: OtlpReceiver) -> None:
    record = a_failure(metadata=asking(generation_id="mine"))
    await sent(Langfuse(**KEYS, host=receiver.url, langfuse_span_scope="full"), [record])
    call, attempt = receiver.spans()
    assert (attempt.parent_span_id, attempt.trace_id) == (call.span_id, call.trace_id)
    found = plain(attempt.attributes)
    assert (found["langfuse.observation.type"], found["user.id"]) == ("span", "customer-7")


@pytest.mark.parametrize(
    ("status", "retry"), [(401, True), (403, True), (404, True), (429, True), (500, True), (400, False), (413, False)]
)
async def test_answers(receiver: OtlpReceiver, status: int, retry: bool) -> None:
    receiver.script.append(lambda: (status, {"retry-after": "9"}, f"no {SECRET} {LOGIN}".encode()))
    found = await problem(Langfuse(**KEYS, host=receiver.url), a_record(), a_record())
    assert (found.retry, found.retry_after_s, found.failed) == (retry, 9.0, None)


@pytest.mark.parametrize("environment", ["Prod", "langfuse-x", "a b", "x" * 41])
def test_environments_that_langfuse_does_not_take(environment: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        Langfuse(**KEYS, environment=environment)


async def test_keys_are_needed() -> None:
    async with Runtime() as runtime:
        with pytest.raises(SetupError, match=r"secret_key is missing; .* LANGFUSE_SECRET_KEY"):
            await Langfuse(public_key="p").start(runtime)


# --- the batch API


async def test_events(old: tuple[Server, FakeLLM]) -> None:
    server, fake = old
    records = [a_record(), a_failure(), a_record(messages=None, response=None, metadata=None)]
    await sent(Langfuse(**KEYS, host=fake.url, mode="ingestion"), records, records)
    assert set(server.events) == {event for record in records for event in event_ids(record)}
    trace, generation = (server.events[event]["body"] for event in event_ids(records[0]))
    assert generation["traceId"] == trace["id"]
    assert generation["usageDetails"] == {"input": 8, "output": 5, "cache_read_input_tokens": 4, "total": 17}
    assert (trace["name"], trace["userId"]) == ("greeting", "customer-7")


async def test_only_the_events_that_failed_come_again(old: tuple[Server, FakeLLM]) -> None:
    server, fake = old
    records = [a_record() for _ in range(10)]
    server.statuses = {event_ids(records[3])[1]: 400, event_ids(records[5])[0]: 500, event_ids(records[7])[1]: 429}
    found = await problem(Langfuse(**KEYS, host=fake.url, mode="ingestion"), *records)
    assert found.refused == [records[3]]
    assert found.failed == [records[5], records[7]]


async def test_requests_are_below_the_limit(old: tuple[Server, FakeLLM]) -> None:
    server, fake = old
    long = {"role": "user", "content": "x" * 400_000}
    records = [a_record(messages=[long]) for _ in range(9)]
    huge = a_record(messages=[{"role": "user", "content": "y" * 4_000_000}])
    await sent(Langfuse(**KEYS, host=fake.url, mode="ingestion"), [*records, huge])
    assert len(server.sizes) > 2
    assert len(server.events) == 20
    assert "truncated" in str(server.events[event_ids(huge)[1]]["body"]["input"])


@pytest.mark.parametrize(("status", "retry"), [(401, True), (429, True), (503, True), (400, False), (413, False)])
async def test_answers_of_the_batch_api(old: tuple[Server, FakeLLM], status: int, retry: bool) -> None:
    server, fake = old
    server.answer = Reply(status=status, headers={"retry-after": "5"}, parts=[f"no {SECRET}".encode()])
    record = a_record()
    found = await problem(Langfuse(**KEYS, host=fake.url, mode="ingestion"), record)
    assert (found.failed, found.refused) == (([record], []) if retry else ([], [record]))
    assert found.retry_after_s == (5.0 if retry else None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"errors": 1}'])
async def test_a_207_that_cannot_be_read(old: tuple[Server, FakeLLM], body: bytes) -> None:
    server, fake = old
    server.answer = Reply(status=207, parts=[body])
    record = a_record()
    assert (await problem(Langfuse(**KEYS, host=fake.url, mode="ingestion"), record)).failed == [record]


# --- auto


@pytest.mark.parametrize(
    ("version", "otlp", "path"),
    [
        ("2.95.1", 404, "/api/public/ingestion"),
        ("3.21.0", 404, "/api/public/ingestion"),
        ("3.22.0", 200, "/api/public/otel/v1/traces"),
        ("4.1.0-rc.1", 200, "/api/public/otel/v1/traces"),
        ("odd", 200, "/api/public/otel/v1/traces"),
        (None, 200, "/api/public/otel/v1/traces"),
        ("3.30.0", 404, "/api/public/ingestion"),
    ],
)
async def test_the_server_is_asked(old: tuple[Server, FakeLLM], version: str | None, otlp: int, path: str) -> None:
    server, fake = old
    server.version, server.otlp = version, otlp
    await sent(Langfuse(**KEYS, host=fake.url, mode="auto"), [a_record()], [a_record()])
    assert server.paths.count("/api/public/health") == 1
    assert server.paths[-1] == path


async def test_a_server_that_takes_no_batches_any_more(old: tuple[Server, FakeLLM]) -> None:
    server, fake = old
    server.status, server.otlp = 400, 200
    runtime = await sent(Langfuse(**KEYS, host=fake.url, mode="auto"), [a_record(), a_record()], [a_record()])
    assert server.paths[1:] == ["/api/public/ingestion", *["/api/public/otel/v1/traces"] * 2]
    assert runtime.counts["langfuse_switched", "otlp"] == 1
    assert runtime.counts["alerts", "callback_failing"] == 1


async def test_a_server_that_is_down_is_asked_again() -> None:
    async with FakeLLM(lambda request: Reply(refuse=True)) as fake:
        found = await problem(Langfuse(**KEYS, host=fake.url, mode="auto"), a_record())
    assert (found.retry, found.failed) == (True, None)


# --- whole


async def test_from_a_config(tmp_path: Path, serve: Serve, receiver: OtlpReceiver) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list:
  - {{model_name: gpt-4o, litellm_params: {{model: openai/gpt-4o, api_base: '{llm.url}/v1', api_key: sk-key}}}}
litellm_settings: {{success_callback: [langfuse]}}
""")
        env = {
            "LANGFUSE_PUBLIC_KEY": PUBLIC, "LANGFUSE_SECRET_KEY": SECRET, "LANGFUSE_HOST": receiver.url,
            "LANGFUSE_TRACING_ENVIRONMENT": "prod", "LANGFUSE_FLUSH_INTERVAL": "0.05",
        }  # fmt: skip
        app = await serve(Stack.from_config(path, env=env).app)
        body = {**CHAT, "metadata": {"generation_name": "g"}}
        assert (await drive(app, body, headers={"langfuse_session_id": "s-9"})).status == 200
        async with asyncio.timeout(20):
            while not receiver.received:
                await asyncio.sleep(0.02)
    (span,) = receiver.spans()
    found = valid(span)
    assert (span.name, found["session.id"], found["langfuse.environment"]) == ("g", "s-9", "prod")
