"""What was said in a call, out of its record: messages, answers, usage and the facts around them, in one shape. Pure.

Records hold the bodies of OpenAI chat, OpenAI Responses and Anthropic Messages as they were. Destinations want one
shape; here it is that of chat completions. Total: whatever a field holds, nothing raises, and odd parts become text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.records import Record

#: A message of chat completions: `role`, `content` (text, or a list of parts), and where there are any `tool_calls`,
#: `tool_call_id`, `name`, `reasoning_content`. The parts of images and files are as the client sent them.
Message = dict[str, Any]

#: The last time of which the nanoseconds fit into 64 bits, in seconds: in 2262.
_LAST: Final = 9.2e9
_NONE: Final[Mapping[str, JSON]] = {}
#: Types of parts that are plain text, in all three APIs.
_TEXT: Final = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})


# --- reading what may be anything
#: More than this, JSON encoders do not take.
_MOST: Final = (1 << 63) - 1


def mapping(value: JSON) -> Mapping[str, Any]:
    """The object, or an empty one."""
    return value if isinstance(value, dict) else _NONE


def number(value: JSON) -> float | int | None:
    """The number; None for anything else, such as a bool or infinity."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_one else None


def count(value: JSON) -> int:
    """A number of things; 0 for anything else."""
    found = number(value)
    return min(max(int(found), 0), _MOST) if found is not None else 0


def word(value: JSON) -> str | None:
    """A text that is not empty; None for anything else."""
    return value if isinstance(value, str) and value else None


def as_text(value: JSON) -> str:
    """A text as it is, None as nothing, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


# --- what was asked


def input_messages(record: Record) -> list[Message]:
    """What was asked, the system prompt first. A text alone is a user's; rerank and the like are JSON in a message."""
    asked = record.data.get("messages")
    if asked is None:
        return []
    if isinstance(asked, list) and asked and not all(isinstance(item, dict | str) for item in asked):
        return [{"role": "user", "content": as_text(asked)}]  # token ids
    found: list[Message] = []
    for item in asked if isinstance(asked, list) else [asked]:
        found += _from_item(item, "user")
    return found


def _from_item(item: JSON, role: str) -> Iterator[Message]:
    """The messages in one item of a list of messages, or of a Responses API's input or output."""
    if not isinstance(item, dict):
        yield {"role": role, "content": as_text(item)}
        return
    kind = item.get("type")
    if isinstance(kind, str) and kind.endswith("_call_output"):
        yield {"role": "tool", "tool_call_id": as_text(item.get("call_id")), "content": _plain(item.get("output"))}
    elif isinstance(kind, str) and kind.endswith("_call"):
        yield {"role": "assistant", "content": "", "tool_calls": [_responses_call(item)]}
    elif kind == "reasoning":
        yield {"role": "assistant", "content": "", "reasoning_content": _reasoning(item)}
    elif "role" in item or "content" in item:
        yield from _from_message(item, role)
    else:
        yield {"role": role, "content": as_text(item)}


def _from_message(message: Mapping[str, JSON], role: str) -> Iterator[Message]:
    """One message; Anthropic's tool results stand in a user's message, and become messages of their own."""
    out: Message = {"role": word(message.get("role")) or role, "content": ""}
    for field in ("name", "tool_call_id", "reasoning_content", "refusal"):
        if word(message.get(field)):
            out[field] = message[field]
    calls = [_chat_call(call) for call in _list(message.get("tool_calls"))]
    if isinstance(message.get("function_call"), dict):
        calls.append(_chat_call({"function": message["function_call"]}))
    content = message.get("content")
    if not isinstance(content, list):
        out["content"] = as_text(content)
    else:
        kept: list[JSON] = []
        thought: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "tool_result":
                yield {
                    "role": "tool",
                    "tool_call_id": as_text(part.get("tool_use_id")),
                    "content": _plain(part.get("content")),
                }
            elif kind in ("tool_use", "server_tool_use"):
                calls.append(_call(part.get("id"), part.get("name") or part.get("text"), part.get("input")))
            elif kind == "thinking":
                thought.append(as_text(part.get("thinking") or part.get("text")))
            else:
                kept.append(part)
        out["content"] = _joined(kept)
        if thought:
            out["reasoning_content"] = "\n".join(thought)
        if not kept and not calls and not thought:
            return  # nothing but tool results, or nothing at all
    if calls:
        out["tool_calls"] = calls
    yield out


def _joined(parts: list[JSON]) -> JSON:
    """One text where all parts are texts, else the parts, the texts among them as chat completions have them."""
    out: list[JSON] = []
    plain = True
    for part in parts:
        if isinstance(part, str):
            out.append({"type": "text", "text": part})
        elif isinstance(part, dict) and (part.get("type") in _TEXT or part.keys() == {"text"}):
            out.append({"type": "text", "text": as_text(part.get("text", part.get("refusal")))})
        else:
            out.append(part)
            plain = False
    return "\n".join(part["text"] for part in out) if plain else out


