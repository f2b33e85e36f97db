"""The routing keys before they are typed: one home for those of two blocks, and a word on each without effect.

Whether a fallback's target exists is found out by `compose/routing.py`, which may say its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tianji_mw.config import known
from tianji_mw.config.nodes import Node, plain
from tianji_mw.config.settings import Notice
from tianji_mw.config.sift import nearest, notice
from tianji_mw.config.values import as_switch
from tianji_mw.errors import ConfigError

#: Keys of `router_settings` whose members are named after model groups.
_BY_GROUP: Final = ("model_group_retry_policy", "model_group_affinity_config")
_FALLBACKS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
_NOT_ENFORCED: Final = "this restriction is not enforced"
_SCHEDULE: Final = ("health_check_interval", "health_check_concurrency")


def move_routing(root: Node, notices: list[Notice]) -> None:
    """Routing keys of `litellm_settings` and `general_settings` to `router_settings`, unless they stand there too."""
    for block, names in (("settings", known.SHARED_ROUTER_KEYS), ("general_settings", known.HEALTH_ROUTER_KEYS)):
        source = root.child(block)
        for name in sorted(names & source.fields.keys()) if source is not None else ():
            _move(root, name, source.fields.pop(name), notices)  # type: ignore[union-attr]


def _move(root: Node, name: str, node: Node, notices: list[Notice]) -> None:
    router = root.child("router_settings")
    if router is None or router.value is None:
        router = root.fields["router_settings"] = Node({}, node.file, node.line, "router_settings")
    first = router.child(name)
    if node.value is None or not isinstance(router.value, dict):
        return
    if first is None or first.value is None:
        router.fields[name] = node
    elif plain(first) != plain(node):
        notices.append(notice("no_effect", node, f"{first.key} in {first.place} goes before it"))


def check_routing(root: Node, errors: list[ConfigError], notices: list[Notice]) -> None:
    """Checks `router_settings`; works on resolved nodes and takes out what has no effect."""
    _check_health(root, notices)
    router = root.child("router_settings")
    if router is None or not isinstance(router.value, dict):
        return
    _check_strategy(router, errors, notices)
    for entry in _entries_of(router, "routing_groups"):
        _check_strategy(entry, errors, notices)
    _drop_nulls(router)
    for key in _FALLBACKS:
        if (node := router.child(key)) is not None and isinstance(node.value, dict):
            node.value = [Node(dict(node.fields), node.file, node.line, node.key)]
    checks = router.child("optional_pre_call_checks")
    affinity = router.child("model_group_affinity_config")
    for listed in (checks, *(affinity.fields.values() if affinity else ())):
        _leave_out_checks(listed, notices)
    for key in ("provider_budget_config", "tag_budget_config"):
        for budget in node.fields.values() if (node := router.child(key)) else ():
            limits = [name for name in ("tpm_limit", "rpm_limit") if name in budget.fields]
            notices += [notice("not_implemented", budget.fields.pop(name), _NOT_ENFORCED) for name in limits]
    _check_redis(router, notices)
    _check_groups(root, router, notices)


def _check_strategy(router: Node, errors: list[ConfigError], notices: list[Notice]) -> None:
    """Of the router, or of an entry of `routing_groups`."""
    node = router.child("routing_strategy")
    if node is None or not isinstance(node.value, str):
        return
    name = node.value.strip().lower()
    if name in known.STRATEGIES_LATER:
        notices.append(notice("not_implemented", node, f"{name}: adaptive is used"))
        node.value = "adaptive"
        _overrule(router, "routing_strategy_args", f"they are for {name}", notices)
    elif name in known.STRATEGIES:
        node.value = name
    elif "." not in name and ":" not in name:
        from tianji_mw import plugins

        installed = plugins.names("routing")
        if name not in installed:
            meant = nearest(name, {*known.STRATEGIES, *known.STRATEGIES.values()})
            hint = f"did you mean {meant!r}?" if meant else f"there are: {', '.join(sorted(known.STRATEGIES))}"
            errors.append(node.error("no such routing strategy", hint=hint))
            node.value = "adaptive"


def _drop_nulls(router: Node) -> None:
    """In a policy and in `redis`, null means "not set" as everywhere else."""
    of_groups = router.child("model_group_retry_policy")
    blocks = [router.child(key) for key in ("retry_policy", "allowed_fails_policy", "redis", "hedge")]
    for block in (*blocks, *(of_groups.fields.values() if of_groups else ())):
        drop_nulls(block)


def drop_nulls(block: Node | None) -> None:
    """Takes out the members without a value."""
    for name in [name for name, node in block.fields.items() if node.value is None] if block else ():
        del block.fields[name]  # type: ignore[union-attr]


def _leave_out_checks(listed: Node | None, notices: list[Notice]) -> None:
    if listed is None or not isinstance(listed.value, list):
        return
    later = [node for node in listed.items if isinstance(node.value, str) and node.value in known.CHECKS_LATER]
    notices += [notice("not_implemented", node, str(node.value)) for node in later]
    listed.value = [node for node in listed.items if node not in later]


def _check_health(root: Node, notices: list[Notice]) -> None:
    """What asks for health checks where there are none."""
    general, router = root.child("general_settings"), root.child("router_settings")
    switch = general.child("background_health_checks") if general else None
    if switch is not None and as_switch(switch.value) is not False:
        return
    routing = router.child("enable_health_check_routing") if router else None
    nodes = [general.child(key) for key in _SCHEDULE] if general else []
    if routing is not None and as_switch(routing.value) is True:
        nodes.append(routing)
    hint = "health checks are off; write `background_health_checks: true` in general_settings"
    notices += [notice("no_effect", node, hint) for node in nodes if node is not None]


def _check_redis(router: Node, notices: list[Notice]) -> None:
    redis = router.child("redis")
    if redis is None or not redis.fields:
        return
    from tianji_mw.redis.settings import RedisSettings

    ours = {*RedisSettings.model_fields, *RedisSettings.aliases}
    for name in [name for name in redis.fields if name not in ours]:
        meant = nearest(name, ours, 0.75)
        notices.append(notice("unknown", redis.fields.pop(name), f"did you mean {meant!r}?" if meant else ""))
    if not redis.fields.keys() & {"url", "host", "startup_nodes", "addrs", "sentinel_nodes"}:
        hint = "nothing says where Redis is; add redis_host, redis_url, redis_startup_nodes or redis_sentinel_nodes"
        notices += [notice("no_effect", node, hint) for node in redis.fields.values()]
        redis.value = {}


# --- deployments


def check_deployment(entry: Node, params: Node, errors: list[ConfigError], notices: list[Notice]) -> None:
    """Checks the routing keys of one entry of `model_list`, whose defaults are filled in."""
    budget, period = params.child("max_budget"), params.child("budget_duration")
    if budget is not None and budget.value is not None and (period is None or period.value is None):
        errors.append(budget.error("a budget needs a period", hint="write budget_duration: 1d beside it"))
    if period is not None and period.value is not None and (budget is None or budget.value is None):
        _overrule(params, "budget_duration", "there is no max_budget beside it", notices)
    if _set(params, "num_retries"):
        _overrule(params, "max_retries", "num_retries beside it goes before", notices)
    info = entry.child("model_info")
    for name in ("rpm", "tpm", "cooldown_time"):
        places = [place for place in (entry, params, info) if place is not None and _set(place, name)]
        for place in places[1:]:
            _overrule(place, name, f"{places[0].key}.{name} goes before it", notices)
    drop_nulls(info.child("allowed_fails_policy") if info else None)


def _set(block: Node, name: str) -> bool:
    node = block.child(name)
    return node is not None and node.value is not None


def _overrule(block: Node, name: str, why: str, notices: list[Notice]) -> None:
    if _set(block, name):
        notices.append(notice("no_effect", block.fields.pop(name), why))


# --- model groups


def _check_groups(root: Node, router: Node, notices: list[Notice]) -> None:
    """Says which keys are named after a model group that nothing serves."""
    names = _groups(root, router)
    if not names:
        return  # a config of an app that has its models elsewhere
    from tianji_mw.routing.base import pattern

    _check_routing_groups(router, names, notices)
    patterns = [pattern(name) for name in names if "*" in name]
    bare = {name.partition("/")[2] for name in names if "/" in name}
    for name, node, fallback in _named(router):
        if name in names or any(compiled.fullmatch(name) for compiled in patterns):
            found = "*" not in name or (fallback and name == "*")
        else:  # a fallback's key may differ by the provider's prefix, as in LiteLLM
            found = fallback and (name == "*" or name in bare or name.partition("/")[2] in names)
        if not found:
            meant = nearest(name, names - {name})
            hint = "no request asks for a pattern" if "*" in name else "no model of model_list is called so"
            notices.append(notice("no_effect", node, f"{hint}; did you mean {meant!r}?" if meant else hint))


def _check_routing_groups(router: Node, names: set[str], notices: list[Notice]) -> None:
    """These list public names as `model_list` has them, patterns too."""
    for entry in _entries_of(router, "routing_groups"):
        for node in _entries_of(entry, "models"):
            if isinstance(node.value, str) and node.value not in names:
                meant = nearest(node.value, names)
                hint = "no model_name of model_list is this"
                notices.append(notice("no_effect", node, f"{hint}; did you mean {meant!r}?" if meant else hint))


def _groups(root: Node, router: Node) -> set[str]:
    entries, aliases = root.child("model_list"), router.child("model_group_alias")
    found = [entry.child("model_name") for entry in entries.items] if entries else []
    names = {node.value for node in found if node is not None and isinstance(node.value, str)}
    return {*names, *(aliases.fields if aliases and names else ())}


def _named(router: Node) -> Iterator[tuple[str, Node, bool]]:
    """Names of model groups, their places, and whether they are keys of fallbacks."""
    for key in _FALLBACKS:
        for entry in _entries_of(router, key):
            yield from ((name, target, True) for name, target in entry.fields.items())
    for key in _BY_GROUP:
        fields = node.fields if (node := router.child(key)) else {}
        yield from ((name, member, False) for name, member in fields.items())
    hedge = router.child("hedge")
    groups = _entries_of(hedge, "groups") if hedge else ()
    yield from ((one.value, one, False) for one in groups if isinstance(one.value, str))


def _entries_of(block: Node, key: str) -> Sequence[Node]:
    node = block.child(key)
    return node.items if node else ()
