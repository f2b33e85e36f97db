"""Keys are equal for requests that must get the same answer, and different for all others."""

from __future__ import annotations

import copy
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.cache.key import DEFAULTS, IGNORED, KeyMaker, body_of, canonical

KEYS = KeyMaker("tianji")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**52), 2**52)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
requests = st.dictionaries(
    st.sampled_from(["messages", "temperature", "seed", "tools", "top_k", "stop", "x"]), json_values
)


def key(request: dict[str, Any], api: str = "chat_completions", model: str = "m", scope: Any = ("team", "a")) -> str:
    return KEYS.make(api, model, scope, "", {}, body_of(api, request))


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        return {name: shuffled(value[name], rng) for name in names}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@given(requests, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(request: dict[str, Any], rng: random.Random) -> None:
    assert key(request) == key(shuffled(request, rng))


@given(requests)
def test_whitespace_does_not_matter(request: dict[str, Any]) -> None:
    raw = orjson.dumps(request, option=orjson.OPT_INDENT_2)
    assert key(orjson.loads(raw)) == key(orjson.loads(orjson.dumps(request)))


@given(st.integers(-(2**52), 2**52))
def test_the_spelling_of_a_whole_number_does_not_matter(number: int) -> None:
    assert key({"seed": number}) == key({"seed": float(number)})


@pytest.mark.parametrize("spelled", ["1", "1.0", "1e0", "10e-1"])
def test_numbers_as_they_are_written(spelled: str) -> None:
    assert key(orjson.loads(b'{"top_k":' + spelled.encode() + b"}")) == key({"top_k": 1})


def test_truth_is_no_number() -> None:
    assert key({"x": True}) != key({"x": 1})
    assert key({"logprobs": 0}) != key({"logprobs": False})


def test_composed_and_decomposed_text_is_one() -> None:
    assert key({"messages": "caf\u00e9"}) == key({"messages": "cafe\u0301"})


@given(requests, st.sampled_from(sorted(IGNORED)), json_values)
def test_what_the_model_does_not_see_is_left_out(request: dict[str, Any], name: str, value: Any) -> None:
    assert key({**request, name: value}) == key(request)


@pytest.mark.parametrize("api", sorted(DEFAULTS))
def test_a_default_is_as_good_as_silence(api: str) -> None:
    for name, value in DEFAULTS[api].items():
        assert key({"messages": "m", name: copy.deepcopy(value)}, api) == key({"messages": "m"}, api)
        assert key({"messages": "m", name: None}, api) == key({"messages": "m"}, api)


@given(requests, st.sampled_from(["temperature", "top_k", "a_parameter_of_tomorrow"]))
def test_a_parameter_that_nobody_knows_keeps_answers_apart(request: dict[str, Any], name: str) -> None:
    assert key({**request, name: "odd value"}) != key({k: v for k, v in request.items() if k != name})


@given(json_values, json_values)
def test_other_messages_have_another_key(one: Any, other: Any) -> None:
    same = orjson.dumps(canonical(one), option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        canonical(other), option=orjson.OPT_SORT_KEYS
    )
    if one is not None and other is not None:
        assert (key({"messages": one}) == key({"messages": other})) is same


def test_api_model_tenant_space_and_policy_are_in_it() -> None:
    def made(**changes: Any) -> str:
        given = {"api": "a", "model": "m", "scope": ("team", "t"), "space": "s", "vary": {"guardrails": "1"}, **changes}
        return KEYS.make(**given, body={})

    different = [
        made(), made(api="b"), made(model="n"), made(scope=("team", "u")), made(scope=("key", "t")), made(space=""),
        made(vary={"guardrails": "2"}), made(vary={}),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert all(len(one.rpartition(":")[2]) == 64 for one in different)


@given(st.text(), st.text(), st.text(), st.text())
def test_tenants_cannot_be_spelled_into_each_other(a: str, b: str, c: str, d: str) -> None:
    if (a, b) != (c, d):
        assert key({}, scope=(a, b)) != key({}, scope=(c, d))
        assert KEYS.make("x", a, ("t",), b, {}, {}) != KEYS.make("x", c, ("t",), d, {}, {})


def test_models_of_a_caching_group_count_as_one() -> None:
    grouped = KeyMaker("tianji", {"gpt-4o": "g", "azure-4o": "g"})
    assert grouped.make("a", "gpt-4o", ("t",), "", {}, {}) == grouped.make("a", "azure-4o", ("t",), "", {}, {})
    assert grouped.make("a", "gpt-4o", ("t",), "", {}, {}) != grouped.make("a", "other", ("t",), "", {}, {})


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_key_is_made_of_plain_characters(team: str, space: str, model: str) -> None:
    made = KEYS.make("chat_completions", model, ("team", team), space, {}, {})
    assert len(made) < 300
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789:._-")
    assert made.startswith(KEYS.prefix(("team", team)))


@pytest.mark.parametrize("name", ["prompt_id", "prompt_version", "prompt_label", "prompt_variables"])
def test_what_names_a_prompt_counts(name: str) -> None:
    """Whoever turns it into messages may stand inside of the cache."""
    assert key({"messages": [], name: "a"}) != key({"messages": [], name: "b"}) != key({"messages": []})
