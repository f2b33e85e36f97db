"""Which of a deployment's default params go into a request of which API. Pure.

A deployment has one list of params, and its clients may speak several APIs: `max_tokens` is `max_output_tokens` in the
Responses API, and has no place in an embedding. Fields of `extra_body` are the operator's own words and go everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tianji_mw.config.known import OPENAI_PARAMS
from tianji_mw.params import ParamRules

if TYPE_CHECKING:
    from tianji_mw.apis.base import JSON
    from tianji_mw.config.blocks import Params


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Body fields of single providers that an operator may write beside OpenAI's params.
BODY_FIELDS: Final = _names("""
    top_k top_a min_p repetition_penalty guided_json guided_regex guided_choice guided_grammar safe_prompt num_ctx
    num_predict keep_alive provider transforms models route plugins safety_settings
""")
#: Whether to stream is the client's decision; a default for it would answer another question than was asked.
_NEVER: Final = _names("stream")
_NOT_CHAT: Final = _names("""
    suffix echo best_of dimensions encoding_format input_type size quality style background moderation output_format
    output_compression voice speed instructions language timestamp_granularities include truncation text
    max_output_tokens max_tool_calls
""")
_TAKES: Final[Mapping[str, frozenset[str]]] = {
    "chat_completions": OPENAI_PARAMS - _NOT_CHAT,
    "completions": _names("""
        temperature top_p n stream_options stop max_tokens presence_penalty frequency_penalty logit_bias user seed
        suffix echo best_of logprobs
    """),
    "responses": _names("""
        temperature top_p user parallel_tool_calls store metadata service_tier safety_identifier prompt_cache_key
        prompt_cache_retention reasoning text truncation include instructions background max_output_tokens
        max_tool_calls top_logprobs
    """),
    "messages": _names("max_tokens temperature top_p metadata service_tier thinking"),
    "embeddings": _names("dimensions encoding_format input_type user truncation"),
    "moderations": frozenset(),
    "rerank": _names("truncation"),
    "count_tokens": frozenset(),
}
#: Names of the same limit in the other APIs.
_RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "responses": {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"},
    "messages": {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"},
    "completions": {"max_completion_tokens": "max_tokens"},
}
_GENERATE: Final = frozenset({"chat_completions", "completions", "responses", "messages"})
_PATH: Final = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[(?:\*|\d+)\])*")


def rules_by_api(params: Params, body: Mapping[str, JSON], drop_unsupported: bool) -> dict[str, ParamRules]:
    """The rules of one deployment for each API; `body` are the fields of `BODY_FIELDS` that its entry holds."""
    return {
        api: ParamRules(
            defaults=_defaults(api, params.defaults, body, params.extra_body),
            drop_unsupported=drop_unsupported,
            drop=params.additional_drop_params,
            allowed=frozenset(params.allowed_openai_params),
        )
        for api in _TAKES
    }


def bad_path(paths: tuple[str, ...]) -> str:
    """The first of `additional_drop_params` that is no path; empty when all are."""
    return next((path for path in paths if not _PATH.fullmatch(path)), "")


def _defaults(
    api: str, params: Mapping[str, JSON], body: Mapping[str, JSON], extra_body: Mapping[str, JSON]
) -> dict[str, JSON]:
    out: dict[str, JSON] = {name: value for name, value in params.items() if name in _TAKES[api] - _NEVER}
    for old, new in _RENAMED.get(api, {}).items():
        if old in params:
            value = params[old]
            out.setdefault(new, [value] if new == "stop_sequences" and isinstance(value, str) else value)
    if api == "responses" and "reasoning_effort" in params:
        out.setdefault("reasoning", {"effort": params["reasoning_effort"]})
    return {**out, **(body if api in _GENERATE else {}), **extra_body}
