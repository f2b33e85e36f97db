"""What the detector of alerts reads in the record of a call, whatever the record holds, and its windows of failures.

Pure: no clock, no network. Times are those of the records, so that late records are judged by when they happened.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: The region in the host of an API base: Bedrock, SageMaker and Vertex AI write it there.
_REGION: Final = re.compile(
    r"//(?:[a-z0-9-]+\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com|([a-z]+-[a-z]+\d+)-aiplatform\.googleapis\.com)"
)
#: What says nothing about a provider: the client's fault, its own leaving, or a rule's decision.
_NOT_LLM: Final = frozenset({"ok", "cached", "blocked", "refused", "client_gone"})

Severity = Literal["minor", "major"]


@dataclass(slots=True, frozen=True)
class Try:
    """One failed request upstream that may mean an outage: 408, or 500 and more; also no answer, or a broken one."""

    deployment: str
    model: str
    provider: str
    api_base: str
    code: int
    at: float

    @property
    def region(self) -> str:
        found = _REGION.search(self.api_base)
        return (found[1] or found[2]) if found else ""


@dataclass(slots=True, frozen=True)
class Seen:
    """A call."""

    deployment: str
    model: str
    api_base: str
    at: float
    seconds: float
    failed: bool
    #: Of a failure: whose fault it may be is for people to see. Empty when it says nothing about an LLM.
    error_class: str
    error_code: str
    error_text: str
    tokens: int
    tries: tuple[Try, ...]
    #: Names of the guardrails that blocked it.
    blocked_by: tuple[str, ...]


def seen(data: Mapping[str, Any]) -> Seen:
    """The facts of a call; what is missing or odd is empty or 0."""
    ours, error = _mapping(data.get("tianji")), _mapping(data.get("error_information"))
    outcome = _text(ours.get("outcome"))
    failed = data.get("status") == "failure" and outcome not in _NOT_LLM
    start, end = _number(data.get("startTime")), _number(data.get("endTime"))
    return Seen(
        deployment=_text(data.get("model_id")) or _text(data.get("model")),
        model=_text(data.get("model_group")) or _text(data.get("model")),
        api_base=_text(data.get("api_base")),
        at=end or start,
        seconds=max(end - start, 0.0) if start and end else 0.0,
        failed=failed,
        error_class=_text(error.get("error_class")) if failed else "",
        error_code=_text(error.get("error_code")) if failed else "",
        error_text=_text(data.get("error_str")) if failed else "",
        tokens=int(_number(data.get("total_tokens"))),
        tries=tuple(one for attempt in _list(ours.get("attempts")) if (one := _failed_try(_mapping(attempt)))),
        blocked_by=_blocked_by(data, outcome),
    )


def _failed_try(attempt: Mapping[str, Any]) -> Try | None:
    code, error = int(_number(attempt.get("status_code"))), _text(attempt.get("error"))
    if code < 400:
        if not error.startswith("Upstream"):
            return None
        code = 408 if "Timeout" in error else 502
    deployment = _text(attempt.get("model_id")) or _text(attempt.get("model"))
    if not deployment or not (code == 408 or code >= 500):
        return None
    return Try(
        deployment=deployment,
        model=_text(attempt.get("model")),
        provider=_text(attempt.get("custom_llm_provider")),
        api_base=_text(attempt.get("api_base")),
        code=code,
        at=_number(attempt.get("endTime")) or _number(attempt.get("startTime")),
    )


def _blocked_by(data: Mapping[str, Any], outcome: str) -> tuple[str, ...]:
    runs = [_mapping(run) for run in _list(data.get("guardrail_information"))]
    names = [_text(run.get("guardrail_name")) for run in runs if run.get("guardrail_status") == "guardrail_intervened"]
    found = tuple(dict.fromkeys(name for name in names if name))
    return found if outcome == "blocked" and found else ("a guardrail",) if outcome == "blocked" else ()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value) if type(value) is int else ""


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, int | float) and abs(value) < 1e15 else 0.0


@dataclass(slots=True)
class _Trouble:
    """Failures of one subject, the oldest first: when, and whose."""

    failures: deque[tuple[float, str]]
    told: set[Severity] = field(default_factory=set)


class Outages:
    """Failures in sliding windows. An outage is told once as minor and once as major, until a window without failures.

    `least` different deployments must have failed. The latest `subjects` are remembered.
    """

    def __init__(
        self, window_s: float, *, minor: int, major: int, kept: int, least: int = 1, subjects: int = 1000
    ) -> None:
        self._window_s, self._minor, self._major, self._least = window_s, minor, major, least
        self._kept = max(kept, minor, major)
        self._most = subjects
        self._troubles: OrderedDict[Hashable, _Trouble] = OrderedDict()

    def note(self, subject: Hashable, at: float, deployment: str) -> Severity | None:
        """Count a failure; what shall be told because of it."""
        trouble = self._troubles.get(subject)
        if trouble is None:
            trouble = self._troubles[subject] = _Trouble(deque(maxlen=self._kept))
            if len(self._troubles) > self._most:
                self._troubles.popitem(last=False)
        self._troubles.move_to_end(subject)
        failures = trouble.failures
        while failures and failures[0][0] <= at - self._window_s:
            failures.popleft()
        if not failures:
            trouble.told.clear()
        failures.append((at, deployment))
        return self._told(trouble)

    def _told(self, trouble: _Trouble) -> Severity | None:
        count = len(trouble.failures)
        if len({deployment for _, deployment in trouble.failures}) < self._least:
            return None
        severity: Severity | None = "major" if count >= self._major else "minor" if count >= self._minor else None
        if severity is None or severity in trouble.told or "major" in trouble.told:
            return None
        trouble.told.add(severity)
        return severity

    def __len__(self) -> int:
        return len(self._troubles)
