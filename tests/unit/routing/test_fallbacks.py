"""Which group comes after one that failed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import FAILED, Clock, a_group, call_of, runtime_of
from tianji_mw.errors import InvalidRequest
from tianji_mw.identity.base import Identity
from tianji_mw.routing.fallbacks import check, has_any, listed, next_group, targets
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.table import Deployments

RUNTIME = runtime_of(Clock())
NAMES = ("a", "b", "c", "d")
TABLE = Deployments(
    a_group(*[{"id": f"id-{name}", "model_name": name} for name in NAMES], {"id": "w", "model_name": "wild/*"}),
    {"alias": "b", "other alias": "b"},
)
LONG = FAILED._replace(kind="ContextWindow", status=400, again=False)


def chosen(
    *tried: str, rules: dict[str, Any] | None = None, failure: Any = FAILED, identity: Any = None, **request: Any
) -> str | None:
    call = call_of(RUNTIME, tried[0], identity=identity, **request)
    made = RoutingRules(**(rules or {}))
    names = targets(call, made, tried[0], failure, TABLE.group(tried[0]))
    found = next_group(call, made, TABLE, failure, names, [TABLE.group(name) for name in tried])
    assert has_any(call, made, TABLE, tried[0], failure, [TABLE.group(name) for name in tried]) is (found is not None)
    return found


@pytest.mark.parametrize(
    ("lists", "group", "expected"),
    [
        ({"a": ("x",)}, "a", ("x",)),
        ({"a": ("x",)}, "openai/a", ("x",)),
        ({"openai/a": ("x",)}, "a", ("x",)),
        ({"openai/a": ("x",), "a": ("y",)}, "a", ("y",)),
        ({"openai/a": ("x",), "a": ("y",)}, "openai/a", ("x",)),
        ({"*": ("x",)}, "a", ("x",)),
        ({"*": ("x",), "a": ()}, "a", ()),
        ({"b": ("x",)}, "a", ()),
        ({}, "", ()),
    ],
)
def test_the_list_of_a_group(lists: Any, group: str, expected: tuple[str, ...]) -> None:
    assert listed(lists, group) == expected


def test_the_config() -> None:
    rules: dict[str, Any] = {"fallbacks": {"a": ("nobody", "b", "c"), "*": ("d",)}}
    assert chosen("a", rules=rules) == "b"
    assert chosen("a", "b", rules=rules) == "c"
    assert chosen("a", "b", "c", rules=rules) is None
    assert chosen("c", rules=rules) == "d"
    assert chosen("d", rules=rules) is None  # itself
    assert chosen("a", rules={**rules, "max_fallbacks": 0}) is None
    assert chosen("a", "b", rules={**rules, "max_fallbacks": 1}) is None


def test_an_alias_is_what_it_stands_for() -> None:
    assert chosen("a", "b", rules={"fallbacks": {"a": ("alias", "other alias", "c")}}) == "c"
    assert chosen("alias", rules={"fallbacks": {"b": ("c",)}}) == "c"
    assert chosen("alias", rules={"fallbacks": {"b": ("c",), "alias": ("d",)}}) == "d"
    assert chosen("alias", rules={"fallbacks": {"*": ("other alias",)}}) is None


def test_typed_failures_use_their_list_first() -> None:
    rules: dict[str, Any] = {"fallbacks": {"a": ("b",)}, "context_window_fallbacks": {"a": ("c",)}}
    assert chosen("a", rules=rules, failure=LONG) == "c"
    assert chosen("a", rules=rules) == "b"
    assert chosen("a", rules={"fallbacks": {"a": ("b",)}}, failure=LONG) == "b"


def test_the_request_goes_before_the_config() -> None:
    rules: dict[str, Any] = {"fallbacks": {"a": ("b",)}, "context_window_fallbacks": {"a": ("b",)}}
    assert chosen("a", rules=rules, fallbacks=["c"]) == "c"
    assert chosen("a", rules=rules, fallbacks=["nobody", "c"]) == "c"
    assert chosen("a", rules=rules, fallbacks="c") == "c"
    assert chosen("a", rules=rules, fallbacks=[{"model": "c"}]) == "c"
    assert chosen("a", rules=rules, fallbacks=[{"a": ["c", "d"]}]) == "c"
    assert chosen("a", rules=rules, fallbacks={"*": ["d"]}) == "d"
    assert chosen("a", rules=rules, fallbacks=[]) is None
    assert chosen("a", rules=rules, disable_fallbacks=True) is None
    assert chosen("a", rules=rules, failure=LONG, context_window_fallbacks=["d"]) == "d"
    assert chosen("a", rules=rules, failure=LONG, fallbacks=["d"]) == "b"


def test_what_the_key_may_not_use_is_left_out() -> None:
    key = Identity(key_hash="k", models=("a", "c", "id-b", "wild/x"))
    assert chosen("a", identity=key, fallbacks=["b", "c"]) == "c"
    assert chosen("a", identity=key, fallbacks=["alias", "d", "wild/y", "wild/x"]) == "wild/x"
    # The id is in the key's list, its model is not.
    assert chosen("a", identity=key, fallbacks=["id-b"]) is None
    assert chosen("a", identity=Identity(key_hash="k", models=("*",)), fallbacks=["id-b"]) == "id-b"


def test_what_no_other_group_would_change_falls_back_nowhere() -> None:
    assert chosen("a", failure=FAILED._replace(falls_back=False), fallbacks=["b"]) is None


# --- what a request may not say


@pytest.mark.parametrize("field", ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks"])
@pytest.mark.parametrize(
    "value",
    [
        1, True, [1], [None], [""], "", [[]], {"model": 1}, {}, [{}], [{"model": ["b"], "messages": []}],
        [{"model": "b", "messages": []}], [{"model": "b", "x": 1}], {"x": "y"},
        # Wrong in the list of any group, not only of the first.
        [{"x": ["y"], "a": [1]}], [{"x": ["y"]}, {"a": [None]}], {"openai/x": ["y"], "a": [""]},
        ["b"] * 101, {str(n): [] for n in range(101)}, [{"a": ["b"] * 101}], [{"a": ["b"] * 60, "b": ["c"] * 60}],
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_wrong_list_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        check(call_of(RUNTIME, **{field: value}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*NAMES, "model"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*NAMES, "model", "messages", "*", "x/a", "/"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(NAMES), st.sampled_from([FAILED, LONG]))
def test_what_was_let_in_gives_names(value: Any, name: str, failure: Any) -> None:
    call = call_of(RUNTIME, name, fallbacks=value)
    try:
        check(call)
    except InvalidRequest:
        return
    found = targets(call, RoutingRules(), name, failure, name)
    assert all(isinstance(target, str) and target for target in found)
    tried = [name]
    while (target := next_group(call, RoutingRules(), TABLE, failure, found, tried)) is not None:
        tried.append(TABLE.group(target))
        assert len(set(tried)) == len(tried) <= 6
