"""The keys of the cache: LiteLLM's `cache` and `cache_params` in `litellm_settings`, and a few of our own.

What a store's own settings are, its class knows; here they are free-form, with credentials as secrets.
"""

from __future__ import annotations

from pydantic import Field

from tianji_mw.config.blocks import Block
from tianji_mw.config.values import FreeForm, Seconds, Switch


class CacheKeys(Block):
    """Keys of `litellm_settings` that say what is cached, and where."""

    #: Without `cache_params`: Redis where REDIS_HOST or REDIS_URL is set, else memory.
    cache: Switch = False
    cache_params: FreeForm = Field(default_factory=dict)
    #: Seconds that entries live in the memory, or the Redis, of a cache that says nothing itself.
    default_in_memory_ttl: Seconds | None = None
    default_redis_ttl: Seconds | None = None
