"""What is worth an alert: failures, slow answers, outages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.alert_records import Clock
from tests.support.alerting_cases import BEDROCK, kinds, started, took, tried, with_attempts
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.alerting import Alerting
from tianji_mw.callbacks.alerts.calls import Outages, Try
from tianji_mw.callbacks.base import Callback
from tianji_mw.plugins import find


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
