"""One rule about tools: which tools of which callers it speaks of, and whether it lets them pass.

Patterns are regular expressions of RE2 and match whole texts: whatever a model writes, they take linear time.
Source: LiteLLM's `tool_permission`, whose settings these are; `tool_glob`, `keys` and `teams` are ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.apis.tools import Tool
from tianji_mw.errors import MissingExtra, SetupError

if TYPE_CHECKING:
    from tianji_mw.identity.base import Identity


def as_list(value: Any) -> Any:
    """A single text as a list of it."""
    return (value,) if isinstance(value, str) else value


def lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Decision = Annotated[Literal["allow", "deny"], BeforeValidator(lower)]


class Rule(BaseModel):
    """A rule of the config.

    >>> Rule(id="mail", tool_name="send_.*", decision="allow", allowed_param_patterns={"to[]": ".*@example[.]com"})
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: str = Field(min_length=1)
    decision: Decision
    #: Regular expressions for the whole name and type. All of these three that are given must match.
    tool_name: str | None = None
    tool_type: str | None = None
    #: Names with `*` and `?`; a tool without a name is called by its type.
    tool_glob: Names = ()
    #: Keys by alias or SHA-256, and teams, of which the caller must be one; without both it speaks of all callers.
    keys: Names = ()
    teams: Names = ()
    #: By path, such as `to[].address`: what every value there must match for the rule to apply.
    allowed_param_patterns: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _speaks_of_something(self) -> Rule:
        if self.tool_name is None and self.tool_type is None and not self.tool_glob:
            raise ValueError(f"the rule '{self.id}' needs tool_name, tool_type or tool_glob")
        return self


class Ruling(NamedTuple):
    """What a rule says about one tool: a decision, or None with the reason why it does not apply after all."""

    decision: Literal["allow", "deny"] | None
    reason: str = ""


class Compiled:
    """A rule that is ready for use."""

    __slots__ = ("_name", "_patterns", "_type", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._name = _compiled(rule, "tool_name", rule.tool_name)
        self._type = _compiled(rule, "tool_type", rule.tool_type)
        self._patterns = {
            path: _compiled(rule, f"allowed_param_patterns[{path}]", pattern)
            for path, pattern in rule.allowed_param_patterns.items()
        }

    def applies(self, tool: Tool, who: Identity | None) -> bool:
        """Whether it speaks of this tool of this caller, its arguments aside."""
        rule = self.rule
        if (rule.keys or rule.teams) and not _is_one(who, rule.keys, rule.teams):
            return False
        if self._name is not None and not self._name.fullmatch(tool.name):
            return False
        if self._type is not None and not self._type.fullmatch(tool.type):
            return False
        return not rule.tool_glob or named(tool.name or tool.type, rule.tool_glob)

    def ruling(self, tool: Tool, arguments: Arguments | None) -> Ruling:
        """What it says about a tool that it speaks of; `arguments` are None where it is not called yet."""
        decision, rule_id = self.rule.decision, self.rule.id
        if not self._patterns:
            return Ruling(decision)
        if arguments is None:
            # An offer has no arguments yet: what may be called with some of them is offered.
            return Ruling("allow" if decision == "allow" else None)
        found = arguments.values()
        if found is None:
            text = f"Tool '{shown(tool)}' is missing arguments required by rule '{rule_id}'"
            return Ruling("deny", text)
        for path, pattern in self._patterns.items():
            values = found.get(path)
            if not values:
                return Ruling(None, f"Missing value for path '{path}' required by rule '{rule_id}'")
            if not all(pattern.fullmatch(value) for value in values):
                return Ruling(None, f"The value for path '{path}' does not match the pattern of rule '{rule_id}'")
        return Ruling(decision)


def shown(tool: Tool) -> str:
    """A tool as messages call it; a name is the model's or the client's word, and may be long."""
    return (tool.name or tool.type or "unknown_tool")[:128]


def named(name: str, globs: Sequence[str]) -> bool:
    """Whether one of the names, which may hold `*`, is this one."""
    return any(fnmatchcase(name, glob) for glob in globs)


def _is_one(who: Identity | None, keys: Sequence[str], teams: Sequence[str]) -> bool:
    if who is None:
        return False
    return bool((who.alias and who.alias in keys) or who.key_hash in keys or (who.team and who.team in teams))


def _compiled(rule: Rule, field: str, pattern: str | None) -> Any:
    """A pattern of RE2; None for none. Raises SetupError for one that it does not know."""
    if pattern is None:
        return None
    try:
        import re2
    except ModuleNotFoundError:
        raise MissingExtra("google-re2", "guardrails") from None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if error.args and isinstance(error.args[0], bytes) else ""
        text = f"tool_permission: the rule '{rule.id}' has a pattern that is not supported, {field}: {pattern}"
        raise SetupError(f"{text} ({reason or 'no regular expression of RE2'})") from None


class _Object(list[tuple[str, JSON]]):
    """A JSON object with all its members: where one stands twice, parsers differ in which of them counts."""


class Arguments:
    """The arguments of one call, parsed when a rule first asks for them."""

    __slots__ = ("_parsed", "_text", "_values")

    def __init__(self, text: str | None) -> None:
        self._text = text or ""
        self._parsed = False
        self._values: Mapping[str, list[str]] | None = None

    def values(self) -> Mapping[str, list[str]] | None:
        """All values by their paths; None when the arguments are no JSON object."""
        if not self._parsed:
            self._parsed, self._values = True, _values(self._text)
        return self._values


def _values(text: str) -> Mapping[str, list[str]] | None:
    try:
        parsed = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, _Object):
        return None
    found: dict[str, list[str]] = {}
    for path, value in _leaves(parsed):
        found.setdefault(path, []).append(value)
    return found


def _leaves(root: JSON) -> Iterator[tuple[str, str]]:
    """Values that are neither objects nor lists, as LiteLLM writes them (`True`, `None`), each with its path."""
    waiting: list[tuple[str, JSON]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Object):
            waiting += [(f"{path}.{key}" if path else key, item) for key, item in value]
        elif isinstance(value, list):
            waiting += [(f"{path}[]", item) for item in value]
        else:
            yield path, str(value)
