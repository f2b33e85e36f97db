"""Mails about alerts: who gets them, what they say, and that no value becomes a header or HTML."""

from __future__ import annotations

import email
import email.policy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.alert_records import NOON, Clock, a_crossing, an_alert, recorded
from tianji_mw.alerts import Budget, budget_alert
from tianji_mw.callbacks.alerts.delivery import Group, Told, read
from tianji_mw.callbacks.alerts.letters import Letter, Sender, as_html, as_text, letter_of
from tianji_mw.callbacks.alerts.mails import is_email, recipients
from tianji_mw.callbacks.base import Callback, Record
from tianji_mw.callbacks.email import Email
from tianji_mw.callbacks.resend_email import ResendEmail
from tianji_mw.callbacks.sendgrid_email import SendGridEmail
from tianji_mw.errors import SetupError
from tianji_mw.plugins import find

#: What JSON can hold, with what is dangerous in headers and HTML.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(
        ["\r\n", "\n", "\r", "Bcc: evil@x.io", "=?utf-8?q?=0d=0aBcc:_evil=40x.io?=", "<script>alert(1)</script>", "'\"",
         "&amp;", "<", ">", "\x00", "\u2028", "\x85", "\x0b", "a", " ", "{spend}", "%s", "ü", "\U0001f600", "]](("]
    ),
    max_size=8,
).map("".join)  # fmt: skip


def told(record: Record) -> Told:
    found = read(record)
    assert found is not None
    return found


def letter(record: Record, count: int = 1) -> Letter:
    return letter_of(Group("key", [told(record)] * count))


def event(name: Any, **fields: Any) -> Record:
    budget = {"group": "key", "spend": 8.5, "max_budget": 10.0, "token": "ab" * 32, "key_alias": "ci", **fields}
    return recorded(budget_alert(name, Budget(**budget), percent=fields.get("percent")))


def test_found_by_their_names() -> None:
    assert find("callbacks", "email", Callback) is Email
    assert find("callbacks", "resend_email", Callback) is ResendEmail
    assert find("callbacks", "sendgrid_email", Callback) is SendGridEmail


def test_the_module_does_not_hide_the_standard_library() -> None:
    assert email.__name__ == "email"
    assert email.message_from_string("Subject: x\n\ny")["subject"] == "x"


# --- what they say


@pytest.mark.parametrize(
    ("record", "subject", "sentence"),
    [
        (a_crossing(100.0), "The budget of the team ml is used up", "Requests of this team may be refused"),
        (event("budget_crossed"), "The budget of the key ci is used up", "Requests may be refused"),
        (
            event("budget_crossed", group="user", user_email="u@x.io"),
            "The budget of the user u@x.io is used up",
            "Requests may be refused",
        ),
        (a_crossing(86.1), "The budget of the team ml is nearly used up", "15% or less of budget remaining"),
        (
            event("soft_budget_crossed", soft_budget=5.0),
            "The soft budget of the key ci is crossed",
            "Nothing is refused because of it",
        ),
        (event("max_budget_alert"), "a large part of a budget is spent", "a large part or more"),
        (event("projected_limit_exceeded"), "The budget of the key ci will not last", "before its period ends"),
        (event("key_created"), "A key was created for you", "this mail does not hold it"),
        (event("key_rotated"), "A key of yours was replaced", "the old one stops working"),
        (event("internal_user_created", group="user"), "You were invited to the LLM gateway", "An account was created"),
        (event("budget_crossed", group="proxy"), "The budget of this gateway is used up", ""),
        (an_alert("It is\nreally down"), "Medium alert: llm exceptions", "really down"),
        (event("spend_tracked", group="end_user"), "Low alert: spend tracked", "Spend tracked"),
    ],
)
def test_each_event_has_its_letter(record: Record, subject: str, sentence: str) -> None:
    found = letter(record)
    assert found.subject == subject
    assert sentence in " ".join(found.sentences)
    assert found.facts[-1] == ("Time of the event", "2026-11-26 12:00:01 UTC")


def test_a_warning_says_how_much() -> None:
    alert = budget_alert("max_budget_alert", Budget(group="team", spend=8.5, team_alias="ml"), percent=75.0)
    found = letter(recorded(alert))
    assert found.subject == "75 % of a budget is spent"
    assert found.sentences == ("The budget of the team ml is spent to 75 % or more.",)


