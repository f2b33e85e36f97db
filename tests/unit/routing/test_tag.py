"""Tags: who stays."""

from __future__ import annotations

import time
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pickers import deployments
from tianji_mw.errors import SetupError
from tianji_mw.routing.base import Candidates
from tianji_mw.routing.tag import checked, tagged


def group(*tags: str, **regexes: str) -> Candidates:
    """`"a b"` is a deployment with two tags, and `id="regex"` one with a pattern."""
    by_tags = [{"id": text or "-", "tags": frozenset(text.split())} for text in tags]
    by_header = [{"id": name, "tag_regex": (regex,)} for name, regex in regexes.items()]
    return deployments(*by_tags, *by_header)


def left(found: Candidates, tags: str, *, match_any: bool = True, header: str = "") -> list[str]:
    return [one.id for one in tagged(found, frozenset(tags.split()), match_any=match_any, header=header)]


@pytest.mark.parametrize(
    ("tags", "match_any", "expected"),
    [
        ("", True, ["default", "default c"]),
        ("a", True, ["a", "a b"]),
        ("a b", True, ["a", "a b", "b"]),
        ("a b", False, ["a b"]),
        ("c", True, ["default c"]),
        ("x", True, ["default", "default c"]),
        ("a x", True, ["a", "a b"]),
        ("a x", False, ["default", "default c"]),
        ("!b a", True, ["a"]),
        ("!a", True, ["default", "default c"]),
        ("!default", True, []),
        ("!default x", True, []),
        ("&a", True, ["a", "a b"]),
        ("&a b", True, ["a b"]),
        ("&a x", True, []),
        ("&a !b", True, ["a"]),
        ("&x", True, []),
        ("! &", True, ["default", "default c"]),
    ],
)
def test_tags(tags: str, match_any: bool, expected: list[str]) -> None:
    assert left(group("", "default", "a", "a b", "b", "default c"), tags, match_any=match_any) == expected


@pytest.mark.parametrize(
    ("tags", "expected"), [("", ["-", "a", "b"]), ("x", []), ("!a", ["-", "b"]), ("a", ["a"]), ("!x", ["-", "a", "b"])]
)
def test_without_a_default(tags: str, expected: list[str]) -> None:
    assert left(group("", "a", "b"), tags) == expected


def test_headers_count_like_tags() -> None:
    found = group("a", "default", bot="^User-Agent: mybot")
    assert left(found, "", header="User-Agent: mybot/1.0") == ["bot"]
    assert left(found, "a", header="User-Agent: mybot/1.0") == ["a", "bot"]
    assert left(found, "a", header="User-Agent: other") == ["a"]
    assert left(found, "", header="User-Agent: other") == left(found, "") == ["default"]


def test_a_header_is_no_way_around_tags_that_are_all_demanded() -> None:
    found = deployments({"id": "both", "tags": frozenset({"a"}), "tag_regex": ("bot",)})
    assert left(found, "x", match_any=True, header="User-Agent: bot") == ["both"]
    assert left(found, "x", match_any=False, header="User-Agent: bot") == []


def test_patterns_are_linear_and_any_header_is_taken() -> None:
    found = group("default", evil="(a+)+$")
    begun = time.monotonic()
    assert left(found, "", header="User-Agent: " + "a" * 100_000 + "!") == ["evil"]  # cut behind 1,000 characters
    assert left(found, "", header="User-Agent: " + "a" * 900 + "!") == ["default"]
    assert time.monotonic() - begun < 1
    assert left(found, "", header="\ud800ä") == ["default"]


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", r"(a)\1", "\ud800"])
def test_a_wrong_pattern_stops_the_start(pattern: str) -> None:
    with pytest.raises(SetupError, match="tag_regex"):
        checked(pattern)


NAMES = st.sampled_from(["a", "b", "c", "default"])
WISHES = st.frozensets(st.tuples(st.sampled_from(["", "!", "&"]), NAMES).map("".join), max_size=4)


@given(st.lists(st.frozensets(NAMES), min_size=1, max_size=6), WISHES, st.booleans())
def test_exclusions_and_demands_always_hold(
    tags: list[frozenset[str]], wishes: frozenset[str], match_any: bool
) -> None:
    found = deployments(*[{"tags": own} for own in tags])
    stay = tagged(found, wishes, match_any=match_any)
    never = {wish[1:] for wish in wishes if wish[0] == "!"}
    must = {wish[1:] for wish in wishes if wish[0] == "&"}
    assert not never & set(chain.from_iterable(one.tags for one in stay))
    assert all(must <= one.tags for one in stay)
    assert [one for one in found if one in stay] == list(stay)
    assert stay or wishes
