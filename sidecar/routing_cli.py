"""`tianji-sidecar explain --model`: who would serve a call and why, from the config alone or from a running sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.errors import SetupError, TianjiError

if TYPE_CHECKING:
    from sidecar.options import RunOptions

_ID: Final = 12
_LISTS: Final[Mapping[str, str]] = {
    "fallbacks": "after a failure",
    "context_window_fallbacks": "prompt too long",
    "content_policy_fallbacks": "content refused",
}


def explained(options: RunOptions, model: str, tags: Sequence[str], team: str, url: str) -> list[str]:
    """The lines to print. Raises SetupError where there is nothing to explain."""
    found = _asked(url, model, tags, team) if url else asyncio.run(_fresh(options, model, tags, team))
    return [*_head(found, live=bool(url)), "", *_table(found, live=bool(url)), "", *_after(found)]


async def _fresh(options: RunOptions, model: str, tags: Sequence[str], team: str) -> dict[str, Any]:
    """By the config alone, as if nothing had happened yet."""
    from sidecar.app import settings_of, stack_of
    from sidecar.routing_routes import question, routing_of
    from tianji_mw.counters.local import LocalHolds, LocalWindows
    from tianji_mw.routing.report import explain
    from tianji_mw.routing.router import Router
    from tianji_mw.runtime import Runtime

    routing = routing_of(stack_of(settings_of(options, resolve=False), options).app)
    if routing is None:
        raise SetupError("this config has no deployments, so there is nothing to choose from; add model_list")
    runtime = Runtime()
    routing.picker.open(runtime)
    holds = LocalHolds(runtime)
    router = Router(routing.deployments, routing.picker, routing.rules, runtime, LocalWindows(runtime), holds)
    try:
        return explain(router, await question(model, list(tags), team, runtime), model)
    except TianjiError as error:
        raise SetupError(error.message) from None


def _asked(url: str, model: str, tags: Sequence[str], team: str) -> dict[str, Any]:
    import httpx

    asked = {"model": model, "tags": ",".join(tags), "team": team}
    try:
        answer = httpx.get(url.rstrip("/") + "/-/routing/explain", params=asked, timeout=30, trust_env=False)
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        text = f"{url}: no admin port of a sidecar answers there ({type(error).__name__}); set --url"
        raise SetupError(text) from None
    if "error" in found:
        raise SetupError(str(found["error"].get("message", found["error"])))
    if "deployments" not in found:
        raise SetupError(f"{url}: this sidecar routes nothing")
    return found


def _head(found: Mapping[str, Any], *, live: bool) -> Iterator[str]:
    name, group = found["model"], found["group"]
    resolved = [name] if group == name else [f"{name} is an alias of {group}"]
    if pattern := found["pattern"]:
        resolved.append(f"served by the pattern {pattern}")
    facts = {
        "model": ", ".join(resolved),
        "state": "live" if live else "fresh: the config alone",
        "strategy": found["strategy"],
        "affinity": ", ".join(found["affinity"]),
        "tags": "no filter" if found["tags"] is None else ", ".join(found["tags"]) or "none",
    }
    yield from _aligned([(label, text) for label, text in facts.items() if text])


def _table(found: Mapping[str, Any], *, live: bool) -> Iterator[str]:
    """One line for each deployment, those that may be chosen first; below it what the strategy has learned."""
    deployments = sorted(found["deployments"], key=lambda one: one["removed"] is not None)
    shown = ["weight", "order", "rpm", "tpm", "parallel", "tags", "state", "inflight"]
    rows = [_cells(one) for one in deployments]
    used = [name for name in shown if any(row[name] for row in rows)]
    table = _aligned(
        [
            ("id", "deployment", *used, "verdict"),
            *((row["id"], row["target"], *(row[name] or "-" for name in used), row["verdict"]) for row in rows),
        ]
    )
    yield next(table)
    for line, one in zip(table, deployments, strict=True):
        yield line
        if live and one["figures"] and one["removed"] is None:
            yield "    " + ", ".join(f"{name} {_figure(value)}" for name, value in one["figures"].items())


def _cells(one: Mapping[str, Any]) -> dict[str, str]:
    def limit(name: str) -> str:
        return f"{one[name]:g}{'' if one['limits_enforced'] else ' (weight)'}" if one[name] is not None else ""

    return {
        "id": one["id"][:_ID],
        "target": f"{one['provider']}/{one['upstream_model']}",
        "weight": _figure(one["weight"]) if one["weight"] is not None else "",
        "order": str(one["order"]) if one["order"] is not None else "",
        "rpm": limit("rpm"),
        "tpm": limit("tpm"),
        "parallel": str(one["max_parallel"] or ""),
        "tags": ",".join(one["tags"]),
        "state": one["state"] if one["state"] != "closed" else "",
        "inflight": str(one["inflight"] or ""),
        "verdict": _verdict(one),
    }


def _verdict(one: Mapping[str, Any]) -> str:
    if (removed := one["removed"]) is not None:
        left = removed["seconds_left"]
        return f"out: {removed['reason']}" + (f", {left:.0f} s left" if left is not None else "")
    share = f", back with {one['share']:.0%} of its load" if one["share"] < 1 else ""
    return (f"candidate, {one['chance']:.1%}" if one["chance"] is not None else "candidate") + share


def _after(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [("retries", f"{found['retries']} in the group")]
    if refused := found["refused"]:
        rows.insert(0, ("refused", f"{refused['status']}: {refused['message']}"))
    for field, label in _LISTS.items():
        if found[field] and (field == "fallbacks" or found[field] != found["fallbacks"]):
            rows.append((label, ", ".join(found[field])))
    way = found["way"]
    rows.append(("way", " > ".join(way) if len(way) > 1 else f"{way[0]}, and no fallback"))
    yield from _aligned(rows)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
