"""What people should look at: the `Alert` that any concern raises through `Runtime.alert`, and callbacks deliver.

Also the alerts of budgets: `Budget` holds the facts, `crossings` says which limits are passed. The
keys of the alerts let each destination send every crossing once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote

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


# --- budgets

BudgetEvent = Literal[
    "budget_crossed", "max_budget_alert", "soft_budget_crossed", "threshold_crossed", "projected_limit_exceeded",
    "spend_tracked", "key_created", "key_rotated", "internal_user_created",
]  # fmt: skip
EventGroup = Literal[
    "key", "user", "end_user", "team", "team_member", "organization", "organization_member", "project", "tag", "agent",
    "model_access_group", "proxy",
]  # fmt: skip

#: The alert type of events that are no budget alerts. LiteLLM has all of these off by default.
_KINDS: Final[Mapping[str, str]] = {
    "spend_tracked": "spend_tracked",
    "key_created": "new_virtual_key_created",
    "key_rotated": "virtual_key_updated",
    "internal_user_created": "new_internal_user_created",
}
_SAYS: Final[Mapping[str, str]] = {
    "budget_crossed": "Budget crossed",
    "soft_budget_crossed": "Soft budget crossed",
    "projected_limit_exceeded": "The budget will be exceeded at this rate of spending",
    "spend_tracked": "Spend tracked",
    "key_created": "Key created",
    "key_rotated": "Key rotated",
    "internal_user_created": "User created",
}
_LEVELS: Final[Mapping[str, Level]] = {
    "budget_crossed": "high", "projected_limit_exceeded": "medium", "soft_budget_crossed": "medium",
}  # fmt: skip
#: Per cent that are left at a `threshold_crossed`, the smaller first.
_LEFT: Final = (5.0, 15.0)
#: Sums of cents are not exact in binary: a hair below a limit counts as at it.
_HAIR: Final = 1e-9


@dataclass(slots=True, frozen=True, kw_only=True)
class Budget:
    """Who spent how much of what. Money in USD; ids are ids, and `token` is the hash of a key, never the key."""

    group: EventGroup
    spend: float
    max_budget: float | None = None
    soft_budget: float | None = None
    #: What tells this budget period from the next, such as its reset date: a new period's crossings are new alerts.
    period: str = ""
    token: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    user_email: str | None = None
    customer_id: str | None = None
    team_id: str | None = None
    team_alias: str | None = None
    organization_id: str | None = None
    #: Which project, tag, agent or model access group it is.
    entity: str = ""
    projected_spend: float | None = None
    projected_exceeded_date: str | None = None
    #: Addresses that get a mail of every event.
    alert_emails: Sequence[str] = ()
    #: Per cent of the budget, such as "50", and who gets a mail when so much is spent; see `merged_emails`.
    max_budget_alert_emails: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def who(self) -> str:
        """The id that the key of its alerts holds."""
        ids: dict[str, tuple[str | None, ...]] = {
            "key": (self.token,),
            "user": (self.user_id,),
            "end_user": (self.customer_id,),
            "team": (self.team_id,),
            "team_member": (self.user_id, self.team_id),
            "organization": (self.organization_id,),
            "organization_member": (self.user_id, self.organization_id),
        }
        return ":".join(_quoted(part or "") for part in ids.get(self.group, (self.entity,)))


def crossings(budget: Budget, *, warn_at: float | None = None) -> list[Alert]:
    """The alerts for the limits that the spend has reached; none below all limits.

    The soft budget and the budget itself each give their own, and of `budget_crossed`, 5 % and 15 % left only the most
    serious is given. `max_budget_alert`: one for each percentage in `max_budget_alert_emails`; where there is none,
    one at the share `warn_at` of the budget (LiteLLM: 0.8, for keys), until it is used up.
    """
    spend = budget.spend
    if not math.isfinite(spend):
        return []
    found = []
    if _is_limit(budget.soft_budget) and _reached(spend, budget.soft_budget):
        found.append(budget_alert("soft_budget_crossed", budget, threshold=f"soft/{budget.soft_budget:.12g}"))
    limit = budget.max_budget
    if limit is None or not _is_limit(limit):
        return found
    if _reached(spend, limit):
        found.append(budget_alert("budget_crossed", budget, threshold=f"100/{limit:.12g}"))
    else:
        for left in _LEFT:
            if _reached(spend, limit * (100.0 - left) / 100.0):
                found.append(budget_alert("threshold_crossed", budget, threshold=f"{left:g}-left/{limit:.12g}"))
                break
    for percent in _warned(budget, limit, warn_at):
        threshold = f"{percent:g}/{limit:.12g}"
        found.append(budget_alert("max_budget_alert", budget, threshold=threshold, percent=percent))
    return found


def _warned(budget: Budget, limit: float, warn_at: float | None) -> list[float]:
    """The percentages of warnings that are due."""
    if budget.max_budget_alert_emails:
        percents = [_percent(key) for key in budget.max_budget_alert_emails]
        return sorted({p for p in percents if p is not None and _reached(budget.spend, limit * p / 100.0)})
    if warn_at is None or _reached(budget.spend, limit) or not _reached(budget.spend, limit * warn_at):
        return []
    return [warn_at * 100.0]


def _percent(text: str) -> float | None:
    try:
        percent = float(text)
    except ValueError:
        return None
    return percent if 0.0 < percent <= 100.0 else None


def _quoted(part: str) -> str:
    return quote(part, safe="", errors="replace")


def _is_limit(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0.0


def _reached(spend: float, limit: float | None) -> bool:
    return limit is not None and spend >= limit - abs(limit) * _HAIR


def budget_alert(event: BudgetEvent, budget: Budget, *, threshold: str = "", percent: float | None = None) -> Alert:
    """The alert of one event. Its fields are LiteLLM's webhook event, and `percent` for whom a warning concerns.

    Its key holds event, id, `threshold` and the budget's period.
    """
    said = f"{budget.group.replace('_', ' ').title()} Budget: {_said(event, threshold, percent)}"
    if event in _KINDS:
        said = _SAYS[event]
    kind = _KINDS.get(event, "budget_alerts")
    level = _LEVELS.get(event, "low" if event in _KINDS else "high" if threshold.startswith("5-left") else "medium")
    parts = (kind, event, budget.group, budget.who, threshold, _quoted(budget.period))
    fields: dict[str, Any] = {
        "event": event,
        "event_group": budget.group,
        "event_message": said,
        **{name: getattr(budget, name) for name in WEBHOOK_FIELDS if hasattr(budget, name)},
    }
    fields["spend"] = _finite(budget.spend) or 0.0
    for name in ("max_budget", "soft_budget", "projected_spend"):
        fields[name] = _finite(fields[name])
    fields["alert_emails"] = list(budget.alert_emails) or None
    mails = {key: list(addresses) for key, addresses in budget.max_budget_alert_emails.items()}
    fields["max_budget_alert_emails"] = mails or None
    if percent is not None:
        fields["percent"] = percent
    return Alert(kind=kind, level=level, message=_message(said, budget), key=":".join(parts), fields=fields)


class Recent:
    """Alerts that were raised a moment ago: a limit that is passed is passed at every request.

    Within the window the same alert need not be raised again, as it is on its way; after it, it is raised anew, and
    each destination knows whether it has had it. The latest `most` keys are remembered.
    """

    def __init__(self, window_s: float = 300.0, most: int = 10_000) -> None:
        self._window_ns = int(window_s * 1e9)
        self._most = most
        self._raised: OrderedDict[str, int] = OrderedDict()

    def new(self, alerts: Iterable[Alert], now: int) -> list[Alert]:
        """Those to raise. `now`: nanoseconds of the runtime's clock."""
        found = []
        for alert in alerts:
            last = self._raised.get(alert.key)
            if last is not None and now - last < self._window_ns:
                continue
            self._raised[alert.key] = now
            self._raised.move_to_end(alert.key)
            if len(self._raised) > self._most:
                self._raised.popitem(last=False)
            found.append(alert)
        return found


