"""Which deployments serve a name, and which of them is chosen."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianji_mw.errors import UnknownModel
from tianji_mw.providers.mock import Mock
from tianji_mw.routing.base import Candidates, Deployment, pattern
from tianji_mw.routing.shuffle import Shuffle
from tianji_mw.routing.table import Deployments
from tianji_mw.upstream import Deadlines

NAMES = st.text(alphabet="ab-/.*", min_size=1, max_size=8)


def deployment(name: str, model: str = "m", **fields: Any) -> Deployment:
    options = {"id": f"{name}>{model}", "provider": Mock(), "deadlines": Deadlines(), **fields}
    return Deployment(model_name=name, model=model, **options)


def served_by(table: Deployments, name: str) -> list[str]:
    return [found.id for found in table.serving(name)]


def call(seed: int = 1) -> Any:
    return SimpleNamespace(model="m", runtime=SimpleNamespace(rng=random.Random(seed)))


# --- names


def test_exact_names_come_before_patterns_and_the_most_specific_pattern_first() -> None:
    names = ["*", "openai/*", "openai/gpt-*", "openai/gpt-4o", "*-mini", "a*z"]
    table = Deployments([deployment(name) for name in names])
    for asked, expected in [
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai/gpt-5", "openai/gpt-*"),
        ("openai/o3", "openai/*"),
        ("claude", "*"),
        ("x-mini", "*-mini"),
        ("abcz", "a*z"),
        ("openai/gpt-4o-mini", "openai/gpt-*"),
    ]:
        assert served_by(table, asked) == [f"{expected}>m"]


def test_deployments_of_one_name_share_it() -> None:
    table = Deployments(
        [deployment("a", "1"), deployment("b"), deployment("a", "2"), deployment("c*", "1"), deployment("c*", "2")]
    )
    assert served_by(table, "a") == ["a>1", "a>2"]
    assert served_by(table, "cat") == ["c*>1", "c*>2"]


def test_aliases_and_hidden_ones() -> None:
    table = Deployments(
        [deployment("a"), deployment("x/*", "*")], {"old": "a", "secret": "a", "fast": "x/1"}, ["secret"]
    )
    assert served_by(table, "old") == served_by(table, "secret") == ["a>m"]
    assert served_by(table, "fast") == ["x/*>*"]
    assert table.names() == ["a", "old", "fast", "x/*"]


def test_the_catch_all_is_not_listed() -> None:
    assert Deployments([deployment("*"), deployment("a")]).names() == ["a"]


def test_an_id_serves_its_deployment_even_beside_a_catch_all() -> None:
    table = Deployments([deployment("a", id="id-1"), deployment("*", "*", id="id-2")])
    assert served_by(table, "id-1") == ["id-1"]
    # A pattern's id would not say which model is meant.
    assert [found.upstream_model("id-2") for found in table.serving("id-2")] == ["id-2"]


@pytest.mark.parametrize("name", ["b", "A", "a ", "", "a\n", "x" * 10_000, "v/"])
def test_unknown_names(name: str) -> None:
    table = Deployments([deployment("a"), deployment("v/?*"), deployment("x*")])
    with pytest.raises(UnknownModel) as caught:
        table.serving(name)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert len(caught.value.message) < 300


def test_an_empty_name_is_no_match_for_the_catch_all() -> None:
    with pytest.raises(UnknownModel, match="names no model"):
        Deployments([deployment("*")]).serving("")


def test_a_long_name_is_no_work() -> None:
    table = Deployments([deployment("*a*b*c*d")])
    with pytest.raises(UnknownModel):
        table.serving("abc" * 1_000_000)


# --- the name that is sent


@pytest.mark.parametrize(
    ("name", "model", "asked", "sent"),
    [
        ("gpt", "gpt-4o", "gpt", "gpt-4o"),
        ("openai/*", "*", "openai/gpt-4o", "gpt-4o"),
        ("*", "*", "anything", "anything"),
        ("a/*/b/*", "x-*-y-*", "a/1/b/2", "x-1-y-2"),
        ("ft:*:org", "ft:*", "ft:gpt:org", "ft:gpt"),
        ("team/*", "v1/*/*", "team/z", "v1/z/"),
        ("a*", "*", r"a\1\g<0>", r"\1\g<0>"),
        ("fixed", "*", "fixed", "fixed"),
    ],
)
def test_upstream_model(name: str, model: str, asked: str, sent: str) -> None:
    assert deployment(name, model).upstream_model(asked) == sent


def test_an_alias_of_a_wildcard_is_resolved_first() -> None:
    assert deployment("x/*", "*", aliases={"fast": "x/mini"}).upstream_model("fast") == "mini"


@settings(deadline=None)
@given(NAMES, st.lists(st.text(alphabet="xyz", max_size=3), min_size=8, max_size=8))
def test_a_pattern_matches_what_it_was_filled_with(name: str, fillings: list[str]) -> None:
    parts = iter(fillings)
    asked = "".join(next(parts) if letter == "*" else letter for letter in name)
    assert pattern(name).fullmatch(asked)


@settings(deadline=None)
@given(st.lists(NAMES, max_size=6), NAMES)
def test_any_table_serves_or_says_that_it_does_not(names: list[str], asked: str) -> None:
    table = Deployments([deployment(name, str(i), id=f"id{i}") for i, name in enumerate(names)])
    try:
        found = table.serving(asked)
    except UnknownModel:
        assert not any(pattern(name).fullmatch(asked) for name in names)
    else:
        assert len({one.model_name for one in found}) == 1
        assert all(pattern(one.model_name).fullmatch(asked) for one in found)


# --- the choice


def shares(deployments: list[Deployment], rounds: int = 20_000) -> Counter[str]:
    seen, group = call(), Candidates(deployments)
    return Counter(Shuffle().pick(group, seen).model for _ in range(rounds))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([{"weight": 3}, {"weight": 1}], [0.75, 0.25]),
        ([{"weight": 3}, {}], [1.0, 0.0]),
        ([{"weight": 0}, {"weight": 2}], [0.0, 1.0]),
        ([{"rpm": 900}, {"rpm": 100}], [0.9, 0.1]),
        ([{"tpm": 10}, {"tpm": 30}], [0.25, 0.75]),
        ([{"weight": 1, "rpm": 900}, {"weight": 1, "rpm": 100}], [0.5, 0.5]),
        ([{}, {}, {}, {}], [0.25] * 4),
        ([{"weight": 0}, {"weight": 0}], [0.5, 0.5]),
    ],
)
def test_shares_follow_the_weights(fields: list[dict[str, float]], expected: list[float]) -> None:
    found = shares([deployment("a", str(i), **more) for i, more in enumerate(fields)])
    for i, share in enumerate(expected):
        # 20,000 rounds: five standard deviations are below 0.018.
        assert found[str(i)] / 20_000 == pytest.approx(share, abs=0.018)
        assert found[str(i)] > 0 or share == 0


@settings(deadline=None)
@given(st.lists(st.sampled_from([None, 0.0]) | st.floats(1e-3, 1e6), min_size=1, max_size=6), st.integers())
def test_one_of_them_is_chosen_and_never_one_without_weight(weights: list[float | None], seed: int) -> None:
    deployments = [deployment("a", str(i), weight=weight) for i, weight in enumerate(weights)]
    chosen = Shuffle().pick(Candidates(deployments), call(seed))
    assert chosen in deployments
    if any(weights) and len(weights) > 1:
        assert chosen.weight


def test_the_same_seed_chooses_the_same() -> None:
    deployments = Candidates(deployment("a", str(i)) for i in range(5))
    first, again = call(7), call(7)
    picks = [(Shuffle().pick(deployments, first), Shuffle().pick(deployments, again)) for _ in range(50)]
    assert all(one is other for one, other in picks)


# --- teams


def test_a_team_has_names_of_its_own() -> None:
    table = Deployments(
        [deployment("gpt"), deployment("internal", team="red", team_model_name="gpt"), deployment("other", team="red")]
    )
    assert [found.model_name for found in table.serving("gpt", "red")] == ["internal"]
    assert [found.model_name for found in table.serving("gpt", "blue")] == ["gpt"]
    assert [found.model_name for found in table.serving("gpt")] == ["gpt"]
    assert table.names("red") == ["gpt", "internal", "other"]
    assert table.names("blue") == table.names("") == ["gpt"]
    assert table.names() == ["gpt", "internal", "other"]
