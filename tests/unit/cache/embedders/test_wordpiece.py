"""The cut into word pieces beside the reference tokenizer, on texts of all scripts."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianji_mw.cache.embedders._wordpiece import WordPieces

tokenizers = pytest.importorskip("tokenizers")

#: Characters that the reference treats by older tables of Unicode than Python's: later ones, and two that moved.
OLD = unicodedata.ucd_3_2_0
MOVED = "\u166d\u1734"
WORDS = [
    "don't",
    "HTTP/2",
    "naïve",
    "Ångström",
    "ΣΊΣΥΦΟΣ",
    "İstanbul",
    "straße",
    "你好",
    "東京タワー",
    "안녕",
    "привет",
    "🙂👍🏽",
]


@cache
def ours() -> WordPieces:
    return WordPieces()


@cache
def reference() -> Any:
    """The library's own parts, over the same vocabulary."""
    vocabulary = ours()._ids
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    made.enable_truncation(256)
    return made


def same(text: str) -> None:
    pieces, wanted = ours().cut(text, 256), reference().encode(text)
    assert pieces.ids == wanted.ids
    assert pieces.truncated == bool(wanted.overflowing)


def comparable(char: str) -> bool:
    return char not in MOVED and OLD.category(char) == unicodedata.category(char)


TEXT = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.text(st.characters(exclude_categories=["Cs"]).filter(comparable), max_size=30),
        st.text(st.characters(max_codepoint=127), max_size=30),
    ),
    max_size=60,
).map(" ".join)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_same_pieces_as_the_reference(text: str) -> None:
    same(text)


@pytest.mark.parametrize(
    "text",
    ["", " \t\r\n", "a" * 100, "a" * 101, "word " * 253, "word " * 254, "word " * 255, "a\x00b\ufffdc\u200bd",
     "x" * 5000, "$5.00 + tax = ~`^|", "..." * 90, "un\u0301affable", "\u2028line\u00a0end", "İI\u0307ß"],
)  # fmt: skip
def test_same_on_edges(text: str) -> None:
    same(text)


@pytest.mark.slow
def test_same_on_characters_of_every_kind() -> None:
    """All of them, but one in 31 of the large kinds: ideographs and the like, private use, unassigned."""
    chars = [chr(number) for number in range(0x110000) if not 0xD800 <= number < 0xE000]
    chosen = [c for c in chars if comparable(c) and (ord(c) % 31 == 0 or OLD.category(c) not in ("Lo", "Co", "Cn"))]
    texts = [f"a{char}b {char}" for char in chosen]
    assert len(texts) > 30_000
    for wanted, text in zip(reference().encode_batch(texts), texts, strict=True):
        assert ours().cut(text, 256).ids == wanted.ids, ascii(text)


def test_names_of_special_tokens_are_text() -> None:
    ids = ours().cut("[SEP] [MASK]", 256).ids
    assert ids.count(102) == 1
    assert 103 not in ids


def test_lone_surrogates_are_left_out() -> None:
    assert ours().cut("a\ud800b", 256) == ours().cut("ab", 256)


def test_long_texts_are_not_read_to_their_end() -> None:
    for text in ("x" * 10_000_000, " " * 10_000_000):
        pieces = ours().cut(text, 16)
        assert pieces.truncated
        assert len(pieces.ids) <= 16
