"""The detector of alerts: failures, slow answers, outages of deployments and regions, blocks, digests, the report."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.alert_records import Clock
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.alerting import Alerting
from tianji_mw.callbacks.alerts.calls import Outages, Try, seen
from tianji_mw.callbacks.base import Callback, Record
from tianji_mw.plugins import find


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def started(clock: Clock, **fields: Any) -> Alerting:
    alerting = Alerting(**fields)
    clock.runtime.spawn = lambda name, run: None  # type: ignore[method-assign]  # tests call `tick`
    await alerting.start(clock.runtime)
    return alerting


def tried(
    at: float = 0.0, *, code: int | None = 500, error: str | None = "UpstreamError", **fields: Any
) -> dict[str, Any]:
    attempt = a_payload()["tianji"]["attempts"][0]
    return {**attempt, "status_code": code, "error": error, "endTime": START + at, **fields}


def with_attempts(*attempts: dict[str, Any], **changes: Any) -> Record:
    """A call that went well in the end."""
    return a_record(tianji={**a_payload()["tianji"], "attempts": list(attempts)}, **changes)


def kinds(clock: Clock) -> list[str]:
    return [alert.kind for alert in clock.raised]


def test_found_by_its_name() -> None:
    assert find("callbacks", "alerting", Callback) is Alerting


async def test_a_call_that_went_well_raises_nothing(clock: Clock) -> None:
    await (await started(clock)).write([a_record() for _ in range(20)])
    assert clock.raised == []


# --- failures


async def test_a_failure(clock: Clock) -> None:
    await (await started(clock)).write([a_failure("The provider 'openai' answered 500.")])
    (alert,) = clock.raised
    assert (alert.kind, alert.level) == ("llm_exceptions", "high")
    assert alert.message == "LLM call failed: UpstreamError 502\nThe provider 'openai' answered 500."
    assert alert.fields == {"model": "fast", "deployment": "d-19", "api_base": "https://api.openai.com/v1"}


async def test_equal_failures_of_a_batch_are_one_alert(clock: Clock) -> None:
    other = a_failure(model_id="d-20")
    await (await started(clock, alert_types=["llm_exceptions"])).write([*(a_failure() for _ in range(300)), other])
    assert [alert.fields.get("calls") for alert in clock.raised] == [300, None]


@pytest.mark.parametrize("outcome", ["client_gone", "refused", "blocked"])
async def test_what_says_nothing_about_an_llm(clock: Clock, outcome: str) -> None:
    record = a_failure(tianji={**a_payload()["tianji"], "outcome": outcome, "attempts": []})
    await (await started(clock)).write([record])
    assert clock.raised == []


async def test_a_long_error_is_cut(clock: Clock) -> None:
    await (await started(clock)).write([a_failure("x" * 10_000)])
    assert len(clock.raised[0].message) < 600


# --- slow answers


def took(seconds: float, **changes: Any) -> Record:
    return a_record(endTime=START + seconds, **changes)


async def test_slow_answers(clock: Clock) -> None:
    await (await started(clock)).write([took(299.9), took(300.1), took(342.1)])
    (alert,) = clock.raised
    assert (alert.kind, alert.level, alert.fields["calls"]) == ("llm_too_slow", "low", 2)
    assert alert.message == "Answers are slow: 342.10 s, and more than 300 s is too slow"


async def test_a_stream_is_judged_by_its_end_and_not_by_its_first_token(clock: Clock) -> None:
    record = took(400.0, stream=True, completionStartTime=START + 0.1, response_time=0.1)
    await (await started(clock)).write([record])
    assert kinds(clock) == ["llm_too_slow"]


async def test_a_slow_failure_is_a_failure(clock: Clock) -> None:
    await (await started(clock)).write([a_failure(endTime=START + 900)])
    assert kinds(clock) == ["llm_exceptions"]


@pytest.mark.parametrize("name", ["alerting_threshold", "slow_after_s"])
async def test_the_threshold_is_a_setting(clock: Clock, name: str) -> None:
    await (await started(clock, **{name: "10"})).write([took(11)])
    assert kinds(clock) == ["llm_too_slow"]


# --- outages


async def test_an_outage_is_told_as_minor_and_then_as_major_and_no_more(clock: Clock) -> None:
    alerting = await started(clock)
    for at in range(4):
        await alerting.write([with_attempts(tried(at), tried(at, code=200, error=None, model_id="d-20"))])
    assert clock.raised == []
    await alerting.write([with_attempts(tried(4))])
    await alerting.write([with_attempts(tried(5 + at)) for at in range(45)])
    assert [(alert.kind, alert.level) for alert in clock.raised] == [
        ("outage_alerts", "medium"),
        ("outage_alerts", "high"),
    ]
    assert clock.raised[0].message == "Minor outage: 5 failures of 'gpt-4o-mini' within 60 s, the last 500"
    assert clock.raised[1].fields == {
        "model": "gpt-4o-mini", "deployment": "d-19", "api_base": "https://api.openai.com/v1",
    }  # fmt: skip


async def test_after_a_window_without_failures_it_is_a_new_outage(clock: Clock) -> None:
    alerting = await started(clock)
    await alerting.write([with_attempts(tried(at)) for at in range(5)])
    await alerting.write([with_attempts(tried(65 + at)) for at in range(5)])
    assert kinds(clock) == ["outage_alerts"] * 2


@pytest.mark.parametrize(
    ("code", "error", "counts"),
    [
        (408, "UpstreamError", True), (500, None, True), (503, "UpstreamError", True), (599, "x", True),
        (None, "UpstreamUnreachable", True), (None, "UpstreamTimeout", True), (200, "UpstreamTruncated", True),
        (400, "UpstreamError", False), (401, "UpstreamError", False), (429, "UpstreamError", False),
        (200, None, False), (None, None, False), (None, "ClientGone", False),
    ],
)  # fmt: skip
async def test_what_counts(clock: Clock, code: int | None, error: str | None, counts: bool) -> None:
    await (await started(clock)).write([with_attempts(*(tried(at, code=code, error=error) for at in range(5)))])
    assert kinds(clock) == ["outage_alerts"] * counts


async def test_failures_that_are_far_apart_are_no_outage(clock: Clock) -> None:
    await (await started(clock)).write([with_attempts(tried(at * 16)) for at in range(30)])
    assert clock.raised == []


async def test_deployments_are_counted_apart(clock: Clock) -> None:
    await (await started(clock)).write([with_attempts(tried(at, model_id=f"d-{at}")) for at in range(30)])
    assert clock.raised == []


async def test_records_that_come_out_of_order(clock: Clock) -> None:
    await (await started(clock)).write([with_attempts(tried(at)) for at in (4, 0, 3, 1, 2)])
    assert kinds(clock) == ["outage_alerts"]


async def test_thresholds_are_settings(clock: Clock) -> None:
    args = {"minor_outage_alert_threshold": 2, "major_outage_alert_threshold": 15, "outage_alert_ttl": 5}
    await (await started(clock, **args)).write([with_attempts(tried(at / 10)) for at in range(20)])
    assert [alert.level for alert in clock.raised] == ["medium", "high"]


BEDROCK = "https://bedrock-runtime.us-east-1.amazonaws.com"


async def test_an_outage_of_a_region_needs_two_deployments(clock: Clock) -> None:
    alerting = await started(clock, alert_types=["region_outage_alerts"])
    one = {"api_base": BEDROCK, "custom_llm_provider": "bedrock"}
    await alerting.write([with_attempts(tried(at, **one)) for at in range(8)])
    assert clock.raised == []
    await alerting.write([with_attempts(tried(9, model_id="d-20", **one))])
    (alert,) = clock.raised
    assert alert.fields == {"provider": "bedrock", "region": "us-east-1"}
    assert alert.message == (
        "Minor region outage: 5 failures of bedrock in us-east-1 within 60 s, by several deployments"
    )


@pytest.mark.parametrize(
    ("base", "region"),
    [
        (BEDROCK, "us-east-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com/x", "us-gov-west-1"),
        ("https://europe-west4-aiplatform.googleapis.com/v1/projects/p", "europe-west4"),
        ("https://aiplatform.googleapis.com/v1", ""),
        ("https://api.openai.com/v1", ""),
        ("https://us-east-1.evil.example", ""),
        ("", ""),
    ],
)
def test_regions(base: str, region: str) -> None:
    assert Try("d", "m", "p", base, 500, 0.0).region == region


@given(st.lists(st.tuples(st.floats(0, 1000), st.sampled_from("abc")), max_size=80))
def test_outages_alternate_between_minor_and_major(failures: list[tuple[float, str]]) -> None:
    outages = Outages(60, minor=3, major=6, kept=6)
    told: dict[str, list[str]] = {}
    for at, deployment in sorted(failures):
        if severity := outages.note(deployment, at, deployment):
            told.setdefault(deployment, []).append(severity)
    for severities in told.values():
        assert severities[0] == "minor"
        assert ("major", "major") not in list(pairwise(severities))


def test_a_major_outage_does_not_become_minor() -> None:
    outages = Outages(10, minor=2, major=4, kept=9, least=2)
    assert [outages.note("r", at, "a") for at in (0.0, 0.1, 0.2, 0.3)] == [None] * 4
    assert outages.note("r", 1.0, "b") == "major"
    assert [outages.note("r", at, "b") for at in (10.25, 12.0)] == [None] * 2


def test_what_is_remembered_is_bounded() -> None:
    outages = Outages(60, minor=2, major=4, kept=4, subjects=10)
    for at in range(100):
        outages.note(at, float(at), "d")
    for at in range(1000):
        outages.note("one", 100 + at / 1000, "d")
    assert len(outages) == 10
    assert len(outages._troubles["one"].failures) == 4


# --- guardrails


def blocked(*names: str) -> Record:
    runs = [{"guardrail_name": name, "guardrail_status": "guardrail_intervened"} for name in names]
    return a_failure(guardrail_information=runs, tianji={**a_payload()["tianji"], "outcome": "blocked", "attempts": []})


async def test_blocks_are_off_by_default(clock: Clock) -> None:
    await (await started(clock)).write([blocked("pii")])
    assert clock.raised == []


async def test_blocks(clock: Clock) -> None:
    alerting = await started(clock, alert_types=["guardrail_blocks"])
    await alerting.write([blocked("pii"), blocked("pii", "toxicity"), blocked()])
    assert [(alert.message, alert.fields.get("calls")) for alert in clock.raised] == [
        ("The guardrail 'pii' blocked a call", 2),
        ("The guardrail 'toxicity' blocked a call", None),
        ("The guardrail 'a guardrail' blocked a call", None),
    ]


# --- digests and the report

DIGEST = {"llm_exceptions": {"digest": True, "digest_interval": 3600}}


async def test_a_digest_holds_back_and_sums_up(clock: Clock) -> None:
    alerting = await started(clock, alert_type_config=DIGEST, alert_types=["llm_exceptions"])
    await alerting.write([a_failure(), a_failure()])
    await alerting.write([a_failure(endTime=START + 100), a_failure(api_base="https://other")])
    clock.pass_by(3599)
    alerting.tick()
    assert clock.raised == []
    clock.pass_by(2)
    alerting.tick()
    assert [alert.fields["count"] for alert in clock.raised] == [3, 1]
    assert clock.raised[0].message.splitlines()[0].endswith(": 3 times")
    clock.pass_by(4000)
    alerting.tick()
    assert len(clock.raised) == 2


async def test_other_types_are_not_held_back(clock: Clock) -> None:
    await (await started(clock, alert_type_config=DIGEST)).write([took(400), a_failure()])
    assert kinds(clock) == ["llm_too_slow"]


async def test_a_digest_that_is_off(clock: Clock) -> None:
    await (await started(clock, digests={"llm_exceptions": {"digest": False}})).write([a_failure()])
    assert kinds(clock) == ["llm_exceptions"]


async def test_the_end_sends_what_is_held_back(clock: Clock) -> None:
    alerting = await started(clock, digests=DIGEST)
    await alerting.write([a_failure()])
    await alerting.aclose()
    await alerting.aclose()
    assert kinds(clock) == ["llm_exceptions"]


async def test_digests_are_bounded(clock: Clock) -> None:
    alerting = await started(clock, digests=DIGEST, alert_types=["llm_exceptions"])
    await alerting.write([a_failure(model_id=f"d{at}", model_group=f"m{at}") for at in range(1010)])
    assert len(clock.raised) == 10


async def test_the_daily_report(clock: Clock) -> None:
    alerting = await started(clock, alert_types=["daily_reports"], daily_report_frequency=100)
    await alerting.write([took(2), took(4), took(2, model_id="d-20", model_group="big"), a_failure()])
    assert clock.raised == []
    clock.pass_by(101)
    alerting.tick()
    (report,) = clock.raised
    assert (report.kind, report.level) == ("daily_reports", "low")
    assert report.message.splitlines() == [
        "4 calls, 1 failed, 51 tokens", "Most failures:", "- fast (d-19): 1 of 3",
        "Slowest on average:", "- fast (d-19): 3.00 s", "- big (d-20): 2.00 s",
    ]  # fmt: skip
    clock.pass_by(101)
    alerting.tick()
    assert len(clock.raised) == 1


async def test_it_looks_at_the_clock_by_itself() -> None:
    clock = Clock()
    turns: list[float] = []
    done = asyncio.Event()

    async def sleep(seconds: float) -> None:
        turns.append(seconds)
        clock.pass_by(seconds)
        if len(turns) == 3:
            await alerting.aclose()
            done.set()

    clock.runtime.sleep = sleep
    alerting = Alerting(report_check_interval=60, report_every_s=120, alert_types=["daily_reports"])
    await alerting.start(clock.runtime)
    await alerting.write([a_record()])
    async with asyncio.timeout(10):
        await done.wait()
    await clock.runtime.aclose()
    assert turns == [60, 60, 60]
    assert kinds(clock) == ["daily_reports"]


# --- LiteLLM's settings


def test_alerting_args_are_the_settings_by_litellms_names() -> None:
    args = {"outage_alert_ttl": "30", "minor_outage_alert_threshold": 2, "budget_alert_ttl": 5, "log_to_console": True}
    alerting = Alerting(alerting_args=args, minor_outage_failures=7, alerting_threshold=4)
    assert (alerting.outage_window_s, alerting.minor_outage_failures, alerting.slow_after_s) == (30.0, 7, 4.0)
    assert alerting.alerting_args == {}


async def test_alerting_args_without_effect_are_named(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    await started(clock, alerting_args={"spend_anomaly_multiplier": 3, "report_check_interval": 1})
    assert "spend_anomaly_multiplier have no effect" in caplog.text


def test_alerting_args_that_nobody_knows() -> None:
    with pytest.raises(ValidationError, match="outage_ttl"):
        Alerting(alerting_args={"outage_ttl": 1})


# --- odd records

JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@given(
    st.dictionaries(st.sampled_from(sorted(a_payload())), JSON | st.lists(JSON, max_size=2), max_size=12),
    st.dictionaries(st.sampled_from(["outcome", "attempts"]), JSON | st.lists(JSON, max_size=2)),
)
def test_records_can_hold_anything(changes: dict[str, Any], ours: dict[str, Any]) -> None:
    for payload in (changes, {**a_payload(), **changes}, {**a_payload(), "tianji": ours, "status": "failure"}):
        call = seen(payload)
        assert call.seconds >= 0


@pytest.mark.parametrize("raw", [b"nonsense", b"[]", b"null", b"{}"])
async def test_what_cannot_be_read_is_counted(clock: Clock, raw: bytes) -> None:
    await (await started(clock)).write([Record("id", raw), a_failure()])
    assert kinds(clock) == ["llm_exceptions"]
    assert clock.runtime.counts["alerting_unreadable", ""] == 1


async def test_a_huge_number_of_deployments(clock: Clock) -> None:
    alerting = await started(clock)
    await alerting.write([with_attempts(tried(0), model_id=f"d{at}") for at in range(1500)])
    assert len(alerting._report._days) == 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"slow_after_s": 0}, {"minor_outage_failures": 0}, {"outage_window_s": -1}, {"digests": {"x": {"digest_": 1}}},
        {"unknown": 1}, {"alerting_threshold": 5, "slow_after_s": 5}, {"digests": {"x": {"digest_interval": 0}}},
    ],
)  # fmt: skip
def test_wrong_settings(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Alerting(**fields)