def _plain(content: JSON) -> str:
    """The content of a tool's result, as one text."""
    joined = _joined(content) if isinstance(content, list) else content
    return as_text(joined)


def text_of(message: Message) -> str:
    """The content of a message as one text; parts that are no texts are named by their types."""
    content = message.get("content")
    if not isinstance(content, list):
        return as_text(content)
    return "\n".join(
        as_text(part.get("text")) if mapping(part).get("type") == "text" else f"[{mapping(part).get('type', 'part')}]"
        for part in content
    )


def _list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []


def _call(call_id: JSON, name: JSON, arguments: JSON) -> dict[str, Any]:
    function = {"name": as_text(name), "arguments": as_text(arguments)}
    return {"id": as_text(call_id), "type": "function", "function": function}


def _chat_call(call: JSON) -> dict[str, Any]:
    call = mapping(call)
    function = mapping(call.get("function")) or mapping(call.get("custom"))
    return _call(call.get("id"), function.get("name"), function.get("arguments", function.get("input")))


def _responses_call(item: Mapping[str, JSON]) -> dict[str, Any]:
    """A function's call, or one of OpenAI's own tools, such as `web_search_call`."""
    name = item.get("name") or item.get("text") or as_text(item.get("type")).removesuffix("_call")
    given = next((item[field] for field in ("arguments", "input", "action") if field in item), None)
    return _call(item.get("call_id") or item.get("id"), name, given)


def _reasoning(item: Mapping[str, JSON]) -> str:
    return as_text(_joined([*_list(item.get("summary")), *_list(item.get("content"))])) or as_text(item.get("text"))


# --- what was answered


def output_messages(record: Record) -> list[Message]:
    """The answer, one message for each choice. What is no message, such as embeddings, becomes a short text."""
    answer = record.data.get("response")
    if answer is None:
        return []
    if not isinstance(answer, dict):
        return [{"role": "assistant", "content": as_text(answer)}]
    if isinstance(answer.get("choices"), list):
        return [message for choice in answer["choices"] for message in _from_choice(mapping(choice))]
    if isinstance(answer.get("output"), list):
        return _one([message for item in answer["output"] for message in _from_item(item, "assistant")])
    if isinstance(answer.get("content"), list | str):
        return _one(list(_from_message(answer, "assistant")))
    return [{"role": "assistant", "content": _summary(answer)}]


def _from_choice(choice: Mapping[str, JSON]) -> Iterator[Message]:
    message = choice.get("message")
    if isinstance(message, dict):
        return _from_message(message, "assistant")
    return iter([{"role": "assistant", "content": as_text(choice.get("text"))}])


def _one(messages: list[Message]) -> list[Message]:
    """What an assistant said, reasoned and called in items of their own, as one message."""
    said = [message for message in messages if message["role"] == "assistant"]
    if len(said) < 2 or len(said) != len(messages):
        return messages
    whole: Message = {"role": "assistant", "content": ""}
    contents = [part for message in said for part in _parts(message["content"])]
    whole["content"] = _joined(contents)
    if thought := [message["reasoning_content"] for message in said if message.get("reasoning_content")]:
        whole["reasoning_content"] = "\n".join(thought)
    if calls := [call for message in said for call in message.get("tool_calls", ())]:
        whole["tool_calls"] = calls
    return [whole]


def _parts(content: JSON) -> list[JSON]:
    return content if isinstance(content, list) else [content] if content else []


def _summary(answer: Mapping[str, JSON]) -> str:
    data = answer.get("data")
    if isinstance(data, list) and data and "embedding" in mapping(data[0]):
        vector = data[0]["embedding"]
        size = f" of {len(vector)} numbers" if isinstance(vector, list) else ""
        return f"{len(data)} embeddings{size}"
    return as_text({key: value for key, value in answer.items() if key not in ("usage", "id", "meta")})


# --- facts


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a call. `input` includes what was cached, `output` includes reasoning."""

    input: int = 0
    output: int = 0
    total: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0


def usage(record: Record) -> Tokens:
    """What the call used; zeros where it is not known."""
    data = record.data
    found = mapping(mapping(data.get("metadata")).get("usage_object"))
    asked, answered = mapping(found.get("prompt_tokens_details")), mapping(found.get("completion_tokens_details"))
    into = count(data.get("prompt_tokens")) or count(found.get("prompt_tokens"))
    out = count(data.get("completion_tokens")) or count(found.get("completion_tokens"))
    return Tokens(
        input=into,
        output=out,
        total=count(data.get("total_tokens")) or into + out,
        cache_read=count(found.get("cache_read_input_tokens")) or count(asked.get("cached_tokens")),
        cache_write=count(found.get("cache_creation_input_tokens")) or count(asked.get("cache_creation_tokens")),
        reasoning=count(answered.get("reasoning_tokens")),
        audio_input=count(asked.get("audio_tokens")),
        audio_output=count(answered.get("audio_tokens")),
    )


def cost(record: Record) -> float:
    """What the call cost, in USD; 0 where it is not known."""
    return float(number(record.data.get("response_cost")) or 0.0)


def model_parameters(record: Record) -> Mapping[str, Any]:
    """The request's parameters, such as `temperature` and `tools`; read only."""
    return mapping(record.data.get("model_parameters"))


