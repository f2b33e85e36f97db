"""The cache's endpoints: LiteLLM's `/cache/*` on the main port, for the master key; the same for the admin port.

`flushall` takes out this gateway's entries, never those of others in the same Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sidecar.cache_tenants import FIELDS, BadPurge, Tenants
from sidecar.master_key import Handler, refused
from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.middleware import Cache
from tianji_mw.cache.purge import Purge, purge
from tianji_mw.driver import inner_layers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.config.settings import Settings

_FIELDS: Final = frozenset({"keys", "model_group", "model", "namespace", "tag", *FIELDS})
#: Seconds that the store may take to show that it works.
_PING_S: Final = 10.0


def cache_of(app: ASGIApp) -> Cache | None:
    """The cache of the stack."""
    return next((layer for layer in inner_layers(app) if isinstance(layer, Cache)), None)


class CacheRoutes:
    """What can be asked of one cache."""

    def __init__(self, cache: Cache, settings: Settings) -> None:
        self._cache = cache
        self._tenants = Tenants(cache.rules, settings)

    @property
    def main(self) -> Mapping[tuple[str, str], Handler]:
        """LiteLLM's `/cache/*`, for the main port."""
        return {
            ("GET", "/cache/ping"): self.ping,
            ("GET", "/cache/stats"): self.report,
            ("GET", "/cache/redis/info"): self.redis_info,
            ("POST", "/cache/delete"): self.delete,
            ("POST", "/cache/invalidate"): self.invalidate,
            ("POST", "/cache/flushall"): self.flushall,
        }

    async def report(self, request: Request) -> Response:
        """The store, what waits to be written, what was saved, and the semantic part."""
        cache = self._cache
        assert cache.shelf is not None
        semantic = await cache.semantic.report() if cache.semantic is not None else None
        waiting = {"keys": len(cache.writer.waiting()), "bytes": cache.writer.size} if cache.writer else None
        return JSONResponse(
            {
                "store": await cache.shelf.report(),
                "waiting": waiting,
                **cache.stats.report(),
                "semantic": semantic,
            }
        )

    async def ping(self, request: Request) -> Response:
        """LiteLLM's shape; 503 when the store does not do what it should."""
        cache = self._cache
        assert cache.shelf is not None
        told: dict[str, Any] = {"cache_type": type(cache.store).__name__.lower().removesuffix("store")}
        try:
            async with asyncio.timeout(_PING_S):
                kept = await cache.store.prove(cache.rules.namespace)
        except TimeoutError:
            told["error"] = f"it did not answer within {_PING_S:g} s"
            return JSONResponse({"status": "unhealthy", **told, "ping_response": False}, 503)
        except StoreFailed as error:
            return JSONResponse({"status": "unhealthy", **told, "ping_response": False, "error": error.message}, 503)
        params = {"namespace": cache.rules.namespace, "ttl": cache.rules.ttl_s, "scope": cache.rules.scope}
        status = "success" if kept else "the value was not there when it was read"
        return JSONResponse(
            {
                "status": "healthy" if kept else "unhealthy",
                **told,
                "ping_response": True,
                "set_cache_response": status,
                "litellm_cache_params": orjson.dumps(params).decode(),
                "health_check_cache_params": params,
            },
            200 if kept else 503,
        )

    async def delete(self, request: Request) -> Response:
        """`{"keys": [...]}`."""
        return await self._purge(request, only_keys=True)

    async def invalidate(self, request: Request) -> Response:
        """By model, namespace, team, key or tag; what meets all of them."""
        return await self._purge(request)

    async def purge(self, request: Request) -> Response:
        """`invalidate` and `flushall` in one, for the admin port: `{"all": true}` is everything."""
        return await self._purge(request, everything=True)

    async def flushall(self, request: Request) -> Response:
        """Everything of ours."""
        return await self._run([Purge()])

    async def redis_info(self, request: Request) -> Response:
        """The figures of the store."""
        assert self._cache.shelf is not None
        return JSONResponse({"info": await self._cache.shelf.report()})

    async def _purge(self, request: Request, *, only_keys: bool = False, everything: bool = False) -> Response:
        try:
            body = orjson.loads(await request.body() or b"{}")
            wanted = [Purge()] if everything and body == {"all": True} else self._wanted(body, only_keys=only_keys)
        except orjson.JSONDecodeError:
            return refused("the body is no JSON", 400)
        except BadPurge as error:
            return refused(str(error), 400)
        return await self._run(wanted)

    async def _run(self, wanted: list[Purge]) -> Response:
        try:
            count = sum([await purge(self._cache, one) for one in wanted])
        except StoreFailed as error:
            return refused(error.message, 503)
        return JSONResponse({"status": "success", "deleted": count})

    def _wanted(self, body: Any, *, only_keys: bool) -> list[Purge]:
        if not isinstance(body, dict) or not body:
            raise BadPurge('say what is to go, such as {"model_group": "gpt-4o"}; /cache/flushall takes all')
        if unknown := sorted(body.keys() - _FIELDS):
            raise BadPurge(f"unknown field '{unknown[0]}'; there are: {', '.join(sorted(_FIELDS))}")
        keys = body.get("keys") or []
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise BadPurge("'keys' must be a list of cache keys")
        if only_keys and not keys:
            raise BadPurge("'keys' is missing: a list of cache keys, as the header x-litellm-cache-key tells them")
        texts = {name: value for name, value in body.items() if name != "keys"}
        if any(not isinstance(value, str) or not value for value in texts.values()):
            raise BadPurge("all fields but 'keys' are texts")
        return [
            Purge(
                keys=tuple(keys),
                tenant=tenant,
                model=texts.get("model_group") or texts.get("model") or "",
                namespace=texts.get("namespace", ""),
                tag=texts.get("tag", ""),
            )
            for tenant in self._tenants.named(texts)
        ]