def test_facts_of_a_budget() -> None:
    assert letter(a_crossing(86.1, soft_budget=50.0)).facts[:-1] == (
        ("Team", "ml"), ("Spent", "$86.10"), ("Budget", "$100.00"), ("Soft budget", "$50.00"),
    )  # fmt: skip
    assert ("Key", "abababab...") in letter(event("budget_crossed", key_alias=None)).facts


def test_facts_and_number_of_other_alerts() -> None:
    found = letter(an_alert(fields={"model": "gpt"}), count=3)
    assert found.subject == "[3 times] Medium alert: llm exceptions"
    assert found.facts[0] == ("model", "gpt")


def test_text_and_html() -> None:
    one = Letter(subject="S", sentences=("A & B",), facts=(("Team", "<b>"),))
    sender = Sender(logo_url='https://x.io/l.png?a=1&b="', support="help@x.io", proxy_url="https://llm.x.io")
    assert as_text(one, sender) == "A & B\n\nTeam: <b>\n\nGateway: https://llm.x.io\n\nQuestions: help@x.io\n"
    shown = as_html(one, sender)
    assert 'src="https://x.io/l.png?a=1&amp;b=&quot;"' in shown
    assert "<p>A &amp; B</p>" in shown
    assert "<td>&lt;b&gt;</td>" in shown
    assert "<p>Questions: help@x.io</p>" in shown


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:image/png;base64,x", "", "//x.io/y"])
def test_only_web_addresses_are_logos(url: str) -> None:
    assert "<img" not in as_html(Letter(subject="S", sentences=(), facts=()), Sender(logo_url=url))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said.append(data)


EVENTS = st.sampled_from(
    ["budget_crossed", "soft_budget_crossed", "threshold_crossed", "max_budget_alert", "projected_limit_exceeded",
     "key_created", "key_rotated", "internal_user_created", "spend_tracked"]
)  # fmt: skip
GROUPS = st.sampled_from(["key", "user", "team", "organization", "end_user", "proxy"])


@given(name=EVENTS, group=GROUPS, text=TEXT, other=TEXT, sender=TEXT)
def test_no_value_becomes_html(name: Any, group: Any, text: str, other: str, sender: str) -> None:
    budget = Budget(
        group=group, spend=1.0, key_alias=text, team_alias=text, user_email=other, user_id=text, team_id=other,
        organization_id=text, customer_id=text, projected_exceeded_date=other,
    )  # fmt: skip
    found = letter(recorded(budget_alert(name, budget)))
    reader = Tags()
    reader.feed(as_html(found, Sender(logo_url=sender, support=sender, proxy_url=sender)))
    assert reader.tags <= {"html", "head", "meta", "title", "body", "p", "table", "tr", "td", "img"}
    assert reader.attributes <= {"charset", "style", "src", "alt", "height"}
    assert found.subject in "".join(reader.said)


@given(text=TEXT, kind=TEXT)
def test_no_value_of_another_alert_becomes_html(text: str, kind: str) -> None:
    found = letter(recorded_alert(text, kind or "k"))
    reader = Tags()
    reader.feed(as_html(found, Sender()))
    assert "script" not in reader.tags


def recorded_alert(text: str, kind: str) -> Record:
    return an_alert(text, kind=kind, fields={text: text, "n": {text: [text]}})


# --- headers


async def mailer(**fields: Any) -> Email:
    callback = Email(**{"host": "h", "sender": "llm@corp.example", **fields})
    await callback.start(Clock().runtime)
    return callback


@given(alias=TEXT, kind=TEXT)
async def test_no_value_becomes_a_header(alias: str, kind: str) -> None:
    callback = await mailer()
    for record in (a_crossing(team_alias=alias), an_alert(alias, kind=kind or "k", level="high")):
        group = Group("key", [told(record)])
        sent = callback.message("to@x.io", letter_of(group), group).as_bytes()
        head, _, _ = sent.partition(b"\r\n\r\n")
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n") if line[:1] not in b" \t"]
        assert sorted(names) == [
            b"auto-submitted", b"content-type", b"date", b"from", b"message-id", b"mime-version", b"subject", b"to",
        ]  # fmt: skip
        assert b"\n" not in sent.replace(b"\r\n", b"")
        parsed = email.message_from_bytes(sent, policy=email.policy.default)
        assert parsed["to"] == "to@x.io"
        assert "bcc" not in parsed
        assert len(list(parsed.iter_parts())) == 2


