"""Tool names and tool call ids in the alphabet that both APIs take, and the way back.

Both limit names to 64 of `[a-zA-Z0-9_-]` (OpenAI API reference, "Function calling"; Anthropic, "Tool use"). A changed
name ends in a hash of the whole old one: it depends on nothing else, so prompts stay cacheable and names distinct.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context

#: Note with the names that were changed: what the upstream sees -> what the client called it.
TOOL_NAMES: Final = "tool_names"

#: Note with what was cut from tool call ids: the client's id -> the thought signature that hung on it.
THOUGHT_SIGNATURES: Final = "thought_signatures"

_THOUGHT: Final = "__thought__"
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_OTHER: Final = re.compile(r"[^a-zA-Z0-9_-]")
_HASH: Final = 8


def sent(name: str, context: Context) -> str:
    """The name for the upstream; a changed one is noted for `restored`."""
    if _NAME.fullmatch(name):
        return name
    short = _hashed(name, 64)
    context.notes.setdefault(TOOL_NAMES, {})[short] = name
    return short


def restored(name: str, context: Context) -> str:
    """The client's own name for a tool that the upstream calls."""
    names: dict[str, JSON] = context.notes.get(TOOL_NAMES, {})
    return str(names.get(name, name))


def call_id(value: str, limit: int) -> str:
    """A tool call id both sides take; the same id always gives the same one, so calls and results stay paired."""
    return value if len(value) <= limit and not _OTHER.search(value) else _hashed(value, limit)


def client_call_id(value: str, number: int, context: Context) -> str:
    """A tool call id for Anthropic's clients, which refuse other characters; made up where the upstream gave none.

    Some gateways hang Gemini's thought signature on the id. It is cut off and noted: base64 would break the alphabet.
    """
    head, mark, signature = value.partition(_THOUGHT)
    found = call_id(head or f"toolu_{context.call_id}_{number}", 128)
    if mark:
        context.notes.setdefault(THOUGHT_SIGNATURES, {})[found] = signature
    return found


def _hashed(value: str, limit: int) -> str:
    digest = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{_OTHER.sub('_', value)[: limit - _HASH - 1]}_{digest}"
