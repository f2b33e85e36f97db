"""What mails about alerts say, as text and as HTML. Pure: no file, no network.

A letter is sentences and facts; the HTML is made of them in one place, where every value is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from tianji_mw.alerts import dollars
from tianji_mw.callbacks.alerts.delivery import Group, Told
from tianji_mw.callbacks.alerts.text import cut, facts, one_line

_MOST: Final = 20_000
_STYLE: Final = "font-family:Helvetica,Arial,sans-serif;font-size:15px;line-height:1.5;color:#1f2328"


@dataclass(slots=True, frozen=True, kw_only=True)
class Letter:
    """Plain texts, nothing escaped. The subject is one line."""

    subject: str
    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(slots=True, frozen=True, kw_only=True)
class Sender:
    """What is the same in all letters of a gateway; empty where it has none."""

    logo_url: str = ""
    support: str = ""
    proxy_url: str = ""


def letter_of(group: Group) -> Letter:
    """The letter for an alert."""
    told = group.first
    write = _WRITERS.get(told.event)
    if write is not None:
        subject, *sentences = write(told)
        about = tuple((name, one_line(value)) for name, value in _facts(told) if value)
    else:
        count = f"[{group.count} times] " if group.count > 1 else ""
        subject = f"{count}{told.level.capitalize()} alert: {told.kind.replace('_', ' ')}"
        sentences = [line for line in cut(told.message, _MOST).splitlines() if line.strip()]
        about = tuple(facts(told.fields))
    when = datetime.fromtimestamp(told.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Letter(
        subject=cut(one_line(subject), 200), sentences=tuple(sentences), facts=(*about, ("Time of the event", when))
    )


# --- the events


def _facts(told: Told) -> list[tuple[str, str]]:
    fields = told.fields
    return [
        ("Key", _text(fields, "key_alias") or _short(fields)),
        ("User", _text(fields, "user_email") or _text(fields, "user_id")),
        ("Customer", _text(fields, "customer_id")),
        ("Team", _text(fields, "team_alias") or _text(fields, "team_id")),
        ("Organization", _text(fields, "organization_id")),
        ("Spent", _money(fields, "spend") if told.event not in _ACCOUNTS else ""),
        ("Budget", _money(fields, "max_budget")),
        ("Soft budget", _money(fields, "soft_budget")),
        ("Projected spend", _money(fields, "projected_spend")),
        ("Expected to be used up on", _text(fields, "projected_exceeded_date")),
    ]


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _short(fields: Mapping[str, Any]) -> str:
    token = _text(fields, "token")
    return f"{token[:8]}..." if token else ""


def _money(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return dollars(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _whose(told: Told) -> str:
    """`The budget of the team ml`."""
    group = _text(told.fields, "event_group")
    names = {"team": ("team_alias", "team_id"), "key": ("key_alias",), "user": ("user_email", "user_id")}
    found = [_text(told.fields, name) for name in names.get(group, ())]
    name = next((one for one in found if one), "")
    if group == "proxy" or not group:
        return "The budget of this gateway"
    return f"The budget of the {group.replace('_', ' ')}{' ' if name else ''}{name}"


def _crossed(told: Told) -> tuple[str, ...]:
    whose = _whose(told)
    if told.fields.get("event_group") == "team":
        what = "Requests of this team may be refused until the budget is raised or its next period begins."
        return f"{whose} is used up", f"{whose} is used up: the team has spent all that it may.", what
    what = "Requests may be refused until the budget is raised or its next period begins."
    return f"{whose} is used up", f"{whose} is used up.", what


def _soft(told: Told) -> tuple[str, ...]:
    whose = _whose(told).replace("The budget", "The soft budget")
    return f"{whose} is crossed", f"{whose} is crossed.", "Nothing is refused because of it; this is a notice."


def _threshold(told: Told) -> tuple[str, ...]:
    whose, said = _whose(told), _text(told.fields, "event_message").rpartition(": ")[2]
    return f"{whose} is nearly used up", f"{whose} is nearly used up: {said}."


def _warning(told: Told) -> tuple[str, ...]:
    whose, percent = _whose(told), told.fields.get("percent")
    share = f"{percent:g} %" if isinstance(percent, int | float) else "a large part"
    return f"{share} of a budget is spent", f"{whose} is spent to {share} or more."


def _projected(told: Told) -> tuple[str, ...]:
    whose = _whose(told)
    return f"{whose} will not last", f"{whose} will be used up before its period ends, if spending goes on like this."


def _key_created(told: Told) -> tuple[str, ...]:
    said = "A key was created for you. It is shown only once, to whoever created it; this mail does not hold it."
    return "A key was created for you", said, "If you did not expect this, tell your administrator."


def _key_rotated(told: Told) -> tuple[str, ...]:
    said = "A key of yours was replaced by a new one. This mail does not hold it; the old one stops working."
    return "A key of yours was replaced", said, "If you did not expect this, tell your administrator."


def _invited(told: Told) -> tuple[str, ...]:
    said = "An account was created for you. Ask your administrator for a key if you have none."
    return "You were invited to the LLM gateway", said


_ACCOUNTS: Final = frozenset({"key_created", "key_rotated", "internal_user_created"})
_WRITERS: Final[Mapping[str, Callable[[Told], tuple[str, ...]]]] = {
    "budget_crossed": _crossed,
    "soft_budget_crossed": _soft,
    "threshold_crossed": _threshold,
    "max_budget_alert": _warning,
    "projected_limit_exceeded": _projected,
    "key_created": _key_created,
    "key_rotated": _key_rotated,
    "internal_user_created": _invited,
}


# --- the forms


def as_text(letter: Letter, sender: Sender) -> str:
    """The letter as plain text."""
    parts = ["\n\n".join(letter.sentences), "\n".join(f"{name}: {value}" for name, value in letter.facts)]
    if sender.proxy_url:
        parts.append(f"Gateway: {one_line(sender.proxy_url)}")
    if sender.support:
        parts.append(f"Questions: {one_line(sender.support)}")
    return "\n\n".join(parts) + "\n"


def as_html(letter: Letter, sender: Sender) -> str:
    """The letter as HTML, with every value escaped."""
    body = []
    if sender.logo_url.startswith(("https://", "http://")):
        body.append(f'<p><img src="{escape(sender.logo_url)}" alt="" height="40"></p>')
    body.extend(f"<p>{escape(sentence)}</p>" for sentence in letter.sentences)
    rows = "".join(
        f'<tr><td style="padding:2px 16px 2px 0;color:#59636e">{escape(name)}</td><td>{escape(value)}</td></tr>'
        for name, value in letter.facts
    )
    body.append(f'<table style="border-collapse:collapse">{rows}</table>')
    if sender.proxy_url:
        body.append(f"<p>Gateway: {escape(sender.proxy_url)}</p>")
    if sender.support:
        body.append(f"<p>Questions: {escape(sender.support)}</p>")
    head = f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{escape(letter.subject)}</title></head>'
    return f'{head}<body style="{_STYLE}">{"".join(body)}</body></html>\n'
