"""From the config's `cache_params` to the `Cache` layer: the store by its type, and who shares what for how long.

A cache that cannot be built stops the start: one that is off without a word would look like one that never hits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from tianji_mw import plugins
from tianji_mw.apis.base import Usage
from tianji_mw.cache.base import CacheStore
from tianji_mw.cache.rules import CacheRules
from tianji_mw.cache.storable import CALL_TYPES
from tianji_mw.compose.semantic_cache import OPTIONS as SEMANTIC
from tianji_mw.compose.semantic_cache import semantic_of
from tianji_mw.config.explain import reason
from tianji_mw.errors import ConfigError, PluginNotFound, SetupError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.config.settings import Settings

T = TypeVar("T", bound=BaseModel)

#: LiteLLM's and the Go port's names of stores where ours differ; the semantic ones keep their answers in Redis.
TYPES: Final[Mapping[str, str]] = {
    "local": "memory",
    "redis-cluster": "redis",
    "redis_cluster": "redis",
    "redis-semantic": "redis",
    "valkey-semantic": "redis",
    "azure-blob": "azure_blob",
}
_STORES: Final = (
    "local", "disk", "redis", "redis-cluster", "redis-semantic", "valkey-semantic", "dual", "s3", "gcs", "azure-blob",
)  # fmt: skip
_UNSUPPORTED: Final[Mapping[str, str]] = {
    "qdrant-semantic": "there is no Qdrant index; use `type: redis-semantic`, or `semantic: {}` beside another type"
}
#: Ours, by their names in the config.
_RULES: Final[Mapping[str, str]] = {
    "ttl": "ttl_s",
    "stale_while_revalidate_s": "stale_while_revalidate_s",
    "stale_if_error_s": "stale_if_error_s",
    "cache_scope": "scope",
    "namespace": "namespace",
    "cache_remote_media": "remote_media",
    "max_item_bytes": "max_item_bytes",
}
_OURS: Final = frozenset({"type", "mode", "supported_call_types", *_RULES})
_NAMESPACE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_PLACE: Final = ("settings", "cache_params")


def cache_of(
    settings: Settings, env: Mapping[str, str], gateway: ASGIApp | None, problems: list[ConfigError]
) -> dict[str, Any] | None:
    """The arguments of the `Cache` layer; None where the config has none. What is wrong is added to `problems`."""
    keys = settings.settings
    if not keys.cache or keys.cache_params.get("supported_call_types") == []:
        return None
    options = dict(keys.cache_params)
    kind_name = str(options.get("type") or ("redis" if env.get("REDIS_HOST") or env.get("REDIS_URL") else "local"))
    try:
        rules = _rules(settings, options)
        semantic = semantic_of(settings, kind_name, options, env, gateway)
        own = {key: value for key, value in options.items() if key not in _OURS and key not in SEMANTIC}
        store = _store(settings, kind_name, own, env)
    except ConfigError as error:
        problems.append(error)
        return None
    except SetupError as error:
        problems.append(settings.error(error.message, *_PLACE))
        return None
    return {"store": store, "rules": rules, "semantic": semantic, "price": price_of(settings)}


def _rules(settings: Settings, options: Mapping[str, Any]) -> CacheRules:
    given = {field: options[key] for key, field in _RULES.items() if options.get(key) is not None}
    mode = options.get("mode", "default_on")
    if mode not in ("default_on", "default_off"):
        raise settings.error("expected default_on or default_off", *_PLACE, "mode")
    if "namespace" in given:
        given["namespace"] = _NAMESPACE.sub("-", str(given["namespace"]))[:64] or "tianji"
    general, groups = settings.settings, settings.router_settings.caching_groups
    if "ttl_s" not in given and (ttl := _default_ttl(general, options)) is not None:
        given["ttl_s"] = ttl
    given["groups"] = {name: "+".join(group) for group in groups for name in group}
    given["keyless"] = settings.general_settings.master_key is None and not settings.virtual_keys
    given["default_on"] = mode == "default_on"
    if (types := options.get("supported_call_types")) is not None:
        given["apis"] = _apis(settings, types)
    for name, value in given.items():
        kind = next(field.type for field in fields(CacheRules) if field.name == name)
        if kind == "float":
            given[name] = _seconds(settings, name, value)
    if given.get("scope", "team") not in ("global", "org", "team", "key", "end_user"):
        raise settings.error("expected global, org, team, key or end_user", *_PLACE, "cache_scope")
    return CacheRules(**given)


def _default_ttl(general: Any, options: Mapping[str, Any]) -> float | None:
    """The time that the config gives for the place where entries are kept."""
    memory = TYPES.get(str(options.get("type")), options.get("type")) in (None, "memory", "disk")
    name, fallback = (
        ("default_in_memory_ttl", general.default_in_memory_ttl)
        if memory
        else ("default_in_redis_ttl", general.default_redis_ttl)
    )
    found: float | None = options.get(name)
    return found if found is not None else fallback


def _seconds(settings: Settings, name: str, value: Any) -> float:
    try:
        number = TypeAdapter(float).validate_python(value)
    except ValidationError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise settings.error("expected a number of seconds", *_PLACE, _written(name))
    return number


def _written(field: str) -> str:
    return next((key for key, name in _RULES.items() if name == field), field)


def _apis(settings: Settings, types: Any) -> frozenset[str]:
    """The APIs behind LiteLLM's `supported_call_types`."""
    known = {**CALL_TYPES, **{name[1:]: api for name, api in CALL_TYPES.items()}}
    files = {"transcription", "atranscription"}  # their bodies stream by unread: there is nothing to make a key of
    found = set()
    for name in types if isinstance(types, list | tuple) else ():
        if name in known:
            found.add(known[name])
        elif name not in files:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(CALL_TYPES)}"
            raise settings.error("unknown call type", *_PLACE, "supported_call_types", hint=hint)
    return frozenset(found)


