"""What processes of one router write to each other, and what they conclude from it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stack import deployment
from tianji_mw.routing import loads as loads_file
from tianji_mw.routing import news
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.loads import Loads
from tianji_mw.runtime import Runtime

D1, D2 = (deployment("http://127.0.0.1", id=f"d{n}") for n in (1, 2))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


# --- messages


def test_what_is_written_is_read() -> None:
    one = news.Cooled("d1", 4.9996, "429 too many \u4e2d", True)
    (message,) = news.written("me", "cooled", [news.said(one)])
    assert news.read(message) == news.News(sender="me", cooled=(one._replace(seconds=5.0),))
    (message,) = news.written("me", "closed", ["d1", "d2"])
    assert news.read(message) == news.News(sender="me", closed=("d1", "d2"))
    (message,) = news.written("me", "load", [("d1", 3), ("d2", 0)])
    assert news.read(message) == news.News(sender="me", load={"d1": 3, "d2": 0})
    assert news.read(news.bye("me")) == news.News(sender="me", bye=True)
    (message,) = news.written("me", "load", [])
    assert news.read(message) == news.News(sender="me")


def test_long_news_are_several_messages() -> None:
    load = {f"{n}-" + "x" * 60: n for n in range(5000)}
    messages = [*news.written("me", "load", [*load.items()])]
    assert len(messages) > 4
    assert max(map(len, messages)) <= news.MOST_BYTES
    found: dict[str, int] = {}
    for message in messages:
        told = news.read(message)
        assert told is not None
        found.update(told.load)
    assert found == load


def test_another_version_is_no_fault() -> None:
    assert news.read(b'{"v":2,"anything":true}') is None


@given(JSON, JSON, JSON, JSON)
def test_any_json_is_read_or_refused(sender: Any, cooled: Any, closed: Any, load: Any) -> None:
    told = {"v": 1, "from": sender, "cooled": cooled, "closed": closed, "load": load}
    for message in (orjson.dumps(told), orjson.dumps(sender), orjson.dumps({**told, "from": "x"})):
        try:
            found = news.read(message)
        except ValueError:
            continue
        assert found is None or all(0 < one.seconds <= 86_400 for one in found.cooled)


@given(st.binary(max_size=50))
def test_any_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        news.read(message)


# --- loads


class Others:
    """`Loads` on a clock that tests move."""

    def __init__(self) -> None:
        self.now = 0
        self.told: list[tuple[str, int]] = []
        self.runtime = Runtime(clock=lambda: self.now)
        self.loads = Loads(self.runtime, self.note)

    def note(self, deployment: Deployment, inflight: int) -> None:
        self.told.append((deployment.id, inflight))

    def later(self, seconds: float, *, hears: bool = True) -> None:
        self.now += int(seconds * 1e9)
        self.loads.sweep(hears=hears)


def test_sums_are_told_when_they_change() -> None:
    others = Others()
    others.loads.hear("a", {D1: 2})
    others.loads.hear("b", {D1: 3, D2: 0})
    others.loads.hear("b", {D1: 3})
    others.loads.hear("a", {D1: 0})
    others.loads.hear("a", {D1: 0})
    others.loads.leave("b")
    others.loads.leave("b")
    others.loads.leave("nobody")
    assert others.told == [("d1", 2), ("d1", 5), ("d1", 3), ("d1", 0)]
    assert others.loads.processes == 1


def test_what_is_not_said_again_is_over() -> None:
    others = Others()
    others.loads.hear("a", {D1: 2, D2: 1})
    for _ in range(5):
        others.later(1)
        others.loads.hear("a", {D1: 2})  # the end at d2 was lost
    assert others.told == [("d1", 2), ("d2", 1), ("d2", 0)] or others.told == [("d2", 1), ("d1", 2), ("d2", 0)]
    others.later(3.1)
    assert others.told[-1] == ("d1", 0)
    assert others.loads.processes == 0


def test_who_is_deaf_drops_nobody() -> None:
    others = Others()
    others.loads.hear("a", {D1: 2})
    others.later(60, hears=False)
    assert others.told[-1] == ("d1", 0)
    assert others.loads.processes == 1
    others.loads.joined()
    others.later(2.9)
    assert others.loads.processes == 1
    others.later(0.2)
    assert others.loads.processes == 0


def test_processes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads_file, "_MOST", 2)
    others = Others()
    for name in "abcb":
        others.loads.hear(name, {D1: 1})
    assert others.loads.processes == 2
    assert others.told[-1] == ("d1", 2)
    assert others.runtime.counts == {("routing_messages", "too many processes"): 1}
