"""What is worth an alert: guardrails, digests, reports; LiteLLM's settings and odd records."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.alert_records import Clock
from tests.support.alerting_cases import DIGEST, JSON, blocked, kinds, started, took, tried, with_attempts
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.alerting import Alerting
from tianji_mw.callbacks.alerts.calls import seen
from tianji_mw.callbacks.base import Record

# --- guardrails


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
