"""How much a request asks for, by an estimate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import Clock, call_of, runtime_of
from tianji_mw.routing.demand import Demand, demand_of, tokens_of

RUNTIME = runtime_of(Clock())


def of(api: str = "chat_completions", **request: Any) -> Demand:
    return demand_of(call_of(RUNTIME, api=api, **{"messages": [], **request}))


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (None, 0), ("", 0), ("abcd", 1), ("abcde", 2), ("世界世界", 3), (["abcd", "abcd"], 2), ({"x": "abcd"}, 1),
        ([1, 2, 3], 3), ([[1, 2], [3]], 3), (True, 0), (1.5, 0), ("\ud800" * 4, 1),
        ([{"role": "user", "content": "abcd"}], 5),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:" + "A" * 100_000}}]}], 769),
        ({"type": "image", "source": {"type": "base64", "data": "A" * 100_000}}, 765),
    ],
)  # fmt: skip
def test_tokens(value: Any, tokens: int) -> None:
    assert tokens_of(value) == tokens


def test_what_becomes_the_prompt_is_counted() -> None:
    parts = ("input", "prompt", "system", "instructions", "tools", "query", "documents")
    assert of(**dict.fromkeys(parts, "abcd"), user="x" * 4_000, metadata={"x": "y" * 4_000}).input_tokens == 7


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        ({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_output_tokens": 7}, 7), ({"max_tokens": 0}, None), ({"max_tokens": -1}, None),
        ({"max_tokens": True}, None), ({"max_tokens": 5.0}, None), ({"max_tokens": "5"}, None),
        ({"max_tokens": None}, None), ({"max_tokens": 1 << 63}, 1 << 63),
    ],
)  # fmt: skip
def test_a_request_may_limit_its_answer(request_: dict[str, Any], most: int | None) -> None:
    assert of(**request_).most_output == most


def test_the_answer_is_as_long_as_usual_within_that_limit() -> None:
    assert of(max_tokens=10).output(100.0) == 10
    assert of(max_tokens=1_000).output(100.0) == of().output(100.0) == 100.0
    assert of(input="abcd", max_tokens=10).total(100.0) == 11


@pytest.mark.parametrize("api", ["embeddings", "rerank", "moderations", "count_tokens"])
def test_what_writes_nothing(api: str) -> None:
    assert of(api, input="abcd", max_tokens=10).most_output == 0
    assert of(api, input="abcd").total(256.0) == 1


def test_it_is_made_once() -> None:
    call = call_of(RUNTIME)
    assert demand_of(call) is demand_of(call)
    first = demand_of(call).input_tokens
    call.edit()["messages"] = []
    assert demand_of(call).input_tokens == first


def test_what_is_deep_does_not_overflow() -> None:
    deep: Any = "abcd"
    for _ in range(100_000):
        deep = [deep]
    assert tokens_of(deep) == 1
    while isinstance(deep, list):  # taken apart here: the interpreter would do it by recursion
        deep = deep.pop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["role", "file", "source"]), inner),
    max_leaves=20,
)


@given(JSON)
def test_total(value: Any) -> None:
    assert tokens_of(value) >= 0
    demand = of(input=value, max_tokens=value)
    assert demand.total(256.0) >= demand.input_tokens
