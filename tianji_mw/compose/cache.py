"""From the config's `cache_params` to the `Cache` layer: the store by its type, and who shares what for how long.

A cache that cannot be built stops the start: one that is off without a word would look like one that never hits.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from tianji_mw import plugins
from tianji_mw.cache.base import CacheStore
from tianji_mw.compose.cache_rules import PLACE, Common, rules_of
from tianji_mw.compose.prices import price_of
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
_OURS: Final = frozenset(Common.model_fields)
#: Where a Redis is. Where the config says one of them, the environment says none: it would go before.
_WHERE: Final = ("url", "host", "startup_nodes", "sentinel_nodes")


def cache_of(
    settings: Settings, env: Mapping[str, str], gateway: ASGIApp | None, problems: list[ConfigError]
) -> dict[str, Any] | None:
    """The arguments of the `Cache` layer; None where the config has none. What is wrong is added to `problems`."""
    keys = settings.settings
    if not keys.cache or keys.cache_params.get("supported_call_types") == []:
        return None
    options = dict(keys.cache_params)
    try:
        kind_name = _type(settings, options, env)
        semantic = semantic_of(settings, kind_name, options, env, gateway)
        rules = rules_of(settings, options, TYPES.get(kind_name, kind_name))
        own = {key: value for key, value in options.items() if key not in SEMANTIC}
        store = _store(settings, kind_name, own, env)
    except ConfigError as error:
        problems.append(error)
        return None
    except SetupError as error:
        problems.append(settings.error(error.message, *PLACE))
        return None
    return {"store": store, "rules": rules, "semantic": semantic, "price": price_of(settings)}


def _type(settings: Settings, options: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """The store's name as the config has it; without one, Redis wherever something says where a Redis is."""
    from tianji_mw.redis.settings import RedisSettings

    written = options.get("type")
    if written is None:
        variables = (name for field in _WHERE for name in RedisSettings.env_fields.get(field, ()))
        said = any(RedisSettings.aliases.get(key, key) in _WHERE for key in options)
        return "redis" if said or any(env.get(name) for name in variables) else "local"
    if not isinstance(written, str):
        raise settings.error("expected the name of a store, such as redis", *PLACE, "type")
    if written in _UNSUPPORTED:
        raise settings.error(_UNSUPPORTED[written], *PLACE, "type")
    return written


# --- the store


def _store(settings: Settings, kind_name: str, options: dict[str, Any], env: Mapping[str, str]) -> CacheStore:
    name = TYPES.get(kind_name, kind_name)
    try:
        kind = plugins.find("cache", name, CacheStore)
    except PluginNotFound as error:
        near = difflib.get_close_matches(kind_name, _STORES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_STORES)}"
        raise settings.error(f"no such cache: {error.message}", *PLACE, "type", hint=hint) from None
    # Of the keys of every cache a store takes those that it knows itself: `dual` has two times to live.
    known = {*kind.model_fields, *kind.aliases}
    options = {key: value for key, value in options.items() if key in known or key not in _OURS}
    store = built(settings, kind, options, env, PLACE)
    _check_place(settings, kind_name, store)
    return store


def _check_place(settings: Settings, kind_name: str, store: CacheStore) -> None:
    """A Redis on this machine that nobody has asked for would be a cache that is down for ever."""
    from tianji_mw.cache.redis import RedisStore

    if not isinstance(store, RedisStore):
        return
    if kind_name in ("redis-cluster", "redis_cluster") and not store.startup_nodes:
        hint = 'add redis_startup_nodes: [{"host": "10.0.0.1", "port": 6379}], or set REDIS_CLUSTER_NODES'
        raise settings.error("a cluster needs some of its nodes", *PLACE, hint=hint)
    if not store.model_fields_set & set(_WHERE):
        hint = "add host, url, redis_startup_nodes or sentinel_nodes, or set REDIS_HOST"
        raise settings.error("nothing says where Redis is", *PLACE, hint=hint)


def built(
    settings: Settings,
    kind: Callable[..., T],
    options: Mapping[str, Any],
    env: Mapping[str, str],
    place: tuple[str, ...],
) -> T:
    """A plugin with these settings, and those of the environment that it takes. Raises ConfigError at the key."""
    plugin: Any = kind
    given = dict(options)
    fields = {plugin.aliases.get(name, name) for name in options}
    closed = _WHERE if fields & set(_WHERE) else ()
    for field, variables in plugin.env_fields.items():
        value = next((env[name] for name in variables if env.get(name)), "")
        if value and field not in fields and field not in closed:
            given[field] = value
    try:
        made: T = kind(**given)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        if first["type"] == "value_error":  # a sentence of the plugin's own
            key, text = ".".join(str(step) for step in first["loc"]), str(first["ctx"]["error"])
        else:
            key, text = reason(invalid)
        written = next((name for name in options if plugin.aliases.get(name, name) == key), key)
        hint = ""
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(written, {*plugin.model_fields, *plugin.aliases, *_OURS, *SEMANTIC}, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it is no setting of {plugin.__name__.lower()}"
        raise settings.error(text, *place, *([written] if written else []), hint=hint) from None
    return made
