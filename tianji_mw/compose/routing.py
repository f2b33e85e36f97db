"""From the config's `router_settings` to a picker, the rules of routing, and the Redis that shares its state.

Which deployments there are: `deployments.py`. Nothing here is running yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import ValidationError

from tianji_mw import plugins
from tianji_mw.compose.fallbacks import check_targets, fallbacks_of
from tianji_mw.compose.provider import ALIASES, is_built_in
from tianji_mw.config.explain import reason
from tianji_mw.config.known import STRATEGIES
from tianji_mw.config.routing_values import seconds_of
from tianji_mw.config.sift import nearest
from tianji_mw.errors import ConfigError, PluginNotFound
from tianji_mw.providers import registry
from tianji_mw.providers.base import Provider
from tianji_mw.routing.base import Picker
from tianji_mw.routing.per_group import PerGroup
from tianji_mw.routing.rules import Affinity, Budget, HealthRules, Hedge, RoutingRules

if TYPE_CHECKING:
    from tianji_mw.config.routing_keys import BudgetKeys
    from tianji_mw.config.settings import Settings
    from tianji_mw.redis.settings import RedisSettings

PLACE: Final = "router_settings"
#: What runs where no strategy is named. LiteLLM's is a shuffle, which knows nothing of slow or failing deployments.
DEFAULT: Final = "adaptive"
#: Keys of `router_settings` -> fields of `RoutingRules` that take their value as it is.
_AS_IS: Final[Mapping[str, str]] = {
    "num_retries": "num_retries",
    "retry_after": "retry_after_s",
    "retry_policy": "retry_policy",
    "model_group_retry_policy": "retry_policy_of",
    "total_timeout": "total_timeout_s",
    "max_fallbacks": "max_fallbacks",
    "enable_weighted_failover": "weighted_failover",
    "enable_mid_stream_fallback_continuation": "continuation",
    "cooldown_time": "cooldown_s",
    "allowed_fails": "allowed_fails",
    "allowed_fails_policy": "allowed_fails_policy",
    "enable_pre_call_checks": "pre_call_checks",
    "default_max_parallel_requests": "max_parallel",
    "default_priority": "default_priority",
    "enable_tag_filtering": "tag_filtering",
    "tag_filtering_match_any": "tag_match_any",
    "deployment_affinity_ttl_seconds": "affinity_ttl_s",
    "session_affinity_repin_on_failover": "affinity_repin",
}
_AFFINITY: Final[tuple[Affinity, ...]] = get_args(Affinity)


def routing_of(settings: Settings, env: Mapping[str, str], problems: list[ConfigError]) -> dict[str, Any] | None:
    """`picker`, `rules` and `redis` (None where nothing is shared). What is wrong is added to `problems`."""
    made: dict[str, Any] = {}
    before = len(problems)
    for name, make in (("picker", _picker), ("rules", _rules), ("redis", _redis)):
        try:
            made[name] = make(settings, env)
        except ConfigError as error:
            problems.append(error)
    problems += check_targets(settings)
    return made if len(problems) == before else None


# --- the strategy


def _picker(settings: Settings, _env: Mapping[str, str]) -> Picker:
    router = settings.router_settings
    usual = _strategy(settings, router.routing_strategy or DEFAULT, router.routing_strategy_args)
    others: dict[str, Picker] = {}
    for number, group in enumerate(router.routing_groups):
        place = ("routing_groups", number)
        picker = _strategy(settings, group.routing_strategy, group.routing_strategy_args, *place)
        for at, name in enumerate(group.models):
            if name in others:
                hint = "a model group has one strategy; take it out of one of them"
                text = f"{name!r} is in two routing groups"
                raise settings.error(text, PLACE, *place, "models", at, hint=hint)
            others[name] = picker
    return PerGroup(usual=usual, others=others) if others else usual


def _strategy(settings: Settings, name: str, args: Mapping[str, Any], *place: str | int) -> Picker:
    """The strategy of this name, as said at this place below `router_settings`."""
    try:
        kind = plugins.find("routing", STRATEGIES.get(name.lower(), name), Picker)
    except PluginNotFound as error:
        meant = nearest(name.lower(), {*STRATEGIES, *STRATEGIES.values()})
        hint = f"did you mean {meant!r}?" if meant else "write a strategy's name, or package.module:Class"
        text = f"no such routing strategy: {error.message}"
        raise settings.error(text, PLACE, *place, "routing_strategy", hint=hint) from None
    try:
        return kind(**args)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key, text = reason(error)
        if first["type"] == "value_error":  # a sentence of the strategy's own
            text = str(first["ctx"]["error"])
        hint = ""
        if key and key not in kind.model_fields and key not in kind.aliases:
            known = [*kind.model_fields, *kind.aliases]
            meant = nearest(key, known)
            listed = f"{name} has: {', '.join(sorted(known))}" if known else f"{name} takes no arguments"
            hint = f"did you mean {meant!r}?" if meant else listed
        raise settings.error(text, PLACE, *place, "routing_strategy_args", *([key] if key else []), hint=hint) from None


# --- the rules


def _rules(settings: Settings, _env: Mapping[str, str]) -> RoutingRules:
    router, general = settings.router_settings, settings.general_settings
    given: dict[str, Any] = {
        field: value for key, field in _AS_IS.items() if (value := getattr(router, key)) is not None
    }
    if router.retry_budget is not None:
        given["retry_budget"] = None if router.retry_budget is False else router.retry_budget
    if router.hedge is not None:
        hedge = router.hedge
        given["hedge"] = Hedge(after_s=hedge.after, max_percent=hedge.max_percent, groups=frozenset(hedge.groups))
    checks = frozenset(router.optional_pre_call_checks)
    return RoutingRules(
        **given,
        **fallbacks_of(router),
        cooldowns=not router.disable_cooldowns,
        enforce_limits="enforce_model_rate_limits" in checks,
        affinity=frozenset(name for name in _AFFINITY if name in checks),
        affinity_of={group: frozenset(kinds) for group, kinds in router.model_group_affinity_config.items()},
        reject_client_tags=general.reject_clientside_metadata_tags,
        provider_budgets=_provider_budgets(settings),
        tag_budgets={tag: _budget(keys) for tag, keys in router.tag_budget_config.items()},
        health=_health(settings),
    )


def _health(settings: Settings) -> HealthRules:
    router, general = settings.router_settings, settings.general_settings
    given: dict[str, Any] = {
        "concurrency": general.health_check_concurrency,
        "details": general.health_check_details,
        "routing": router.enable_health_check_routing,
        "staleness_s": router.health_check_staleness_threshold,
        "ignore_transient": router.health_check_ignore_transient_errors,
    }
    every = (general.health_check_interval or 300.0) if general.background_health_checks else None
    return HealthRules(every_s=every, **{name: value for name, value in given.items() if value is not None})


def _budget(keys: BudgetKeys) -> Budget:
    return Budget(limit=keys.max_budget, period_s=seconds_of(keys.budget_duration))


def _provider_budgets(settings: Settings) -> dict[str, Budget]:
    """By the name that the provider has here: `azure_ai` is `azure`."""
    found: dict[str, Budget] = {}
    specs = {*registry.shipped(), *settings.general_settings.providers}
    for name, keys in settings.router_settings.provider_budget_config.items():
        ours, place = name, (PLACE, "provider_budget_config", name)
        if name not in specs:
            if is_built_in(name):
                kind = plugins.find("providers", ALIASES.get(name, name), Provider)
                ours = str(kind.model_fields["name"].default or name)
            elif meant := nearest(name, {*specs, *ALIASES, *plugins.names("providers")}, 0.8):
                raise settings.error("no such provider", *place, hint=f"did you mean {meant!r}?")
        if ours in found:
            text = f"the provider '{ours}' has a budget already"
            raise settings.error(text, *place, hint="keep one of them; both names mean the same provider")
        found[ours] = _budget(keys)
    return found


# --- shared state


def _redis(settings: Settings, env: Mapping[str, str]) -> RedisSettings | None:
    """Redis only where the config names one: the environment alone may mean the cache's."""
    given = settings.router_settings.redis
    if not given:
        return None
    from tianji_mw.compose.cache import built
    from tianji_mw.redis.settings import RedisSettings

    return built(settings, RedisSettings, given, env, (PLACE, "redis"))
