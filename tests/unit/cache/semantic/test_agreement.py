"""What stands in single words, and a vector does not see. The sentences are our own."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.cache.semantic.agreement import Signature, disagreement, same_words, signature, volatile

DIFFERENT = [
    ("numbers", "Reset the counter after 5 tries", "Reset the counter after 15 tries"),
    ("numbers", "How long is a lease of two years?", "How long is a lease of three years?"),
    ("numbers", "Is the gate open at 6am?", "Is the gate open at 6pm?"),
    ("numbers", "Ship it by 3 May", "Ship it by 13 May"),
    ("numbers", "Refund $1,200", "Refund $1,300"),
    ("names", "Does the ferry stop in Lisbon?", "Does the ferry stop in Porto?"),
    ("names", "Is the TLS handshake slow?", "Is the DNS handshake slow?"),
    ("names", "Install it with Python3", "Install it with Ruby3"),
    ("codes", "What does parse_url() return?", "What does parse_uri() return?"),
    ("codes", "Open https://a.example/x", "Open https://a.example/y"),
    ("codes", 'Rename the column "first"', 'Rename the column "last"'),
    ("codes", "Explain src/main.py", "Explain src/util.py"),
    ("negation", "Should the valve be open?", "Should the valve not be open?"),
    ("negation", "Which plans come with support?", "Which plans come without support?"),
    ("negation", "Kann ich das Abo kündigen?", "Kann ich das Abo nicht kündigen?"),
    ("negation", "这个功能可以使用吗", "这个功能不可以使用吗"),
    ("opposite", "How do I enable the proxy?", "How do I disable the proxy?"),
    ("opposite", "Which items are cheapest here?", "Which items are expensive here?"),
    ("opposite", "Is the mushroom safe?", "Is the mushroom unsafe?"),
    ("opposite", "Sort the rows ascending", "Sort the rows descending"),
    ("direction", "Fly from Oslo to Bergen", "Fly from Bergen to Oslo"),
    ("direction", "Convert metres to feet", "Convert feet to metres"),
    ("direction", "Swap the tiles with the slates", "Swap the slates with the tiles"),
    ("direction", "Can a tutor fail a warden?", "Can a warden fail a tutor?"),
    ("direction", "Do badgers chase foxes?", "Do foxes chase badgers?"),
    ("direction", "Is Rust slower than Zig?", "Is Zig slower than Rust?"),
    ("numbers", "Take 4 away from 9", "Take 9 away from 4"),
    ("codes", "What is 6 * 3?", "What is 6 + 3?"),
    ("codes", "What does x > y print?", "What does x < y print?"),
    ("codes", "What is a -= b in C?", "What is a += b in C?"),
    ("codes", "Is a fee of 10$ high?", "Is a fee of 10€ high?"),
    ("codes", "What does sort -n do?", "What does sort -k do?"),
    ("question", "When was the bridge built?", "Why was the bridge built?"),
    ("question", "Where was the bridge built?", "When was the bridge built?"),
    ("question", "How do tides work?", "Why do tides work?"),
    ("replaced", "Is the salmon dish spicy?", "Is the tofu dish spicy?"),
    ("added", "What is the dose?", "What is the dose for horses?"),
    ("added", "Can staff park here?", "Can night staff park here?"),
    ("replaced", "How are you?", "What is it?"),
    ("replaced", "怎么打开窗户", "怎么关上窗户"),
    ("replaced", "как покрасить забор", "как починить забор"),
    ("replaced", "Wie streiche ich den Zaun?", "Wie repariere ich den Zaun?"),
    ("replaced", "Mam pytanie o żółty płaszcz z wełny na zimę", "Mam skargę o żółty szalik z bawełny na lato"),
    ("language", "Wo ist der Bahnhof?", "Where is the Bahnhof?"),
    ("language", "How far is the moon?", "Как далеко луна?"),
]


@pytest.mark.parametrize(("reason", "one", "other"), DIFFERENT)
def test_what_differs_is_found(reason: str, one: str, other: str) -> None:
    found = disagreement(signature(one), signature(other))
    assert found is not None, "they would share an answer"
    assert found == reason or reason in ("numbers", "names", "codes", "opposite", "direction", "added", "replaced")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I renew my permit?", "how can I renew my permit"),
        ("In the kitchen, where is the fuse box?", "Where is the fuse box in the kitchen?"),
        ("I can't log in to the portal", "I cannot log in to the portal"),
        ("Hello, could you tell me what the quota is, please?", "What is the quota?"),
        ("What's the price of a ticket?", "How much is a ticket?"),
        ("Set up a mailing list", "Create a mailing list"),
        ("Is the pool open on Sundays?", "is the pool open on sunday"),
        ("Where is the assembly point?", "Where is the asembly point?"),
        ("Book 2 seats", "Book two seats"),
        ("Can I pay 1,000 in cash?", "Can I pay 1000 in cash?"),
        ("Who wrote Emma?", "Who is the author of Emma?"),
        ("How tall is the tower?", "What is the height of the tower?"),
        ("What does v2.4 need?", "What does version 2.4 need?"),
        ("Where do I see my quota?", "How do I see my quota?"),
        ("Tea or coffee?", "Coffee or tea?"),
        ("How do I conect a printer?", "How do I connect a printer?"),
        ("Wo ist der Bahnhof?", "wo ist der bahnhof"),
    ],
)
def test_what_is_the_same_agrees(one: str, other: str) -> None:
    assert disagreement(signature(one), signature(other)) is None
    assert same_words(signature(one), signature(other))


def test_today_is_another_day_tomorrow() -> None:
    text = "Is the office open today?"
    assert disagreement(signature(text, "2026-01-01"), signature(text, "2026-01-01")) is None
    assert disagreement(signature(text, "2026-01-01"), signature(text, "2026-01-02")) == "day"
    lasting = "Is the office open on holidays?"
    assert disagreement(signature(lasting, "2026-01-01"), signature(lasting, "2026-01-02")) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("What is the weather in Bonn?", "time"), ("Tell me another one", "variety"), ("Pick a random name", "variety"),
     ("What is the latest release?", "time"), ("How do I bake bread?", None)],
)  # fmt: skip
def test_what_no_earlier_answer_will_do_for(text: str, reason: str | None) -> None:
    assert volatile(text) == reason


def test_a_rewording_of_a_long_text_replaces_more_than_one_word() -> None:
    one = "The nightly backup copies every table of the billing database to the archive bucket in Dublin"
    other = "The nightly backup stores every table of the billing database in the archive folder in Dublin"
    assert disagreement(signature(one), signature(other)) is None
    swapped = one.replace("billing", "payroll")
    assert disagreement(signature(one), signature(swapped)) == "replaced"


def test_the_parts_of_a_long_text_may_stand_in_another_order() -> None:
    one = "With the blue form, staff in Bern can order a chair, a lamp and a desk"
    other = "Staff in Bern can order a chair, a lamp and a desk with the blue form"
    assert disagreement(signature(one), signature(other)) is None
    long = "Every spring the {} of the old harbour town thanks the {} before the long debate about its budget"
    assert disagreement(signature(long.format("mayor", "council")), signature(long.format("council", "mayor")))


@given(st.text(), st.text())
def test_it_is_symmetric_and_total(one: str, other: str) -> None:
    first, second = signature(one), signature(other)
    assert disagreement(first, second) == disagreement(second, first)


@given(st.permutations(["a", "tutor", "can", "fail", "every", "warden", "in", "Oslo", "or", "Bern"]))
def test_it_is_symmetric_for_any_order(order: list[str]) -> None:
    first, second = signature("a tutor can fail every warden in Oslo or Bern"), signature(" ".join(order))
    assert disagreement(first, second) == disagreement(second, first)


@given(st.text())
def test_a_text_agrees_with_itself(text: str) -> None:
    assert disagreement(signature(text), signature(text)) is None


@pytest.mark.parametrize("part", ["1,", "a.", "a_", "f(", "/.", "a@", "-a", "=* \n", '"', "'t", "A "])
def test_no_text_takes_long(part: str) -> None:
    assert cpu_s(part * 8000) < 10 * cpu_s(part * 2000), (
        "four times the length: 4 when it grows with it, 16 by its square"
    )


def cpu_s(text: str) -> float:
    """Of the best of three."""
    found = []
    for _ in range(3):
        started = time.thread_time()
        signature(text)
        found.append(time.thread_time() - started)
    return min(found)


@given(st.text())
def test_a_signature_survives_being_stored(text: str) -> None:
    made = signature(text, "2026-01-01")
    assert Signature.decode(made.encode()) == made


@pytest.mark.parametrize("raw", ["", "[]", "{}", "null", "[1,2,3]", '"x"'])
def test_garbage_is_no_signature(raw: str) -> None:
    with pytest.raises(ValueError, match=r"signature|unpack"):
        Signature.decode(raw)
