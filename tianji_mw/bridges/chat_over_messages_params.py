"""Chat's scalar parameters as Anthropic's: limits, sampling, thinking, and what Anthropic has not got.

Source: OpenAI API reference, "Chat"; Anthropic API reference, "Messages", "Extended thinking", "Service tiers".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import shape
from tianji_mw.bridges.base import Context, unsupported
from tianji_mw.bridges.chat_over_messages_tools import lower_choice
from tianji_mw.errors import InvalidRequest, UnsupportedParams

#: Anthropic requires a limit; this one is taken where neither client nor deployment names one.
DEFAULT_MAX_TOKENS: Final = 4096
#: Default of a deployment (`context.defaults`): the model decides itself how much it thinks.
ADAPTIVE: Final = "adaptive_thinking"

_BUDGETS: Final[Mapping[str, int]] = {
    "minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384,
}  # fmt: skip
_TIERS: Final[Mapping[str, str]] = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
#: Wishes about storage and caching at OpenAI: without them the answer is the same, so they never fail.
_HINTS: Final = (
    "store", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "moderation",
)  # fmt: skip
#: Values that ask for nothing beyond what Anthropic does anyway; any other value is unsupported.
_NEUTRAL: Final[Mapping[str, tuple[JSON, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "seed": (),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
#: Every field of OpenAI's that this bridge reads or leaves out. All others go on as they are.
HANDLED: Final = frozenset(_NEUTRAL) | frozenset(_HINTS) | frozenset(
    {
        "messages", "system", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "tools",
        "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format", "reasoning_effort",
        "user", "safety_identifier", "metadata", "service_tier", "stream_options", "stream",
    }
)  # fmt: skip

# What is surely no pseudonym: Anthropic asks for none of these in `user_id`.
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_PHONE: Final = re.compile(r"\+?[\d\s().-]{7,20}")


def refuse(body: Mapping[str, JSON], context: Context) -> None:
    """Raise UnsupportedParams for what Anthropic cannot do, unless it may be left out."""
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            error = UnsupportedParams(
                f"This provider has no parameter '{name}'; leave it out, or allow it with 'drop_params'.", param=name
            )
            unsupported(name, context, error)
    context.dropped.extend(name for name in _HINTS if body.get(name) is not None)


def apply(body: Mapping[str, JSON], out: dict[str, JSON], context: Context) -> None:
    """Set limits, sampling, identity and tier of `out`."""
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"), context.defaults.get("max_tokens"))
    out["max_tokens"] = next((limit for limit in limits if limit is not None), DEFAULT_MAX_TOKENS)
    for name in ("temperature", "top_p"):
        if (value := body.get(name)) is not None:
            # OpenAI's range ends at 2, Anthropic's at 1.
            out[name] = 1 if isinstance(value, int | float) and value > 1 else value
    if stops := _stops(body.get("stop"), context):
        out["stop_sequences"] = stops
    if isinstance(body.get("stream"), bool):
        out["stream"] = body["stream"]
    if metadata := _metadata(body, context):
        out["metadata"] = metadata
    if (tier := body.get("service_tier")) is not None:
        if isinstance(tier, str) and tier in _TIERS:
            out["service_tier"] = _TIERS[tier]
        else:
            text = "This provider's service tiers are 'auto' and 'default'."
            unsupported("service_tier", context, UnsupportedParams(text, param="service_tier"))


def think(body: Mapping[str, JSON], out: dict[str, JSON], context: Context) -> None:
    """Turn thinking on where it was asked for, and bring the other parameters in line with it.

    `thinking` in Anthropic's form has gone through already and wins over `reasoning_effort`.
    """
    effort = body.get("reasoning_effort")
    if out.get("thinking") is None:
        out.pop("thinking", None)
    if effort is not None and "thinking" not in out:
        if effort == "none":
            return
        if not isinstance(effort, str) or effort not in _BUDGETS:
            raise InvalidRequest(f"'reasoning_effort' is none of {', '.join(_BUDGETS)}.", param="reasoning_effort")
        if _in_unsigned_tool_round(out["messages"]):
            # Anthropic refuses thinking where the assistant's open turn does not begin with a signed thought.
            context.dropped.append("reasoning_effort")
            return
        if context.defaults.get(ADAPTIVE):
            level = "low" if effort == "minimal" else effort
            out["thinking"] = {"type": "adaptive"}
            out["output_config"] = {"effort": level, **shape.record(out.get("output_config"))}
        else:
            out["thinking"] = {"type": "enabled", "budget_tokens": _BUDGETS[effort]}
    thinking = shape.record(out.get("thinking"))
    if thinking.get("type") not in ("enabled", "adaptive"):
        return
    budget, limit = shape.count(thinking.get("budget_tokens")), out["max_tokens"]
    if isinstance(limit, int) and limit <= budget:
        out["max_tokens"] = budget + limit  # the client's limit was meant for the answer
    if out.get("temperature", 1) != 1:
        del out["temperature"]
        context.dropped.append("temperature")
    lower_choice(body, out, context)


def _in_unsigned_tool_round(turns: JSON) -> bool:
    if len(turns) < 2 or not any(block.get("type") == "tool_result" for block in turns[-1]["content"]):
        return False
    return turns[-2]["content"][0].get("type") not in ("thinking", "redacted_thinking")


def _stops(stop: JSON, context: Context) -> list[JSON]:
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    kept = [text for text in stops if not isinstance(text, str) or text.strip()]
    if len(kept) < len(stops):
        error = UnsupportedParams("This provider takes no blank stop sequences.", param="stop")
        unsupported("stop", context, error)
    return kept


def _metadata(body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
    """Anthropic's metadata knows a `user_id` alone, which must not tell who the person is."""
    given = shape.record(body.get("metadata"))
    if set(given) - {"user_id"}:
        context.dropped.append("metadata")
    if isinstance(given.get("user_id"), str):
        return {"user_id": given["user_id"]}
    user = shape.string(body.get("user")) or shape.string(body.get("safety_identifier"))
    if not user:
        return {}
    if _EMAIL.search(user) or _PHONE.fullmatch(user):
        context.dropped.append("user")
        return {}
    return {"user_id": user}
