"""Braintrust against a scripted server that is as strict as the service's documentation, and beside its own SDK."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Any

import jsonschema
import pytest

from tests.support.records import START, a_failure, a_payload, a_record, undelivered
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.braintrust import Braintrust
from tianji_mw.errors import SetupError
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Received, Reply

KEY = "sk-bt-very-secret-key"
TEXT = {"type": "string", "minLength": 1}
WHOLE = {"type": "integer", "minimum": 0}
NUMBER = {"type": "number", "minimum": 0}
EVENT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["id", "created", "metrics", "span_attributes"],
    "properties": {
        "id": TEXT,
        "created": TEXT,
        "input": {},
        "output": {},
        "expected": {},
        "error": TEXT,
        "metadata": {"type": "object"},
        "metrics": {
            "additionalProperties": False,
            "required": ["start", "end"],
            "properties": {
                "start": NUMBER,
                "end": NUMBER,
                "prompt_tokens": WHOLE,
                "completion_tokens": WHOLE,
                "tokens": WHOLE,
                "prompt_cached_tokens": WHOLE,
                "prompt_cache_creation_tokens": WHOLE,
                "completion_reasoning_tokens": WHOLE,
                "time_to_first_token": NUMBER,
                "estimated_cost": NUMBER,
            },
        },
        "scores": {"additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}},
        "span_attributes": {
            "additionalProperties": False,
            "required": ["name", "type"],
            "properties": {"name": TEXT, "type": {"enum": ["llm", "score", "function", "eval", "task", "tool"]}},
        },
        "span_id": TEXT,
        "root_span_id": TEXT,
        "span_parents": {"type": ["array", "null"], "items": TEXT},
        "tags": {"type": "array", "items": TEXT, "uniqueItems": True},
    },
    "dependentRequired": {
        "span_id": ["root_span_id", "span_parents"],
        "root_span_id": ["span_id", "span_parents"],
        "span_parents": ["span_id", "root_span_id"],
    },
}


def valid(event: dict[str, Any]) -> None:
    jsonschema.validate(event, EVENT, cls=jsonschema.Draft202012Validator)
    assert datetime.fromisoformat(event["created"]).tzinfo is not None
    assert event["metrics"]["start"] <= event["metrics"]["end"]
    if event["span_parents"]:
        assert event["root_span_id"] != event["span_id"]
        assert "tags" not in event


class Service:
    """Keeps events by project and id; `poison` as a span's name is an event that it refuses."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []
        self.project_answers: list[Reply] = []
        self.projects: dict[str, str] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.homes: dict[str, str] = {}
        self.sizes: list[int] = []
        self.asked = 0

    def __call__(self, request: Received) -> Reply:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Reply.json({"error": f"no: {request.headers.get('authorization')}"}, status=401)
        assert request.method == "POST"
        assert request.headers["content-type"] == "application/json"
        assert len(request.body) < 6_000_000
        if request.path == "/v1/project":
            self.asked += 1
            if self.project_answers:
                return self.project_answers.pop(0)
            assert request.json.keys() == {"name"}
            known = self.projects.setdefault(
                request.json["name"], f"{len(self.projects):08}-1111-4111-8111-111111111111"
            )
            return Reply.json({"id": known, "name": request.json["name"], "org_id": "o1"})
        _, version, kind, project, verb = request.path.split("/")
        assert (version, kind, verb) == ("v1", "project_logs", "insert")
        assert request.json.keys() == {"events"}
        events = request.json["events"]
        assert events
        for event in events:
            valid(event)
        self.sizes.append(len(events))
        if self.answers:
            return self.answers.pop(0)
        if any(event["span_attributes"]["name"] == "poison" for event in events):
            return Reply.json({"error": "bad event"}, status=400)
        for event in events:
            self.events[event["id"]] = event
            self.homes[event["id"]] = project
        return Reply.json({"row_ids": [event["id"] for event in events]})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[FakeLLM]:
    async with FakeLLM(service) as fake:
        yield fake


@pytest.fixture
async def braintrust(server: FakeLLM) -> AsyncIterator[Braintrust]:
    callback = Braintrust(api_key=Secret(KEY), api_base=server.url, timeout_s=5)
    await callback.start(Runtime())
    yield callback
    await callback.aclose()


problem = partial(undelivered, hidden=KEY)


def asking(**metadata: Any) -> Record:
    return a_record(metadata={"requester_metadata": metadata})


