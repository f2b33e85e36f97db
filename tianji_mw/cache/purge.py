"""Taking answers out of a cache: by key, tenant, model, the client's namespace, or tag; only among its own keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.entry import NoEntry, decode
from tianji_mw.cache.indexes.base import IndexFailed
from tianji_mw.cache.key import short

if TYPE_CHECKING:
    from tianji_mw.cache.middleware import Cache

#: Keys that are deleted in one go; and entries that are read in one go, which may be large.
_BATCH: Final = 500
_READ: Final = 16
#: Seconds that the store may take for one of them.
_WITHIN_S: Final = 30.0
#: Looks at a write that has begun already, and the seconds between them: it has a time limit of its own.
_LOOKS: Final = 600
_LOOK_S: Final = 0.01


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
    #: A tag of the calls that were answered.
    tag: str = ""


async def purge(cache: Cache, wanted: Purge) -> int:
    """Take it out; how many entries there were. Answers that are on their way now are not kept.

    Raises StoreFailed where the store cannot be asked.
    """
    assert cache.shelf is not None
    cache.epoch += 1
    prefix = cache.planner.keys.prefix(wanted.tenant) if wanted.tenant else f"{cache.rules.namespace}:"
    if wanted.keys:
        found = [key for key in wanted.keys if key.startswith(prefix) and _meets(cache, wanted, key)]
        return await _taken(cache, wanted, found)
    count = 0
    waiting = cache.writer.waiting() if cache.writer is not None else []
    batch = [key for key in waiting if key.startswith(prefix) and _meets(cache, wanted, key)]
    async for key in cache.shelf.keys(prefix):
        if _meets(cache, wanted, key):
            batch.append(key)
        if len(batch) >= (_READ if wanted.tag else _BATCH):
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
    assert cache.shelf is not None
    if wanted.tag:
        batches = (keys[at : at + _READ] for at in range(0, len(keys), _READ))
        keys = [key for batch in batches for key in await _with_tag(cache, wanted, batch)]
    if not keys:
        return 0
    waiting = await _unwritten(cache, keys)
    try:
        async with asyncio.timeout(_WITHIN_S):
            return max(await cache.shelf.store.delete(keys), waiting)
    except TimeoutError:
        raise StoreFailed(f"the store did not delete within {_WITHIN_S:g} s", kind="timeout") from None


async def _with_tag(cache: Cache, wanted: Purge, keys: list[str]) -> list[str]:
    raws = await cache.get_many(keys)
    return [key for key, raw in zip(keys, raws, strict=True) if raw is not None and _tagged(raw, wanted.tag)]


async def _unwritten(cache: Cache, keys: Sequence[str]) -> int:
    """Take them out of what waits to be written; a write that has begun is over before anything is deleted."""
    writer = cache.writer
    if writer is None:
        return 0
    waiting = [key for key in keys if writer.get(key) is not None]
    for key in waiting:
        writer.forget(key)
    for _ in range(_LOOKS):
        if not any(writer.get(key) is not None for key in waiting):
            return len(waiting)
        await asyncio.sleep(_LOOK_S)
    raise StoreFailed("the store did not end a write in time; try again", kind="timeout")


def _tagged(raw: bytes, tag: str) -> bool:
    try:
        return tag in decode(raw).tags
    except NoEntry:
        return False


async def _unlearn(cache: Cache, wanted: Purge, prefix: str) -> None:
    """Vectors go with their answers; where only a part of a tenant goes, they go when their answer is not found."""
    if cache.semantic is not None and not (wanted.model or wanted.namespace or wanted.tag):
        try:
            await cache.semantic.purge(prefix)
        except IndexFailed as error:
            raise StoreFailed(error.message) from None
