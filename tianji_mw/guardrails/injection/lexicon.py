"""The words of attacks by what they mean, and the rules over meanings: data files, read when a guardrail starts."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from importlib import resources
from typing import Any, Final, NamedTuple

import yaml

#: Words that are worth a look in disguise: turned by 13 letters, written backwards, or with digits for letters.
_DISGUISED: Final = {
    "ignore": "override", "disregard": "override", "forget": "override", "bypass": "override",
    "instructions": "instructions", "guidelines": "instructions", "previous": "previous",
    "system prompt": "system_prompt", "reveal": "reveal", "password": "secret", "unrestricted": "unbound",
    "jailbreak": "unbound",
}  # fmt: skip
_LEET: Final = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7"}
_MOST_LEET: Final = 96


class Rule(NamedTuple):
    """Meanings that stand close together."""

    name: str
    category: str
    #: Indices of meanings.
    needs: tuple[int, ...]
    #: In how many characters of the folded text all of them stand.
    within: int
    #: What a match is worth by itself: in what a user wrote, and in what a tool brought.
    floor: float
    document_floor: float


class Lexicon(NamedTuple):
    """Meanings, their words, and the rules."""

    meanings: tuple[str, ...]
    words: tuple[tuple[str, int], ...]
    rules: tuple[Rule, ...]


def load(name: str) -> Any:
    """A data file of this package."""
    return yaml.load(resources.files(__package__).joinpath(name).read_text("utf-8"), _Loader)  # noqa: S506


_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def lexicon() -> Lexicon:
    """The built-in one."""
    by_meaning: dict[str, dict[str, str]] = load("lexicon.yaml")
    meanings = (*by_meaning, "disguised")
    index = {name: at for at, name in enumerate(meanings)}
    words = dict.fromkeys(
        (word.replace("¦", "|"), index[name])
        for name, by_language in by_meaning.items()
        for line in by_language.values()
        for word in line.split("|")
        if word.strip(" *")
    )
    for bare, name in _DISGUISED.items():
        for word in disguises(bare):
            words[word, index[name]] = words[word, index["disguised"]] = None
    rules = tuple(
        Rule(
            name, one["category"], tuple(index[need] for need in one["needs"]), one["within"],
            one.get("floor", 0.0), one.get("document_floor", one.get("floor", 0.0)),
        )
        for name, one in load("rules.yaml").items()
    )  # fmt: skip
    return Lexicon(meanings, tuple(words), rules)


def disguises(word: str) -> Iterator[str]:
    """Other spellings of a word, that text in no language has."""
    yield codecs.encode(word, "rot13")
    yield word[::-1]
    choices = [char + _LEET.get(char, "") for char in word]
    for spelling in itertools.islice(itertools.product(*choices), _MOST_LEET):
        leet = "".join(spelling)
        if leet != word:
            yield leet
