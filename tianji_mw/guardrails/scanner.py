"""One pass over a text for all built-in checks: it is folded once, and one automaton finds the words of all of them.

A check adds its words in `start()` and asks `scan` about texts; the first check that asks about a text of a call pays
for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from unicodedata import category

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


_NOTHING: Final[tuple[bool, tuple[_Word, ...]]] = (False, ())


class Scanner:
    """The automaton (Aho and Corasick, 1975) of one process; `Scanner.of(runtime)` gives it."""

    def __init__(self) -> None:
        try:
            import ahocorasick
        except ImportError:
            raise SetupError('this guardrail needs a package; pip install "tianji-mw[guardrails]"') from None
        #: Of the bytes of UTF-8, each as a character: with letters of all scripts it would be ten times as slow.
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
        self.add_all({owner: words})

    def add_all(self, words_of: Mapping[Any, Mapping[str, Any] | Iterable[tuple[str, Any]]]) -> None:
        """`add` for several owners at once."""
        for owner, words in words_of.items():
            for word, what in words.items() if isinstance(words, Mapping) else words:
                bare = fold(word.strip("*")).strip(" ")
                if bare:
                    left = word.startswith("*") or not _bound(bare[0])
                    right = word.endswith("*") or not _bound(bare[-1])
                    self._put(_key(bare), _Word(owner, what, len(bare), left, right))
        self._ready()

    def _put(self, key: str, *words: _Word) -> None:
        any_open, known = self._automaton.get(key, _NOTHING)
        self._automaton.add_word(key, (any_open or any(word.open_right for word in words), (*known, *words)))

    def forget(self, owner: object) -> None:
        """Take the words of this owner out again."""
        for key, (_, words) in list(self._automaton.items()):
            kept = tuple(word for word in words if word.owner is not owner)
            if len(kept) < len(words):
                self._automaton.remove_word(key)
                if kept:
                    self._put(key, *kept)
        self._ready()

    def _ready(self) -> None:
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
        scanned.hits = self.hits(scanned.text)
        return scanned

    def hits(self, folded: str, start: int = 0, end: int | None = None) -> dict[object, list[Hit]]:
        """The words between two places of a text that is folded already, by owner."""
        hits: dict[object, list[Hit]] = {}
        if not len(self._automaton):
            return hits
        size = len(folded)
        end = size if end is None else end
        piece = folded if not start and end == size else folded[start:end]
        for behind, free, words in self._plain(piece) if piece.isascii() else self._wide(piece):
            behind += start
            if behind == end:  # what comes is not in the piece
                free = end == size or not _letter(folded[end])
            for owner, what, length, open_left, open_right in words:
                first = behind - length
                if (free or open_right) and (open_left or not first or not _letter(folded[first - 1])):
                    if owner in hits:
                        hits[owner].append(Hit(first, behind, what))
                    else:
                        hits[owner] = [Hit(first, behind, what)]
        return hits

    def _plain(self, piece: str) -> Iterator[tuple[int, bool, tuple[_Word, ...]]]:
        """Where words end, whether no letter follows, and which they are. Without those that would be none."""
        size = len(piece)
        for last, (any_open, words) in self._automaton.iter(piece):
            behind = last + 1
            free = behind == size or not piece[behind].isalnum()
            if free or any_open:
                yield behind, free, words

    def _wide(self, piece: str) -> Iterator[tuple[int, bool, tuple[_Word, ...]]]:
        """`_plain` for texts that are not ASCII."""
        data = _bytes(piece)
        read = data.decode("latin-1")
        size, byte, behind = len(read), 0, 0
        for last, (any_open, words) in self._automaton.iter(read):
            at = last + 1
            if at < size and not any_open and read[at] < "\x80" and read[at].isalnum():
                continue
            if at > byte:
                behind += len(data[byte:at].decode("utf-8", "surrogatepass"))
                byte = at
            free = at == size or not _letter(piece[behind])
            if free or any_open:
                yield behind, free, words


def _letter(char: str) -> bool:
    """Letters, digits, and the marks that are vowels in the scripts of India."""
    return char.isalnum() or (char > "\u02ff" and category(char)[0] == "M")


def _bound(char: str) -> bool:
    """Whether a word that begins or ends so has to stand alone there."""
    return char.isalnum() and (char.isascii() or not _UNSPACED.match(char))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _key(bare: str) -> str:
    return bare if bare.isascii() else _bytes(bare).decode("latin-1")
