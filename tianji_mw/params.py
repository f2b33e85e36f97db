"""Which request fields a deployment sends: our own are taken out, its defaults put in, unwanted ones dropped. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tianji_mw.apis.base import JSON

#: Request fields that are ours (or LiteLLM's) alone: never sent to a provider.
OWN_FIELDS: Final = frozenset(
    {
        "tags", "guardrails", "guardrail_config", "cache", "caching", "fallbacks", "context_window_fallbacks",
        "content_policy_fallbacks", "disable_fallbacks", "include_fallback_errors", "num_retries",
        "mock_testing_fallbacks",
        "mock_testing_context_fallbacks", "mock_testing_content_policy_fallbacks", "mock_testing_rate_limit_error",
        "priority", "timeout", "stream_timeout", "mock_response", "drop_params",
        "additional_drop_params",
        "allowed_openai_params", "extra_body", "extra_headers", "prompt_id", "prompt_variables", "prompt_label",
        "prompt_version", "api_key", "api_base", "base_url", "api_version", "custom_llm_provider",
        "litellm_metadata", "litellm_session_id", "litellm_trace_id", "no-log", "turn_off_message_logging",
    }
)  # fmt: skip

_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\*|\d+)\]")


@dataclass(slots=True, frozen=True, kw_only=True)
class ParamRules:
    """One deployment's rules."""

    #: Set when the client did not send them.
    defaults: Mapping[str, JSON] = field(default_factory=dict)
    #: Leave out what the provider's API cannot express, instead of refusing the request.
    drop_unsupported: bool = False
    #: Always removed; names, or paths such as `tools[*].strict`.
    drop: tuple[str, ...] = ()
    #: Sent as they are even where the provider's API does not list them.
    allowed: frozenset[str] = frozenset()

    def changes(self, request: Mapping[str, JSON]) -> bool:
        """Whether `apply` would change anything; False keeps the client's bytes."""
        return (
            not OWN_FIELDS.isdisjoint(request)
            or any(key not in request for key in self.defaults)
            or any(_STEP.match(path)[0] in request for path in self.drop)  # type: ignore[index]
        )

    def apply(self, request: Mapping[str, JSON]) -> dict[str, JSON]:
        """A copy of the request with the rules applied; the original stays as it is."""
        out = {key: value for key, value in request.items() if key not in OWN_FIELDS}
        for key, value in self.defaults.items():
            out.setdefault(key, value)
        for path in self.drop:
            out = _without(out, [name or index for name, index in _STEP.findall(path)])
        return out


def _without(value: JSON, steps: list[str]) -> JSON:
    """A copy of `value` without what the path leads to; only what lies on the path is copied."""
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict) and step in value:
        if not rest:
            return {key: item for key, item in value.items() if key != step}
        return {**value, step: _without(value[step], rest)}
    if isinstance(value, list) and (step == "*" or step.isdecimal()):
        chosen: Iterable[int] = range(len(value)) if step == "*" else [int(step)]
        wanted = {index for index in chosen if index < len(value)}
        if not rest:
            return [item for index, item in enumerate(value) if index not in wanted]
        return [_without(item, rest) if index in wanted else item for index, item in enumerate(value)]
    return value
