"""What a router knows, for people and as JSON: the state of its deployments, and where a call would go and why.

It looks and changes nothing: no strategy is asked to pick, since picking is part of what some of them learn from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.errors import TianjiError, UpstreamError
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import UNTIL_LIFTED, Block
from tianji_mw.routing.failure import Failure, failure_of
from tianji_mw.routing.fallbacks import next_group, targets
from tianji_mw.routing.health import Health, health_of
from tianji_mw.routing.retries import retries_of
from tianji_mw.routing.router import Router
from tianji_mw.routing.selector import Removal, Trace
from tianji_mw.routing.shuffle import Shuffle, weight_sums
from tianji_mw.routing.vacancy import nobody

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Failures by which lists of fallbacks differ: field of the config, status and code of an error.
_FAILURES: Final[Mapping[str, tuple[int, str | None]]] = {
    "fallbacks": (500, None),
    "context_window_fallbacks": (400, "context_length_exceeded"),
    "content_policy_fallbacks": (400, "content_policy_violation"),
}


async def report(router: Router) -> dict[str, Any]:
    """Groups with their deployments, budgets, and what was retried and fell back since the start."""
    checks = await health_of(router)
    groups: dict[str, list[Deployment]] = {}
    for deployment in router.table.all:
        groups.setdefault(deployment.model_name, []).append(deployment)
    shown = await asyncio.gather(*(_shown(router, one, checks.latest.get(one)) for one in router.table.all))
    by_deployment = dict(zip(router.table.all, shown, strict=True))
    counts = router.counts
    return {
        "strategy": strategy(router, ""),
        "shared": {"replicas": router.shared.replicas()} if router.shared is not None else None,
        "groups": [
            {
                "model": name,
                "strategy": strategy(router, name),
                "waiting": router.parallel.waiting(name),
                "deployments": [by_deployment[one] for one in members],
            }
            for name, members in groups.items()
        ],
        "budgets": await router.budgets.report(),
        "retries": [{"group": group, "kind": kind, "count": n} for (group, kind), n in sorted(counts.retries.items())],
        "fallbacks": [
            {"from": begun, "to": target, "kind": kind, "count": n}
            for (begun, target, kind), n in sorted(counts.fallbacks.items())
        ],
    }


def strategy(router: Router, model_name: str) -> str:
    """The strategy for a public name, as the config names it."""
    kind = type(router.picker.of(model_name))
    return kind.names[0] if kind.names else kind.__name__


async def _shown(router: Router, deployment: Deployment, health: Health | None) -> dict[str, Any]:
    used = await router.limits.used(deployment)
    attempts, failures = router.cooldowns.counts(deployment)
    now = router.runtime.clock()
    return {
        **_named(deployment),
        "state": router.cooldowns.state(deployment),
        "blocks": [_block(block, now) for block in router.blocks.of(deployment)],
        "inflight": router.parallel.inflight.get(deployment, 0),
        "picked": router.counts.picked.get(deployment, 0),
        "last_minute": {"attempts": attempts, "failures": failures},
        "limits": {
            name: {"limit": limit, "used": used.get(name)}
            for name, limit in (("rpm", deployment.rpm), ("tpm", deployment.tpm))
            if limit is not None
        },
        "max_parallel": deployment.max_parallel or router.rules.max_parallel,
        "share": router.cooldowns.share(deployment),
        "figures": dict(router.figures(deployment)),
        "health": _health(health) if health is not None else None,
    }


def _named(deployment: Deployment) -> dict[str, Any]:
    return {
        "id": deployment.id,
        "provider": deployment.provider.name,
        "model": deployment.model,
        "weight": deployment.weight,
        "order": deployment.order,
        "tags": sorted(deployment.tags),
    }


def _block(block: Block, now: int) -> dict[str, Any]:
    left = None if block.until >= UNTIL_LIFTED else round((block.until - now) / 1e9, 3)
    return {"reason": block.reason, "detail": block.detail, "seconds_left": left, "soft": block.soft}


def _health(health: Health) -> dict[str, Any]:
    when = datetime.fromtimestamp(health.wall, UTC).isoformat(timespec="seconds")
    return {"state": health.state, "how": health.how, "when": when, "error": health.error or None}


# --- one call


def explain(router: Router, call: Call, name: str) -> dict[str, Any]:
    """What would become of this call: who could serve it, whom which step takes out, and what follows a failure.

    Raises UnknownModel.
    """
    trace = router.selector.trace(call, name)
    removed = {removal.deployment: removal for removal in trace.removed}
    chances = _chances(router, trace.left)
    now = router.runtime.clock()
    return {
        "model": name,
        "group": trace.group,
        "pattern": trace.all[0].model_name if "*" in trace.all[0].model_name else None,
        "strategy": strategy(router, trace.all[0].model_name),
        "affinity": sorted(router.rules.affinity_of.get(trace.group, router.rules.affinity)),
        "tags": sorted(router.selector.tags(call)) if router.rules.tag_filtering else None,
        "deployments": [
            {
                **_named(one),
                "upstream_model": one.upstream_model(trace.group),
                "rpm": one.rpm,
                "tpm": one.tpm,
                "limits_enforced": router.limits.holds_for(one),
                "max_parallel": one.max_parallel or router.rules.max_parallel,
                "state": router.cooldowns.state(one),
                "share": router.cooldowns.share(one),
                "inflight": router.parallel.inflight.get(one, 0),
                "removed": _removal(removed[one], now) if one in removed else None,
                "chance": chances.get(one),
                "figures": dict(router.figures(one)),
            }
            for one in trace.all
        ],
        "refused": _refusal(router, call, trace),
        "retries": _retries(router, call, trace),
        **_fallbacks(router, call, name),
    }


def _removal(removal: Removal, now: int) -> dict[str, Any]:
    ends = 0 < removal.until < UNTIL_LIFTED
    left = round((removal.until - now) / 1e9, 3) if ends else None
    return {"step": removal.step, "reason": removal.reason, "seconds_left": left}


def _chances(router: Router, left: Sequence[Deployment]) -> dict[Deployment, float]:
    """The share of calls that each would get, where only weights decide; else nothing, for it depends on the call."""
    if not left:
        return {}
    picker = router.picker.of(left[0].model_name)
    weighted = any(one.weight is not None for one in left)
    shuffles = isinstance(picker, Shuffle) or (isinstance(picker, Adaptive) and weighted)
    if not shuffles and len(left) > 1:
        return {}
    sums = weight_sums(left)
    steps = zip(left, sums, [0.0, *sums], strict=False)
    return {one: round((upto - before) / sums[-1], 4) for one, upto, before in steps}


def _refusal(router: Router, call: Call, trace: Trace) -> dict[str, Any] | None:
    """The error that the client would get, where nobody is left."""
    if trace.left:
        return None
    refused: TianjiError = nobody(trace, router.runtime.clock())
    try:
        router.selector.refuse(call, trace)
    except TianjiError as error:
        refused = error
    return {"status": refused.status, "message": refused.message}


def _retries(router: Router, call: Call, trace: Trace) -> int:
    one = (trace.left or trace.all)[0]
    return retries_of(call, router.rules, one, trace.group, _failure(call, "fallbacks"))


def _fallbacks(router: Router, call: Call, name: str) -> dict[str, Any]:
    """The lists by kind of failure, and the way that a call takes when every group fails in turn."""
    rules, table, way = router.rules, router.table, [router.table.group(name)]
    lists = {field: list(targets(call, rules, name, _failure(call, field), way[0])) for field in _FAILURES}
    pending: list[str] = []
    failure, target = _failure(call, "fallbacks"), name
    while True:  # as `Failover.run` goes
        pending = [*targets(call, rules, target, failure, way[-1]), *pending]
        found = next_group(call, rules, table, failure, pending, way)
        if found is None:
            return {**lists, "way": way, "max_fallbacks": rules.max_fallbacks}
        target = found
        way.append(table.group(target))


def _failure(call: Call, field: str) -> Failure:
    status, code = _FAILURES[field]
    return failure_of(UpstreamError("", status=status, code=code), status, {}, b"", call)
