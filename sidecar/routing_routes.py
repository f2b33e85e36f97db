"""The router's endpoints: its state, where a call would go, and LiteLLM's `/health`.

On the main port they need the master key: a health check costs tokens, and its errors tell of the providers. The admin
port has the same under `/-/routing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from sidecar.master_key import Handler, refused
from tianji_mw import redact
from tianji_mw.apis import by_name
from tianji_mw.driver import inner_layers
from tianji_mw.errors import TianjiError
from tianji_mw.identity.base import Identity
from tianji_mw.routing.health import Health, health_of
from tianji_mw.routing.health_probe import call_of, mode_of
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.report import explain, report

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.call import Call
    from tianji_mw.routing.base import Deployment
    from tianji_mw.routing.router import Router
    from tianji_mw.runtime import Runtime

_LISTS = {"healthy": "healthy_endpoints", "unhealthy": "unhealthy_endpoints", "skipped": "skipped_endpoints"}


def routing_of(app: ASGIApp) -> Routing | None:
    """The layer of the stack that chooses deployments."""
    return next((layer for layer in inner_layers(app) if isinstance(layer, Routing)), None)


async def question(model: str, tags: list[str], team: str, runtime: Runtime) -> Call:
    """The call that `explain` is asked about."""
    request = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    call = await call_of(by_name("chat_completions"), request, runtime)
    call.identity = Identity(key_hash="", team=team, tags=tuple(tags))
    return call


class RoutingRoutes:
    """What can be asked of one router."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    @property
    def main(self) -> Mapping[tuple[str, str], Handler]:
        """LiteLLM's `/health`, and the explanation, for the main port."""
        return {
            ("GET", "/router/explain"): self.explain,
            ("GET", "/health"): self.health,
            ("GET", "/health/latest"): self.latest,
        }

    @property
    def _router(self) -> Router | None:
        return self._routing.router if self._routing.state is not None else None

    async def report(self, request: Request) -> Response:
        """Everything that the router knows of its deployments."""
        router = self._router
        return _starting() if router is None else _json(await report(router))

    async def explain(self, request: Request) -> Response:
        """`?model=` with `&tags=a,b`, `&team=`: who would serve such a call, and why."""
        router = self._router
        if router is None:
            return _starting()
        asked = request.query_params
        model = asked.get("model", "")
        if not model:
            return refused("say which model, such as /router/explain?model=gpt-4o", 400)
        tags = [tag for text in asked.getlist("tags") for tag in text.split(",") if tag]
        call = await question(model, tags, asked.get("team", ""), router.runtime)
        try:
            return _json(explain(router, call, model))
        except TianjiError as error:
            return refused(error.message, error.status)

    async def health(self, request: Request) -> Response:
        """LiteLLM's `/health`: the last results of the background checks; without those, every deployment is asked."""
        router = self._router
        if router is None:
            return _starting()
        wanted = _wanted(router, request.query_params)
        if not wanted:
            return refused("no deployment is of this model or id", 404)
        checks = await health_of(router)
        asked = wanted
        known: Mapping[Deployment, Health] = {}
        if checks.rules.every_s is not None:
            known = checks.latest
            # The first round may not be over. Those that the config leaves out are asked when they alone are meant.
            asked = [one for one in wanted if one not in known and (len(wanted) == 1 or not one.unchecked)]
        found = {**known, **await checks.check(asked)}
        return _json(_endpoints({one: found[one] for one in wanted if one in found}, details=checks.rules.details))

    async def latest(self, request: Request) -> Response:
        """LiteLLM's `/health/latest`: what is known, by deployment; asks nobody."""
        router = self._router
        if router is None:
            return _starting()
        checks = await health_of(router)
        told = {one.id: _latest(one, health, checks.rules.details) for one, health in checks.latest.items()}
        return _json({"latest_health_checks": told, "total_models": len(told)})


def _wanted(router: Router, asked: Mapping[str, str]) -> list[Deployment]:
    """All, or those of `model` (a public name, or the provider's), or the one with `model_id`."""
    model, model_id = asked.get("model"), asked.get("model_id")
    if model_id:
        return [one for one in router.table.all if one.id == model_id]
    if model:
        group = router.table.group(model)
        return [one for one in router.table.all if group in (one.model_name, one.model, _model(one))]
    return list(router.table.all)


def _endpoints(found: Mapping[Deployment, Health], *, details: bool) -> dict[str, Any]:
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in _LISTS.values()}
    for deployment, health in found.items():
        lists[_LISTS[health.state]].append(_endpoint(deployment, health, details))
    return {**lists, **{f"{state}_count": len(lists[name]) for state, name in _LISTS.items()}}


def _endpoint(deployment: Deployment, health: Health, details: bool) -> dict[str, Any]:
    entry = {"model": _model(deployment), "model_id": deployment.id}
    if not details:
        return entry
    entry |= {
        "model_name": deployment.model_name,
        "api_base": redact.url(deployment.provider.base).partition("?")[0],
        "mode": mode_of(deployment)[0],
        "checked_by": health.how,
        "checked_at": _when(health),
    }
    return {**entry, "error": health.error} if health.error else entry


def _latest(deployment: Deployment, health: Health, details: bool) -> dict[str, Any]:
    return {
        "model_name": deployment.model_name,
        "model_id": deployment.id,
        "status": health.state,
        "error_message": (health.error or None) if details else None,
        "response_time_ms": round(health.seconds * 1000, 1) if health.seconds else None,
        "checked_by": health.how,
        "checked_at": _when(health),
    }


def _model(deployment: Deployment) -> str:
    return f"{deployment.provider.name}/{deployment.model}"


def _when(health: Health) -> str:
    return datetime.fromtimestamp(health.wall, UTC).isoformat(timespec="seconds")


def _json(found: Mapping[str, Any], status: int = 200) -> Response:
    # Figures of a strategy may be infinite; orjson writes null for them.
    return Response(orjson.dumps(found), status, media_type="application/json")


def _starting() -> Response:
    return refused("routing has not started yet; try again in a moment", 503)
