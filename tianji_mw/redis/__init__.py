"""Redis for every concern that needs it: one shared client per server, which fails fast and heals by itself.

    redis = await shared(RedisSettings(host="cache.internal"), runtime)
    await redis.run("GET", "k", key="k")

`settings.py` what is configured, `client.py` routing and retries, `node.py` one server with its breaker, `topology.py`
where the servers are, `scripts.py` Lua, `channel.py` pub/sub. It knows nothing of caches or limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tianji_mw.errors import MissingExtra

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis
    from tianji_mw.redis.settings import RedisSettings
    from tianji_mw.runtime import Runtime


async def shared(settings: RedisSettings, runtime: Runtime) -> Redis:
    """The process's client for these settings; it is closed with the runtime.

    A server that is not there is no error here. Raises MissingExtra, and SetupError for settings that cannot work.
    """
    try:
        from tianji_mw.redis.client import Redis
    except ModuleNotFoundError:
        raise MissingExtra("redis", "redis") from None
    wanted = settings.connection()
    return await runtime.shared(("redis", wanted), lambda: Redis.open(wanted, runtime), Redis.aclose)
