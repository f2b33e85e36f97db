"""A configuration value that remembers where it was written: file, line and the key path as the operator typed it.

Nodes travel through includes, renames and merges without losing their place. They know no schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, TypeAlias

from tianji_mw.errors import ConfigError
from tianji_mw.redact import Secret

#: Deepest nesting read. No real configuration comes near; it keeps hostile input from exhausting the stack.
MAX_DEPTH: Final = 64
#: Most values read from one file, aliases expanded: a few lines of YAML anchors can unfold into billions.
MAX_VALUES: Final = 100_000

_SHOWN_KEY: Final = 80

Loc: TypeAlias = tuple[str | int, ...]
Scalar: TypeAlias = str | int | float | bool | Secret | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key was written."""

    file: str
    line: int | None
    key: str

    def inside(self, rest: Loc) -> Place:
        """The same line for a member that is not written there."""
        key = self.key
        for name in rest:
            key = join(key, name)
        return Place(self.file, self.line, key)


@dataclass(slots=True, eq=False)
class Node:
    """One value with its place. `text` is the scalar exactly as written, where the source is text."""

    value: Scalar | list[Node] | dict[str, Node]
    file: str
    line: int | None
    key: str = ""
    text: str | None = None

    def error(self, message: str, *, hint: str = "", at: str = "") -> ConfigError:
        """An error at this place, or at its member `at`. The message must not quote the value: it may be a secret."""
        key = join(self.key, at) if at else self.key
        return ConfigError(message, file=self.file, line=self.line, key=key, hint=hint)

    @property
    def place(self) -> str:
        """`file:line` for use inside a sentence."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def fields(self) -> dict[str, Node]:
        """The members of a mapping; empty for anything else, whose wrong type is reported by the validation."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The items of a list; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    def child(self, key: str) -> Node | None:
        """The member `key` of a mapping."""
        return self.fields.get(key)


def join(parent: str, name: str | int) -> str:
    """A key path for people: `model_list[0].litellm_params.model`."""
    if isinstance(name, int):
        return f"{parent}[{name}]"
    shown = name if name.isprintable() and len(name) <= _SHOWN_KEY else ascii(name)[1 : _SHOWN_KEY + 1]
    return f"{parent}.{shown}" if parent else shown


def kind(value: object) -> str:
    """What a value is, in the words of a YAML file."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true/false"
        case int() | float():
            return "a number"
        case str() | Secret():
            return "text"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a Python {type(value).__name__}"


def plain(node: Node, places: dict[Loc, Node] | None = None, loc: Loc = ()) -> Any:
    """The value without places; fills `places` with the node of every path."""
    if places is not None:
        places[loc] = node
    if isinstance(node.value, dict):
        return {key: plain(child, places, (*loc, key)) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child, places, (*loc, at)) for at, child in enumerate(node.value)]
    return node.value


def walk(node: Node) -> list[Node]:
    """This node and everything below it, parents first."""
    found = [node]
    for child in (*node.fields.values(), *node.items):
        found += walk(child)
    return found


def from_value(value: object, file: str, errors: list[ConfigError], key: str = "", depth: int = 0) -> Node:
    """Nodes for a Python value that came from JSON, a test or code; they have no line."""
    node = Node(None, file, None, key)
    if depth > MAX_DEPTH:
        errors.append(node.error(f"nested deeper than {MAX_DEPTH} levels"))
    elif isinstance(value, Mapping):
        fields: dict[str, Node] = {}
        for name, child in value.items():
            if isinstance(name, str):
                fields[str(name)] = from_value(child, file, errors, join(key, name), depth + 1)
            else:
                errors.append(node.error(f"every key must be text, one is {kind(name)}"))
        node.value = fields
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        node.value = [from_value(v, file, errors, join(key, at), depth + 1) for at, v in enumerate(value)]
    elif value is None or isinstance(value, str | int | float | Secret):
        node.value = value
    elif isinstance(value, date):
        node.value = value.isoformat()
    else:
        errors.append(node.error(f"{kind(value)} cannot stand in a configuration"))
    return node
