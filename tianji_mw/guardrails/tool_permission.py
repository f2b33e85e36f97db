"""`tool_permission`: who may use which tool, with which arguments.

It judges the tools that a request offers or forces, and the calls of the answer. Calls in the history of a conversation
are past, and are not judged. Texts are never shown to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.apis.tools import Tool
from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Side, Subject, Verdict, block
from tianji_mw.guardrails.tool_rules import Arguments, Compiled, Decision, Rule, lower, named, shown
from tianji_mw.guardrails.tools import instead
from tianji_mw.runtime import Runtime

_CATEGORY: Final = "tool_permission"
_ERROR: Final = "Violated guardrail policy"
_PLACEHOLDER: Final = re.compile(r"\{(default_message|tool_name|rule_id)\}")


def _by_name(value: Any) -> Any:
    return {"*": value} if isinstance(value, list | tuple) else value


class ToolPermission(Guardrail):
    """Allows and denies tools: the first rule that applies decides, and `default_action` where none does.

    >>> ToolPermission(rules=[{"id": "reads", "tool_name": "read_.*", "decision": "allow"}])
    """

    subjects: ClassVar[frozenset[Subject]] = frozenset({"tools"})

    rules: tuple[Rule, ...] = ()
    default_action: Decision = "deny"
    on_disallowed_action: Annotated[Literal["block", "rewrite"], BeforeValidator(lower)] = "block"
    #: May hold `{default_message}`, `{tool_name}` and `{rule_id}`.
    violation_message_template: str | None = None
    #: Names that are allowed after all rules, for all callers (`*`) or those with this key alias or team.
    allowed_tools: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_by_name)] = Field(default_factory=dict)

    _compiled: list[Compiled] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _ids_differ(self) -> ToolPermission:
        ids = [rule.id for rule in self.rules]
        if twice := [rule_id for rule_id in ids if ids.count(rule_id) > 1]:
            raise ValueError(f"two rules have the id '{twice[0]}'")
        return self

    async def start(self, runtime: Runtime) -> None:
        """Read the patterns. Raises SetupError for one that is not supported."""
        more = [
            Rule(
                id="allowed_tools",
                decision="allow",
                tool_glob=names,
                keys=() if who == "*" else (who,),
                teams=() if who == "*" else (who,),
            )
            for who, names in self.allowed_tools.items()
            if names
        ]
        self._compiled = [Compiled(rule) for rule in (*self.rules, *more)]

    async def judge_tools(self, tools: Sequence[Tool], side: Side, call: Call) -> Sequence[Verdict]:
        """One verdict for each; the reason of a denial names the tool and the rule, and no argument."""
        return [self._verdict(tool, side, call) for tool in tools]

    def _verdict(self, tool: Tool, side: Side, call: Call) -> Verdict:
        denied = self._denied(tool, side, call)
        if denied is None:
            return ALLOW
        rule_id, text = denied
        if self.violation_message_template is not None:
            known = {"default_message": text, "tool_name": shown(tool), "rule_id": rule_id or "default"}
            text = _PLACEHOLDER.sub(lambda found: known[found[1]], self.violation_message_template)
        if self.on_disallowed_action == "block":
            return block(_CATEGORY, error=_ERROR, detection_message=text)
        return instead(_CATEGORY, f"Permission denied: {text}" + (f" (Rule: {rule_id})" if rule_id else ""))

    def _denied(self, tool: Tool, side: Side, call: Call) -> tuple[str, str] | None:
        """The rule that denies it, empty where none speaks of it, and why; None when it is allowed."""
        if self._compiled is None:
            raise GuardrailFailed("tool_permission was not started")
        if by := _narrowed(tool, call):
            return by, f"Tool '{shown(tool)}' denied by the {by}'s own permissions"
        reason, arguments = "", Arguments(tool.arguments) if side == "output" else None
        for rule in self._compiled:
            if not rule.applies(tool, call.identity):
                continue
            ruling = rule.ruling(tool, arguments)
            if ruling.decision == "allow":
                return None
            if ruling.decision == "deny":
                return rule.rule.id, ruling.reason or f"Tool '{shown(tool)}' denied by rule '{rule.rule.id}'"
            reason = ruling.reason or reason
        if self.default_action == "allow":
            return None
        return "", reason or f"Tool '{shown(tool)}' denied by default action"


def _narrowed(tool: Tool, call: Call) -> str:
    """Who takes this tool away: the `key`, by its metadata, or the `request`. Neither can give what the rules deny."""
    metadata: Mapping[str, Any] = call.identity.metadata if call.identity is not None else {}
    own = call.request.get("guardrail_config")
    for who, asked in (("key", metadata), ("request", own if isinstance(own, dict) else {})):
        denied, allowed = _names(asked.get("denied_tools"), "*"), _names(asked.get("allowed_tools"), "")
        if denied is not None and (named(tool.name, denied) or named(tool.type, denied)):
            return who
        if allowed is not None and not named(tool.name or tool.type, allowed):
            return who
    return ""


def _names(value: JSON, wrong: str) -> list[str] | None:
    """The names in a list; None without one. Of anything else it is not known what it takes away: all."""
    if value is None:
        return None
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        return [wrong]
    return list(found)
