"""Personal data is found by form and check digits; near misses are left alone. Numbers are made when the test runs."""

from __future__ import annotations

import hashlib
import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tianji_mw.call import Call
from tianji_mw.guardrails import entities, entity_checks
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.entities import KINDS, find
from tianji_mw.guardrails.pii import Pii
from tianji_mw.plugins import find as find_plugin

CALL = cast(Call, None)
ALL = frozenset(KINDS)


def with_luhn(digits: str) -> str:
    return next(digits + str(last) for last in range(10) if entity_checks.luhn(digits + str(last)))


def iban(country: str, account: str) -> str:
    number = int("".join(str(int(char, 36)) for char in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02}{account}"


def bitcoin() -> str:
    data = b"\x00" + hashlib.sha256(b"a").digest()[:20]
    data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[rest] + text
    return "1" + text


def grouped(text: str, size: int = 4, by: str = " ") -> str:
    return by.join(text[at : at + size] for at in range(0, len(text), size))


CARD = with_luhn("4" + "12345678909876")
IBAN = iban("DE", "370400440532013000")
FOUND = {
    "mail": ("write to {} today", "jo.doe+x@mail.example.co.uk", "EMAIL_ADDRESS"),
    "mail in brackets": ("<{}>", "jo@example.org", "EMAIL_ADDRESS"),
    "mail in letters": ("an {}.", "jörg@müller.de", "EMAIL_ADDRESS"),
    "international": ("ring {} now", "+44 20 7946 0958", "PHONE_NUMBER"),
    "trunk zero": ("ring {} now", "+49 (0)30 901820", "PHONE_NUMBER"),
    "american": ("it is {}, ok", "(212) 555-0187", "PHONE_NUMBER"),
    "dots": ("it is {}, ok", "212.555.0187", "PHONE_NUMBER"),
    "local": ("Phone: {}", "555 0187", "PHONE_NUMBER"),
    "local, word behind": ("{} office", "30 90 18 20", "PHONE_NUMBER"),
    "card": ("pay with {} please", CARD, "CREDIT_CARD"),
    "card in groups": ("pay with {} please", grouped(CARD), "CREDIT_CARD"),
    "card with hyphens": ("pay with {}.", grouped(CARD, by="-"), "CREDIT_CARD"),
    "amex": ("pay with {}", with_luhn("37" + "123456789012"), "CREDIT_CARD"),
    "iban": ("to {}.", IBAN, "IBAN_CODE"),
    "iban in groups": ("to {} X in a sentence", grouped(IBAN), "IBAN_CODE"),
    "iban in small": ("to {}", IBAN.lower(), "IBAN_CODE"),
    "ssn": ("is {}", "219-09-" + "4321", "US_SSN"),
    "ssn without hyphens": ("my SSN: {}", "219094321", "US_SSN"),
    "itin": ("is {}", "912-72-" + "4321", "US_ITIN"),
    "ipv4": ("from {}:80", "192.0.2.17", "IP_ADDRESS"),
    "ipv6": ("from [{}]:80", "2001:db8::8a2e:370:7334", "IP_ADDRESS"),
    "mac": ("has {}", "00:1b:44:11:3a:b7", "MAC_ADDRESS"),
    "url": ("see {}.", "https://example.org/a?b=c", "URL"),
    "host": ("see {} now", "example.com", "URL"),
    "bitcoin": ("to {}", bitcoin(), "CRYPTO"),
    "ether": ("to {}", "0x" + "ab12" * 10, "CRYPTO"),
    "licence": ("my driver's license number is {}", "D1234" + "567", "US_DRIVER_LICENSE"),
    "sin": ("my SIN is {}", grouped(with_luhn("435418" + "16"), 3), "CA_SIN"),
    "cpf": ("meu {}", "111.444.777" + "-35", "BR_CPF"),
    "dni": ("DNI {}", "12345678" + "TRWAGMYFPDXBNJZSQVHLCKE"[12345678 % 23], "ES_NIF"),
    "tax id": ("Steuer-ID {}", "86 095 742 719", "DE_TAX_ID"),
}
MISSED = {
    "card": "pay with 4" + "123456789098765"[:-1] + "0",
    "iban": "to DE00370400440532013000",
    "ssn area": "666-12-1234 and 000-12-1234",
    "ssn that was sold": "078-05-1120",
    "address": "300.1.2.3 and 256.256.256.256",
    "version": "version 1.2.3.4 and v10.0.0.1",
    "time": "at 12:34:56 or 10:11",
    "slice": "text[::1] and std::string",
    "date": "on 2024-01-31 or 31.12.2024",
    "order": "order 1234567890 of 20240131123456",
    "epoch": "at 1706659200000 ms",
    "git": "git@github.com:org/repo",
    "decorator": "@app.route and a @ b.com",
    "phone without a word": "the sum is 555 0187 or so",
    "uuid": "72729d24-341d-4687-8698-87ecbced5922",
    "digest": hashlib.sha256(b"a").hexdigest(),
    "sin without a word": with_luhn("435418" + "16"),
    "prices": "$1,234,567.89 and 1 000 000 000",
}


@pytest.mark.parametrize("name", FOUND)
def test_forms(name: str) -> None:
    around, value, label = FOUND[name]
    text = around.format(value)
    spans = find(text, ALL)
    assert [(text[span.start : span.end], span.label) for span in spans] == [(value, label)]


@pytest.mark.parametrize("name", MISSED)
def test_near_misses(name: str) -> None:
    assert find(MISSED[name]) == []


@pytest.mark.parametrize("place", range(15))
def test_every_digit_of_a_card_counts(place: int) -> None:
    wrong = CARD[:place] + str((int(CARD[place]) + 1) % 10) + CARD[place + 1 :]
    assert all(span.label != "CREDIT_CARD" for span in find(wrong))


async def test_masks_or_blocks_by_entity() -> None:
    text = f"jo@example.org pays with {CARD}"
    verdict = await Pii().check(text, CALL)
    assert verdict.spans == (Span(0, 14, "EMAIL_ADDRESS"), Span(25, len(text), "CREDIT_CARD"))
    assert verdict.category == "EMAIL_ADDRESS,CREDIT_CARD"
    verdict = await Pii.model_validate({"entities": {"CREDIT_CARD": "BLOCK", "EMAIL_ADDRESS": "MASK"}}).check(
        text, CALL
    )
    assert verdict.blocked
    assert verdict.detail == {"entities": ["CREDIT_CARD"]}
    assert CARD not in repr(verdict)
    verdict = await Pii(entities={"EMAIL_ADDRESS": "mask"}).check(text, CALL)
    assert [span.label for span in verdict.spans] == ["EMAIL_ADDRESS"]
    assert not (await Pii(entities={}).check(text, CALL)).spans


async def test_urls_have_to_be_asked_for() -> None:
    assert not (await Pii().check("see https://example.org/a", CALL)).spans
    assert (await Pii(entities={"URL": "mask"}).check("see https://example.org/a", CALL)).spans


def test_an_unknown_entity_is_an_error_with_a_hint() -> None:
    with pytest.raises(ValidationError, match="did you mean EMAIL_ADDRESS"):
        Pii(entities={"EMAIL_ADRESS": "mask"})
    with pytest.raises(ValidationError):
        Pii.model_validate({"entities": {"EMAIL_ADDRESS": "hide"}})
    with pytest.raises(ValidationError):
        Pii.model_validate({"entities": ["EMAIL_ADDRESS"]})


def test_it_is_the_plugin_of_its_name() -> None:
    assert find_plugin("guardrails", "pii", cast(Any, Pii.__mro__[1])) is Pii


PIECES = st.sampled_from(
    [*(value for _, value, _ in FOUND.values()), *MISSED.values(), " ", "-", ".", "\u0130", "\u0661"]
)
DIGITS = st.text("0123456789٣²+-() .:AXaf", max_size=40)


@given(st.lists(st.one_of(st.text(max_size=30), DIGITS, PIECES), max_size=12))
def test_any_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    end = 0
    for span in entities.find(text, ALL):
        assert end <= span.start < span.end <= len(text)
        assert span.label in ALL
        assert span.replacement is None
        end = span.end


@given(st.sampled_from([one for one in (*entities.NUMBERS, *entities.LETTERED)]), st.data())
def test_check_digits_take_whatever_has_the_form(one: entities.Id, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(one.form.pattern.removesuffix(r"(?![\w-])"), fullmatch=True))
    assert isinstance(find(f"id nhs tax {text}", ALL), list)


HOSTILE = [
    "1",
    "1 ",
    "+1",
    "(",
    "1-",
    "a@",
    "@a.",
    "a.",
    "::",
    ":a",
    "A1",
    "AB12 ",
    "1.1.",
    "0x",
    "bc1q",
    "http://",
    "phone 1",
    "a-",
]


@pytest.mark.parametrize("piece", [*HOSTILE, "driver's license ", "AA-", "1234 ", "www.", "\u0130", "12:"])
def test_time_is_linear(piece: str) -> None:
    def spent(size: int) -> float:
        text = piece * (size // len(piece))
        best = 9.0
        for _ in range(3):
            begin = time.thread_time()
            find(text, ALL)
            best = min(best, time.thread_time() - begin)
        return best

    assert spent(100_000) < 20 * max(spent(10_000), 0.001)
