"""The request half of `ResponsesOverChat`: a Responses request as a Chat Completions request.

What Chat Completions has a word for is translated, whether or not the provider behind it takes it: that is decided
where the provider is known. Fields neither API knows (a provider's own, the gateway's) go through unchanged. Items are
in `responses_over_chat_input.py`.

Source: OpenAI API reference, "Responses" and "Chat"; OpenAI guide "Migrate to the Responses API".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context, unsupported
from tianji_mw.bridges.responses_over_chat_input import messages_of
from tianji_mw.bridges.shape import record, records, string
from tianji_mw.errors import InvalidRequest, UnsupportedParams

#: Key of `Context.notes`: the request's fields that the answer repeats.
ECHO: Final = "responses_over_chat.echo"
#: Key of `Context.notes`: names of custom tools, which travel as functions.
CUSTOM_TOOLS: Final = "responses_over_chat.custom_tools"

#: Models that refuse `max_tokens` (OpenAI API reference, "Create chat completion", `max_tokens`).
_NEW_LIMIT: Final = re.compile(r"(?:^|/)(?:o[1-9]|gpt-[5-9])")
#: Need an earlier response or a stored object: without them the model would answer something else.
_STATEFUL: Final = ("previous_response_id", "conversation", "background", "prompt")
#: Without a word in Chat Completions, and with an effect on the answer.
_MISSING: Final = ("context_management", "moderation", "max_tool_calls")
#: Said differently below, or about the stream or storage only.
_OWN: Final = frozenset(
    {
        "input",
        "instructions",
        "include",
        "max_output_tokens",
        "reasoning",
        "store",
        "stream_options",
        "text",
        "truncation",
    }
    | {"tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "background_options", *_STATEFUL, *_MISSING}
)
_ECHOED: Final = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "prompt_cache_key", "reasoning"),
    *("safety_identifier", "service_tier", "temperature", "text", "tool_choice", "top_logprobs", "top_p", "user"),
)


def chat_request(body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
    """The Chat request. Raises InvalidRequest or UnsupportedParams naming the field."""
    for name in _STATEFUL:
        if body.get(name):
            raise InvalidRequest(f"'{name}' needs stored responses, which this provider does not have.", param=name)
    for name in _MISSING:
        if body.get(name):
            unsupported(name, context, _no(name, f"This provider has no '{name}'."))
    out = {key: value for key, value in body.items() if key not in _OWN and value is not None}
    out["messages"] = messages_of(body, context)
    tools, used = _tools(body, context)
    out |= tools | _text(body.get("text"))
    limit = body.get("max_output_tokens")
    if limit is not None:
        out["max_completion_tokens" if _NEW_LIMIT.search(string(body.get("model"))) else "max_tokens"] = limit
    effort = record(body.get("reasoning")).get("effort")
    if effort is not None:
        out["reasoning_effort"] = effort
    out |= _logprobs(body)
    _note_ignored(body, context)
    if body.get("stream"):
        out["stream_options"] = {"include_usage": True}
    context.notes[ECHO] = {key: body[key] for key in _ECHOED if body.get(key) is not None} | {"tools": used}
    context.notes[CUSTOM_TOOLS] = [string(tool.get("name")) for tool in used if tool.get("type") == "custom"]
    return out


def _no(name: str, message: str) -> UnsupportedParams:
    return UnsupportedParams(message, param=name)


def _note_ignored(body: Mapping[str, JSON], context: Context) -> None:
    """Fields that change nothing in this answer are never refused: clients send them by default."""
    if body.get("store"):
        context.dropped.append("store")
    if body.get("truncation") not in (None, "disabled"):
        context.dropped.append("truncation")
    wanted = body.get("include")
    if isinstance(wanted, list) and any(name != "message.output_text.logprobs" for name in wanted):
        context.dropped.append("include")


def _logprobs(body: Mapping[str, JSON]) -> dict[str, JSON]:
    top, wanted = body.get("top_logprobs"), body.get("include")
    if top:
        return {"logprobs": True, "top_logprobs": top}
    return {"logprobs": True} if isinstance(wanted, list) and "message.output_text.logprobs" in wanted else {}


def _text(text: JSON) -> dict[str, JSON]:
    """`text.format` as `response_format`; `text.verbosity` has the same name in both APIs."""
    out: dict[str, JSON] = {}
    wanted = record(record(text).get("format"))
    if wanted.get("type") == "json_schema":
        schema = {key: value for key, value in wanted.items() if key != "type" and value is not None}
        out["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted and wanted.get("type") != "text":
        out["response_format"] = {"type": wanted.get("type")}
    if record(text).get("verbosity") is not None:
        out["verbosity"] = text["verbosity"]
    return out


# --- tools ------------------------------------------------------------------------------------------------------


def _tools(body: Mapping[str, JSON], context: Context) -> tuple[dict[str, JSON], list[dict[str, JSON]]]:
    """Chat's `tools`, `tool_choice` and `parallel_tool_calls`, and the client's own tools that are in use."""
    used = []
    for tool in records(body.get("tools")):
        if tool.get("type") not in ("function", "custom"):
            kind = string(tool.get("type"))[:40]
            unsupported("tools", context, _no("tools", f"This provider has no hosted tool '{kind}', only functions."))
        elif not string(tool.get("name")):
            raise InvalidRequest("A tool needs a 'name'.", param="tools")
        else:
            used.append(tool)
    choice = body.get("tool_choice")
    if not used:
        return {}, used  # Chat Completions refuses a choice without tools
    sent = used
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        # Only the newest models know the form; fewer tools say the same everywhere.
        names = {string(tool.get("name")) for tool in records(choice.get("tools"))}
        sent = [tool for tool in used if tool["name"] in names]
        if not sent:
            raise InvalidRequest("'tool_choice' allows none of the tools in 'tools'.", param="tool_choice")
        choice = choice.get("mode", "auto")
    out: dict[str, JSON] = {"tools": [_function(tool) for tool in sent]}
    if choice is not None:
        _choose(choice, out, context)
    if body.get("parallel_tool_calls") is not None:
        out["parallel_tool_calls"] = body["parallel_tool_calls"]
    return out, used


def _choose(choice: JSON, out: dict[str, JSON], context: Context) -> None:
    if isinstance(choice, str):
        out["tool_choice"] = choice
    elif record(choice).get("type") in ("function", "custom"):
        out["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    else:
        unsupported("tool_choice", context, _no("tool_choice", "This provider can be forced to use functions only."))


def _function(tool: Mapping[str, JSON]) -> dict[str, JSON]:
    """A flat tool as Chat nests it. A custom tool (free text in) becomes a function of one string."""
    if tool["type"] == "function":
        kept = ("name", "description", "parameters", "strict")
        return {"type": "function", "function": {key: tool[key] for key in kept if tool.get(key) is not None}}
    description, grammar = string(tool.get("description")), string(record(tool.get("format")).get("definition"))
    if grammar:
        description = f"{description}\n\nThe input must follow this grammar:\n{grammar}".strip()
    parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    function = {"name": tool["name"], "description": description, "parameters": parameters}
    return {"type": "function", "function": function}
