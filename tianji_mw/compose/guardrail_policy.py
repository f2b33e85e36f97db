"""The options that every guardrail of the config takes, whatever it checks: whom it is for, what a failure means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from tianji_mw.breaker import Breaker
from tianji_mw.config.blocks import Block
from tianji_mw.config.explain import reason
from tianji_mw.config.values import Name, Switch
from tianji_mw.guardrails.base import Guardrail, Release
from tianji_mw.guardrails.entry import FailOpen

_Fallback = Literal["", "fail_open", "fail_closed"]
_ALL_ROLES: Final = ("system", "developer", "user", "assistant")


def _blank(value: Any) -> Any:
    return "" if value is None else value


class CircuitBreaker(Block):
    """After `failures` in a row without an answer, the guardrail is left alone for `cooldown` seconds; 0 never."""

    failures: int = Field(default=5, ge=0)
    cooldown: float = Field(default=10.0, gt=0, le=3600)


class Policy(Block):
    """LiteLLM's names, and `dry_run`, `release`, `circuit_breaker`, `teams` and `keys` of our own."""

    num_retries: int = Field(default=0, ge=0, le=5)
    unreachable_fallback: Annotated[_Fallback, BeforeValidator(_blank)] = ""
    #: The Go port's.
    failure_policy: Annotated[_Fallback, BeforeValidator(_blank)] = ""
    fail_on_error: Switch = True
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    dry_run: Switch = False
    release: Release | None = None
    streaming_buffer_until_moderated: Switch = False
    teams: frozenset[Name] = frozenset()
    keys: frozenset[Name] = frozenset()
    skip_system_message_in_guardrail: Switch = False
    skip_tool_message_in_guardrail: Switch = False
    scan_only_tool_results: Switch = False
    experimental_use_latest_role_message_only: Switch = False
    stream_scope: Literal["both", "streaming", "non_streaming"] = "both"
    violation_message_template: str | None = None

    @property
    def fail_open(self) -> FailOpen:
        """What a failure means."""
        if not self.fail_on_error or self.failure_policy == "fail_open":
            return "always"
        return "unreachable" if self.unreachable_fallback == "fail_open" else "never"

    @property
    def skip_roles(self) -> frozenset[str]:
        """Whose texts it is not shown."""
        roles: set[str] = set()
        if self.skip_system_message_in_guardrail:
            roles |= {"system", "developer"}
        if self.skip_tool_message_in_guardrail:
            roles.add("tool")
        return frozenset(roles.union(_ALL_ROLES) if self.scan_only_tool_results else roles)

    def entry(self) -> dict[str, Any]:
        """Fields of an `Entry`."""
        return {
            "fail_open": self.fail_open,
            "retries": self.num_retries,
            "breaker": Breaker(self.circuit_breaker.failures, self.circuit_breaker.cooldown),
            "dry_run": self.dry_run,
            "release": self.release or ("whole" if self.streaming_buffer_until_moderated else None),
            "teams": self.teams,
            "keys": self.keys,
            "skip_roles": self.skip_roles,
            "newest_only": self.experimental_use_latest_role_message_only,
            "stream_scope": self.stream_scope,
            "message": self.violation_message_template,
        }


class WrongPolicy(Exception):
    """An option is wrong: its name, and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key
        self.reason = reason


def policy_of(
    kind: type[Guardrail], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[Policy, dict[str, Any]]:
    """The policy among a guardrail's options, and the options that are the check's own. Raises WrongPolicy."""
    shared = Policy.model_fields.keys() - kind.model_fields.keys()
    given = {key: value for key, value in options.items() if key in shared and value is not None}
    own = {key: value for key, value in options.items() if key not in shared}
    if given.get("circuit_breaker") is False:
        given["circuit_breaker"] = {"failures": 0}
    try:
        return Policy(**{**defaults, **given}), own
    except ValidationError as invalid:
        raise WrongPolicy(*reason(invalid)) from None
