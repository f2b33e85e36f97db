"""The key of a request: equal for requests that must get the same answer, different for all others.

    <namespace>:<tenant>:<space>:<model>:<digest>

Tenant, space (the client's own namespace) and model are short hashes, so that what belongs to one of them can be
purged by a look at the keys. The digest covers them all once more, in full.

Everything in a request counts unless it is known not to change the answer: a parameter that this file has never heard
of keeps answers apart. Order of keys, whitespace, the spelling of numbers, Unicode composition, and the difference
between a documented default and silence do not count.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from tianji_mw.apis.base import JSON

#: Changes with every change of what a key is made of: older entries are then misses.
VERSION: Final = 1

#: Who asks, how the answer is delivered, and what the gateway does around it: the model sees none of it.
IGNORED: Final = frozenset(
    {
        "user", "metadata", "stream", "stream_options", "cache", "caching", "timeout", "stream_timeout", "num_retries",
        "fallbacks", "context_window_fallbacks", "disable_fallbacks", "tags", "guardrails", "guardrail_config",
        "litellm_metadata", "litellm_session_id", "litellm_trace_id", "no-log", "turn_off_message_logging", "api_key",
        "api_base", "base_url", "extra_headers", "store", "safety_identifier", "service_tier", "prompt_cache_key",
        "prompt_cache_retention", "model", "include_fallback_errors",
    }
)  # fmt: skip

_CHAT: Final[Mapping[str, JSON]] = {
    "temperature": 1, "top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False,
    "parallel_tool_calls": True, "response_format": {"type": "text"}, "logit_bias": {}, "stop": [], "tools": [],
    "modalities": ["text"],
}  # fmt: skip
#: Values that the APIs document as what they take where a request says nothing.
DEFAULTS: Final[Mapping[str, Mapping[str, JSON]]] = {
    "chat_completions": _CHAT,
    "completions": {
        "temperature": 1, "top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0, "best_of": 1,
        "echo": False, "max_tokens": 16, "logit_bias": {}, "stop": [], "suffix": "",
    },
    "messages": {"temperature": 1, "stop_sequences": [], "tools": []},
    "responses": {
        "temperature": 1, "top_p": 1, "parallel_tool_calls": True, "truncation": "disabled", "background": False,
        "tools": [], "include": [],
    },
    "embeddings": {"encoding_format": "float"},
    "rerank": {},
}  # fmt: skip

Scope = Sequence[str]


def canonical(value: JSON) -> JSON:
    """The value with one spelling: whole numbers as integers, NFC text; what is right already is not copied."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if kind is list:
        return [canonical(item) for item in value]
    if kind is dict:
        return {canonical(key): canonical(item) for key, item in value.items()}
    if kind is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def body_of(api: str, request: Mapping[str, JSON], leave: frozenset[str] = frozenset()) -> dict[str, JSON]:
    """What of a request decides its answer, in one spelling; without `leave` as well."""
    defaults = DEFAULTS.get(api, {})
    found: dict[str, JSON] = {}
    for name, value in request.items():
        if value is None or name in IGNORED or name in leave:
            continue
        value = canonical(value)
        if name in defaults and value == defaults[name] and type(value) is type(defaults[name]):
            continue
        found[name] = value
    return found


def digest_of(material: JSON) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(orjson.dumps(material, option=orjson.OPT_SORT_KEYS)).hexdigest()


def short(text: str, length: int = 12) -> str:
    """A short name for a text that may be anything; `-` for none."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length] if text else "-"


class KeyMaker:
    """Makes the keys of one cache. `namespace`: letters, digits, `._-`. `groups`: the name that a model counts as."""

    __slots__ = ("_groups", "_shorts", "namespace")

    def __init__(self, namespace: str, groups: Mapping[str, str] | None = None) -> None:
        self.namespace = namespace
        self._groups = dict(groups or {})
        #: Of few tenants and models; bounded all the same.
        self._shorts: dict[tuple[str, ...], str] = {}

    def prefix(self, scope: Scope, space: str = "", model: str = "") -> str:
        """The key's beginning, up to the digest; with an empty model, what all keys of a tenant begin with."""
        head = (*scope, "\0", space, "\0", model)
        found = self._shorts.get(head)
        if found is None:
            tenant = short("\0".join(scope))
            found = f"{self.namespace}:{tenant}:"
            if model:
                found += f"{short(space, 8)}:{short(self.group(model), 8)}:"
            if len(self._shorts) >= 4096:
                self._shorts.clear()
            self._shorts[head] = found
        return found

    def group(self, model: str) -> str:
        """The name that the model counts as."""
        return self._groups.get(model, model)

    def model_mark(self, model: str) -> str:
        """The part of a key that says the model."""
        return short(self.group(model), 8)

    def make(self, api: str, model: str, scope: Scope, space: str, vary: Mapping[str, str], body: JSON) -> str:
        """The whole key."""
        material = [VERSION, api, self.group(model), list(scope), space, dict(vary), body]
        return self.prefix(scope, space, model) + digest_of(material)
