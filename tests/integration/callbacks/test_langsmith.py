"""LangSmith against a scripted server that is as strict as the service's documentation, and beside its own SDK."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jsonschema
import orjson
import pytest
from pydantic import ValidationError

from tests.support.records import START, a_failure, a_payload, a_record, undelivered
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.langsmith import Langsmith
from tianji_mw.errors import SetupError
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Received, Reply

KEY = "lsv2_very_secret_key"
UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
STEP = re.compile(r"(\d{8}T\d{12}Z)([0-9a-f-]{36})")
WHOLE = {"type": "integer", "minimum": 0}
USAGE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["input_tokens", "output_tokens", "total_tokens"],
    "properties": {
        "input_tokens": WHOLE,
        "output_tokens": WHOLE,
        "total_tokens": WHOLE,
        "total_cost": {"type": "number", "minimum": 0},
        "input_token_details": {
            "additionalProperties": False,
            "properties": {"cache_read": WHOLE, "cache_creation": WHOLE, "audio": WHOLE},
        },
        "output_token_details": {"additionalProperties": False, "properties": {"reasoning": WHOLE, "audio": WHOLE}},
    },
}
RUN = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "id", "trace_id", "dotted_order", "name", "run_type", "start_time", "end_time", "inputs", "outputs",
        "session_name",
    ],
    "properties": {
        "id": {"pattern": UUID},
        "trace_id": {"pattern": UUID},
        "parent_run_id": {"pattern": UUID},
        "dotted_order": {"type": "string"},
        "name": {"type": "string", "minLength": 1},
        "run_type": {"enum": ["llm", "tool", "chain", "retriever", "embedding", "prompt", "parser"]},
        "start_time": {"type": "string"},
        "end_time": {"type": "string"},
        "inputs": {"type": "object"},
        "outputs": {"type": "object", "properties": {"usage_metadata": USAGE}},
        "session_name": {"type": "string", "minLength": 1},
        "tags": {"type": "array", "items": {"type": "string"}},
        "extra": {"type": "object", "additionalProperties": False, "properties": {"metadata": {"type": "object"}}},
        "error": {"type": ["string", "null"]},
    },
}  # fmt: skip


def valid(run: dict[str, Any]) -> None:
    """Raises for a run for which the service would reject the whole batch."""
    jsonschema.validate(run, RUN)
    start, end = (datetime.fromisoformat(run[field]) for field in ("start_time", "end_time"))
    assert start.tzinfo is not None
    assert start <= end
    steps = [STEP.fullmatch(step) for step in run["dotted_order"].split(".")]
    assert all(steps)
    ids = [step[2] for step in steps if step is not None]
    assert (ids[0], ids[-1]) == (run["trace_id"], run["id"])
    assert (ids[-2] if len(ids) > 1 else None) == run.get("parent_run_id")
    assert ("parent_run_id" in run) == (run["id"] != run["trace_id"])
    assert steps[-1] is not None
    assert steps[-1][1] == start.astimezone(UTC).strftime("%Y%m%dT%H%M%S%fZ")


class Service:
    """Takes runs; `poison` in a name is a run that it refuses, and with it the batch."""

    def __init__(self) -> None:
        self.info: Reply | None = None
        self.answers: list[Reply] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.batches: list[int] = []
        self.asked = 0
        self.limits = {"size_limit": 100, "size_limit_bytes": 20 << 20}

    def __call__(self, request: Received) -> Reply:
        if request.headers.get("x-api-key") != KEY:
            return Reply.json({"detail": f"Invalid token {request.headers.get('x-api-key')}"}, status=403)
        if request.path == "/api/v1/info":
            self.asked += 1
            return self.info or Reply.json({"version": "1", "batch_ingest_config": self.limits})
        assert (request.method, request.path) == ("POST", "/api/v1/runs/batch")
        assert request.headers["content-type"] == "application/json"
        assert len(request.body) <= self.limits["size_limit_bytes"]
        assert request.json.keys() <= {"post", "patch"}
        runs = request.json["post"]
        assert 0 < len(runs) <= self.limits["size_limit"]
        for run in runs:
            valid(run)
        self.batches.append(len(runs))
        if self.answers:
            return self.answers.pop(0)
        if any("poison" in run["name"] for run in runs):
            return Reply.json({"detail": "bad run"}, status=422)
        if known := self.runs.keys() & {run["id"] for run in runs}:
            return Reply.json({"detail": f"{len(known)} runs exist"}, status=409)
        self.runs |= {run["id"]: run for run in runs}
        return Reply.json({"message": "Runs batch ingested"}, status=202)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[FakeLLM]:
    async with FakeLLM(service) as fake:
        yield fake


@pytest.fixture
async def langsmith(server: FakeLLM) -> AsyncIterator[Langsmith]:
    callback = Langsmith(api_key=Secret(KEY), api_base=server.url, project="gateway", timeout_s=5)
    await callback.start(Runtime())
    yield callback
    await callback.aclose()


problem = partial(undelivered, hidden=KEY)


def tried_twice(**changes: Any) -> Record:
    ours = a_payload()["tianji"]
    second = ours["attempts"][0]
    first = {**second, "model": "gpt-4o", "endTime": START + 0.2, "status_code": 503, "error": "UpstreamError"}
    return a_record(tianji={**ours, "attempts": [first, {**second, "startTime": START + 0.2}]}, **changes)


# --- what is sent


async def test_a_call_is_a_run(langsmith: Langsmith, service: Service) -> None:
    record = a_record()
    await langsmith.write([record])
    (run,) = service.runs.values()
    assert (run["id"], run["trace_id"], run["name"], run["run_type"]) == (record.id, record.id, "LLMRun", "llm")
    assert run["session_name"] == "gateway"
    assert run["inputs"] == {"messages": record.data["messages"]}
    assert run["outputs"]["messages"] == [{"role": "assistant", "content": "hello"}]
    assert run["outputs"]["usage_metadata"] == {
        "input_tokens": 12, "output_tokens": 5, "total_tokens": 17, "total_cost": 4.8e-06,
        "input_token_details": {"cache_read": 4}, "output_token_details": {"reasoning": 2},
    }  # fmt: skip
    assert run["tags"] == ["team:ml", "User-Agent: curl"]
    metadata = run["extra"]["metadata"]
    told = {name: metadata[name] for name in ("ls_provider", "ls_model_name", "ls_model_type", "ls_temperature")}
    assert list(told.values()) == ["openai", "gpt-4o-mini", "chat", 0.5]
    assert metadata["user_api_key_team_id"] == "t1"
    assert run["error"] is None


async def test_failures_are_runs_with_an_error(langsmith: Langsmith, service: Service) -> None:
    await langsmith.write([a_failure("It broke.")])
    (run,) = service.runs.values()
    assert run["error"] == "UpstreamError: It broke."


async def test_attempts_are_children_and_the_last_one_is_billed(langsmith: Langsmith, service: Service) -> None:
    record = tried_twice()
    await langsmith.write([record])
    root, first, second = service.runs.values()
    assert (root["id"], root["run_type"]) == (record.id, "chain")
    assert [run["parent_run_id"] for run in (first, second)] == [record.id, record.id]
    assert (first["error"], second["error"]) == ("UpstreamError", None)
    assert [run["extra"]["metadata"]["ls_model_name"] for run in (first, second)] == ["gpt-4o", "gpt-4o-mini"]
    assert ["usage_metadata" in run["outputs"] for run in (root, first, second)] == [False, False, True]
    assert {uuid.UUID(run["id"]).version for run in (first, second)} == {7}
    assert root["dotted_order"] < first["dotted_order"] < second["dotted_order"]


async def test_what_a_request_may_say(langsmith: Langsmith, service: Service) -> None:
    own, parent, top = (str(uuid.uuid4()) for _ in range(3))
    order = f"20261122T000000000000Z{top}.20261122T000000000001Z{parent}"
    wishes = [
        {"project_name": "other", "run_name": "greet", "run_id": own, "session_id": "s1", "colour": "red"},
        {"parent_run_id": parent},
        {"parent_run_id": parent, "trace_id": top},
        {"dotted_order": order},
        {"dotted_order": "nonsense", "parent_run_id": "nonsense", "run_id": 7, "project_name": ["x"]},
    ]
    await langsmith.write([a_record(metadata={"requester_metadata": wish}) for wish in wishes])
    named, child, grandchild, ordered, wrong = service.runs.values()
    assert (named["id"], named["session_name"], named["name"]) == (own, "other", "greet")
    assert (named["extra"]["metadata"]["session_id"], named["extra"]["metadata"]["colour"]) == ("s1", "red")
    assert (child["trace_id"], child["parent_run_id"]) == (parent, parent)
    assert (grandchild["trace_id"], grandchild["parent_run_id"]) == (top, parent)
    assert ordered["dotted_order"].startswith(f"{order}.")
    assert (wrong["id"], wrong["session_name"]) == (wrong["trace_id"], "gateway")


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
async def test_the_sampling_rate_is_a_share_and_failures_are_all_sent(
    server: FakeLLM, service: Service, rate: float
) -> None:
    callback = Langsmith(api_key=Secret(KEY), api_base=server.url, langsmith_sampling_rate=str(rate))
    await callback.start(Runtime())
    digits = [f"{at:02x}" + "0" * 30 for at in range(256)]
    await callback.write(
        [a_record(tianji={**a_payload()["tianji"], "trace_id": one}) for one in digits] + [a_failure()]
    )
    await callback.aclose()
    assert len(service.runs) == 256 * rate + 1


async def test_the_tenant_and_an_address_with_a_path(server: FakeLLM) -> None:
    callback = Langsmith(api_key=Secret(KEY), api_base=f"{server.url}/api/v1/", langsmith_tenant_id="w1")
    await callback.start(Runtime())
    await callback.write([a_record()])
    await callback.aclose()
    assert [(one.path, one.headers["x-tenant-id"]) for one in server.requests] == [
        ("/api/v1/info", "w1"),
        ("/api/v1/runs/batch", "w1"),
    ]


# --- limits


async def test_the_limits_of_the_service_are_asked_for_once(langsmith: Langsmith, service: Service) -> None:
    service.limits = {"size_limit": 7, "size_limit_bytes": 20 << 20}
    await langsmith.write([a_record() for _ in range(10)])
    await langsmith.write([tried_twice() for _ in range(3)])
    assert (service.batches, service.asked) == ([7, 3, 6, 3], 1)


async def test_bytes_are_a_limit_too(langsmith: Langsmith, service: Service) -> None:
    service.limits = {"size_limit": 100, "size_limit_bytes": 50_000}
    batch = [a_record(messages="x" * 20_000) for _ in range(4)]
    huge = a_record(messages="x" * 60_000)
    await langsmith.write([*batch, huge])
    assert sum(service.batches) == 5
    assert "left_out" in service.runs[huge.id]["inputs"]


@pytest.mark.parametrize("info", [Reply(status=404), Reply(parts=[b"<html>"]), Reply.json([1]), Reply(status=500)])
async def test_without_told_limits_the_known_ones_hold(langsmith: Langsmith, service: Service, info: Reply) -> None:
    service.info = info
    await langsmith.write([a_record() for _ in range(130)])
    await langsmith.write([a_record()])
    assert service.batches == [100, 30, 1]


# --- what fails


async def test_the_same_records_again_are_delivered(langsmith: Langsmith, service: Service) -> None:
    batch = [a_record(), tried_twice()]
    await langsmith.write(batch)
    known = dict(service.runs)
    await langsmith.write(batch)
    assert service.runs == known


async def test_a_bad_run_is_found_and_the_others_are_taken(langsmith: Langsmith, service: Service) -> None:
    batch = [a_record() for _ in range(20)]
    batch[13] = a_record(metadata={"requester_metadata": {"run_name": "poison"}})
    found = await problem(langsmith, batch)
    assert (found.failed, list(found.refused)) == ([], [batch[13]])
    assert len(service.runs) == 19


async def test_a_busy_service(langsmith: Langsmith, service: Service) -> None:
    service.limits["size_limit"] = 2
    service.answers += [Reply.json({}, status=202), Reply(status=429, headers={"retry-after": "7"})]
    batch = [a_record() for _ in range(6)]
    found = await problem(langsmith, batch)
    assert (found.failed, found.refused, found.retry_after_s) == (batch[2:], [], 7.0)
    assert service.batches == [2, 2]


async def test_one_fault_does_not_stop_the_others_and_two_do(langsmith: Langsmith, service: Service) -> None:
    service.limits["size_limit"] = 1
    service.answers += [Reply(status=502)]
    batch = [a_record() for _ in range(4)]
    assert (await problem(langsmith, batch)).failed == batch[:1]
    service.answers += [Reply(status=502), Reply(status=503)]
    again = [a_record() for _ in range(4)]
    assert (await problem(langsmith, again)).failed == again


async def test_a_wrong_key_waits_for_a_right_one(server: FakeLLM) -> None:
    callback = Langsmith(api_key=Secret("wrong-secret-key"), api_base=server.url)
    await callback.start(Runtime())
    with pytest.raises(NotDelivered) as caught:
        await callback.write([a_record()])
    await callback.aclose()
    assert len(caught.value.failed or ()) == 1
    assert "403" in caught.value.message
    assert "wrong-secret-key" not in caught.value.message


async def test_silence_ends(server: FakeLLM, service: Service) -> None:
    callback = Langsmith(api_key=Secret(KEY), api_base=server.url, timeout_s=0.2)
    await callback.start(Runtime())
    service.answers.append(Reply(delay_s=5))
    async with asyncio.timeout(3):
        found = await problem(callback, [a_record()])
    await callback.aclose()
    assert len(found.failed or ()) == 1


async def test_odd_records_do_no_harm(langsmith: Langsmith, service: Service) -> None:
    good = a_record()
    odd = [
        Record("not-json", b"{"),
        Record("a-list", b"[]"),
        Record("empty", b"{}"),
        a_record(messages=None, response=None, metadata=None, model_parameters=None, startTime=None, endTime="x"),
        a_record(messages="\U0001f600\x00\u202e", response="x", tianji=None, startTime=1e300),
        a_record(request_tags=[None, 1, "t"], tianji={"attempts": [None, {}, {"startTime": -5}]}),
    ]
    found = await problem(langsmith, [*odd, good])
    assert {record.id for record in found.refused} == {"not-json", "a-list"}
    assert found.failed == []
    assert good.id in service.runs


async def test_what_is_missing_stops_the_start() -> None:
    with pytest.raises(SetupError, match="LANGSMITH_API_KEY"):
        await Langsmith().start(Runtime())
    for rate in ("1.5", "-1", "many"):
        with pytest.raises(ValidationError):
            Langsmith(langsmith_sampling_rate=rate)


# --- beside the SDK


@pytest.mark.slow
async def test_the_sdk_sends_the_same_fields(langsmith: Langsmith, server: FakeLLM, service: Service) -> None:
    """The SDK leaves `patch` out where it is empty, and adds `extra.runtime`; else the fields and their forms agree."""
    record = a_record()
    await langsmith.write([record])
    ours = server.requests[-1]
    service.runs.clear()
    start = datetime.fromtimestamp(START, UTC)

    def by_sdk() -> None:
        from langsmith import Client

        client = Client(api_url=f"{server.url}/api/v1", api_key=KEY, auto_batch_tracing=False)
        own = ours.json["post"][0]
        fields = {
            name: own[name] for name in ("id", "trace_id", "dotted_order", "name", "run_type", "inputs", "outputs")
        }
        run = {**fields, "start_time": start, "end_time": start, "session_name": "gateway", "tags": own["tags"]}
        client.batch_ingest_runs(create=[run])

    seen: list[dict[str, Any]] = []
    service_call = service.__call__

    def note(request: Received) -> Reply:
        if request.path.endswith("/runs/batch"):
            seen.extend(request.json["post"])
            return Reply.json({}, status=202)
        return service_call(request)

    server._default = note
    await asyncio.to_thread(by_sdk)
    (theirs,) = seen
    theirs["extra"].pop("runtime")
    valid(theirs)
    own = ours.json["post"][0]
    assert theirs.keys() - own.keys() == set()
    assert theirs["start_time"] == own["start_time"]
    assert server.requests[-1].path == ours.path
    assert server.requests[-1].headers["x-api-key"] == ours.headers["x-api-key"]
    assert orjson.dumps(theirs["outputs"]) == orjson.dumps(own["outputs"])
