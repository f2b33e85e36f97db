"""One pass over a text for all built-in checks: it is folded once, and one automaton finds the words of all of them.

A check adds its words in `start()` and asks `scan` about texts; the first check that asks about a text of a call pays
for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tianji_mw.call import Call
from tianji_mw.errors import SetupError
from tianji_mw.guardrails.folding import Folded, fold
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import ahocorasick

#: Scripts that put no blanks between words: there a word is found wherever it stands.
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_REMEMBERED: Final = 256


class Hit(NamedTuple):
    """A word in the folded text, and what its owner said about it."""

    start: int
    end: int
    what: Any


class Scanned(Folded):
    """A folded text, and the words of each owner in it, in the order of their ends."""

    __slots__ = ("hits",)

    def __init__(self, original: str) -> None:
        super().__init__(original)
        self.hits: dict[object, list[Hit]] = {}

    def of(self, owner: object) -> list[Hit]:
        """The words of this owner."""
        return self.hits.get(owner, [])


class _Texts(dict[str, Scanned]):
    """Texts of one call that were scanned."""


class _Word(NamedTuple):
    owner: object
    what: Any
    length: int
    #: Whether other letters may stand before and behind it.
    open_left: bool
    open_right: bool


class Scanner:
    """The automaton (Aho and Corasick, 1975) of one process; `Scanner.of(runtime)` gives it."""

    def __init__(self) -> None:
        try:
            import ahocorasick
        except ImportError:
            raise SetupError('this guardrail needs a package; pip install "tianji-mw[guardrails]"') from None
        self._automaton: ahocorasick.Automaton = ahocorasick.Automaton()

    @classmethod
    async def of(cls, runtime: Runtime) -> Scanner:
        """The one of this process. Raises SetupError when the package is missing."""

        async def made() -> Scanner:
            return cls()

        async def closed(_: Scanner) -> None:
            pass

        return await runtime.shared(cls, made, closed)

    def add(self, owner: object, words: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Words or phrases to look for, and what to say about each. They are folded here.

        Words stand alone; a `*` before or behind one lets letters stand there. Of scripts without blanks, all do.
        """
        for word, what in words.items() if isinstance(words, Mapping) else words:
            bare = fold(word.strip("*")).strip(" ")
            if not bare:
                continue
            left = word.startswith("*") or bool(_UNSPACED.match(bare[0])) or not bare[0].isalnum()
            right = word.endswith("*") or bool(_UNSPACED.match(bare[-1])) or not bare[-1].isalnum()
            known: tuple[_Word, ...] = self._automaton.get(bare, ())
            self._automaton.add_word(bare, (*known, _Word(owner, what, len(bare), left, right)))
        if len(self._automaton):
            self._automaton.make_automaton()

    def forget(self, owner: object) -> None:
        """Take the words of this owner out again."""
        for bare, words in list(self._automaton.items()):
            kept = tuple(word for word in words if word.owner is not owner)
            if not kept:
                self._automaton.remove_word(bare)
            elif kept != words:
                self._automaton.add_word(bare, kept)
        if len(self._automaton):
            self._automaton.make_automaton()

    def scan(self, text: str, call: Call | None = None) -> Scanned:
        """The words in a text. A text of a call is read once, however many checks ask about it."""
        if call is None:
            return self._scan(text)
        texts = call.note(_Texts)
        scanned = texts.get(text)
        if scanned is None:
            if len(texts) >= _REMEMBERED:
                texts.clear()
            scanned = texts[text] = self._scan(text)
        return scanned

    def _scan(self, text: str) -> Scanned:
        scanned = Scanned(text)
        folded, hits = scanned.text, scanned.hits
        if not len(self._automaton):
            return scanned
        size = len(folded)
        for last, words in self._automaton.iter(folded):
            end = last + 1
            for word in words:
                start = end - word.length
                if not word.open_right and end < size and folded[end].isalnum():
                    continue
                if not word.open_left and start and folded[start - 1].isalnum():
                    continue
                hits.setdefault(word.owner, []).append(Hit(start, end, word.what))
        return scanned
