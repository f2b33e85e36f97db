"""What of a request is compared: the last turn, in the context that it needs. The sentences are our own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.cache.semantic.conversation import Question, asks, question_of, stands_alone
from tianji_mw.cache.semantic.reuse import Meaning, Rule, speaks_against


def chat(*turns: str, system: str = "") -> Question | str:
    """Turns of user and assistant, by turns."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return question_of("chat_completions", {"messages": messages})


def question(*turns: str, system: str = "") -> Question:
    found = chat(*turns, system=system)
    assert isinstance(found, Question), found
    return found


def against(one: Question, other: Question) -> str | None:
    """Why the two share no answer."""
    if one.context != other.context:
        return "partition"
    return speaks_against(Meaning.of(one), Meaning.of(other))


def test_one_turn_is_compared_alone() -> None:
    found = question("How do I change a tyre?")
    assert (found.text, found.alone) == ("How do I change a tyre?", True)


def test_the_system_prompt_must_be_equal() -> None:
    assert against(question("Who are you?", system="You are Ann."), question("Who are you?", system="You are Bob."))
    assert question("Hi there", system="A").context == question("Hi there", system="A").context


def test_a_turn_that_stands_alone_ignores_what_was_said_before() -> None:
    one = question("Do you sell paint?", "We do.", "By the way, does the Zurich store open on Sundays?")
    other = question("Where is my parcel?", "On its way.", "Does the Zurich store open on Sundays?")
    assert one.alone
    assert against(one, other) is None


@pytest.mark.parametrize(
    "wish",
    ["From now on, answer in French.", "Pretend to be a pirate.", "You are a strict teacher.", "Please be brief."],
)
def test_what_was_asked_for_all_answers_counts_for_a_turn_that_stands_alone(wish: str) -> None:
    last = "Does the Zurich store open on Sundays?"
    one, other = question(wish, "Fine.", last), question("Where is my parcel?", "On its way.", last)
    assert against(one, other) == "partition"
    assert against(one, question(wish, "As you like.", last)) is None


FOLLOW_UPS = [
    (
        "What does the 10 Mbit line cost?",
        "It costs 20 a month.",
        "What does the 50 Mbit line cost?",
        "It costs 40 a month.",
    ),
    ("I have a bike from Marlo.", "A Marlo bike, fine.", "I have a bike from Tessin.", "A Tessin bike, fine."),
    ("I paid a late fee.", "I can refund it.", "I paid a late fee.", "I can not refund it."),
    ("My door is jammed.", "Shall I open it?", "My door is jammed.", "Shall I close it?"),
]


@pytest.mark.parametrize(("a", "b", "c", "d"), FOLLOW_UPS)
def test_a_turn_that_depends_on_another_context_has_another_answer(a: str, b: str, c: str, d: str) -> None:
    assert against(question(a, b, "and how long does it take?"), question(c, d, "and how long does it take?"))


def test_chatter_around_the_same_context_does_not_matter() -> None:
    one = question("What is your smallest van?", "The Pico, at 30 a day.", "does it have a tow bar?")
    other = question(
        "Morning! Cold today. What is your smallest van?",
        "Morning! It is the Pico, 30 a day.",
        "Does it have a tow bar?",
    )
    assert not one.alone
    assert against(one, other) is None


@pytest.mark.parametrize(
    "said",
    ["yes please", "go ahead", "the second one", "cancel it", "ok do it", "do that please", "no thanks", "ja bitte"],
)
def test_agreeing_choosing_and_commanding_are_acts(said: str) -> None:
    assert chat("Can you book a slot?", "At 9 or at 10?", said) == "act"


@pytest.mark.parametrize(
    ("said", "alone"),
    [("Does the Zurich store open on Sundays?", True), ("What is it?", False), ("and in Bern?", False),
     ("How much does that cost?", False), ("Can I return the blue jacket without a receipt?", True), ("why?", False),
     ("Do you offer a rebate for clubs?", True), ("Do you offer me a rebate?", False),
     ("What about the other one?", False), ("ok so what is the fee for late payment in March?", False)],
)  # fmt: skip
def test_standing_alone(said: str, alone: bool) -> None:
    assert stands_alone(said) is alone


@pytest.mark.parametrize(
    ("said", "question"), [("is it open", True), ("ok, how long", True), ("book it", False), ("wo ist das", True)]
)
def test_asking(said: str, question: bool) -> None:
    assert asks(said) is question


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


TEXT = [{"type": "text", "text": "Q?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("api", "request_", "reason"),
    [
        (
            "chat_completions",
            {"messages": [user([*TEXT, IMAGE])]},
            "media",
        ),
        (
            "chat_completions",
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": None, "tool_calls": [{}]},
                ]
            },
            "tools",
        ),
        ("chat_completions", {"messages": [{"role": "tool", "content": "7", "tool_call_id": "x"}]}, "tools"),
        (
            "chat_completions",
            {"messages": [user("hi"), {"role": "assistant", "content": "so"}]},
            "no-question",
        ),
        ("chat_completions", {"messages": []}, "no-question"),
        ("chat_completions", {"messages": [{"role": "user", "content": "x" * 5000}]}, "long"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "tools"),
        ("responses", {"input": [{"type": "function_call_output", "output": "x"}]}, "tools"),
        ("completions", {"prompt": ["a", "b"]}, "media"),
    ],
)
def test_what_is_compared_with_nothing(api: str, request_: Any, reason: str) -> None:
    assert question_of(api, request_) == reason


@pytest.mark.parametrize(
    ("api", "request_"),
    [
        (
            "chat_completions",
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "text", "text": "Q?"}]},
                ]
            },
        ),
        ("messages", {"system": [{"type": "text", "text": "S"}], "messages": [{"role": "user", "content": "Q?"}]}),
        ("responses", {"instructions": "S", "input": "Q?"}),
        (
            "responses",
            {"instructions": "S", "input": [user([{"type": "input_text", "text": "Q?"}])]},
        ),
    ],
)
def test_every_api_is_read(api: str, request_: Any) -> None:
    found = question_of(api, request_)
    assert isinstance(found, Question)
    assert found.said == "Q?"
    assert found.context == question("Q?", system="S").context


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_it_is_total(turns: list[str]) -> None:
    found = chat(*turns)
    if isinstance(found, Question):
        meaning = Meaning.of(found, "2026-01-01")
        assert Meaning.decode(meaning.encode()) == meaning
        assert Rule().refusal(meaning, meaning, 1.0) is None


def test_the_rule_needs_nearness_and_agreement() -> None:
    one, other = Meaning.of(question("How do I renew my permit?")), Meaning.of(question("How can I renew my permit?"))
    far, opposite = (
        Meaning.of(question("My permit ran out, what now?")),
        Meaning.of(question("How do I revoke my permit?")),
    )
    assert Rule().refusal(one, other, 0.75) is None, "the same words"
    assert Rule().refusal(one, other, 0.6) == "far"
    assert Rule().refusal(one, far, 0.75) is not None
    assert Rule().refusal(one, opposite, 0.99) is not None
    assert Rule(lexical=False).refusal(one, opposite, 0.99) is None
    assert Rule.at(0.95).refusal(one, other, 0.94) == "far"