@pytest.mark.parametrize(
    "address",
    [
        "", " ", "a", "@", "a@", "@x.io", "a@x.io\r\nBcc: evil@x.io", "a@x.io\n", "\ra@x.io", "a b@x.io",
        "a@x.io,b@x.io",
        "A <a@x.io>", "a@b@x.io", '"a b"@x.io', "a@[127.0.0.1]", "a;b@x.io", "a\x00@x.io", "a@x\u2028.io",
        "=?utf-8?q?a=0d=0aBcc:b?=@x.io",
        "=?utf-8?q?a=0d=0ab?=@x.io", "a@-x.io", "a" * 65 + "@x.io", "a@" + "x" * 260, "a\u200b@x.io", "a(b)@x.io",
    ],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    assert not is_email(address)


@pytest.mark.parametrize(
    "address", ["a@x.io", "first.last+tag@sub.x-y.example", "o'neil@x.io", "ü@bücher.example", "a@host"]
)
def test_addresses(address: str) -> None:
    assert is_email(address)


@given(TEXT)
def test_addresses_have_one_line_and_one_recipient(text: str) -> None:
    for address in (text, f"{text}@x.io", f"a@{text}"):
        if is_email(address):
            assert address.isprintable()
            assert not set(address) & set(' ,;<>()"\\')


# --- who gets them


@pytest.mark.parametrize(
    ("record", "to"),
    [
        (event("budget_crossed", group="user", user_email="u@x.io"), ["u@x.io"]),
        (event("budget_crossed", user_email="u@x.io", alert_emails=["a@x.io"]), ["u@x.io", "a@x.io"]),
        (event("soft_budget_crossed", group="team", user_email="u@x.io", alert_emails=["s@x.io"]), ["s@x.io"]),
        (event("soft_budget_crossed", group="team", user_email="u@x.io"), []),
        (event("soft_budget_crossed", user_email="u@x.io"), ["u@x.io"]),
        (event("key_created", user_email="u@x.io"), ["u@x.io"]),
        (event("budget_crossed"), []),
        (an_alert(), []),
        (an_alert(fields={"user_email": 5, "alert_emails": {"a": 1}}), []),
    ],
)
def test_recipients(record: Record, to: list[str]) -> None:
    assert recipients(told(record)) == to


def test_recipients_of_a_percentage_and_the_owner() -> None:
    mails = {"50": ["a@x.io"], "75": ["b@x.io", "c@x.io"], "75.0": ["d@x.io"], "x": ["e@x.io"]}
    budget = Budget(group="key", spend=1.0, user_email="u@x.io", max_budget_alert_emails=mails)
    alert = budget_alert("max_budget_alert", budget, percent=75.0)
    assert recipients(told(recorded(alert))) == ["u@x.io", "b@x.io", "c@x.io", "d@x.io"]


async def test_an_alert_for_nobody_is_counted() -> None:
    callback = await mailer()
    assert callback.targets(told(event("budget_crossed"))) == []
    assert callback._runtime.counts["mails_without_recipient", "budget_crossed"] == 1


async def test_only_types_for_mails_unless_the_config_names_others() -> None:
    assert not (await mailer()).wants(told(an_alert()))
    assert (await mailer()).wants(told(event("key_created")))
    assert (await mailer(alert_types=["llm_exceptions"])).wants(told(an_alert()))
    assert not (await mailer()).wants(told(event("spend_tracked")))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"host": ""}, "SMTP_HOST"), ({"sender": ""}, "SMTP_SENDER_EMAIL"), ({"sender": "a\r\nb@x.io"}, "name@host"),
        ({"to": "a@x.io, b"}, "name@host"), ({"ca_file": "/nowhere"}, "ca_file"),
    ],
)  # fmt: skip
async def test_wrong_settings(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(SetupError, match=names):
        await mailer(**fields)


async def test_recipients_of_the_config_with_commas() -> None:
    assert (await mailer(to="a@x.io, b@x.io")).targets(told(a_crossing())) == ["a@x.io", "b@x.io"]


@pytest.mark.parametrize("to", [{"a@x.io": 1}, 5, [5]])
def test_recipients_that_are_no_texts(to: Any) -> None:
    with pytest.raises(ValidationError):
        Email(to=to)


def test_time() -> None:
    assert told(an_alert()).at == NOON