async def test_a_call_is_an_event(braintrust: Braintrust, service: Service) -> None:
    ours = {**a_payload()["tianji"], "time_to_first_token": 0.25}
    record = a_record(tianji=ours)
    await braintrust.write([record])
    (event,) = service.events.values()
    assert (event["id"], service.homes[record.id]) == (record.id, service.projects["litellm"])
    assert event["input"] == record.data["messages"]
    assert event["output"] == [{"role": "assistant", "content": "hello"}]
    assert event["metrics"] == {
        "start": START, "end": START + 0.82, "prompt_tokens": 12, "completion_tokens": 5, "tokens": 17,
        "prompt_cached_tokens": 4, "prompt_cache_creation_tokens": 0, "completion_reasoning_tokens": 2,
        "time_to_first_token": 0.25, "estimated_cost": 4.8e-06,
    }  # fmt: skip
    assert event["span_attributes"] == {"name": "Chat Completion", "type": "llm"}
    assert event["tags"] == ["team:ml", "User-Agent: curl"]
    told = {name: event["metadata"][name] for name in ("model", "provider", "temperature", "user_api_key_team_id")}
    assert list(told.values()) == ["gpt-4o-mini", "openai", 0.5, "t1"]
    assert "error" not in event


async def test_failures_are_sent(braintrust: Braintrust, service: Service) -> None:
    await braintrust.write([a_failure("It broke.")])
    (event,) = service.events.values()
    assert (event["error"], event["output"]) == ("UpstreamError: It broke.", None)


async def test_attempts_are_spans_and_the_last_one_is_billed(braintrust: Braintrust, service: Service) -> None:
    ours = a_payload()["tianji"]
    second = ours["attempts"][0]
    first = {**second, "model": "gpt-4o", "status_code": 503, "error": None, "endTime": START + 0.2}
    record = a_record(tianji={**ours, "attempts": [first, {**second, "startTime": START + 0.2}]})
    await braintrust.write([record])
    root, one, two = service.events.values()
    assert root["span_parents"] == []
    assert [event["span_parents"] for event in (one, two)] == [[record.id], [record.id]]
    assert (one["error"], "error" in two) == ("status 503", False)
    assert ["tokens" in event["metrics"] for event in (root, one, two)] == [False, False, True]


async def test_the_project_is_asked_for_once(braintrust: Braintrust, service: Service) -> None:
    await braintrust.write([a_record(), a_record()])
    await braintrust.write([a_record()])
    assert (service.asked, service.sizes) == (1, [2, 1])


async def test_a_request_names_its_project(braintrust: Braintrust, service: Service) -> None:
    known = "22222222-2222-4222-8222-222222222222"
    named, by_id, plain, wrong = (
        asking(project_name="demo"),
        asking(project_id=known),
        a_record(),
        asking(project_id="../x"),
    )
    await braintrust.write([named, by_id, plain, wrong])
    homes = [service.homes[record.id] for record in (named, by_id, plain, wrong)]
    assert homes == [service.projects["demo"], known, service.projects["litellm"], service.projects["litellm"]]


async def test_the_id_of_a_project_is_used_as_it_is(server: FakeLLM, service: Service) -> None:
    callback = Braintrust(api_key=Secret(KEY), api_base=f"{server.url}/v1", project_id="p-1")
    await callback.start(Runtime())
    record = a_record()
    await callback.write([record])
    await callback.aclose()
    assert (service.asked, service.homes[record.id]) == (0, "p-1")


async def test_spans_of_the_client(braintrust: Braintrust, service: Service) -> None:
    wishes = [
        {"span_id": "s", "root_span_id": "r", "span_parents": "p, q", "span_name": "greet", "colour": "red"},
        {"span_id": "s", "root_span_id": "r"},
        {"span_parents": "p"},
        {"span_id": 5, "root_span_id": None, "span_parents": {"a": 1}},
    ]
    records = [asking(**wish) for wish in wishes]
    await braintrust.write(records)
    first, second, third, fourth = (service.events[record.id] for record in records)
    assert (first["span_id"], first["root_span_id"], first["span_parents"]) == ("s", "r", ["p", "q"])
    assert (first["span_attributes"]["name"], first["metadata"]["colour"]) == ("greet", "red")
    assert second["span_parents"] == ["r"]
    assert (third["span_parents"], fourth["span_parents"]) == ([], [])


async def test_inserting_again_replaces(braintrust: Braintrust, service: Service) -> None:
    batch = [a_record(), a_failure()]
    await braintrust.write(batch)
    known = dict(service.events)
    await braintrust.write(batch)
    assert service.events == known


async def test_requests_stay_below_six_megabytes(braintrust: Braintrust, service: Service) -> None:
    batch = [a_record(messages="x" * 2_500_000) for _ in range(4)]
    huge = a_record(messages="x" * 7_000_000)
    await braintrust.write([*batch, huge])
    assert sum(service.sizes) == 5
    assert "left out" in service.events[huge.id]["output"]


async def test_a_bad_event_is_found(braintrust: Braintrust, service: Service) -> None:
    batch = [a_record() for _ in range(9)]
    batch[4] = asking(span_name="poison")
    found = await problem(braintrust, batch)
    assert (found.failed, list(found.refused)) == ([], [batch[4]])
    assert len(service.events) == 8


