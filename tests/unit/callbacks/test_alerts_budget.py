"""Alerts of budgets: which events the limits give, their fields, and keys that tell one crossing from the next."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.alerts import (
    WEBHOOK_FIELDS,
    Alert,
    Budget,
    Recent,
    budget_alert,
    crossings,
    dollars,
    emails,
    merged_emails,
)

#: What JSON can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


def team(spend: float, **fields: Any) -> Budget:
    return Budget(**{"group": "team", "spend": spend, "team_id": "t1", "team_alias": "ml", **fields})


def events(budget: Budget, **options: Any) -> list[str]:
    return [alert.fields["event"] for alert in crossings(budget, **options)]


@pytest.mark.parametrize(
    ("spend", "event"),
    [
        (0.0, []),
        (84.99, []),
        (85.0, ["threshold_crossed"]),
        (94.99, ["threshold_crossed"]),
        (95.0, ["threshold_crossed"]),
        (99.999, ["threshold_crossed"]),
        (100.0, ["budget_crossed"]),
        (1e9, ["budget_crossed"]),
    ],
)
def test_the_limits(spend: float, event: list[str]) -> None:
    assert events(team(spend, max_budget=100.0)) == event


def test_a_threshold_says_how_much_is_left() -> None:
    (fifteen,) = crossings(team(86.1, max_budget=100.0))
    (five,) = crossings(team(96.0, max_budget=100.0))
    assert fifteen.fields["event_message"] == "Team Budget: 15% or less of budget remaining"
    assert five.fields["event_message"] == "Team Budget: 5% or less of budget remaining"
    assert (fifteen.level, five.level) == ("medium", "high")
    assert fifteen.message.splitlines() == [
        "Team Budget: 15% or less of budget remaining", "Team: ml (t1)", "Spend: $86.10", "Budget: $100.00",
    ]  # fmt: skip


def test_the_fields_are_litellms_webhook_event() -> None:
    (alert,) = crossings(team(86.1, max_budget=100.0))
    said = {name: alert.fields[name] for name in ("event", "event_group", "event_message", *WEBHOOK_FIELDS)}
    assert said == {
        "event": "threshold_crossed", "event_group": "team",
        "event_message": "Team Budget: 15% or less of budget remaining", "spend": 86.1, "max_budget": 100.0,
        "soft_budget": None, "team_id": "t1", "team_alias": "ml", "token": None, "customer_id": None, "user_id": None,
        "user_email": None, "key_alias": None, "organization_id": None, "projected_exceeded_date": None,
        "projected_spend": None,
    }  # fmt: skip
    assert alert.kind == "budget_alerts"
    orjson.dumps(alert.as_dict(1.0))


def test_both_crossings_give_two_alerts() -> None:
    assert events(team(100.0, max_budget=100.0, soft_budget=50.0)) == ["soft_budget_crossed", "budget_crossed"]
    assert events(team(96.0, max_budget=100.0, soft_budget=50.0)) == ["soft_budget_crossed", "threshold_crossed"]
    assert events(team(50.0, soft_budget=50.0)) == ["soft_budget_crossed"]


def keys(*alerts: Alert) -> set[str]:
    return {alert.key for alert in alerts}


def test_the_key_holds_threshold_period_and_whose_budget_it_is() -> None:
    (fifteen,) = crossings(team(86.0, max_budget=100.0, period="2026-12-01"))
    (later,) = crossings(team(86.9, max_budget=100.0, period="2026-12-01"))
    assert fifteen.key == later.key == "budget_alerts:threshold_crossed:team:t1:15-left/100:2026-12-01"
    (five,) = crossings(team(96.0, max_budget=100.0, period="2026-12-01"))
    (next_period,) = crossings(team(86.0, max_budget=100.0, period="2027-01-01"))
    (raised,) = crossings(team(172.0, max_budget=200.0, period="2026-12-01"))
    (other,) = crossings(team(86.0, max_budget=100.0, period="2026-12-01", team_id="t2"))
    assert len(keys(fifteen, five, next_period, raised, other)) == 5


def test_the_id_of_each_group() -> None:
    ids = {"token": "h", "user_id": "u", "customer_id": "c", "team_id": "t", "organization_id": "o", "entity": "e"}
    found = {
        group: Budget(group=group, spend=1.0, **ids).who  # type: ignore[arg-type]
        for group in ("key", "user", "end_user", "team", "team_member", "organization", "project", "tag", "agent")
    }
    assert found == {
        "key": "h", "user": "u", "end_user": "c", "team": "t", "team_member": "u:t", "organization": "o",
        "project": "e", "tag": "e", "agent": "e",
    }  # fmt: skip
    assert Budget(group="proxy", spend=1.0).who == ""


def test_ids_with_colons_are_not_mixed_up() -> None:
    one = Budget(group="team_member", spend=1.0, user_id="a:b", team_id="c")
    two = Budget(group="team_member", spend=1.0, user_id="a", team_id="b:c")
    assert one.who != two.who


def test_a_warning_for_keys_at_eighty_per_cent_until_the_budget_is_used_up() -> None:
    key = {"group": "key", "token": "ab" * 32, "max_budget": 10.0}
    assert events(Budget(spend=7.9, **key), warn_at=0.8) == []  # type: ignore[arg-type]
    (alert,) = crossings(Budget(spend=8.0, **key), warn_at=0.8)  # type: ignore[arg-type]
    assert (alert.fields["event"], alert.fields["percent"]) == ("max_budget_alert", 80.0)
    assert alert.fields["event_message"] == "Key Budget: 80% of budget spent"
    assert events(Budget(spend=10.0, **key), warn_at=0.8) == ["budget_crossed"]  # type: ignore[arg-type]
    assert events(Budget(spend=8.0, **key)) == []  # type: ignore[arg-type]


def test_warnings_by_percentage_go_out_once_each() -> None:
    mails = {
        "50": ["a@x.io"],
        "75": ["a@x.io", "b@x.io"],
        "100": ["c@x.io"],
        "nonsense": ["d@x.io"],
        "-5": [],
        "900": [],
    }
    budget = Budget(group="key", spend=80.0, max_budget=100.0, token="h", max_budget_alert_emails=mails)
    found = crossings(budget, warn_at=0.8)
    assert [alert.fields["percent"] for alert in found] == [50.0, 75.0]
    assert len(keys(*found)) == 2
    assert found[0].fields["max_budget_alert_emails"] == {key: list(value) for key, value in mails.items()}


def test_what_is_at_a_limit_counts_as_reached_though_floats_are_not_exact() -> None:
    assert events(team(0.1 + 0.2, max_budget=0.3)) == ["budget_crossed"]
    assert events(team(sum([0.1] * 10), max_budget=1.0)) == ["budget_crossed"]
    assert events(team(0.085, max_budget=0.1)) == ["threshold_crossed"]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(odd: float) -> None:
    assert events(team(odd, max_budget=1.0, soft_budget=1.0)) == []
    assert events(team(5.0, max_budget=odd, soft_budget=odd)) == []
    orjson.dumps(budget_alert("spend_tracked", team(odd, max_budget=odd)).as_dict(0.0))


def test_a_budget_of_nothing_is_crossed_at_once() -> None:
    assert events(team(0.0, max_budget=0.0)) == ["budget_crossed"]


@pytest.mark.parametrize(
    ("event", "kind", "level"),
    [
        ("spend_tracked", "spend_tracked", "low"),
        ("key_created", "new_virtual_key_created", "low"),
        ("key_rotated", "virtual_key_updated", "low"),
        ("internal_user_created", "new_internal_user_created", "low"),
        ("projected_limit_exceeded", "budget_alerts", "medium"),
        ("budget_crossed", "budget_alerts", "high"),
        ("threshold_crossed", "budget_alerts", "medium"),
        ("max_budget_alert", "budget_alerts", "medium"),
    ],
)
def test_events_that_somebody_else_decides_on(event: Any, kind: str, level: str) -> None:
    alert = budget_alert(event, team(1.0, projected_spend=2.0, projected_exceeded_date="2026-12-24"))
    assert (alert.kind, alert.level, alert.fields["event"]) == (kind, level, event)
    assert "Projected spend: $2.00" in alert.message


def test_a_key_is_named_by_the_begin_of_its_hash() -> None:
    alert = budget_alert("budget_crossed", Budget(group="key", spend=1.0, token="0123456789abcdef", key_alias="ci"))
    assert "Key: ci (01234567...)" in alert.message


def test_half_a_character_in_an_id_stops_nothing() -> None:
    (alert,) = crossings(team(1.0, max_budget=1.0, team_id="a\ud800", period="\udfff"))
    assert alert.key == "budget_alerts:budget_crossed:team:a%3F:100/1:%3F"


def test_other_entities_are_named() -> None:
    alert = budget_alert("budget_crossed", Budget(group="model_access_group", spend=1.0, entity="premium"))
    assert "Model access group: premium" in alert.message


@given(
    spend=st.floats(min_value=0, max_value=1e9),
    limit=st.floats(min_value=0, max_value=1e9),
    soft=st.none() | st.floats(min_value=0, max_value=1e9),
    period=TEXT,
    identifier=TEXT,
)
def test_crossings_always_give_distinct_keys_and_json(
    spend: float, limit: float, soft: float | None, period: str, identifier: str
) -> None:
    budget = team(spend, max_budget=limit, soft_budget=soft, period=period, team_id=identifier)
    found = crossings(budget, warn_at=0.8)
    assert len(keys(*found)) == len(found) <= 3
    assert ("budget_crossed" in [alert.fields["event"] for alert in found]) == (spend >= limit * (1 - 1e-9))
    for alert in found:
        assert orjson.loads(orjson.dumps(alert.as_dict(0.0)))["fields"]["spend"] == spend


def test_a_limit_that_stays_passed_is_not_raised_at_every_request() -> None:
    recent = Recent(window_s=10, most=3)
    budget = team(96.0, max_budget=100.0, soft_budget=50.0)
    assert len(recent.new(crossings(budget), 0)) == 2
    assert recent.new(crossings(budget), 9_999_999_999) == []
    assert len(recent.new(crossings(budget), 10_000_000_000)) == 2
    for at in range(5):
        assert len(recent.new(crossings(team(96.0, max_budget=100.0, team_id=f"x{at}")), 10_000_000_000)) == 1
    assert len(recent.new(crossings(budget), 10_000_000_001)) == 2
    assert len(recent._raised) == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0, "$0.00"),
        (86.1, "$86.10"),
        (1234567.891, "$1,234,567.89"),
        (0.000123, "$0.000123"),
        (math.nan, ""),
    ],
)
def test_dollars(value: float | None, shown: str) -> None:
    assert dollars(value) == shown


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, []), ("", []), (" , ", []), ("a@x.io, b@x.io,a@x.io", ["a@x.io", "b@x.io"]),
        (["a@x.io", 5, None, " "], ["a@x.io"]), ({"a": 1}, []), (7, []),
    ],
)  # fmt: skip
def test_emails(value: object, found: list[str]) -> None:
    assert emails(value) == found


def test_maps_of_percentages_are_united() -> None:
    key, default = {"50": ["a@x.io"], "75": "b@x.io, a@x.io"}, {"75": ["b@x.io", "c@x.io"], 90: ["d@x.io"]}
    assert merged_emails(key, None, default) == {  # type: ignore[arg-type]
        "50": ["a@x.io"], "75": ["b@x.io", "a@x.io", "c@x.io"], "90": ["d@x.io"],
    }  # fmt: skip
