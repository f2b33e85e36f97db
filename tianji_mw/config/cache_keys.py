"""The keys of the cache: LiteLLM's `cache` and `cache_params` in `litellm_settings`, and a few of our own.

What a store's own settings are, its class knows; here they are free-form, with credentials as secrets.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field

from tianji_mw.config.blocks import Block
from tianji_mw.config.values import FreeForm, Seconds, Switch, secret_of


def _hide_logins(value: Any, name: str = "") -> Any:
    """The value with every address that has a login in it as a secret: `redis://user:password@host`."""
    if isinstance(value, dict):
        return {key: _hide_logins(child, key) for key, child in value.items()}
    if isinstance(value, list):
        return [_hide_logins(child, name) for child in value]
    return secret_of(value) if name.endswith("url") and isinstance(value, str) and "@" in value else value


#: Settings of stores; in the free form, an address is no credential.
StoreForm: TypeAlias = Annotated[FreeForm, AfterValidator(_hide_logins)]


class CacheKeys(Block):
    """Keys of `litellm_settings` that say what is cached, and where."""

    #: Without `cache_params`: Redis where REDIS_HOST or REDIS_URL is set, else memory.
    cache: Switch = False
    cache_params: StoreForm = Field(default_factory=dict)
    #: Seconds that entries live in the memory, or the Redis, of a cache that says nothing itself.
    default_in_memory_ttl: Seconds | None = None
    default_redis_ttl: Seconds | None = None
    #: Without effect, as a notice says: what they ask for is so anyway.
    enable_redis_auth_cache: Switch = False
    enable_caching_on_provider_specific_optional_params: Switch = False
