"""`tianji-sidecar doctor` for the cache: writes a value, reads it, deletes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tianji_mw.cache.base import CacheStore, StoreFailed
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.stack import Stack

Finding = tuple[bool | None, str]


def examine_cache(stack: Stack) -> Iterator[Finding]:
    """One finding for the cache of the stack, if it has one."""
    from sidecar.cache_routes import cache_of

    cache = cache_of(stack.app)
    if cache is not None:
        yield asyncio.run(_try(cache.store, cache.rules.namespace))


async def _try(store: CacheStore, namespace: str) -> Finding:
    name, began = type(store).__name__, time.monotonic()
    async with Runtime() as runtime:
        try:
            await store.start(runtime)
            kept = await store.prove(namespace)
        except SetupError as error:
            return False, f"cache {name}: {error.message}"
        except StoreFailed as error:
            return False, f"cache {name}: {error.message}"
        finally:
            await store.aclose()
    if not kept:
        return False, f"cache {name}: a value that was just written was not there"
    return True, f"cache {name}: wrote, read and deleted a value in {(time.monotonic() - began) * 1000:.0f} ms"
