"""What the tests of several bridges share: contexts, small builders, and a check that a body stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from tianji_mw.bridges.base import Context

USER = {"role": "user", "content": "Hi"}
MARK = {"type": "ephemeral"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
#: One usage, as Anthropic and as chat say it.
A_USAGE = {
    "input_tokens": 10,
    "output_tokens": 9,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 5,
    "output_tokens_details": {"thinking_tokens": 4},
}
CHAT_USAGE = {
    "prompt_tokens": 17,
    "completion_tokens": 9,
    "total_tokens": 26,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 4},
    "cache_creation_input_tokens": 2,
}


def context(defaults: dict[str, Any] | None = None, **notes: Any) -> Context:
    return Context(call_id="c1", model="asked", created=1700000000, defaults=defaults or {}, notes=notes)


def kept(make: Callable[[Any, Context], Any], body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    """What a bridge makes of this body, which stays as it was."""
    before = deepcopy(body)
    out: dict[str, Any] = make(body, ctx or context())
    assert body == before
    return out


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def texts(*values: str) -> list[dict[str, Any]]:
    return [text(value) for value in values]


def result(call: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": content, **fields}


def json_values(keys: Sequence[str], words: Sequence[str] = (), *, entries: int, leaves: int) -> st.SearchStrategy[Any]:
    """Any JSON, mostly with keys that a bridge looks for, and with words that it acts upon."""
    return st.recursive(
        st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(keys), inner | st.sampled_from(words) if words else inner, max_size=entries
            )
        ),
        max_leaves=leaves,
    )
