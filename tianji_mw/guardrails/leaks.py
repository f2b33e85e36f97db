"""Finds keys, tokens and passwords in a text, in linear time. Pure, no I/O.

Three signs count: a vendor's format (`leak_formats.py`), a place where only a secret can stand (a private key block, a
URL with a password, an Authorization header), and a value that looks random and is assigned to a name such as
`api_key`. Ids, digests and placeholders look like secrets and are none; most of what is here keeps them out.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from math import log2
from typing import Final

from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.leak_formats import BY_PREFIX, PREFIX

#: Formats that no literal prefix announces. Each begins with a fixed mark or class, and is one run behind it.
_SHAPES: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?P<JWT>ey[A-Za-z0-9_-]{15,1000}\.ey[A-Za-z0-9_-]{15,2000}(?:\.[A-Za-z0-9_-]{0,1000})?(?![A-Za-z0-9_-]))"
    r"|(?P<DISCORD_TOKEN>[MNO][A-Za-z0-9_-]{23,25}\.[\w-]{6}\.[\w-]{27,38}(?![\w-]))"
    r"|(?P<TELEGRAM_TOKEN>\d{8,10}:A[\w-]{34}(?![\w-]))"
    r"|(?P<FACEBOOK_TOKEN>\d{15,16}(?:\||%7C)[\w-]{27,40}(?![\w-]))"
    r"|(?P<MAILCHIMP_KEY>[0-9a-f]{32}-us\d{1,2}(?![A-Za-z0-9_-]))"
    r"|(?P<TERRAFORM_TOKEN>[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,70}(?![\w-]))"
    r")",
    re.ASCII,
)
_AZURE: Final = re.compile(r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{31,34}(?![\w~-])", re.ASCII)
_MARK: Final = re.compile(r"-----(BEGIN|END) [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_BODY: Final = re.compile(r"[A-Za-z0-9+/]{20}")
#: How far a private key block may reach: an RSA key of 16384 bits.
_MOST_BLOCK: Final = 16_384
_URL: Final = re.compile(r"://([^\s/:@\"'<>]{0,80}):([^\s/@\"'<>]{3,200})@(?=[\w\[$])")
_CURL: Final = re.compile(r"(?<=\s)(?:-u|--user)[\s=]{1,3}[\"']?([^\s\"':]{0,64}):([^\s\"']{4,128})")
_HEADER: Final = re.compile(r"authorization[\"']?\s{0,2}[:=]\s{0,2}[\"']?(?:(basic|bearer|token|bot|apikey) {1,2})?")
_TOKEN: Final = re.compile(r"[^\s\"'<>\\`]{8,400}")
_AZURE_KEY: Final = re.compile(r"(?:accountkey|sharedaccesskey)=([a-z0-9+/]{40,88}={0,2})")
#: Names that hold secrets, to the sign of assignment.
_NAME: Final = re.compile(
    r"(?:pass(?:w(?:or)?d|wd|phrase)|pwd|secret|token|credential|key)"
    r"(?P<rest>[\w.-]{0,24})[\"'\]]{0,2}\)?(?::? (?:string|str|text))?\s{0,12}"
    r"(?:=>|\|\|:|\|\|=|\?=|::?=|==?|:|,(?=\s?[\"'])| is |>(?=[^<>\s]{8,200}</))\s{0,6}"
    r"(?:[a-z]{1,8}\s)?(?P<quote>[\"'`]?)"
)
#: What makes a key a secret one: a word, or any word and a joint. A digest may well be a cache's key, but no API's.
_KIND: Final = re.compile(
    r"(?P<sure>api|access|auth|private|encryption|signing|account|service|master|secret|app|license)[_. -]?$"
    r"|[a-z0-9][_-]$"
)
#: What makes a name none of a secret, before and behind the word.
_BEFORE: Final = (
    "next",
    "page",
    "csrf",
    "public_",
    "public-",
    "public",
    "primary_",
    "foreign_",
    "sort_",
    "cache_",
    "partition_",
    "websocket-",
    "websocket_",
)
_QUOTED: Final = re.compile(r"[^\s\"'`<>]{8,200}")
_BARE: Final = re.compile(r"[^\s\"'`<>,;&(){}\[\]]{8,200}")
_NO_SECRET: Final = re.compile(
    r"hash|sha\d|digest|checksum|integrity|fingerprint|version|commit|public|_id\b|id$|ids$|type|name|path|file|url|uri"
    r"|count|limit|length|size|expir|endpoint|max_|num_|kind|format|label"
)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12}")
_HEX: Final = re.compile(r"[0-9a-fA-F]+")
_DIGEST: Final = re.compile(r"(?:sha\d{1,3}|md5)[-:$]")
_REFERENCE: Final = re.compile(r"[$%]?[{(\[<$%]|.*(?:\$\{|\{\{|%\(|\$\()|\$[A-Z_]{3,}|%\w$")
#: A name in code, such as `settings.token2`.
_DOTTED: Final = re.compile(r"[A-Za-z_]\w{0,40}(?:\.[A-Za-z_]\w{0,60}){1,6}")
_FILLER: Final = re.compile(r"(.)\1{5}|[xX]{4}|\*{3}|\.\.|#{4}")
_WORDS: Final = re.compile(
    r"example|sample|placeholder|your|change[_-]?me|insert|replace|dummy|redacted|todo|foobar|password|secret|username"
    r"|not_|_here|here$|fake|localhost|none$|null|true|false|undefined"
)
_SERIES: Final = ("abcdefgh", "12345678", "01234567", "qwertyui")
_STRONG: Final = frozenset(
    ("AWS_KEY", "OPENAI_KEY", "ANTHROPIC_KEY", "ONEPASSWORD_TOKEN", "PYPI_TOKEN", "GRAFANA_TOKEN")
)


def find(text: str) -> list[Span]:
    """Secrets of the text, in their order; two that overlap are joined, under the label of the first."""
    lower = text.lower()
    if len(lower) != len(text):
        # The one letter whose small form is longer.
        lower = text.replace("\u0130", "i").lower()
    spans = [*_blocks(text), *_formats(text), *_shapes(text), *_places(text, lower), *_assigned(text, lower)]
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
        elif span.end > kept[-1].end:
            kept[-1] = kept[-1]._replace(end=span.end)
    return kept


def entropy(text: str) -> float:
    """Bits per character."""
    counts = [text.count(char) for char in set(text)]
    return -sum(count / len(text) * log2(count / len(text)) for count in counts)


def _blocks(text: str) -> Iterator[Span]:
    """Private key blocks; one without an end goes as far as the text, but no further than any key does."""
    if "PRIVATE KEY" not in text:
        return
    marks = list(_MARK.finditer(text))
    for at, mark in enumerate(marks):
        if mark[1] != "BEGIN":
            continue
        follower = marks[at + 1] if at + 1 < len(marks) else None
        limit = min(mark.end() + _MOST_BLOCK, follower.start() if follower else len(text))
        if _BODY.search(text, mark.end(), min(limit, mark.end() + 300)):
            ended = follower is not None and follower[1] == "END" and follower.start() == limit
            yield Span(mark.start(), follower.end() if ended and follower else limit, "PRIVATE_KEY")


def _formats(text: str) -> Iterator[Span]:
    for start in PREFIX.finditer(text):
        prefix = start[0]
        for length in range(len(prefix), 1, -1):
            for form in BY_PREFIX.get(prefix[:length], ()):
                found = form.tail.match(text, start.start() + length)
                if found and not _filled(found[0], random=form.label not in _STRONG):
                    yield Span(start.start(), found.end(), form.label)


def _shapes(text: str) -> Iterator[Span]:
    for found in _SHAPES.finditer(text):
        label = found.lastgroup or ""
        if _is_json(found[0].partition(".")[0]) if label == "JWT" else not _filled(found[0]):
            yield Span(found.start(), found.end(), label)
    if "Q~" in text:
        for found in _AZURE.finditer(text):
            if not _filled(found[0]):
                yield Span(found.start(), found.end(), "AZURE_SECRET")


def _places(text: str, lower: str) -> Iterator[Span]:
    """Passwords in URLs and in curl's user option, and what headers and connection strings hold."""
    if "://" in text:
        for found in _URL.finditer(text):
            if _is_password(found[2]):
                yield Span(found.start(2), found.end(2), "URL_PASSWORD")
    if "curl" in lower:
        for found in _CURL.finditer(text):
            if _is_password(found[2]):
                yield Span(found.start(2), found.end(2), "PASSWORD")
    yield from _headers(text, lower)


