"""What the tests of `alerting` share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.support.alert_records import Clock
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.alerting import Alerting
from tianji_mw.callbacks.base import Record


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


def took(seconds: float, **changes: Any) -> Record:
    return a_record(endTime=START + seconds, **changes)


BEDROCK = "https://bedrock-runtime.us-east-1.amazonaws.com"


def blocked(*names: str) -> Record:
    runs = [{"guardrail_name": name, "guardrail_status": "guardrail_intervened"} for name in names]
    return a_failure(guardrail_information=runs, tianji={**a_payload()["tianji"], "outcome": "blocked", "attempts": []})


DIGEST = {"llm_exceptions": {"digest": True, "digest_interval": 3600}}


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
