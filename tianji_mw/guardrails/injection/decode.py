"""What is written in code in a text: Base64, hexadecimal, binary, Morse, letters set apart, tags.

Each pass is linear and limited; what does not decode to readable text is left alone. Words turned by 13 letters,
written backwards or with digits for letters need no pass: the lexicon has them.
"""

from __future__ import annotations

import binascii
import re
import string
from collections.abc import Iterator
from typing import Final

#: Characters that are decoded of one text, all in all.
MOST: Final = 8_192
_MOST_RUN: Final = 4_096


def _classes(inside: str, between: str = "") -> bytes:
    """A table that makes `a` of some characters, a blank of others, and a point of the rest."""
    return bytes(97 if chr(code) in inside else 32 if chr(code) in between else 46 for code in range(256))


# Before a pattern reads a text, its characters are sorted into classes: all such codes have a certain run of them.
_BASE64_CLASS: Final = _classes(f"{string.ascii_letters}{string.digits}+/_-")
_HEX_CLASS: Final = _classes(string.hexdigits, " :,\\x%")
_HEX_RUNS: Final = (b"a" * 24, b"aa " * 6, b"aa  aa  aa  aa", b"aa a aa a aa")
_BINARY_CLASS: Final = _classes("01")
_APART_CLASS: Final = _classes(f"{string.ascii_letters}{string.digits}?", " ._*|-")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{24,4096}={0,2}")
_HEX: Final = re.compile(r"(?:\\x|%|0x)?[0-9A-Fa-f]{2}(?:(?:\\x|%|0x|[ :,])?[0-9A-Fa-f]{2}){11,2048}")
_BINARY: Final = re.compile(r"[01]{8}(?:[ ,]?[01]{8}){3,512}")
_MORSE: Final = re.compile(r"[.\-]{1,5}(?:[ /]{1,3}[.\-]{1,5}){9,800}")
_APART: Final = re.compile(r"(?<!\w)\w(?:[ ._*|-]{1,3}\w){4,400}(?!\w)")
_GAP: Final = re.compile(r"[ ._*|-]{2,3}")
_TAGGED: Final = re.compile("[\U000e0020-\U000e007e]{4,4096}")
_MORSE_SIGNS: Final = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."
    " ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----."
)
_MORSE_CODE: Final = dict(zip(_MORSE_SIGNS.split(), "abcdefghijklmnopqrstuvwxyz0123456789", strict=True))


def decoded(text: str) -> Iterator[tuple[str, str]]:
    """The kind of code, and what it says."""
    left = MOST
    for kind, said in _passes(text):
        said = said[:left]
        left -= len(said)
        if said:
            yield kind, said
        if left <= 0:
            return


def _passes(text: str) -> Iterator[tuple[str, str]]:
    raw = text.encode("latin-1", "replace")  # other characters become question marks
    if b"a" * 24 in raw.translate(_BASE64_CLASS):
        for found in _BASE64.finditer(text):
            yield from _if_readable("base64", _base64(found[0]))
    pairs = raw.translate(_HEX_CLASS)
    if any(run in pairs for run in _HEX_RUNS):
        for found in _HEX.finditer(text):
            digits = re.sub(r"\\x|%|0x|[ :,]", "", found[0])
            yield from _if_readable("hex", binascii.unhexlify(digits[: len(digits) // 2 * 2]))
    if b"a" * 8 in raw.translate(_BINARY_CLASS):
        for found in _BINARY.finditer(text):
            yield from _if_readable("binary", _binary(found[0]))
    if ".- " in text or "-. " in text:
        yield from (("morse", _morse(found[0])) for found in _MORSE.finditer(text))
    if b" a a a a" in raw.translate(_APART_CLASS):
        for found in _APART.finditer(text):
            yield "apart", " ".join(word[::2] for word in _GAP.split(found[0]))
    if not text.isascii():
        for found in _TAGGED.finditer(text):
            yield "tags", "".join(chr(ord(char) - 0xE0000) for char in found[0])


def _binary(run: str) -> bytes:
    bits = re.sub("[ ,]", "", run)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8))


def _morse(run: str) -> str:
    words = re.split(r" {0,3}/ {0,3}| {3}", run)
    return " ".join("".join(_MORSE_CODE.get(one, "") for one in word.split()) for word in words)


def _base64(run: str) -> bytes:
    # A path or a word is no code: code mixes cases, or holds digits.
    bare = run.rstrip("=")[:_MOST_RUN].replace("-", "+").replace("_", "/")
    if bare.islower() or bare.isupper() or bare.isdigit():
        return b""
    try:
        return binascii.a2b_base64(f"{bare}{'=' * (-len(bare) % 4)}" if len(bare) % 4 != 1 else bare[:-1])
    except binascii.Error:
        return b""


def _if_readable(kind: str, raw: bytes) -> Iterator[tuple[str, str]]:
    if len(raw) < 4:
        return
    said = raw.decode("utf-8", "ignore")
    letters = sum(char.isalpha() or char == " " for char in said)
    if said.isprintable() and len(said) * 10 >= len(raw) * 8 and letters * 10 >= len(said) * 7:
        yield kind, said
