"""What people should look at: the `Alert` that any concern raises through `Runtime.alert`, and callbacks deliver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["low", "medium", "high"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Alert:
    """One alert. `kind` is LiteLLM's alert type: `budget_alerts`, `outage_alerts`, `llm_exceptions`, ..."""

    kind: str
    message: str
    level: Level = "medium"
    #: What makes two alerts the same: within the window of a destination the second is not sent.
    #: Without one, kind and message.
    key: str = ""
    #: More fields: those of a budget event (`event`, `event_group`, `spend`, ...), a model, an API base.
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self, at: float) -> dict[str, Any]:
        """The content of its record; `at` in seconds since 1970."""
        return {
            "kind": self.kind,
            "level": self.level,
            "message": self.message,
            "key": self.key or f"{self.kind}:{self.message}",
            "time": at,
            "fields": dict(self.fields),
        }
