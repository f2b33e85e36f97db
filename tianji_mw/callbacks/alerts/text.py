"""How alerts become text for people: facts, lengths, and nothing in it that calls a channel or hides a link. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

#: Words that call everybody in a channel of Slack or Discord.
_CALLS: Final = re.compile(r"@(?=everyone|here|channel)", re.IGNORECASE)
_MOST_FACTS: Final = 30


def facts(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields of an alert that people should see, by name."""
    shown = []
    for name, value in fields.items():
        if isinstance(value, bool) or value is None:
            text = "" if value is None else str(value).lower()
        elif isinstance(value, str | int | float):
            text = str(value)
        else:
            text = orjson.dumps(value).decode()
        if text:
            shown.append((one_line(name)[:100], one_line(text)[:500]))
    return shown[:_MOST_FACTS]


def harmless(text: str) -> str:
    """The text without what would call a whole channel, or hide where a link leads."""
    return _CALLS.sub("@\u200b", text).replace("](", "]\u200b(")


def cut(text: str, most: int) -> str:
    """The text, with at most so many characters; the end says what is missing."""
    if len(text) <= most:
        return text
    return f"{text[: most - 40]}... ({len(text) - most + 40} more characters)"


def clock_time(at: float) -> str:
    """`12:00:01`, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def one_line(text: str) -> str:
    """The text without line ends and other control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
