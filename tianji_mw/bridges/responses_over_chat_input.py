"""The `input` of a Responses request as Chat messages.

Items are a flat list; Chat wants turns: one assistant message with all its tool calls, and right after it one `tool`
message per result. So items become turns first, and results find their turn by `call_id`, wherever they stand.

Source: OpenAI API reference, "Responses" (input items) and "Chat" (messages).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context, unsupported
from tianji_mw.bridges.shape import dumps, records, string
from tianji_mw.errors import InvalidRequest, UnsupportedParams

#: Some old server-side models know `system` only; those that want `developer` take `system` for it.
_ROLES: Final[Mapping[str, str]] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_DETAILS: Final = ("auto", "low", "high")


def messages_of(body: Mapping[str, JSON], context: Context) -> list[JSON]:
    """`instructions` and `input` as messages.

    Reasoning items are left out, because many servers refuse unknown message fields; where the deployment's defaults
    say `reasoning_content: true`, they go along as that field.
    """
    turns = _Turns(context)
    instructions = body.get("instructions")
    if instructions:
        turns.say("system", instructions)
    found = body.get("input")
    if isinstance(found, str):
        turns.say("user", found)
    for i, item in enumerate(records(found)):
        turns.add(item, f"input[{i}]")
    messages = turns.messages()
    if not messages:
        raise InvalidRequest("'input' holds nothing to answer.", param="input")
    return messages


class _Turns:
    """Collects messages; each assistant message has its tool results beside it."""

    __slots__ = ("_context", "_keep_reasoning", "_results_of", "_thoughts", "_turns")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._turns: list[tuple[dict[str, JSON], list[dict[str, JSON]]]] = []
        self._results_of: dict[str, list[dict[str, JSON]]] = {}
        self._keep_reasoning = bool(context.defaults.get("reasoning_content"))
        self._thoughts = ""

    def messages(self) -> list[JSON]:
        return [message for turn, results in self._turns for message in (turn, *results)]

    def add(self, item: Mapping[str, JSON], where: str) -> None:
        """One input item."""
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        match kind:
            case "message":
                role = _ROLES.get(string(item.get("role")))
                if role is None:
                    raise InvalidRequest(f"{where} has no valid 'role'.", param="input")
                self.say(role, _content(item.get("content"), role, where))
            case "function_call":
                self._call(item, string(item.get("arguments")) or "{}", where)
            case "custom_tool_call":
                self._call(item, dumps({"input": string(item.get("input"))}), where)
            case "function_call_output" | "custom_tool_call_output":
                self._result(item, where)
            case "reasoning":
                parts = records(item.get("content")) or records(item.get("summary"))
                self._thoughts += "".join(string(part.get("text")) for part in parts)
            case "item_reference" | "compaction":
                raise InvalidRequest(
                    f"{where} needs stored responses, which this provider does not have.", param="input"
                )
            case _:
                message = f"{where} is of a type that Chat Completions does not have."
                unsupported("input", self._context, UnsupportedParams(message, param="input"))

    def say(self, role: str, content: JSON) -> None:
        """A message; an assistant's words join the tool calls of the same turn."""
        if role != "assistant":
            self._thoughts = ""
            self._turns.append(({"role": role, "content": content}, []))
            return
        last = self._open_turn()
        if last is not None and last.get("tool_calls"):
            last["content"] = f"{last['content'] or ''}{content}"
            self._think(last)
        else:
            self._begin(content)

    def _begin(self, content: JSON) -> dict[str, JSON]:
        message: dict[str, JSON] = {"role": "assistant", "content": content}
        self._think(message)
        self._turns.append((message, []))
        return message

    def _think(self, message: dict[str, JSON]) -> None:
        if self._thoughts and self._keep_reasoning:
            message["reasoning_content"] = message.get("reasoning_content", "") + self._thoughts
        self._thoughts = ""

    def _open_turn(self) -> dict[str, JSON] | None:
        """The assistant's message at the end, if no result has closed its turn."""
        if not self._turns:
            return None
        message, results = self._turns[-1]
        return message if message["role"] == "assistant" and not results else None

    def _call(self, item: Mapping[str, JSON], arguments: str, where: str) -> None:
        call_id, name = string(item.get("call_id")), string(item.get("name"))
        if not call_id or not name:
            raise InvalidRequest(f"{where} needs 'call_id' and 'name'.", param="input")
        message = self._open_turn()
        if message is None:
            message = self._begin(None)
        else:
            self._think(message)
        function = {"name": name, "arguments": arguments}
        message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        self._results_of[call_id] = self._turns[-1][1]

    def _result(self, item: Mapping[str, JSON], where: str) -> None:
        call_id = string(item.get("call_id"))
        results = self._results_of.get(call_id)
        if results is None:
            raise InvalidRequest(f"{where} answers a call that is not in 'input'.", param="input")
        results.append(
            {"role": "tool", "tool_call_id": call_id, "content": _content(item.get("output"), "tool", where)}
        )


def _content(content: JSON, role: str, where: str) -> JSON:
    """A message's content: one string where that says everything, since every server takes strings."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} has no text and no list of parts.", param="input")
    parts = [_part(part, where) for part in content]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) == len(parts) and (len(parts) < 2 or role == "assistant"):
        return "".join(texts)
    if role == "assistant":
        raise InvalidRequest(f"{where}: an assistant's message holds text only.", param="input")
    return parts


def _part(part: JSON, where: str) -> dict[str, JSON]:
    if not isinstance(part, dict):
        raise InvalidRequest(f"{where} has a part that is no object.", param="input")
    kind = part.get("type")
    if kind in _TEXT_PARTS or kind == "refusal":
        return {"type": "text", "text": string(part.get("refusal" if kind == "refusal" else "text"))}
    if kind == "input_image":
        return {"type": "image_url", "image_url": _image(part, where)}
    if kind == "input_file":
        names = ("file_data", "file_id", "filename")
        file = {name: part[name] for name in names if string(part.get(name))}
        if "file_data" not in file and "file_id" not in file:
            raise _no(f"{where}: this provider takes files as 'file_data' or 'file_id' only.")
        return {"type": "file", "file": file}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise _no(f"{where} has a part of a type that Chat Completions does not have.")


def _image(part: Mapping[str, JSON], where: str) -> dict[str, JSON]:
    url = string(part.get("image_url"))
    if not url:
        raise _no(f"{where}: this provider takes images as 'image_url' only.")
    detail = part.get("detail")
    return {"url": url, "detail": detail} if detail in _DETAILS else {"url": url}


def _no(message: str) -> UnsupportedParams:
    # Never left out, whatever `drop_params` says: the question would be about something the model cannot see.
    return UnsupportedParams(message, param="input")
