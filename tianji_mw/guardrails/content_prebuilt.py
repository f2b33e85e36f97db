"""Prebuilt patterns of `content_filter` under LiteLLM's names: what `entities.py` and `leaks.py` find, and a few more.

Where an id has check digits they must be right; a form that any number could have counts only behind a word that
announces it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from tianji_mw.guardrails import entities, leaks
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.leak_formats import BY_PREFIX


class _Entity(NamedTuple):
    """Some of what `entities.py` calls `kind`."""

    kind: str
    right: Callable[[str], bool]


class _Form(NamedTuple):
    """A form of its own. With `context`, such a word stands before it, with no other number between."""

    form: re.Pattern[str]
    context: re.Pattern[str] | None = None
    right: Callable[[str], bool] = bool


def _digits(text: str) -> str:
    return "".join(char for char in text if char in "0123456789")


def _brand(form: str) -> Callable[[str], bool]:
    pattern = re.compile(form)
    return lambda text: pattern.fullmatch(_digits(text)) is not None


def _cnpj(text: str) -> bool:
    """Brazil, companies: two check digits."""
    digits = [int(char) for char in _digits(text)]
    for length in (12, 13):
        weights = [*range(length - 7, 1, -1), *range(9, 1, -1)]
        rest = sum(d * w for d, w in zip(digits, weights, strict=False)) % 11
        if digits[length] != (0 if rest < 2 else 11 - rest):
            return False
    return len(set(digits)) > 1


_ENTITIES: Final = {
    **{kind.lower(): _Entity(kind, bool) for kind in entities.KINDS},
    "email": _Entity("EMAIL_ADDRESS", bool),
    "us_ssn_no_dash": _Entity("US_SSN", str.isdigit),
    "us_phone": _Entity("PHONE_NUMBER", _brand(r"1?[2-9]\d{9}")),
    "fr_phone": _Entity("PHONE_NUMBER", _brand(r"(?:0|(?:00)?330?)[1-9]\d{8}")),
    "br_phone_landline": _Entity("PHONE_NUMBER", _brand(r"(?:(?:00)?55)?\d{8,10}")),
    "br_phone_mobile": _Entity("PHONE_NUMBER", _brand(r"(?:(?:00)?55)?(?:\d\d)?9\d{8}")),
    "visa": _Entity("CREDIT_CARD", _brand(r"4\d{12,18}")),
    "mastercard": _Entity("CREDIT_CARD", _brand(r"(?:5[1-5]|2[2-7])\d{14}")),
    "amex": _Entity("CREDIT_CARD", _brand(r"3[47]\d{13}")),
    "discover": _Entity("CREDIT_CARD", _brand(r"6(?:011|4[4-9]\d|5\d\d)\d{12}")),
    "iban": _Entity("IBAN_CODE", bool),
    "eu_iban_enhanced": _Entity("IBAN_CODE", bool),
    "ipv4": _Entity("IP_ADDRESS", lambda text: ":" not in text),
    "ipv6": _Entity("IP_ADDRESS", lambda text: ":" in text),
    "nl_bsn_contextual": _Entity("NL_BSN", bool),
    "br_cpf_unformatted": _Entity("BR_CPF", str.isdigit),
}
_SECRETS: Final = frozenset(form.label for forms in BY_PREFIX.values() for form in forms) | {
    "JWT", "PRIVATE_KEY", "SECRET", "PASSWORD", "URL_PASSWORD", "AUTHORIZATION", "AZURE_SECRET", "AZURE_KEY",
}  # fmt: skip
_LEAKS: Final = {
    **{label.lower(): frozenset({label}) for label in _SECRETS},
    "aws_access_key": frozenset({"AWS_KEY"}),
    "aws_secret_key": frozenset({"SECRET"}),
    "generic_api_key": frozenset({"SECRET", "LLM_KEY", "OPENAI_KEY", "ANTHROPIC_KEY", "GOOGLE_KEY"}),
}
_PASSPORT: Final = re.compile(
    r"pass(?:e?port|aporto|nummer|-nr)|paspoort|pasaporte|travel doc"
    r"|护照|護照|旅券|パスポート|पासपोर्ट"
)


def _passport(form: str) -> _Form:
    return _Form(re.compile(rf"(?<![\w-])(?:{form})(?![\w-])"), _PASSPORT)


_FORMS: Final = {
    "passport_us": _passport("[A-Z]?[0-9]{8,9}"),
    "passport_uk": _passport("[0-9]{9}"),
    "passport_germany": _passport("[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ0-9]{8}[0-9]?"),
    "passport_france": _passport("[0-9]{2}[A-Z]{2}[0-9]{5}"),
    "passport_netherlands": _passport("[A-NP-Z]{2}[A-NP-Z0-9]{6}[0-9]"),
    "passport_canada": _passport("[A-Z]{2}[0-9]{6}|[A-Z][0-9]{6}[A-Z]{2}"),
    "passport_india": _passport("[A-Z][0-9]{7}"),
    "passport_australia": _passport("[A-Z]{1,2}[0-9]{7}"),
    "passport_china": _passport("[EGeg][A-Z0-9][0-9]{7}"),
    "passport_japan": _passport("[A-Z]{2}[0-9]{7}"),
    "eu_passport_generic": _passport("[A-Z0-9]{2}[A-Z0-9]{2}[0-9]{5}"),
    "eu_vat": _Form(
        re.compile(
            r"(?<![\w-])(?:AT|BE|BG|CY|CZ|DE|DK|EE|EL|ES|FI|FR|HR|HU|IE|IT|LT|LU|LV|MT|NL|PL|PT|RO|SE|SI|SK)"
            r"(?=[0-9A-Z]{0,8}[0-9]{3})[0-9A-Z]{8,12}(?![\w-])"
        ),
        re.compile(r"\bvat\b|\btva\b|\biva\b|\bbtw\b|mwst|\bust|tax (?:number|id)|fiscal (?:number|code)"),
    ),
    "fr_postal_code": _Form(re.compile(r"(?<![\w-])[0-9]{5}(?![\w-])"), re.compile(r"postal|postcode|\bcp\b|zip")),
    "br_cep": _Form(re.compile(r"(?<![\w.-])[0-9]{5}-?[0-9]{3}(?![\w.-])"), re.compile(r"\bcep\b|postal|endereço")),
    "br_cnpj": _Form(re.compile(r"(?<!\d)\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}(?!\d)", re.ASCII), right=_cnpj),
    "br_rg": _Form(re.compile(r"(?<![\w.])\d{1,2}\.\d{3}\.\d{3}-[\dXx](?!\w)", re.ASCII)),
    "street_address": _Form(
        re.compile(
            r"(?<![\w.,-])[0-9]{1,6}[A-Za-z]? (?:[A-Z0-9][\w.'-]{0,24} ){1,4}"
            r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Way|Court|Ct|Place|Pl|Circle|Cir)\b"
        )
    ),
}

#: Every name.
KNOWN: Final = frozenset(_ENTITIES) | frozenset(_LEAKS) | frozenset(_FORMS)


def find(text: str, names: Iterable[str]) -> Iterator[Span]:
    """What the text holds of these patterns; the label of each piece is the pattern's name."""
    wanted = tuple(names)
    kinds = {name: _ENTITIES[name] for name in wanted if name in _ENTITIES}
    if kinds:
        for span in entities.find(text, frozenset(one.kind for one in kinds.values())):
            for name, one in kinds.items():
                if one.kind == span.label and one.right(text[span.start : span.end]):
                    yield span._replace(label=name)
    labels = {name: _LEAKS[name] for name in wanted if name in _LEAKS and name not in _ENTITIES}
    if labels:
        for span in leaks.find(text):
            for name, some in labels.items():
                length = span.end - span.start
                if span.label in some and (name != "aws_secret_key" or length == 40):
                    yield span._replace(label=name)
    for name in wanted:
        if name in _FORMS:
            yield from _forms(text, name)


def _forms(text: str, name: str) -> Iterator[Span]:
    form, context, right = _FORMS[name]
    for found in form.finditer(text):
        if context is not None:
            before = text[max(0, found.start() - 48) : found.start()].lower()
            words = [*context.finditer(before)]
            if not words or any(char.isdigit() for char in before[words[-1].end() :]):
                continue
        if right(found[0]):
            yield Span(found.start(), found.end(), name)


def longest(names: Iterable[str]) -> int:
    """Characters of the longest thing that they recognise."""
    lengths = {"url": 420, "email": 320, "email_address": 320, "street_address": 128}
    return max((512 if name in _LEAKS else lengths.get(name, 96) for name in names), default=0)
