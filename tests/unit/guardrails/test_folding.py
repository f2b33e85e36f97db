"""Ways to write the same letters are folded into one, and the places stay known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.guardrails.folding import Folded, fold

#: Documented in docs/guardrails.md: all of these are seen through.
TRICKS = {
    "case": "KiLL tHem",
    "full width": "ｋｉｌｌ ｔｈｅｍ",
    "mathematical": "𝐤𝐢𝐥𝐥 𝓽𝓱𝓮𝓶",
    "circled": "ⓚⓘⓛⓛ ⓣⓗⓔⓜ",
    "small capitals": "ᴋɪʟʟ ᴛʜᴇᴍ",
    "accents": "kíłl thêm",
    "combining marks": "k̶i̶l̶l̶ t̷h̷e̷m̷",
    "zero width": "k\u200bi\u200cl\u2060l \ufeffthem",
    "soft hyphens": "ki\u00adll th\u00adem",
    "Cyrillic look-alikes": "kіll thеm",
    "Greek look-alikes": "kιll them",
    "blanks": "kill  \u00a0\n them",
    "variation selectors": "k\ufe0fill them",
    "tag characters": "".join(chr(0xE0000 + ord(c)) for c in "kill them"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks(trick: str) -> None:
    assert fold(TRICKS[trick]) == "kill them"


@pytest.mark.parametrize("trick", TRICKS)
def test_the_place_in_the_original_is_known(trick: str) -> None:
    text = "Well, " + TRICKS[trick] + " now"
    folded = Folded(text)
    at = folded.text.index("them")
    start, end = folded.span(at, at + 4)
    assert fold(text[start:end]) == "them"
    assert text[end:].strip("\u0336\u0337") == " now"


@pytest.mark.parametrize("text", ["Убить их", "σκότωσε", "हिंदी में", "日本語のテキスト", "العربية", "한국어", "Straße"])
def test_other_scripts_stay(text: str) -> None:
    assert len(fold(text)) >= len(text) - 1
    assert fold(fold(text)) == fold(text)


@given(st.text(max_size=60), st.text(max_size=20))
def test_every_place_lies_in_the_text(before: str, after: str) -> None:
    text = f"{before} kill {after}"
    folded = Folded(text)
    for at in range(len(folded.text)):
        start, end = folded.span(at, at + 1)
        assert 0 <= start < end <= len(text)


@given(st.text(alphabet=st.characters(max_codepoint=0x24F), max_size=60), st.text(max_size=20))
def test_a_word_is_found_where_it_stands(before: str, after: str) -> None:
    text = f"{before} kill {after}"
    folded = Folded(text)
    at = folded.text.rindex(" kill ", 0, len(fold(f"{before} kill ")) + 1) + 1
    start, end = folded.span(at, at + 4)
    assert text[start:end].rstrip("\ufeff") in ("kill", text) or text[start:end].startswith("kill")


@given(st.text(max_size=100))
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)
