"""Taking answers out of a cache: by key, tenant, model, the client's namespace, or tag; only among its own keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tianji_mw.cache.entry import NoEntry, decode
from tianji_mw.cache.key import short

if TYPE_CHECKING:
    from tianji_mw.cache.middleware import Cache

_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What is taken out: what meets every condition that is given. Without one, everything."""

    #: Whole keys, as the header `x-litellm-cache-key` tells them.
    keys: Sequence[str] = ()
    #: A tenant, as its key is made of it: `("team", name)`, `("key", hash)`, `("org", id)`.
    tenant: tuple[str, ...] = ()
    #: A public model name.
    model: str = ""
    #: The namespace of a request's `cache` field.
    namespace: str = ""
    #: A tag of the keys whose calls were answered.
    tag: str = ""


async def purge(cache: Cache, wanted: Purge) -> int:
    """Take it out; how many entries there were. Answers that are on their way now are not kept.

    Raises StoreFailed where the store cannot be asked.
    """
    assert cache.shelf is not None
    cache.epoch += 1
    if wanted.keys:
        prefix = f"{cache.rules.namespace}:"
        found = [key for key in wanted.keys if key.startswith(prefix) and _meets(cache, wanted, key)]
        return await _taken(cache, wanted, found)
    prefix = cache.planner.keys.prefix(wanted.tenant) if wanted.tenant else f"{cache.rules.namespace}:"
    count = 0
    waiting = cache.writer.waiting() if cache.writer is not None else []
    batch = [key for key in waiting if key.startswith(prefix) and _meets(cache, wanted, key)]
    async for key in cache.shelf.keys(prefix):
        if _meets(cache, wanted, key):
            batch.append(key)
        if len(batch) >= _BATCH:
            count += await _taken(cache, wanted, batch)
            batch = []
    count += await _taken(cache, wanted, batch)
    await _unlearn(cache, wanted, prefix)
    return count


def _meets(cache: Cache, wanted: Purge, key: str) -> bool:
    """Whether a key can be of what is wanted, as far as a key tells."""
    parts = key.split(":")
    if len(parts) != 5:
        return False
    _, _, space, model, _ = parts
    if wanted.namespace and space != short(wanted.namespace, 8):
        return False
    return not wanted.model or model == cache.planner.keys.model_mark(wanted.model)


async def _taken(cache: Cache, wanted: Purge, keys: list[str]) -> int:
    """Delete those of them that have the tag, if one is wanted."""
    if not keys:
        return 0
    if wanted.tag:
        raws = await cache.get_many(keys)
        keys = [key for key, raw in zip(keys, raws, strict=True) if raw is not None and _tagged(raw, wanted.tag)]
    waiting = 0
    if cache.writer is not None:
        for key in keys:
            if cache.writer.get(key) is not None:
                cache.writer.forget(key)
                waiting += 1
    assert cache.shelf is not None
    return max(await cache.shelf.delete(keys) if keys else 0, waiting)


def _tagged(raw: bytes, tag: str) -> bool:
    try:
        return tag in decode(raw).tags
    except NoEntry:
        return False


async def _unlearn(cache: Cache, wanted: Purge, prefix: str) -> None:
    """Vectors go with their answers; where only a part of a tenant goes, they go when their answer is not found."""
    if cache.semantic is not None and not (wanted.model or wanted.namespace or wanted.tag):
        await cache.semantic.purge(prefix)
