"""Cuts texts into the word pieces of uncased BERT, as all-MiniLM was trained: ids for the model.

Plain Python: at most 256 pieces are wanted, which takes a small part of the model's own time, and the usual library
brings a client for downloads along. The names of special tokens in a text are text like any other.

Source: Devlin and others, "BERT" (arXiv 1810.04805); Wu and others, "Google's Neural Machine Translation System"
(arXiv 1609.08144), section 4.1, for the greedy cut.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Final, NamedTuple

_UNKNOWN: Final = 100
_BEGIN: Final = 101
_END: Final = 102
_LONGEST_WORD: Final = 100
#: Characters read for each wanted token: no ordinary text has fewer tokens than this.
_CHARS_PER_TOKEN: Final = 64
#: The ranges of CJK ideographs, each a word of its own. The seventh begins where the reference tokenizer has it.
_IDEOGRAPHS: Final = re.compile(
    "([\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f])"
)


class Pieces(NamedTuple):
    """Ids with the marks of begin and end; `truncated` where the text went on."""

    ids: list[int]
    truncated: bool


class WordPieces:
    """The vocabulary, and the cut by it.

    >>> WordPieces().cut("Héllo, world", 256).ids
    [101, 7592, 1010, 2088, 102]
    """

    def __init__(self) -> None:
        packed = files("tianji_mw.cache.embedders").joinpath("_bert_uncased/vocab.txt.gz").read_bytes()
        words = gzip.decompress(packed).decode("utf-8").rstrip("\n").split("\n")
        self._ids = {word: number for number, word in enumerate(words)}

    def cut(self, text: str, most: int) -> Pieces:
        """At most `most` ids (at least 3). Very long texts are not read to their end."""
        read = text[: most * _CHARS_PER_TOKEN]
        ids = [_BEGIN]
        for word in _words(read):
            ids += self._of_word(word)
            if len(ids) >= most:
                break
        cut_off = len(ids) > most - 1
        return Pieces([*ids[: most - 1], _END], cut_off or len(read) < len(text))

    def _of_word(self, word: str) -> list[int]:
        """The longest known beginning, then the longest that continues it, and so on; else unknown as a whole."""
        known = self._ids.get(word)
        if known is not None:
            return [known] if len(word) <= _LONGEST_WORD else [_UNKNOWN]
        if len(word) > _LONGEST_WORD:
            return [_UNKNOWN]
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._ids.get(word[start:end] if start == 0 else "##" + word[start:end])
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                return [_UNKNOWN]
        return found


def _words(text: str) -> Iterator[str]:
    """Words and single punctuation marks, in lower case and without accents."""
    if not text.isascii():
        text = "".join(map(_cleaned, text))
        text = _IDEOGRAPHS.sub(r" \1 ", text)
        text = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
        # A sigma at the end of a word has a form of its own in `lower`, which the model has never seen.
        text = text.replace("Σ", "σ").lower()
    else:
        text = "".join(map(_cleaned, text)).lower()
    for part in text.split():
        start = 0
        for place, char in enumerate(part):
            if _is_mark(char):
                if start < place:
                    yield part[start:place]
                yield char
                start = place + 1
        if start < len(part):
            yield part[start:]


@lru_cache(maxsize=4096)
def _cleaned(char: str) -> str:
    """The character; a space for every kind of white space; nothing for what has no shape."""
    if char in "\t\n\r":
        return " "
    if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return " " if char.isspace() else char


@lru_cache(maxsize=4096)
def _is_mark(char: str) -> bool:
    """Punctuation, in BERT's meaning: also the symbols of ASCII, such as `+` and `$`."""
    return (char.isascii() and char.isprintable() and not char.isalnum() and char != " ") or (
        unicodedata.category(char)[0] == "P"
    )
