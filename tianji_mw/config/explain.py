"""Turns validation errors into sentences with file, line and key. No message quotes a value: it may be a secret."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.config.aliases import USUAL
from tianji_mw.config.nodes import Loc, Node, kind
from tianji_mw.config.sift import nearest
from tianji_mw.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

#: Kind of validation error -> what was expected.
_EXPECTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "string_type": "text",
        "is_instance_of": "text",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_parsing_size": "a whole number of fewer digits",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "list_type": "a list",
        "tuple_type": "a list",
        "dict_type": "a mapping",
        "mapping_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
    }
)
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "greater_than": ("gt", "must be above {}"),
        "greater_than_equal": ("ge", "must be at least {}"),
        "less_than_equal": ("le", "must be at most {}"),
    }
)


def explain(error: ValidationError, places: Mapping[Loc, Node], at: Loc = ()) -> list[ConfigError]:
    """One `ConfigError` per wrong place, in the order of the files."""
    by_node: dict[tuple[int, str], tuple[Node, list[ErrorDetails]]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        node, rest = _find((*at, *detail["loc"]), places)
        missing = str(rest[0]) if rest and detail["type"] == "missing" else ""
        by_node.setdefault((id(node), missing), (node, []))[1].append(detail)
    return [_one(node, missing, details) for (_, missing), (node, details) in by_node.items()]


def reason(error: ValidationError) -> tuple[str, str]:
    """What the first thing is that is wrong in a block that was not read from a file: its key, and why."""
    detail = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(step) for step in detail["loc"])
    expected = _EXPECTED.get(detail["type"])
    return key, f"expected {expected}" if expected else _sentence(detail, None)[0]


def _find(loc: Loc, places: Mapping[Loc, Node]) -> tuple[Node, Loc]:
    """The node of the longest known part of `loc`; pydantic appends its own names for members of a union."""
    end = len(loc)
    while loc[:end] not in places:
        end -= 1
    return places[loc[:end]], loc[end:]


def _one(node: Node, missing: str, details: list[ErrorDetails]) -> ConfigError:
    if missing:
        return node.error("this required key is missing", at=USUAL.get(missing, missing))
    expected = list(dict.fromkeys(_EXPECTED[d["type"]] for d in details if d["type"] in _EXPECTED))
    own = [d for d in details if d["type"] not in _EXPECTED]
    if own:
        message, hint = _sentence(own[0], node)
        return node.error(message, hint=hint)
    hint = "put it in quotes" if expected == ["text"] and kind(node.value) in {"a number", "true/false"} else ""
    return node.error(f"expected {' or '.join(expected)}, got {_got(node, details[0]['type'])}", hint=hint)


def _got(node: Node, error_type: str) -> str:
    if error_type in {"int_from_float", "finite_number"}:
        return "a number that is not"
    return "other text" if isinstance(node.value, str) and error_type.endswith("_parsing") else kind(node.value)


def _sentence(detail: ErrorDetails, node: Node | None) -> tuple[str, str]:
    context: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "tianji":
            return str(context["message"]), ""
        case "greater_than" | "greater_than_equal" | "less_than_equal" as bound:
            name, text = _BOUNDS[bound]
            return text.format(f"{context[name]:g}"), ""
        case "missing":
            return "this required key is missing", ""
        case "too_short":
            return "needs at least one entry", ""
        case "literal_error":
            return f"must be one of {context['expected']}", _meant(node, str(context["expected"]))
        case "datetime_type" | "datetime_parsing" | "datetime_from_date_parsing" | "datetime_object_invalid":
            return "expected a date and time such as 2027-01-31T12:00:00Z", ""
        case "extra_forbidden":
            return "unknown key", ""
        case _:
            return "this value is not valid here", ""


def _meant(node: Node | None, expected: str) -> str:
    names = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
    meant = nearest(node.value.lower(), names) if node is not None and isinstance(node.value, str) else ""
    return f"did you mean {meant!r}?" if meant else ""