# --- the store


def _store(settings: Settings, kind_name: str, options: dict[str, Any], env: Mapping[str, str]) -> CacheStore:
    if kind_name in _UNSUPPORTED:
        raise settings.error(_UNSUPPORTED[kind_name], *_PLACE, "type")
    name = TYPES.get(kind_name, kind_name)
    try:
        kind = plugins.find("cache", name, CacheStore)
    except PluginNotFound as error:
        near = difflib.get_close_matches(kind_name, _STORES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_STORES)}"
        raise settings.error(f"no such cache: {error.message}", *_PLACE, "type", hint=hint) from None
    known = {*kind.model_fields, *kind.aliases}
    if kind_name.endswith("-semantic"):
        options = {key: value for key, value in options.items() if not key.startswith(("redis_semantic", "valkey_sem"))}
    if name != "dual":
        # LiteLLM writes the defaults of all stores beside the settings of one.
        for key in ("default_in_memory_ttl", "default_in_redis_ttl"):
            if key not in known:
                options.pop(key, None)
    return built(settings, kind, options, env, _PLACE)


def built(
    settings: Settings,
    kind: Callable[..., T],
    options: Mapping[str, Any],
    env: Mapping[str, str],
    place: tuple[str, ...],
) -> T:
    """A plugin with these settings, and those of the environment that it takes. Raises ConfigError at the key."""
    plugin: Any = kind
    given = {plugin.aliases.get(name, name): value for name, value in options.items()}
    for field, variables in plugin.env_fields.items():
        value = next((env[name] for name in variables if env.get(name)), "")
        if value and field not in given:
            given[field] = value
    try:
        made: T = kind(**given)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        if first["type"] == "value_error":
            key, text = ".".join(str(step) for step in first["loc"]), str(first["ctx"]["error"])
        else:
            key, text = reason(invalid)
        written = next((name for name in options if plugin.aliases.get(name, name) == key), key)
        hint = ""
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(written, {*plugin.model_fields, *plugin.aliases, *_OURS}, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it is no setting of {plugin.__name__.lower()}"
        raise settings.error(text, *place, *([written] if written else []), hint=hint) from None
    return made


# --- what was saved


def price_of(settings: Settings) -> Callable[[str, Usage], float] | None:
    """US dollars of a usage by model group, as far as the config has prices; None where it has none."""
    prices: dict[str, tuple[float, float]] = {}
    for entry in settings.model_list:
        costs = [
            getattr(entry.params, name) if getattr(entry.params, name) is not None else getattr(entry.model_info, name)
            for name in ("input_cost_per_token", "output_cost_per_token")
        ]
        if any(cost is not None for cost in costs):
            prices.setdefault(entry.model_name, (costs[0] or 0.0, costs[1] or 0.0))
    if not prices:
        return None

    def price(model: str, usage: Usage) -> float:
        read, written = prices.get(model, (0.0, 0.0))
        return read * usage.input_tokens + written * usage.output_tokens

    return price
