"""Datadog logs against a scripted intake that validates every field."""

from __future__ import annotations

import time
from datetime import datetime

import orjson
import pytest

from tests.support.datadog_intake import Intake, Start, now, problem
from tests.support.records import START, a_failure, a_record
from tianji_mw.callbacks.datadog import Datadog
from tianji_mw.callbacks.datadog_llm_observability import DatadogLLMObservability
from tianji_mw.callbacks.datadog_shared import DatadogCallback, tag
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.testing import Reply

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