async def test_a_busy_service(braintrust: Braintrust, service: Service) -> None:
    service.answers.append(Reply(status=429, headers={"retry-after": "3"}))
    batch = [a_record(), asking(project_name="demo")]
    found = await problem(braintrust, batch)
    assert (found.failed, found.refused, found.retry_after_s) == (batch, [], 3.0)


async def test_a_project_that_cannot_be_had_keeps_only_its_own(braintrust: Braintrust, service: Service) -> None:
    service.project_answers += [Reply(status=500), Reply.json({"name": "no id"})]
    batch = [a_record(), asking(project_name="second"), asking(project_id="22222222-2222-4222-8222-222222222222")]
    found = await problem(braintrust, batch)
    assert found.failed == batch  # two failures in a row: the service is taken to be down
    service.project_answers.append(Reply(status=400))
    found = await problem(braintrust, batch)
    assert (found.failed, list(found.refused)) == ([], batch[:1])


async def test_a_project_that_was_deleted_is_made_anew(braintrust: Braintrust, service: Service) -> None:
    record = a_record()
    await braintrust.write([record])
    service.answers.append(Reply(status=404))
    assert (await problem(braintrust, [record])).failed == [record]
    await braintrust.write([record])
    assert service.asked == 2


@pytest.mark.parametrize(
    "reply", [Reply(status=503), Reply(refuse=True), Reply(status=408), Reply(garbage=b"nonsense\r\n\r\n")]
)
async def test_faults_are_tried_again(braintrust: Braintrust, service: Service, reply: Reply) -> None:
    service.answers.append(reply)
    record = a_record()
    assert (await problem(braintrust, [record])).failed == [record]
    await braintrust.write([record])
    assert record.id in service.events


async def test_a_wrong_key_waits_for_a_right_one(server: FakeLLM) -> None:
    callback = Braintrust(api_key=Secret("wrong-secret-key"), api_base=server.url)
    await callback.start(Runtime())
    record = a_record()
    with pytest.raises(NotDelivered) as caught:
        await callback.write([record])
    await callback.aclose()
    assert caught.value.failed == [record]
    assert "wrong-secret-key" not in caught.value.message


async def test_odd_records_do_no_harm(braintrust: Braintrust, service: Service) -> None:
    good = a_record()
    odd = [
        Record("not-json", b"{"),
        Record("empty", b"{}"),
        a_record(messages=None, response=None, metadata=None, model_parameters=None, startTime=None, endTime="x"),
        a_record(messages="\U0001f600\x00", response=[1], tianji=None, startTime=1e300, request_tags="x"),
    ]
    found = await problem(braintrust, [*odd, good])
    assert ([record.id for record in found.refused], found.failed) == (["not-json"], [])
    assert good.id in service.events


async def test_what_is_missing_stops_the_start() -> None:
    with pytest.raises(SetupError, match="BRAINTRUST_API_KEY"):
        await Braintrust().start(Runtime())


@pytest.mark.slow
async def test_the_sdk_asks_for_projects_and_writes_fields_in_the_same_way(
    braintrust: Braintrust, service: Service
) -> None:
    """The SDK inserts through `/logs3`; its root spans have `span_parents: null` and ids of other lengths."""
    seen: dict[str, list[Any]] = {}
    flushed = threading.Event()

    def answer(request: Received) -> Reply:
        if request.method == "POST" and request.body:
            seen.setdefault(request.path, []).append(request.json)
        if request.path == "/api/apikey/login":
            return Reply.json({"org_info": [{"id": "o1", "name": "org", "api_url": sdk.url, "proxy_url": sdk.url}]})
        if request.path == "/v1/project":
            return Reply.json({"id": "11111111-1111-4111-8111-111111111111", "name": "litellm", "org_id": "o1"})
        if request.path == "/logs3":
            flushed.set()
        return Reply.json({"row_ids": []})

    def by_sdk() -> None:
        from braintrust import init_logger

        logger = init_logger(project="litellm", api_key=KEY, app_url=sdk.url, set_current=False)
        with logger.start_span(name="Chat Completion", type="llm") as span:
            span.log(input=[{"role": "user", "content": "hi"}], output="x", metrics={"tokens": 3}, tags=["a"])
        logger.flush()

    async with FakeLLM(answer) as sdk:
        await asyncio.to_thread(by_sdk)
    (theirs,) = seen["/logs3"][0]["rows"]
    await braintrust.write([a_record()])
    (ours,) = service.events.values()
    assert seen["/v1/project"][0]["name"] == "litellm"
    added = {"context", "log_id", "project_id"}
    assert theirs.keys() - added <= ours.keys() | {"error"}
    assert {name: type(theirs[name]) for name in ("id", "created", "input", "tags", "metrics", "span_attributes")} == {
        name: type(ours[name]) for name in ("id", "created", "input", "tags", "metrics", "span_attributes")
    }
    assert ours["span_attributes"].items() <= theirs["span_attributes"].items()
    assert theirs["metrics"].keys() <= ours["metrics"].keys()