def _headers(text: str, lower: str) -> Iterator[Span]:
    if "authorization" in lower:
        for found in _HEADER.finditer(lower):
            token = _TOKEN.match(text, found.end())
            if token and (_is_basic(token[0]) if found[1] == "basic" else _is_random(token[0], 2.8)):
                yield Span(token.start(), token.end(), "AUTHORIZATION")
    if "accesskey=" in lower or "accountkey=" in lower:
        for found in _AZURE_KEY.finditer(lower):
            if not _filled(text[found.start(1) : found.end(1)]):
                yield Span(found.start(1), found.end(1), "AZURE_KEY")


def _assigned(text: str, lower: str) -> Iterator[Span]:
    """Values that look random, assigned to names of secrets."""
    for found in _NAME.finditer(lower):
        start = found.start()
        if _NO_SECRET.search(found["rest"]) or lower.endswith(_BEFORE, 0, start):
            continue
        kind = _KIND.search(lower, max(0, start - 16), start) if lower.startswith("key", start) else found
        value = (_QUOTED if found["quote"] else _BARE).match(text, found.end())
        if kind is None or value is None or _DOTTED.fullmatch(value[0]):
            continue
        if not found["quote"] and text.startswith("(", value.end()):
            continue
        if lower.startswith(("pass", "pwd"), start):
            if _is_password(value[0], strict=True):
                yield Span(value.start(), value.end(), "PASSWORD")
        elif _is_random(value[0], 3.0, hexadecimal=kind is found or bool(kind["sure"])):
            yield Span(value.start(), value.end(), "SECRET")


