"""Chat's tools, tool choice and response format as Anthropic's tools.

A response format becomes a tool that the model must call: its input is the answer. The tool's name is noted, so that
the answer can be unwrapped. Source: OpenAI API reference, "Chat"; Anthropic API reference, "Tool use".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import names, shape
from tianji_mw.bridges.base import Context
from tianji_mw.errors import InvalidRequest, UnsupportedParams

#: Note with the name of the tool that stands for the response format.
JSON_TOOL: Final = "json_tool"
#: Note: the client used `functions`, the form before `tools`, and expects `function_call` in the answer.
LEGACY: Final = "legacy_functions"
#: Default of a deployment (`context.defaults`): the model takes `output_config.format`.
NATIVE_SCHEMA: Final = "native_json_schema"

_JSON_TOOL_NAME: Final = "json_tool_call"
_JSON_TOOL_HELP: Final = "Give the final answer by calling this tool. Its input is the whole answer."
_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "required": "any", "any": "any", "none": "none"}


def apply(body: Mapping[str, JSON], out: dict[str, JSON], context: Context) -> None:
    """Set `tools`, `tool_choice` and `output_config` of `out`. Raises UnsupportedParams or InvalidRequest."""
    tools, choice = _given(body, context)
    if schema_of := _schema(body.get("response_format")):
        schema, description = schema_of
        forced = choice is not None and choice["type"] in ("any", "tool")
        if context.defaults.get(NATIVE_SCHEMA) and schema:
            out["output_config"] = {**shape.record(out.get("output_config")), "format": _native(schema)}
        elif not forced:  # a model that must call a client's tool gives no content to format
            tools, choice = _with_json_tool(tools, choice, schema, description, context)
    if not tools and (used := _used(out["messages"])):
        # History with tool calls needs tools: the names are enough, and the model may not call them.
        tools, choice = used, {"type": "none"}
    if tools:
        out["tools"] = tools
        if choice is not None:
            out["tool_choice"] = choice


def lower_choice(body: Mapping[str, JSON], out: dict[str, JSON], context: Context) -> None:
    """With thinking on, Anthropic refuses a forced tool: let the model choose."""
    choice = out.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in ("any", "tool"):
        out["tool_choice"] = {**{k: v for k, v in choice.items() if k != "name"}, "type": "auto"}
        if body.get("tool_choice") is not None or body.get("function_call") is not None:
            context.dropped.append("tool_choice")  # else it was ours, for the response format


def _given(body: Mapping[str, JSON], context: Context) -> tuple[list[JSON], dict[str, JSON] | None]:
    listed, wanted = body.get("tools"), body.get("tool_choice")
    if not listed and body.get("functions"):
        context.notes[LEGACY] = True
        listed = [{"type": "function", "function": f} for f in shape.records(body["functions"])]
        wanted = body.get("function_call")
        if isinstance(wanted, dict):
            wanted = {"type": "function", "function": wanted}
    if listed is not None and not isinstance(listed, list):
        raise InvalidRequest("'tools' must be a list.", param="tools")
    tools = [_tool(tool, i, context) for i, tool in enumerate(listed or ())]
    if isinstance(wanted, dict) and wanted.get("type") == "allowed_tools":
        allowed = shape.record(wanted.get("allowed_tools"))
        keep = {names.sent(_name(tool), context) for tool in shape.records(allowed.get("tools"))}
        tools = [tool for tool in tools if tool.get("name") in keep]
        wanted = allowed.get("mode")
    choice = _choice(wanted, context) if tools else None
    if tools and (body.get("parallel_tool_calls") is False or context.notes.get(LEGACY)):
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice = {**choice, "disable_parallel_tool_use": True}
    return tools, choice


def _tool(tool: JSON, i: int, context: Context) -> dict[str, JSON]:
    where = f"tools[{i}]"
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} must be an object.", param=where)
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        if isinstance(tool.get("custom"), dict):
            raise UnsupportedParams("This provider takes no custom (free text) tools.", param=where)
        # Anthropic's own form, and its hosted tools (web search, code execution, ...).
        return dict(tool)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}.function has no name.", param=f"{where}.function.name")
    extra = {key: value for key, value in {**tool, **function}.items() if key not in ("type", "function", "parameters")}
    kept = {key: value for key, value in extra.items() if value is not None}
    return kept | {"name": names.sent(name, context), "input_schema": _input(function.get("parameters"))}


def _input(parameters: JSON) -> dict[str, JSON]:
    """A schema Anthropic takes as a tool's input: it must say that it is an object."""
    schema = shape.record(parameters)
    return dict(schema) if "type" in schema else {"type": "object", **(schema or {"properties": {}})}


def _name(tool: Mapping[str, JSON]) -> str:
    return shape.string(shape.record(tool.get("function")).get("name") or tool.get("name"))


def _choice(wanted: JSON, context: Context) -> dict[str, JSON] | None:
    if wanted is None:
        return None
    if isinstance(wanted, str) and wanted in _CHOICES:
        return {"type": _CHOICES[wanted]}
    if isinstance(wanted, dict):
        if wanted.get("type") in ("auto", "any", "none"):
            return dict(wanted)
        if name := _name(wanted):
            return {"type": "tool", "name": names.sent(name, context)}
    raise InvalidRequest(
        "'tool_choice' is none of 'auto', 'none', 'required' or a named function.", param="tool_choice"
    )


def _schema(wanted: JSON) -> tuple[dict[str, JSON], str] | None:
    """Schema (empty: any object) and description of a response format; None where plain text is wanted."""
    if wanted is None:
        return None
    wanted = shape.record(wanted)
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return {}, ""
        case "json_schema":
            given = shape.record(wanted.get("json_schema"))
            if isinstance(given.get("schema"), dict):
                return given["schema"], shape.string(given.get("description"))
            raise InvalidRequest("'response_format.json_schema' has no schema.", param="response_format")
    raise InvalidRequest("'response_format.type' is not one this provider can serve.", param="response_format")


def _native(schema: dict[str, JSON]) -> dict[str, JSON]:
    return {"type": "json_schema", "schema": schema}


def _with_json_tool(
    tools: list[JSON], choice: dict[str, JSON] | None, schema: dict[str, JSON], description: str, context: Context
) -> tuple[list[JSON], dict[str, JSON]]:
    name, taken = _JSON_TOOL_NAME, {tool.get("name") for tool in tools}
    while name in taken:
        name += "_"
    context.notes[JSON_TOOL] = name
    text = f"{_JSON_TOOL_HELP} {description}".strip()
    tool = {"name": name, "description": text, "input_schema": _input(schema or {"additionalProperties": True})}
    # With tools of the client's own the model may call one of them first; it must call something either way.
    free = bool(tools) and (choice is None or choice["type"] == "auto")
    forced: dict[str, JSON] = {"type": "any"} if free else {"type": "tool", "name": name}
    serial = choice is not None and choice.get("disable_parallel_tool_use")
    return [*tools, tool], {**forced, "disable_parallel_tool_use": True} if serial else forced


def _used(turns: JSON) -> list[JSON]:
    """Bare definitions of the tools that the conversation has used."""
    blocks = (block for turn in turns for block in turn["content"] if block.get("type") == "tool_use")
    found = dict.fromkeys(shape.string(block.get("name")) for block in blocks)
    return [{"name": name, "input_schema": _input(None)} for name in found if name]
