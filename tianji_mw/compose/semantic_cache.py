"""The semantic part of a cache's config: LiteLLM's `type: redis-semantic`, or `semantic: {...}` beside any store.

semantic: {mode, similarity_threshold, error_budget, lexical, embedder: {type: local}, index: {type: embedded}}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from tianji_mw import plugins
from tianji_mw.cache.semantic.layer import Semantic
from tianji_mw.cache.semantic.rules import SemanticRules
from tianji_mw.compose.cache_rules import PLACE
from tianji_mw.errors import ConfigError, TianjiError, UpstreamError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from tianji_mw.cache.embedders.base import Embedder
    from tianji_mw.cache.indexes.base import VectorIndex
    from tianji_mw.config.settings import Settings

_MODELS: Final = ("redis_semantic_cache_embedding_model", "valkey_semantic_cache_embedding_model")
_NAMES: Final = ("redis_semantic_cache_index_name", "valkey_semantic_cache_index_name")
#: LiteLLM's keys beside those of the store, and where they go.
_OF_RULES: Final[Mapping[str, str]] = {
    "similarity_threshold": "similarity_threshold",
    "max_messages": "max_messages",
    "semantic_cache_embedding_timeout": "within_s",
}
_OF_EMBEDDER: Final = ("semantic_cache_embedding_timeout", "semantic_cache_embedding_max_input_tokens", *_MODELS)
OPTIONS: Final = frozenset({"semantic", "semantic_cache_scope", *_OF_RULES, *_OF_EMBEDDER, *_NAMES})


def semantic_of(
    settings: Settings, kind: str, options: dict[str, Any], env: Mapping[str, str], gateway: ASGIApp | None
) -> Semantic | None:
    """The semantic part; None where the config asks for none. Raises ConfigError, SetupError."""
    asked = options.get("semantic")
    if not kind.endswith("-semantic") and asked is None:
        if stray := sorted(key for key in OPTIONS if key in options and key != "max_messages"):
            hint = "add `semantic: {}`, or choose `type: redis-semantic`"
            raise settings.error("has no effect without a semantic cache", *PLACE, stray[0], hint=hint)
        return None
    if asked is not None and not isinstance(asked, dict):
        raise settings.error("expected a mapping, such as {error_budget: 0.01}", *PLACE, "semantic")
    own = dict(asked or {})
    embedder_options = own.pop("embedder", None) or {}
    index_options = own.pop("index", None) or {}
    for key, field in _OF_RULES.items():
        if options.get(key) is not None:
            own.setdefault(field, options[key])
    scope = options.get("semantic_cache_scope")
    if scope is not None and options.setdefault("cache_scope", scope) != scope:
        hint = "write cache_scope alone: both parts of a cache share their tenants"
        raise settings.error("differs from cache_scope", *PLACE, "semantic_cache_scope", hint=hint)
    rules = _rules(settings, own)
    embedder = _embedder(settings, dict(embedder_options), options, env, gateway)
    return Semantic(embedder=embedder, index=_index(settings, kind, dict(index_options), options, env), rules=rules)


def _rules(settings: Settings, own: Mapping[str, Any]) -> SemanticRules:
    known = {field.name for field in fields(SemanticRules)}
    for key in own:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
            raise settings.error("unknown key", *PLACE, "semantic", key, hint=hint)
    try:
        rules = TypeAdapter(SemanticRules).validate_python(dict(own))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise settings.error(str(first["msg"]), *PLACE, "semantic", *map(str, first["loc"])) from None
    for name in ("similarity_threshold", "error_budget", "verify", "explore"):
        value = getattr(rules, name)
        if value is not None and not 0 <= value <= 1:
            raise settings.error("must be between 0 and 1", *PLACE, name)
    return rules


def _embedder(
    settings: Settings, own: dict[str, Any], options: Mapping[str, Any], env: Mapping[str, str], gateway: ASGIApp | None
) -> Embedder:
    from tianji_mw.cache.embedders.base import Embedder
    from tianji_mw.compose.cache import built

    model = own.get("model") or next((options[key] for key in _MODELS if options.get(key)), None)
    name = str(own.pop("type", "api" if model else "local"))
    kind = plugins.find("cache.embedders", name, Embedder)
    if name == "api":
        for key in _OF_EMBEDDER:
            if options.get(key) is not None:
                own.setdefault(kind.aliases.get(key, key), options[key])
    made = built(settings, kind, own, env, (*PLACE, "semantic", "embedder") if options.get("semantic") else PLACE)
    through = getattr(made, "through", None)
    if through is not None and not getattr(made, "api_base", ""):
        names = {entry.model_name for entry in settings.model_list}
        if gateway is None or getattr(made, "model", None) not in names:
            raise _no_model(settings, str(getattr(made, "model", "")))
        through(_Deployment(gateway))
    return made


def _no_model(settings: Settings, model: str) -> ConfigError:
    text = f"the embedding model '{model}' is no model of model_list"
    hint = "add it there, leave the model out to use the packaged one, or set semantic.embedder.api_base"
    return settings.error(text, *PLACE, hint=hint)


def _index(
    settings: Settings, kind: str, own: dict[str, Any], options: Mapping[str, Any], env: Mapping[str, str]
) -> VectorIndex:
    from tianji_mw.cache.indexes.base import VectorIndex
    from tianji_mw.compose.cache import built

    shared = kind.endswith("-semantic")
    name = str(own.pop("type", "redis_search" if shared else "embedded"))
    found = plugins.find("cache.indexes", name, VectorIndex)
    if name == "redis_search":
        known = {*found.model_fields, *found.aliases}
        inherited = {key: value for key, value in options.items() if key in known and key not in own}
        own = {**inherited, **own}
    return built(settings, found, own, env, (*PLACE, "semantic", "index") if options.get("semantic") else PLACE)


class _Deployment:
    """Asks a deployment of the config for embeddings, in process."""

    def __init__(self, gateway: ASGIApp) -> None:
        self._gateway = gateway

    async def __call__(self, body: dict[str, Any]) -> Mapping[str, Any]:
        """The answer's body. Raises UpstreamError for anything but a success."""
        raw = orjson.dumps(body)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/embeddings", "raw_path": b"/v1/embeddings", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))],
        }  # fmt: skip
        status, parts, given = 0, [], False

        async def receive() -> Message:
            nonlocal given
            if given:
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._gateway(scope, receive, send)
        if status != 200:
            raise UpstreamError(f"The deployment answered with {status}.", provider="", status=status)
        try:
            answer = orjson.loads(b"".join(parts))
        except orjson.JSONDecodeError:
            raise TianjiError("The deployment's answer is no JSON.") from None
        return answer if isinstance(answer, dict) else {}