def _filled(value: str, *, random: bool = True) -> bool:
    """Whether somebody filled the value in by hand, as documentation does."""
    lower = value.lower()
    if len(set(value)) < min(8, len(value) // 2) or "your" in lower or "redacted" in lower or "placeholder" in lower:
        return True
    if len(value) < 40 and "example" in lower:
        return True
    return random and (_FILLER.search(value) is not None or any(series in lower for series in _SERIES))


def _is_reference(value: str) -> bool:
    return _REFERENCE.match(value) is not None or _WORDS.search(value.lower()) is not None or _filled(value)


def _is_random(value: str, bits: float, *, hexadecimal: bool = True) -> bool:
    """Whether a value is a token: letters and digits without the order of words; no id and no digest."""
    digits = sum(map(str.isdigit, value))
    if not digits or _UUID.search(value) or _DIGEST.match(value) or _is_reference(value):
        return False
    if _HEX.fullmatch(value):
        usual = hexadecimal and len(value) in (16, 32, 40, 48, 64)
        return usual and digits < len(value) and entropy(value) > 2.7
    mixed = value.lower() != value and value.upper() != value
    if not any(map(str.isalpha, value)) or (digits < 2 and not mixed):
        return False
    # Paths, URLs, dotted names and versions are made of short parts.
    longest = max(len(part) for part in re.split(r"[^A-Za-z0-9+=!@#$%^&*~]", value))
    return len(value) >= 10 and longest >= 8 and entropy(value) >= bits


def _is_password(value: str, *, strict: bool = False) -> bool:
    """Whether a value is a password: people mix letters with digits, as names in code rarely do."""
    if _UUID.search(value) or _is_reference(value) or value.startswith(("/", "./", "http")):
        return False
    digit, alpha = any(c.isdigit() for c in value), any(c.isalpha() for c in value)
    other = any(not c.isalnum() and c not in "_.-" for c in value)
    if not strict:
        return alpha and (digit or other)
    return alpha and digit and entropy(value) >= 2.5 and (other or value.lower() != value or len(value) >= 10)


def _is_basic(token: str) -> bool:
    """Whether it is `user:password` in Base64; a user alone may be a key."""
    try:
        user, colon, password = binascii.a2b_base64(token[: len(token) // 4 * 4]).partition(b":")
    except binascii.Error:
        return False
    return bool(colon) and password.lower() not in (b"password", b"pass", b"secret") and user.lower() != b"username"


def _is_json(part: str) -> bool:
    try:
        header = binascii.a2b_base64(part.replace("-", "+").replace("_", "/") + "=" * (-len(part) % 4)).strip()
    except binascii.Error:
        return False
    return header.startswith(b"{") and header.endswith(b"}")