#: The fields of LiteLLM's webhook event, after `event`, `event_group` and `event_message`.
WEBHOOK_FIELDS: Final = (
    "spend", "max_budget", "soft_budget", "team_id", "team_alias", "token", "customer_id", "user_id", "user_email",
    "key_alias", "organization_id", "projected_exceeded_date", "projected_spend",
)  # fmt: skip


def _said(event: BudgetEvent, threshold: str, percent: float | None) -> str:
    if event == "threshold_crossed":
        return f"{threshold.partition('-left')[0] or '15'}% or less of budget remaining"
    if event == "max_budget_alert":
        return "warning" if percent is None else f"{percent:g}% of budget spent"
    return _SAYS[event]


def _message(said: str, budget: Budget) -> str:
    """The event and its facts, a line each."""
    who = {
        "Key": _named(budget.key_alias, budget.token and f"{budget.token[:8]}..."),
        "User": _named(budget.user_email, budget.user_id),
        "Customer": budget.customer_id,
        "Team": _named(budget.team_alias, budget.team_id),
        "Organization": budget.organization_id,
        **({budget.group.replace("_", " ").capitalize(): budget.entity} if budget.entity else {}),
        "Spend": dollars(budget.spend),
        "Budget": dollars(budget.max_budget),
        "Soft budget": dollars(budget.soft_budget),
        "Period": budget.period or None,
        "Projected spend": dollars(budget.projected_spend),
        "Projected to exceed the budget on": budget.projected_exceeded_date,
    }
    return "\n".join([said, *(f"{name}: {value}" for name, value in who.items() if value)])


def _named(name: str | None, identifier: str | None) -> str | None:
    return f"{name} ({identifier})" if name and identifier else name or identifier


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def dollars(value: float | None) -> str:
    """An amount for people: cents, and more digits for what is less than a cent. Empty for None."""
    if value is None or not math.isfinite(value):
        return ""
    return f"${value:,.2f}" if value == 0 or abs(value) >= 0.01 else f"${value:.6f}"


def emails(value: object) -> list[str]:
    """The addresses in a list or in a text with commas, as LiteLLM's metadata holds them; anything else has none."""
    parts: Iterable[object] = ()
    if isinstance(value, str):
        parts = value.split(",")
    elif isinstance(value, list | tuple):
        parts = value
    return list(dict.fromkeys(part.strip() for part in parts if isinstance(part, str) and part.strip()))


def merged_emails(*maps: Mapping[str, object] | None) -> dict[str, list[str]]:
    """One map of percentages out of several, such as a key's and the default one: the union of each one's addresses."""
    merged: dict[str, list[str]] = {}
    for one in maps:
        for percent, value in (one or {}).items():
            known = merged.setdefault(str(percent), [])
            known.extend(address for address in emails(value) if address not in known)
    return merged
