"""Which fields a deployment sends: ours out, defaults in, unwanted dropped; the client's request stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianji_mw.params import OWN_FIELDS, ParamRules

REQUEST: dict[str, Any] = {
    "model": "m",
    "temperature": 1,
    "tags": ["a"],
    "tools": [{"type": "function", "function": {"name": "f", "strict": True}}, {"strict": 1}, "odd"],
    "nested": {"a": {"b": 1, "c": 2}},
}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (ParamRules(), {}),
        (ParamRules(defaults={"temperature": 0, "top_p": 1}), {"top_p": 1}),
        (ParamRules(drop=("temperature",)), {"temperature": None}),
        (ParamRules(drop=("nested.a.b",)), {"nested": {"a": {"c": 2}}}),
        (ParamRules(drop=("tools[1]",)), {"tools": [REQUEST["tools"][0], "odd"]}),
        (ParamRules(drop=("tools[*].strict",)), {"tools": [REQUEST["tools"][0], {}, "odd"]}),
        (
            ParamRules(drop=("tools[0].function.strict",)),
            {"tools": [{"type": "function", "function": {"name": "f"}}, {"strict": 1}, "odd"]},
        ),
        (ParamRules(drop=("missing.path", "nested.x", "temperature.x", "tools[9]")), {}),
    ],
)
def test_rules(rules: ParamRules, expected: dict[str, Any]) -> None:
    before = copy.deepcopy(REQUEST)
    want = {**{k: v for k, v in REQUEST.items() if k != "tags"}, **expected}
    assert rules.apply(REQUEST) == {k: v for k, v in want.items() if v is not None}
    assert before == REQUEST
    assert rules.changes(REQUEST)


def test_nothing_to_do_is_known_beforehand() -> None:
    plain = {"model": "m", "messages": []}
    assert not ParamRules().changes(plain)
    assert not ParamRules(defaults={"model": "x"}, drop=("tools[*].strict",)).changes(plain)
    assert ParamRules(defaults={"x": 1}).changes(plain)
    assert all(ParamRules().changes({**plain, name: 1}) for name in OWN_FIELDS)


PLAIN = st.dictionaries(
    st.sampled_from([*sorted(OWN_FIELDS)[:4], "a", "b", "tools"]), st.integers() | st.lists(st.none())
)


@settings(max_examples=60, deadline=None)
@given(PLAIN, PLAIN, st.lists(st.sampled_from(["a", "b.c", "tools[*].x", "tools[0]"]), max_size=3))
def test_where_nothing_changes_apply_gives_the_same(request: Any, defaults: Any, drop: list[str]) -> None:
    rules = ParamRules(defaults=defaults, drop=tuple(drop))
    if not rules.changes(request):
        assert rules.apply(request) == request
    assert OWN_FIELDS.isdisjoint(set(rules.apply(request)) - set(defaults))
