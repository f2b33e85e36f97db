"""From the config's `cache_params` to `CacheRules`: what is cached, who shares it, and for how long."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, ValidationError

from tianji_mw.cache.key import short
from tianji_mw.cache.rules import CacheRules
from tianji_mw.cache.storable import APIS, CALL_TYPES
from tianji_mw.cache.tenant import CacheScope
from tianji_mw.config.blocks import Block
from tianji_mw.config.explain import reason
from tianji_mw.config.values import Amount, Count, Switch

if TYPE_CHECKING:
    from tianji_mw.config.settings import Settings

PLACE: Final = ("settings", "cache_params")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+")
#: Uploads stream by unread: there is nothing to make a key of. A notice says so.
_FILES: Final = frozenset({"transcription", "atranscription"})


class Common(Block):
    """The keys of `cache_params` that mean the same for every store."""

    type: str = ""
    mode: Literal["default_on", "default_off"] = "default_on"
    #: Seconds. The two below go before it, for entries in memory (or on the disk) and in Redis.
    ttl: Amount | None = None
    default_in_memory_ttl: Amount | None = None
    default_in_redis_ttl: Amount | None = None
    stale_while_revalidate_s: Amount = 0.0
    stale_if_error_s: Amount = 0.0
    namespace: str = Field(default="", coerce_numbers_to_str=True)
    supported_call_types: tuple[str, ...] | None = None
    cache_scope: CacheScope = "team"
    cache_remote_media: Switch = False
    max_item_bytes: Count = 8 << 20


def rules_of(settings: Settings, options: Mapping[str, Any], store: str) -> CacheRules:
    """The rules; `store` is the store's name. Raises ConfigError at the key that is wrong."""
    try:
        common = Common(**{key: options[key] for key in Common.model_fields if options.get(key) is not None})
    except ValidationError as invalid:
        key, text = reason(invalid)
        raise settings.error(text, *PLACE, key.partition(".")[0]) from None
    given: dict[str, Any] = {}
    if (ttl_s := _ttl_s(settings, common, store)) is not None:
        given["ttl_s"] = ttl_s
    if common.namespace:
        given["namespace"] = _namespace(common.namespace)
    return CacheRules(
        stale_while_revalidate_s=common.stale_while_revalidate_s,
        stale_if_error_s=common.stale_if_error_s,
        default_on=common.mode == "default_on",
        scope=common.cache_scope,
        keyless=settings.general_settings.master_key is None and not settings.virtual_keys,
        apis=_apis(settings, common.supported_call_types),
        remote_media=common.cache_remote_media,
        max_item_bytes=common.max_item_bytes,
        groups=_groups(settings),
        **given,
    )


def _ttl_s(settings: Settings, common: Common, store: str) -> float | None:
    """The nearest to the place where entries are kept; a memory over Redis sees to its own time itself."""
    general = settings.settings
    memory = store in ("memory", "disk")
    first, last = (
        (common.default_in_memory_ttl, general.default_in_memory_ttl)
        if memory
        else (common.default_in_redis_ttl, general.default_redis_ttl)
    )
    return next((ttl for ttl in (first, common.ttl, last) if ttl is not None), None)


def _namespace(written: str) -> str:
    """A namespace that keys can begin with; two that are written differently stay two."""
    fit = _UNFIT.sub("-", written)[:64]
    return fit if fit == written else f"{fit}-{short(written, 8)}"


def _apis(settings: Settings, types: tuple[str, ...] | None) -> frozenset[str]:
    """The APIs behind LiteLLM's `supported_call_types`."""
    if types is None:
        return APIS
    known = {**CALL_TYPES, **{name[1:]: api for name, api in CALL_TYPES.items()}}
    for at, name in enumerate(types):
        if name not in known and name not in _FILES:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(CALL_TYPES)}"
            raise settings.error("unknown call type", *PLACE, "supported_call_types", at, hint=hint)
    return frozenset(known[name] for name in types if name in known)


def _groups(settings: Settings) -> dict[str, str]:
    """The name that each model of `caching_groups` counts as."""
    groups: dict[str, str] = {}
    for at, group in enumerate(settings.router_settings.caching_groups):
        for name in group:
            if name in groups:
                hint = "put all of them into one group"
                raise settings.error(
                    f"'{name}' stands in two groups", "router_settings", "caching_groups", at, hint=hint
                )
            groups[name] = "+".join(group)
    return groups
