"""Finds personal data that has a form: mail addresses, phone and card numbers, accounts, ids. Linear time, no I/O.

Numbers are believed when their check digits are right; those with one check digit or none, which a tenth of all
numbers would pass, only near a word that announces them. Names of entities are Presidio's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from tianji_mw.guardrails import entity_checks as checks
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.entity_ids import LETTERED, NUMBERS, Id

_LOCAL: Final = re.compile(r"[\w.+%&'/=~!#$*?^{|}-]{1,64}")
_DOMAIN: Final = re.compile(r"(?:[^\W_](?:[\w-]{0,62})\.){1,8}(?:xn--[\w-]{2,40}|[^\W\d_]{2,24})(?![\w-])")
# Patterns begin with a set of characters, and look behind after it: `re` finds the first of a set many times faster.
_URL: Final = re.compile(r"(?:(?:https?|ftp)://|www\.)[^\s<>\"'`|\\^{}\[\]]{3,400}")
_HOST: Final = re.compile(
    r"[A-Za-z0-9](?<![\w@./:-][A-Za-z0-9])[\w-]{1,62}\.(?:com|org|net|edu|gov|io|info|biz|co\.[a-z]{2})"
    r"(?:/[^\s<>\"'`]{0,200})?(?![\w-])"
)
_IPV4: Final = re.compile(r"\d(?<![\w.:-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_COLONS: Final = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6: Final = re.compile(
    r"(?<![\w:.-])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,32}(?:\.\d{1,3}){0,3}(?![\w:]|\.\d)"
)
_HYPHENS: Final = re.compile(r"-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-")
_MAC: Final = re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])")
_IBAN: Final = re.compile(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z]\d\d(?:[ -]?[A-Z0-9]){11,30}")
_SMALL_IBAN: Final = re.compile(r"(?<![A-Za-z0-9])[a-z]{2}\d\d[a-z0-9]{11,30}")
_LONG: Final = re.compile(r"\d\d[a-z0-9]{11}")
_BASE58: Final = re.compile(r"[13](?<![^\W_][13])[1-9A-HJ-NP-Za-km-z]{25,34}(?![^\W_])")
_BECH32: Final = re.compile(r"(?<![^\W_])bc1[02-9ac-hj-np-z]{39,59}(?![^\W_])")
_ETHER: Final = re.compile(r"(?<![^\W_])0x[0-9a-fA-F]{40}(?![^\W_])")
#: A run that may hold numbers; what follows is tried at each of their beginnings.
_RUN: Final = re.compile(r"[+(\d](?<![\w$€£#][+(\d])[+(]?\d?[\d ().\-]{5,40}(?!\w)")
_GROUP: Final = re.compile(r"\d+")
_START: Final = re.compile(r"(?<![\d.])[+(]{0,2}\d")
_CARD: Final = re.compile(
    r"\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}(?!\d)|\d{4}([ -])\d{6}\2\d{4,5}(?!\d)|\d{12,19}(?![\d])(?!\.\d)"
)
_SSN: Final = re.compile(r"\d{3}([- ])\d\d\1\d{4}(?![\d-])")
_PHONE: Final = re.compile(
    r"\+\d[\d ().-]{6,20}\d(?!\d)"
    r"|00[1-9]\d{0,2}[ -]\(?\d[\d ().-]{5,16}\d(?!\d)"
    r"|(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-. ]\d{4}(?![\d-])"
    r"|\(0?\d{2,4}\) ?\d{3,4}[- ]\d{3,4}(?![\d-])"
)
_LOCAL_PHONE: Final = re.compile(r"\(?\d[\d ().-]{5,18}\d(?!\d)")
_PHONE_WORDS: Final = (
    "phone", "tel", "mobile", "cell", "call", "text", "fax", "whatsapp", "contact", "dial", "ring", "handy", "móvil",
    "cep", "gsm", "numéro", "rufnummer", "电话", "手机", "電話",
)  # fmt: skip
_PHONE_BEFORE: Final = re.compile(rf"(?:phone|(?<![^\W\d_])(?:{'|'.join(_PHONE_WORDS)}))[^\d\n]{{0,24}}\s{{0,3}}$")
_PHONE_BEHIND: Final = re.compile(r"\s{0,2}\(?(?:office|fax|mobile|cell|home|work|tel)")
#: Stands before the middle of a longer number.
_MIDDLE: Final = re.compile(r"\d[ -]")
_DATE: Final = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d\d-\d\d")
_LICENSE: Final = re.compile(
    r"driv(?:er|ing)(?:'?s|s'|’s)?\s{1,2}licen[cs]e(?:\s{1,2}(?:number|no\.?|id|#))?\s{0,2}(?:is\s|:|#|=)?\s{0,2}"
)
_LICENSE_ID: Final = re.compile(r"(?=[A-Za-z]{0,5}-?\d)[A-Za-z\d](?:-?[A-Za-z\d]){5,18}(?![\w-])")


_BY_LABEL: Final = {one.label: one for one in LETTERED}
_LETTERS: Final = re.compile("|".join(f"(?P<{one.label}>{one.form.pattern})" for one in LETTERED))
_CAPITALS: Final = re.compile(r"[A-Z0-9](?<![\w-][A-Z0-9])(?=[A-Z0-9-]{2}[A-Z0-9 -]{5})")
_ALONE: Final = tuple(one for one in NUMBERS if one.context is None)
#: Words that announce one of the other numbers.
_CONTEXT: Final = tuple(
    {word.replace(r"\b", "") for one in NUMBERS if one.context for word in one.context.pattern.split("|")}
)

#: Every entity that can be found. A URL is seldom personal, so it has to be asked for.
KINDS: Final = tuple(
    dict.fromkeys(
        ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "US_ITIN", "US_DRIVER_LICENSE")
        + ("IP_ADDRESS", "MAC_ADDRESS", "CRYPTO", "URL", *(one.label for one in (*NUMBERS, *LETTERED)))
    )
)


def find(text: str, kinds: frozenset[str] = frozenset(KINDS) - {"URL"}) -> list[Span]:
    """Entities of these kinds, in their order; two that overlap are joined, under the label of the first."""
    lower = text.lower()
    if len(lower) != len(text):
        # The one letter whose small form is longer.
        lower = text.replace("\u0130", "i").lower()
    spans = [span for span in _all(text, lower, urls="URL" in kinds) if span.label in kinds]
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
        elif span.end > kept[-1].end:
            kept[-1] = kept[-1]._replace(end=span.end)
    return kept


def _all(text: str, lower: str, *, urls: bool) -> Iterator[Span]:
    yield from _mails(text)
    if urls and "." in text:
        yield from _urls(text)
    yield from _addresses(text)
    yield from _accounts(text, lower)
    for start in _CAPITALS.finditer(text):
        found = _LETTERS.match(text, start.start())
        if found:
            one = _BY_LABEL[found.lastgroup or ""]
            if _announced(one, lower, found.start()) and one.right(re.sub("[ -]", "", found[0])):
                yield Span(found.start(), found.end(), one.label)
    for run in _RUN.finditer(text):
        yield from _numbers(text, lower, run.start(), run.end())


def _urls(text: str) -> Iterator[Span]:
    found: re.Match[str]
    for found in (*_URL.finditer(text), *_HOST.finditer(text)):
        yield Span(found.start(), found.start() + len(found[0].rstrip(".,;:!?)*")), "URL")


def _mails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at > 0:
        local = _LOCAL.match(text[max(0, at - 64) : at][::-1])
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and local[0] != "tig":
            name = local[0].rstrip(".'/=|{")
            if name:
                yield Span(at - len(name), domain.end(), "EMAIL_ADDRESS")
        at = text.find("@", at + 1)


def _addresses(text: str) -> Iterator[Span]:
    for found in _IPV4.finditer(text):
        is_version = text[max(0, found.start() - 8) : found.start()].lower().endswith(("version ", "v"))
        if not is_version and all(int(part) < 256 for part in found[0].split(".")):
            yield Span(found.start(), found.end(), "IP_ADDRESS")
    colons = _COLONS.search(text)
    if colons:
        for found in _IPV6.finditer(text):
            # Slices and scopes in code look like it.
            sure = len(found[0]) > 5 or (found[0] == "::1" and not text.endswith("[", 0, found.start()))
            if sure and _is_ipv6(found[0]):
                yield Span(found.start(), found.end(), "IP_ADDRESS")
    if colons or _HYPHENS.search(text):
        for found in _MAC.finditer(text):
            yield Span(found.start(), found.end(), "MAC_ADDRESS")


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return any(char.isdigit() for char in text)


def _accounts(text: str, lower: str) -> Iterator[Span]:
    small = _SMALL_IBAN.finditer(text) if _LONG.search(text) else ()
    for found in (*_IBAN.finditer(text), *small):
        length = checks.IBAN_LENGTHS.get(found[0][:2].upper(), 99)
        places = [i for i, char in enumerate(found[0]) if char.isalnum()][:length]
        end = found.start() + places[-1] + 1
        whole = "".join(found[0][i] for i in places)
        if len(places) == length and not text[end : end + 1].isalnum() and checks.iban(whole):
            yield Span(found.start(), end, "IBAN_CODE")
    for found in (*_BASE58.finditer(text), *(_BECH32.finditer(text) if "bc1" in text else ())):
        if checks.bitcoin(found[0]):
            yield Span(found.start(), found.end(), "CRYPTO")
    for found in _ETHER.finditer(text) if "0x" in text else ():
        yield Span(found.start(), found.end(), "CRYPTO")
    for found in _LICENSE.finditer(lower) if "licen" in lower else ():
        number = _LICENSE_ID.match(text, found.end())
        if number:
            yield Span(number.start(), number.end(), "US_DRIVER_LICENSE")


def _announced(one: Id, lower: str, start: int) -> bool:
    return one.context is None or one.context.search(lower, max(0, start - 48), start) is not None


def _numbers(text: str, lower: str, begin: int, end: int) -> Iterator[Span]:
    """The entities in a run of digits and what stands between digits in numbers."""
    digits = sum(map(str.isdigit, text[begin:end]))
    # Rows of single digits are no ids, and would be tried at each of them.
    if digits < 7 or digits < 2 * sum(1 for _ in _GROUP.finditer(text, begin, end)):
        return
    near = lower[max(0, begin - 48) : end]
    ids = () if digits < 9 else NUMBERS if any(word in near for word in _CONTEXT) else _ALONE
    at, named = begin, any(word in near for word in _PHONE_WORDS)
    while (start := _START.search(text, at, end)) is not None:
        span = _id_at(text, lower, start.start(), ids) or _account_at(text, start.start(), digits)
        span = span or _phone_at(text, lower, start.start(), named=named)
        if span is not None:
            yield span
            at = span.end
        else:
            group = _GROUP.match(text, start.end() - 1)
            at = group.end() if group else start.end()


def _id_at(text: str, lower: str, start: int, ids: tuple[Id, ...]) -> Span | None:
    for one in ids:
        found = one.form.match(text, start)
        if found and _announced(one, lower, start) and one.right(re.sub(r"\D", "", found[0])):
            return Span(start, found.end(), one.label)
    return None


def _account_at(text: str, start: int, digits: int) -> Span | None:
    if digits >= 12 and (found := _CARD.match(text, start)) and checks.card(re.sub(r"\D", "", found[0])):
        return Span(start, found.end(), "CREDIT_CARD")
    if digits >= 9 and (found := _SSN.match(text, start)):
        number = re.sub(r"\D", "", found[0])
        label = "US_SSN" if checks.ssn(number) else "US_ITIN" if checks.itin(number) else ""
        return Span(start, found.end(), label) if label else None
    return None


def _phone_at(text: str, lower: str, start: int, *, named: bool) -> Span | None:
    """`named`: a word for phones is near; whether it stands where it has to is seen here."""
    found = _PHONE.match(text, start)
    if found and text[start] != "+" and (_MIDDLE.search(text, max(0, start - 2), start) or _SSN.match(text, start)):
        found = None
    if found is None:
        found = _LOCAL_PHONE.match(text, start)
        if found is None or _DATE.fullmatch(found[0]):
            return None
        called = named and _PHONE_BEFORE.search(lower, max(0, start - 40), start)
        if not called and not _PHONE_BEHIND.match(lower, found.end()):
            return None
    is_number = 7 <= sum(map(str.isdigit, found[0])) <= 15
    return Span(start, found.end(), "PHONE_NUMBER") if is_number else None
