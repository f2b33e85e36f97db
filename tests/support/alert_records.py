"""Records of alerts, and a runtime whose time stands still until a test moves it."""

from __future__ import annotations

import uuid
from typing import Any

from tianji_mw.alerts import Alert, Budget, crossings
from tianji_mw.callbacks.base import Record
from tianji_mw.runtime import Runtime

#: 2026-11-26 12:00:01 UTC.
NOON = 1795694401.0


class Clock:
    """`runtime` lives in this time."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000
        self.raised: list[Alert] = []
        self.runtime = Runtime(clock=lambda: self.ns, wall=lambda: NOON + self.ns / 1e9)
        self.runtime.alert_listeners.append(self.raised.append)

    def pass_by(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def recorded(alert: Alert, at: float = NOON) -> Record:
    """The record of an alert, as the `Callbacks` layer writes it."""
    return Record.of(str(uuid.uuid4()), alert.as_dict(at), "alert")


def an_alert(message: str = "It is down", kind: str = "llm_exceptions", **options: Any) -> Record:
    return recorded(Alert(kind=kind, message=message, **options))


def a_crossing(spend: float = 86.1, **fields: Any) -> Record:
    """A budget alert of a team."""
    budget = Budget(
        **{"group": "team", "spend": spend, "max_budget": 100.0, "team_id": "t1", "team_alias": "ml", **fields}
    )
    return recorded(crossings(budget, warn_at=fields.get("warn_at"))[-1])
