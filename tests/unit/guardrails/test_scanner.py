"""One pass finds the words of all checks, and no word inside another."""

from __future__ import annotations

import pytest

from tianji_mw.guardrails.scanner import Scanner
from tianji_mw.runtime import Runtime


def found(scanner: Scanner, owner: object, text: str) -> list[tuple[str, object]]:
    scanned = scanner.scan(text)
    return [(scanned.original[slice(*scanned.span(hit.start, hit.end))], hit.what) for hit in scanned.of(owner)]


@pytest.mark.parametrize(
    ("word", "text", "seen"),
    [
        ("kill", "I will KILL you", ["KILL"]),
        ("kill", "my skills, killer", []),
        ("kill*", "killing skills", ["kill"]),
        ("*kill", "overkill, killer", ["kill"]),
        ("*kill*", "skilled", ["kill"]),
        ("ignore all rules", "Ignore\nall   rules!", ["Ignore\nall   rules"]),
        ("杀", "我要杀了你", ["杀"]),
        ("c++", "c++11 and C++", ["c++", "C++"]),
        ("é", "caf\u0065\u0301 é", ["é"]),
    ],
)
def test_words(word: str, text: str, seen: list[str]) -> None:
    scanner = Scanner()
    scanner.add("me", {word: 1})
    assert [piece for piece, _ in found(scanner, "me", text)] == seen


def test_owners_share_the_pass_and_see_their_own_words() -> None:
    scanner = Scanner()
    scanner.add("one", {"knife": "a", "bread": "b"})
    scanner.add("other", {"knife": "c"})
    assert found(scanner, "one", "bread knife") == [("bread", "b"), ("knife", "a")]
    assert found(scanner, "other", "bread knife") == [("knife", "c")]
    scanner.forget("one")
    assert found(scanner, "one", "bread knife") == []
    assert found(scanner, "other", "bread knife") == [("knife", "c")]


def test_nothing_to_look_for() -> None:
    scanner = Scanner()
    scanner.add("me", {})
    assert scanner.scan("text").hits == {}


async def test_one_for_each_process() -> None:
    async with Runtime() as runtime:
        assert await Scanner.of(runtime) is await Scanner.of(runtime)
