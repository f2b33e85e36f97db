"""What all destinations of alerts share: types, windows, equal alerts, several targets, what one of them refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr, ValidationError

from tests.support.alert_records import Clock, a_crossing, an_alert, recorded
from tests.support.records import a_record, undelivered
from tianji_mw.alerts import Alert, Budget, budget_alert
from tianji_mw.callbacks.alerts.delivery import OFF_BY_DEFAULT, AlertCallback, Group, Marks, ServiceDown, Told
from tianji_mw.callbacks.alerts.text import cut, facts, harmless, one_line
from tianji_mw.callbacks.base import NotDelivered, Record

Fail = Callable[[str, Group], NotDelivered | None]


class Noted(AlertCallback):
    """Notes what it delivers; `fail` decides what fails."""

    title: ClassVar[str] = "Noted"
    to: tuple[str, ...] = ("a",)

    _sent: list[tuple[str, str, int]] = PrivateAttr(default_factory=list)
    _tried: list[tuple[str, str]] = PrivateAttr(default_factory=list)
    _fail: Fail | None = PrivateAttr(default=None)

    def targets(self, told: Told) -> Sequence[str]:
        return self.to

    async def deliver(self, target: str, group: Group) -> None:
        message = group.first.message.partition("\n")[0]
        self._tried.append((target, message))
        if self._fail is not None and (problem := self._fail(target, group)) is not None:
            raise problem
        self._sent.append((target, message, group.count))


async def noted(clock: Clock, *, fail: Fail | None = None, **fields: object) -> Noted:
    callback = Noted(**fields)  # type: ignore[arg-type]
    await callback.start(clock.runtime)
    callback._fail = fail
    return callback


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_every_alert_goes_to_every_target(clock: Clock) -> None:
    callback = await noted(clock, to=("a", "b", "a"))
    await callback.write([an_alert("one"), an_alert("two")])
    assert callback._sent == [("a", "one", 1), ("a", "two", 1), ("b", "one", 1), ("b", "two", 1)]


async def test_equal_alerts_of_a_batch_are_one(clock: Clock) -> None:
    callback = await noted(clock)
    await callback.write([an_alert("one"), an_alert("two"), an_alert("one"), an_alert("one", level="high")])
    await callback.write([an_alert("one")])
    assert callback._sent == [("a", "one", 2), ("a", "two", 1), ("a", "one", 1), ("a", "one", 1)]


async def test_alerts_with_other_fields_are_not_equal(clock: Clock) -> None:
    callback = await noted(clock)
    await callback.write([an_alert("one", fields={"model": "a"}), an_alert("one", fields={"model": "b"})])
    assert len(callback._sent) == 2


async def test_a_budget_alert_goes_once_in_its_window(clock: Clock) -> None:
    callback = await noted(clock)
    await callback.write([a_crossing(86.1), a_crossing(87.0)])
    clock.pass_by(86_399)
    await callback.write([a_crossing(88.0)])
    assert len(callback._sent) == 1
    assert callback._sent[0][2] == 1  # repetitions are no news
    clock.pass_by(2)
    await callback.write([a_crossing(89.0)])
    assert len(callback._sent) == 2
    assert clock.runtime.counts["alerts_repeated", "Noted"] == 1


async def test_both_thresholds_and_the_next_period_get_through(clock: Clock) -> None:
    callback = await noted(clock)
    await callback.write([a_crossing(86.0), a_crossing(96.0), a_crossing(100.0), a_crossing(86.0, period="next")])
    assert len(callback._sent) == 4


@pytest.mark.parametrize("name", ["budget_alert_ttl", "budget_alert_ttl_s"])
async def test_the_window_is_a_setting(clock: Clock, name: str) -> None:
    callback = await noted(clock, **{name: "60"})
    await callback.write([a_crossing()])
    clock.pass_by(61)
    await callback.write([a_crossing()])
    assert len(callback._sent) == 2


async def test_no_window_at_all(clock: Clock) -> None:
    callback = await noted(clock, budget_alert_ttl=0)
    await callback.write([a_crossing()])
    await callback.write([a_crossing()])
    assert len(callback._sent) == 2


async def test_what_failed_is_not_marked_as_sent(clock: Clock) -> None:
    down = [True]
    callback = await noted(clock, fail=lambda target, group: NotDelivered("down") if down[0] else None)
    record = a_crossing()
    failed = await undelivered(callback, [record])
    assert failed.failed == [record]
    down[0] = False
    await callback.write([record])
    await callback.write([a_crossing()])
    assert len(callback._sent) == 1


async def test_a_batch_that_comes_again_goes_only_where_it_is_missing(clock: Clock) -> None:
    down = {"b"}
    callback = await noted(
        clock, to=("a", "b", "c"), fail=lambda target, group: NotDelivered("down") if target in down else None
    )
    batch = [an_alert("one"), an_alert("two")]
    failed = await undelivered(callback, batch)
    assert failed.failed == batch
    down.clear()
    await callback.write(batch)
    await callback.write(batch)
    assert Counter(callback._sent) == {(target, text, 1): 1 for target in "abc" for text in ("one", "two")}


async def test_what_one_target_refuses_is_refused_after_the_others_have_it(clock: Clock) -> None:
    down = {"b"}

    def fail(target: str, group: Group) -> NotDelivered | None:
        if target == "a":
            return NotDelivered("never", retry=False)
        return NotDelivered("down") if target in down else None

    callback = await noted(clock, to=("a", "b"), fail=fail)
    record = an_alert()
    failed = await undelivered(callback, [record])
    assert (failed.failed, list(failed.refused)) == ([record], [])
    down.clear()
    failed = await undelivered(callback, [record])
    assert (failed.failed, failed.refused) == ([], [record])
    assert [target for target, _ in callback._tried] == ["a", "b", "b"]


async def test_only_what_failed_is_named(clock: Clock) -> None:
    callback = await noted(
        clock, fail=lambda target, group: NotDelivered("bad") if group.first.message == "bad" else None
    )
    good, bad = [an_alert(f"good {at}") for at in range(50)], an_alert("bad")
    failed = await undelivered(callback, [bad, *good])
    assert failed.failed == [bad]
    assert len(callback._sent) == 50


async def test_a_target_that_is_down_is_left_alone_and_the_troublesome_come_last(clock: Clock) -> None:
    callback = await noted(
        clock, fail=lambda target, group: NotDelivered("bad") if "bad" in group.first.message else None
    )
    batch = [*(an_alert(f"bad {at}") for at in range(4)), an_alert("good")]
    failed = await undelivered(callback, batch)
    assert failed.failed == batch
    assert len(callback._tried) == 3
    failed = await undelivered(callback, batch)
    assert set(failed.failed or ()) == set(batch[:4])
    assert callback._sent == [("a", "good", 1)]


async def test_failures_between_successes_do_not_stop_a_target(clock: Clock) -> None:
    callback = await noted(
        clock, fail=lambda target, group: NotDelivered("bad") if "bad" in group.first.message else None
    )
    batch = [an_alert(f"{'good' if at % 3 == 2 else 'bad'} {at}") for at in range(9)]
    failed = await undelivered(callback, batch)
    assert len(failed.failed or ()) == 6
    assert len(callback._tried) == 9


async def test_a_refused_alert_leaves_its_window_open(clock: Clock) -> None:
    refuse = [True]
    callback = await noted(clock, fail=lambda target, group: NotDelivered("no", retry=False) if refuse[0] else None)
    await undelivered(callback, [a_crossing()])
    refuse[0] = False
    await callback.write([a_crossing()])
    assert len(callback._sent) == 1


async def test_a_target_that_asks_for_a_pause_is_left_alone(clock: Clock) -> None:
    busy = NotDelivered("busy", retry_after_s=7.0)
    callback = await noted(clock, to=("a", "b"), fail=lambda target, group: busy if target == "a" else None)
    batch = [an_alert("one"), an_alert("two")]
    failed = await undelivered(callback, batch)
    assert (failed.retry_after_s, failed.failed) == (7.0, batch)
    assert callback._tried == [("a", "one"), ("b", "one"), ("b", "two")]


async def test_a_service_that_is_down_is_asked_once(clock: Clock) -> None:
    callback = await noted(clock, to=("a", "b"), fail=lambda target, group: ServiceDown("down"))
    batch = [an_alert("one"), an_alert("two")]
    failed = await undelivered(callback, batch)
    assert failed.failed == batch
    assert len(callback._tried) == 1


async def test_alerts_that_are_off_by_default_go_nowhere(clock: Clock) -> None:
    callback = await noted(clock)
    budget = Budget(group="end_user", spend=1.0, customer_id="c")
    await callback.write([recorded(budget_alert("spend_tracked", budget)), an_alert(kind="guardrail_blocks")])
    assert callback._sent == []


async def test_only_the_types_of_the_config(clock: Clock) -> None:
    callback = await noted(clock, alert_types=["guardrail_blocks"])
    await callback.write([an_alert(kind="guardrail_blocks"), an_alert(kind="llm_exceptions")])
    assert len(callback._sent) == 1


async def test_an_empty_list_of_types_is_the_default(clock: Clock) -> None:
    callback = await noted(clock, alert_types=[])
    await callback.write([an_alert()])
    assert len(callback._sent) == 1


def raw(value: bytes) -> Record:
    return Record("id", value, "alert")


@pytest.mark.parametrize(
    "record", [raw(b"nonsense"), raw(b"[]"), raw(b"{}"), raw(b'{"kind": 5}'), raw(b'{"kind": ""}'), a_record()]
)
async def test_what_is_no_alert_is_refused_alone(clock: Clock, record: Record) -> None:
    callback = await noted(clock)
    good = an_alert()
    failed = await undelivered(callback, [record, good])
    assert (failed.failed, failed.refused) == ([], [record])
    assert len(callback._sent) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(kind=JSON, level=JSON, message=JSON, key=JSON, time=JSON, fields=JSON)
async def test_odd_alerts_are_delivered_or_refused(**data: object) -> None:
    callback = await noted(Clock())
    try:
        record = Record("id", orjson.dumps(data), "alert")
    except TypeError:
        return
    if isinstance(data["kind"], str) and data["kind"]:
        await callback.write([record])
        assert len(callback._sent) == (data["kind"] not in OFF_BY_DEFAULT)
    else:
        assert (await undelivered(callback, [record])).refused == [record]


async def test_not_started() -> None:
    failed = await undelivered(Noted(), [an_alert()])
    assert failed.retry


def test_two_writes_at_once_would_not_know_of_each_other() -> None:
    with pytest.raises(ValidationError):
        Noted(concurrency=2)


async def test_console(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tianji_mw.callbacks.alerts")
    callback = await noted(clock, log_to_console=True)
    await callback.write([an_alert("two\nlines")])
    assert "llm_exceptions (medium): two lines" in caplog.text


def test_marks_are_bounded() -> None:
    marks: Marks[int] = Marks(3)
    for at in range(10):
        marks.set(at, at)
    marks.set(7, 70)
    marks.set(10, 10)
    assert len(marks) == 3
    assert [marks.get(at) for at in (6, 7, 8, 9, 10)] == [None, 70, None, 9, 10]


async def test_memory_is_bounded(clock: Clock) -> None:
    callback = await noted(clock)
    callback._done, callback._windows, callback._failing = Marks(50), Marks(50), Marks(50)
    for at in range(20):
        await callback.write([a_crossing(team_id=f"t{at}-{n}") for n in range(10)])
    assert (len(callback._done), len(callback._windows)) == (50, 50)


def test_an_alert_without_a_key_is_known_by_its_message() -> None:
    assert Alert(kind="k", message="m").as_dict(1.0)["key"] == "k:m"


# --- texts


@given(st.text(), st.integers(min_value=41, max_value=200))
def test_cut(text: str, most: int) -> None:
    assert len(cut(text, most)) <= most


@given(st.text())
def test_one_line(text: str) -> None:
    assert one_line(text).isprintable()


@given(st.text(alphabet="@everyonh[](channl ", max_size=40))
def test_harmless(text: str) -> None:
    shown = harmless(text)
    assert shown.replace("\u200b", "") == text
    assert "](" not in shown
    for word in ("@everyone", "@here", "@channel"):
        assert word not in shown


def test_facts() -> None:
    fields = {"model": "m", "nothing": None, "on": True, "n": 5, "list": [1, {"a": None}], "long": "x" * 900, "e": ""}
    assert facts(fields) == [
        ("model", "m"), ("on", "true"), ("n", "5"), ("list", '[1,{"a":null}]'), ("long", "x" * 500),
    ]  # fmt: skip
    assert len(facts({str(at): at for at in range(100)})) == 30