def tool_definitions(record: Record) -> list[dict[str, Any]]:
    """The tools that were offered: `name`, `description` and `schema` of each function, in any of the three APIs."""
    found = []
    for tool in _list(model_parameters(record).get("tools")):
        function = mapping(mapping(tool).get("function")) or mapping(tool)
        if name := word(function.get("name")):
            schema = function.get("parameters", function.get("input_schema"))
            described = as_text(function.get("description"))
            found.append({"name": name, "description": described, "schema": mapping(schema)})
    return found


def requester_metadata(record: Record) -> Mapping[str, Any]:
    """The `metadata` of the client's request; read only."""
    return mapping(mapping(record.data.get("metadata")).get("requester_metadata"))


def said_of_call(record: Record, names: frozenset[str]) -> dict[str, Any]:
    """The `metadata` of the client's request without `names`, and without what only we say: whose key it was."""
    asked = requester_metadata(record)
    return {key: value for key, value in asked.items() if key not in names and not key.startswith("user_api_key")}


def custom_headers(record: Record) -> Mapping[str, Any]:
    """The client's headers `x-*` and those of vendors, lower case; read only."""
    return mapping(mapping(record.data.get("metadata")).get("requester_custom_headers"))


def session_id(record: Record) -> str | None:
    """The conversation that the call belongs to, by the record's own field, the request's metadata, or its headers."""
    asked, headers = requester_metadata(record), custom_headers(record)
    named = [asked.get(field) for field in ("session_id", "thread_id", "conversation_id")]
    sent = [headers.get("x-litellm-session-id"), headers.get("helicone-session-id")]
    return next((found for found in (record.data.get("session_id"), *named, *sent) if word(found)), None)


class Failure(NamedTuple):
    """Why a call failed: `kind` is the error's class, `status` an HTTP status or None."""

    kind: str
    message: str
    status: int | None


def failure(record: Record) -> Failure | None:
    """Why the call failed; None when it went well."""
    data = record.data
    if data.get("status") != "failure":
        return None
    told = mapping(data.get("error_information"))
    code = as_text(told.get("error_code"))
    message = word(data.get("error_str")) or word(told.get("error_message")) or "failed"
    status = int(code) if code.isdecimal() and len(code) == 3 else None
    return Failure(word(told.get("error_class")) or "Error", message, status)


def times(record: Record) -> tuple[float, float]:
    """Start and end in seconds since 1970; the end is never before the start."""
    return _times(record.data, 0.0)


def attempt_times(record: Record, attempt: Mapping[str, Any]) -> tuple[float, float]:
    """The same of one of its attempts."""
    return _times(attempt, times(record)[0])


def _times(held: Mapping[str, Any], default: float) -> tuple[float, float]:
    start, end = (number(held.get(field)) for field in ("startTime", "endTime"))
    start = min(max(default if start is None else start, 0.0), _LAST)
    return float(start), float(min(max(start if end is None else end, start), _LAST))


def time_to_first_token(record: Record) -> float | None:
    """Seconds from the start to the first token of a stream; None for a plain answer."""
    found = number(ours(record).get("time_to_first_token"))
    return float(found) if found is not None and found >= 0 else None


def ours(record: Record) -> Mapping[str, Any]:
    """Our own part of the record (`tianji`); read only."""
    return mapping(record.data.get("tianji"))


def attempts(record: Record) -> list[Mapping[str, Any]]:
    """What was sent upstream for the call, in this order; see docs/callbacks.md for the fields."""
    return [attempt for attempt in _list(ours(record).get("attempts")) if isinstance(attempt, dict)]


def tags(record: Record) -> list[str]:
    """The request's tags."""
    return [tag for tag in _list(record.data.get("request_tags")) if word(tag)]


def facts(record: Record) -> dict[str, Any]:
    """Who called, with what, and how it went: a flat object without content, for the metadata of a destination."""
    data = record.data
    named = ("litellm_call_id", "trace_id", "call_type", "custom_llm_provider", "model", "model_group", "model_id")
    more = ("api_base", "response_cost", "cache_hit", "end_user", "requester_ip_address", "user_agent", "stream")
    out = {field: data[field] for field in (*named, *more) if data.get(field) not in (None, "")}
    who = mapping(data.get("metadata"))
    out |= {key: value for key, value in who.items() if key.startswith("user_api_key_") and value not in (None, {}, "")}
    for field in ("spend_logs_metadata", "applied_guardrails"):
        if who.get(field):
            out[field] = who[field]
    told = {field: ours(record).get(field) for field in ("outcome", "status_code")}
    return out | {field: value for field, value in told.items() if value}
