# ruff: noqa: E501
"""The routing keys one by one: every one ends in a rule, in a deployment or in a notice; wrong ones name their place."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tianji_mw import plugins
from tianji_mw.compose import routing as compose_routing
from tianji_mw.compose.deployments import deployments_of
from tianji_mw.compose.routing import routing_of
from tianji_mw.config import Settings, loads
from tianji_mw.config.known import STRATEGIES
from tianji_mw.config.routing_keys import HealthKeys, RouterSettings
from tianji_mw.config.routing_values import seconds_of
from tianji_mw.errors import ConfigError, ConfigErrors, PluginNotFound
from tianji_mw.routing.base import Deployment, Picker
from tianji_mw.routing.rules import Budget, HealthRules, Hedge, RoutingRules

MODELS = """model_list:
- {model_name: gpt-4o, litellm_params: {model: openai/gpt-4o, api_key: sk-1}}
- {model_name: openai/o3, litellm_params: {model: openai/o3, api_key: sk-1}}
- {model_name: "claude/*", litellm_params: {model: "anthropic/*", api_key: sk-1}}
"""
#: The line of the first key of `router_settings` behind `MODELS`.
FIRST = 6


class Mine(Picker):
    """A strategy of one's own."""

    depth: int = 1


def settings_of(router: str = "", rest: str = "") -> Settings:
    lines = "".join(f"  {line}\n" for line in router.splitlines())
    return loads(MODELS + ("router_settings:\n" + lines if lines else "") + rest, file="f.yaml", env={})


def made(settings: Settings, env: dict[str, str] | None = None) -> dict[str, Any]:
    problems: list[ConfigError] = []
    found = routing_of(settings, env or {}, problems)
    assert problems == []
    assert found is not None
    return found


def rules_of(router: str = "", rest: str = "") -> RoutingRules:
    settings = settings_of(router, rest)
    assert settings.notices == ()
    rules = made(settings)["rules"]
    assert isinstance(rules, RoutingRules)
    return rules


def changed(rules: Any) -> dict[str, Any]:
    """The fields that are not the default's."""
    usual = type(rules)()
    names = [field.name for field in fields(rules)]
    return {name: getattr(rules, name) for name in names if getattr(rules, name) != getattr(usual, name)}


def problem_of(settings: Settings, env: dict[str, str] | None = None) -> ConfigError:
    problems: list[ConfigError] = []
    assert routing_of(settings, env or {}, problems) is None
    (problem,) = problems
    return problem


# --- rules

RULES: list[tuple[str, dict[str, Any]]] = [
    ("num_retries: 3", {"num_retries": 3}),
    ("num_retries: '3'", {"num_retries": 3}),
    ("num_retries: 0", {"num_retries": 0}),
    ("max_retries: 4", {"num_retries": 4}),
    ("retry_after: 5", {"retry_after_s": 5}),
    ("retry_policy: {TimeoutErrorRetries: 3, RateLimitErrorRetries: '0', BadRequestErrorRetries: null}",
     {"retry_policy": {"Timeout": 3, "RateLimit": 0}}),
    ("retry_policy: {AuthenticationErrorRetries: 1, ContentPolicyViolationErrorRetries: 2, InternalServerErrorRetries: 3, ServiceUnavailableErrorRetries: 4, BadGatewayErrorRetries: 5, NotFoundErrorRetries: 6}",
     {"retry_policy": {"Authentication": 1, "ContentPolicyViolation": 2, "InternalServer": 3, "ServiceUnavailable": 4, "BadGateway": 5, "NotFound": 6}}),
    ("model_group_retry_policy: {gpt-4o: {TimeoutErrorRetries: 3}}", {"retry_policy_of": {"gpt-4o": {"Timeout": 3}}}),
    ("retry_budget: 0.5", {"retry_budget": 0.5}),
    ("retry_budget: '0.5'", {"retry_budget": 0.5}),
    ("retry_budget: 0", {"retry_budget": 0}),
    ("retry_budget: false", {"retry_budget": None}),
    ("retry_budget: 'false'", {"retry_budget": None}),
    ("total_timeout: 90", {"total_timeout_s": 90}),
    ("total_timeout: 2m", {"total_timeout_s": 120}),
    ("hedge: {}", {"hedge": Hedge()}),
    ("hedge: {after: 90ms, max_percent: 2, groups: [gpt-4o]}",
     {"hedge": Hedge(after_s=0.09, max_percent=2, groups=frozenset({"gpt-4o"}))}),
    ("hedge: {after: 1.5s}", {"hedge": Hedge(after_s=1.5)}),
    ("hedge: {after: 2}", {"hedge": Hedge(after_s=2)}),
    ("hedge: {after: '2'}", {"hedge": Hedge(after_s=2)}),
    ("max_fallbacks: 2", {"max_fallbacks": 2}),
    ("fallbacks: [{gpt-4o: [openai/o3]}]", {"fallbacks": {"gpt-4o": ("openai/o3",)}}),
    ("fallbacks: {gpt-4o: [openai/o3], o3: gpt-4o}", {"fallbacks": {"gpt-4o": ("openai/o3",), "o3": ("gpt-4o",)}}),
    ("fallbacks: [{gpt-4o: [openai/o3]}, {gpt-4o: [claude/x, openai/o3]}]", {"fallbacks": {"gpt-4o": ("openai/o3", "claude/x")}}),
    ("fallbacks: [{'*': [openai/o3]}]\ndefault_fallbacks: [gpt-4o, openai/o3]", {"fallbacks": {"*": ("openai/o3", "gpt-4o")}}),
    ("default_fallbacks: [gpt-4o]", {"fallbacks": {"*": ("gpt-4o",)}}),
    ("context_window_fallbacks: [{gpt-4o: [openai/o3]}]", {"context_window_fallbacks": {"gpt-4o": ("openai/o3",)}}),
    ("content_policy_fallbacks: [{gpt-4o: [openai/o3]}]", {"content_policy_fallbacks": {"gpt-4o": ("openai/o3",)}}),
    ("enable_weighted_failover: true", {"weighted_failover": True}),
    ("enable_mid_stream_fallback_continuation: true", {"continuation": True}),
    ("disable_cooldowns: 'True'", {"cooldowns": False}),
    ("cooldown_time: 30", {"cooldown_s": 30}),
    ("cooldown_time: 0", {"cooldown_s": 0}),
    ("allowed_fails: 3", {"allowed_fails": 3}),
    ("allowed_fails_policy: {RateLimitErrorAllowedFails: 100}", {"allowed_fails_policy": {"RateLimit": 100}}),
    ("enable_pre_call_checks: true", {"pre_call_checks": True}),
    ("default_max_parallel_requests: 20", {"max_parallel": 20}),
    ("default_priority: 7", {"default_priority": 7}),
    ("enable_tag_filtering: true\ntag_filtering_match_any: false", {"tag_filtering": True, "tag_match_any": False}),
    ("optional_pre_call_checks: [router_budget_limiting]", {}),
    ("optional_pre_call_checks: [enforce_model_rate_limits, prompt_caching, session_affinity]",
     {"enforce_limits": True, "affinity": {"prompt_caching", "session_affinity"}}),
    ("optional_pre_call_checks: [responses_api_deployment_check, deployment_affinity, encrypted_content_affinity]",
     {"affinity": {"responses_api_deployment_check", "deployment_affinity", "encrypted_content_affinity"}}),
    ("model_group_affinity_config: {gpt-4o: [session_affinity]}", {"affinity_of": {"gpt-4o": {"session_affinity"}}}),
    ("deployment_affinity_ttl_seconds: 60\nsession_affinity_repin_on_failover: true", {"affinity_ttl_s": 60, "affinity_repin": True}),
    ("provider_budget_config: {openai: {budget_limit: 100, time_period: 1d}, azure_ai: {max_budget: '5', budget_duration: 1mo}}",
     {"provider_budgets": {"openai": Budget(limit=100, period_s=86400), "azure": Budget(limit=5, period_s=2592000)}}),
    ("tag_budget_config: {'product:chat': {max_budget: 1, budget_duration: 10m}}", {"tag_budgets": {"product:chat": Budget(limit=1, period_s=600)}}),
]  # fmt: skip


@pytest.mark.parametrize(("router", "expected"), RULES)
def test_a_key_of_the_router_becomes_a_rule(router: str, expected: dict[str, Any]) -> None:
    assert changed(rules_of(router)) == expected


def test_without_keys_the_defaults_hold() -> None:
    assert changed(rules_of()) == {}
    assert made(settings_of())["redis"] is None


def test_no_key_is_read_and_then_forgotten() -> None:
    """A field of `RouterSettings` is mapped here, or is somebody else's to read."""
    elsewhere = {
        "model_group_alias", "default_params", "caching_groups", "timeout", "stream_timeout", "connect_timeout", "ttft_timeout", "inter_chunk_timeout",
    }  # fmt: skip
    source = "".join(
        Path(compose_routing.__file__).with_name(name).read_text() for name in ("routing.py", "fallbacks.py")
    )
    for name in {*RouterSettings.model_fields, *HealthKeys.model_fields} - elsewhere:
        assert f'"{name}"' in source or f".{name}" in source, name
    assert set(compose_routing._AS_IS.values()) <= {field.name for field in fields(RoutingRules)}
    deadlines = Path(compose_routing.__file__).with_name("deployment_routing.py").read_text()
    assert all(f"router.{name}" in deadlines for name in elsewhere if name.endswith("timeout"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("num_retries: 3", {"num_retries": 3}),
        ("allowed_fails: 2", {"allowed_fails": 2}),
        ("cooldown_time: 9", {"cooldown_s": 9}),
        ("fallbacks: [{gpt-4o: [openai/o3]}]", {"fallbacks": {"gpt-4o": ("openai/o3",)}}),
        ("context_window_fallbacks: {gpt-4o: [openai/o3]}", {"context_window_fallbacks": {"gpt-4o": ("openai/o3",)}}),
        ("content_policy_fallbacks: [{o3: [gpt-4o]}]", {"content_policy_fallbacks": {"o3": ("gpt-4o",)}}),
        ("default_fallbacks: [gpt-4o]", {"fallbacks": {"*": ("gpt-4o",)}}),
        ("tag_budget_config: {t: {max_budget: 1, budget_duration: 30s}}", {"tag_budgets": {"t": Budget(limit=1, period_s=30)}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", ["litellm_settings", "tianji_settings"])
def test_litellm_reads_some_in_its_settings(block: str, settings: str, expected: dict[str, Any]) -> None:
    assert changed(rules_of(rest=f"{block}:\n  {settings}\n")) == expected


def test_the_router_goes_before_the_settings_and_says_so() -> None:
    settings = settings_of("num_retries: 5\nallowed_fails: 1", "litellm_settings: {num_retries: 3, allowed_fails: 1}\n")
    assert made(settings)["rules"].num_retries == 5
    (notice,) = settings.notices  # equal values are no news
    assert (notice.level, notice.line, notice.key) == ("no_effect", 8, "litellm_settings.num_retries")
    assert "router_settings.num_retries in f.yaml:6 goes before it" in notice.hint


def test_an_alias_of_the_settings_is_one() -> None:
    settings = settings_of(rest="litellm_settings: {model_group_alias: {gpt-4: gpt-4o}, stream_timeout: 3}\n")
    table = deployments_of(settings, {}, [])
    assert table is not None
    assert table.serving("gpt-4")[0].model == "gpt-4o"
    assert table.all[0].stream_deadlines is not None
    assert table.all[0].stream_deadlines.first_byte_s == 3


# --- health checks


@pytest.mark.parametrize("block", ["router_settings", "general_settings"])
def test_health_keys_stand_in_two_blocks(block: str) -> None:
    keys = "enable_health_check_routing: true, health_check_staleness_threshold: 60, health_check_ignore_transient_errors: true"
    general = "background_health_checks: true, health_check_interval: 30, health_check_concurrency: 2, health_check_details: false, reject_clientside_metadata_tags: true"
    rest = (
        f"router_settings: {{{keys}}}\ngeneral_settings: {{{general}}}\n"
        if block == "router_settings"
        else f"general_settings: {{{keys}, {general}}}\n"
    )
    rules = rules_of(rest=rest)
    assert rules.reject_client_tags
    assert rules.health == HealthRules(
        every_s=30, concurrency=2, routing=True, staleness_s=60, ignore_transient=True, details=False
    )


def test_health_checks_run_each_five_minutes() -> None:
    assert rules_of(rest="general_settings: {background_health_checks: 'true'}\n").health == HealthRules(every_s=300)


def test_health_keys_without_health_checks_have_no_effect() -> None:
    settings = settings_of("enable_health_check_routing: true", "general_settings: {health_check_interval: 30}\n")
    assert made(settings)["rules"].health.every_s is None
    assert [(n.level, n.line) for n in settings.notices] == [("no_effect", 6), ("no_effect", 7)]
    assert all("background_health_checks: true" in n.hint for n in settings.notices)


# --- the strategy


def exists(file: str) -> bool:
    try:
        plugins.find("routing", file, Picker)
    except PluginNotFound:
        return False
    return True


@pytest.mark.parametrize(("name", "file"), STRATEGIES.items())
def test_strategies_by_litellms_names_and_ours(name: str, file: str) -> None:
    kind = plugins.find("routing", file, Picker)
    assert type(made(settings_of(f"routing_strategy: {name}"))["picker"]) is kind
    assert type(made(settings_of(f"routing_strategy: {file}"))["picker"]) is kind


def test_every_name_that_a_picker_has_is_known() -> None:
    for file in filter(exists, plugins.names("routing")):
        for name in plugins.find("routing", file, Picker).names:
            assert STRATEGIES[name] == file


def test_without_one_adaptive_is_used() -> None:
    assert type(made(settings_of())["picker"]) is plugins.find("routing", "adaptive", Picker)
    settings = settings_of("routing_strategy: quality-router\nrouting_strategy_args: {x: 1}")
    assert type(made(settings)["picker"]) is plugins.find("routing", "adaptive", Picker)
    strategy, args = settings.notices
    assert "adaptive is used" in strategy.hint
    assert (args.level, args.key) == ("no_effect", "router_settings.routing_strategy_args")


@pytest.mark.parametrize("depth", ["3", "'3'"])
def test_a_strategy_of_ones_own(depth: str) -> None:
    # The class as a module of its own would see it.
    name = f"{__name__}:Mine" if ":" not in __name__ else "tests.unit.config.test_routing_keys:Mine"
    picker = made(settings_of(f"routing_strategy: {name}\nrouting_strategy_args: {{depth: {depth}}}"))["picker"]
    assert picker.depth == 3


IN_GROUP = "routing_groups:\n- group_name: a\n  models: [gpt-4o]\n  "


@pytest.mark.parametrize(
    ("router", "line", "key", "hint"),
    [
        ("routing_strategy: rules", 6, "router_settings.routing_strategy", "write a strategy's name"),
        ("routing_strategy: json:JSONDecoder", 6, "router_settings.routing_strategy", "write a strategy's name"),
        ("routing_strategy: nowhere_at_all:Class", 6, "router_settings.routing_strategy", "package.module:Class"),
        ("routing_strategy: latency-based-routing\nrouting_strategy_args:\n  tttl: 5", 8, "router_settings.routing_strategy_args.tttl", "did you mean 'ttl'?"),
        ("routing_strategy: latency-based-routing\nrouting_strategy_args:\n  ttl: soon", 8, "router_settings.routing_strategy_args.ttl", ""),
        (f"{IN_GROUP}routing_strategy: json:JSONDecoder", 9, "router_settings.routing_groups[0].routing_strategy", "write a strategy's name"),
        (f"{IN_GROUP}routing_strategy: latency-based-routing\n  routing_strategy_args: {{tttl: 5}}", 10,
         "router_settings.routing_groups[0].routing_strategy_args.tttl", "did you mean 'ttl'?"),
        (f"{IN_GROUP}routing_strategy: least-busy\n- group_name: b\n  models: ['claude/*', gpt-4o]\n  routing_strategy: least-busy", 11,
         "router_settings.routing_groups[1].models[1]", "one strategy"),
        ("routing_strategy: least-busy\nrouting_strategy_args:\n  ttl: 5", 8, "router_settings.routing_strategy_args.ttl", "takes no arguments"),
    ],
)  # fmt: skip
def test_wrong_strategies(router: str, line: int, key: str, hint: str) -> None:
    problem = problem_of(settings_of(router))
    assert (problem.line, problem.key) == (line, key)
    assert hint in problem.hint


# --- shared state


def test_redis_of_the_environment_alone_shares_nothing() -> None:
    env = {"REDIS_HOST": "cache.internal", "REDIS_URL": "redis://cache.internal"}
    assert made(settings_of("num_retries: 1"), env)["redis"] is None


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        ("redis_host: r.internal\nredis_port: '7000'\nredis_password: canary-1", {"host": "r.internal", "port": 7000, "mode": "standalone"}),
        ("redis_url: redis://u:canary-1@r.internal:7000/2", {"host": "r.internal", "port": 7000, "db": 2, "username": "u"}),
        ("redis_host: r.internal\nredis_db: 3\ncache_kwargs: {ssl: true, max_connections: 9, password: canary-1}",
         {"host": "r.internal", "db": 3, "ssl": True, "max_connections": 9}),
        ("cache_kwargs: {host: r.internal, redis_port: 7000}", {"host": "r.internal", "port": 7000}),
        ("redis_startup_nodes: [{host: 10.0.0.1, port: 7001}]", {"mode": "cluster", "startup_nodes": (("10.0.0.1", 7001),)}),
        ("redis_sentinel_nodes: [[10.0.0.1, 26379]]\nredis_service_name: main\nredis_sentinel_password: canary-1", {"mode": "sentinel"}),
        ("redis: {host: r.internal}", {"host": "r.internal"}),
    ],
)  # fmt: skip
def test_a_redis_of_the_router_is_the_shared_state(router: str, expected: dict[str, Any]) -> None:
    settings = settings_of(router)
    assert settings.notices == ()
    redis = made(settings)["redis"]
    assert {name: getattr(redis, name) for name in expected} == expected
    assert "canary-1" not in repr(settings) + str(settings.normalised()) + repr(redis)


def test_the_environment_completes_a_redis_that_the_config_names() -> None:
    env = {"REDIS_URL": "redis://other", "REDIS_PASSWORD": "pw-1"}
    redis = made(settings_of("redis_host: r.internal"), env)["redis"]
    assert redis.host == "r.internal"
    assert redis.password.reveal() == "pw-1"


@pytest.mark.parametrize(
    ("router", "line", "key"),
    [
        ("redis_host: r\nredis_port: many", 7, "router_settings.redis_port"),
        ("redis_host: r\ncache_kwargs:\n  ssl: maybe", 8, "router_settings.cache_kwargs.ssl"),
        ("redis_url: http://r", 6, "router_settings.redis"),
    ],
)
def test_a_wrong_redis_names_its_key(router: str, line: int, key: str) -> None:
    problem = problem_of(settings_of(router))
    assert (problem.line, problem.key) == (line, key)


def test_what_redis_lacks_is_told() -> None:
    settings = settings_of("redis_password: x\nredis_port: 1")
    assert [(n.level, n.key) for n in settings.notices] == [
        ("no_effect", "router_settings.redis_password"),
        ("no_effect", "router_settings.redis_port"),
    ]
    assert made(settings)["redis"] is None
    (notice,) = settings_of("redis_host: r\ncache_kwargs: {pasword: x}").notices
    assert (notice.level, notice.key, notice.hint) == ("unknown", "router_settings.cache_kwargs.pasword", "did you mean 'password'?")  # fmt: skip


# --- wrong values

WRONG = [
    ("num_retries: -1", 6, "router_settings.num_retries", "must be at least 0"),
    ("num_retries: many", 6, "router_settings.num_retries", "expected a whole number"),
    ("retry_policy:\n  TimoutErrorRetries: 3", 7, "router_settings.retry_policy.TimoutErrorRetries", "did you mean TimeoutErrorRetries?"),
    ("retry_policy:\n  xyz: 3", 7, "router_settings.retry_policy.xyz", "e.g. TimeoutErrorRetries"),
    ("retry_policy:\n  TimeoutErrorRetries: -3", 7, "router_settings.retry_policy.TimeoutErrorRetries", "must be at least 0"),
    ("model_group_retry_policy:\n  gpt-4o:\n    TimeoutErrorRetrys: 3", 8, "router_settings.model_group_retry_policy.gpt-4o.TimeoutErrorRetrys", "did you mean"),
    ("allowed_fails_policy:\n  RateLimitErrorAllowedFail: 3", 7, "router_settings.allowed_fails_policy.RateLimitErrorAllowedFail", "did you mean"),
    ("retry_budget: true", 6, "router_settings.retry_budget", "expected a number"),
    ("total_timeout: soon", 6, "router_settings.total_timeout", "expected a number"),
    ("total_timeout: 0", 6, "router_settings.total_timeout", "must be above 0"),
    ("hedge: {max_percent: 0}", 6, "router_settings.hedge.max_percent", "must be above 0"),
    ("hedge: {max_percent: 101}", 6, "router_settings.hedge.max_percent", "must be at most 100"),
    ("hedge: {often: 1}", 6, "router_settings.hedge.often", "unknown key"),
    ("fallbacks: [gpt-4o]", 6, "router_settings.fallbacks[0]", "expected a mapping"),
    ("fallbacks:\n  gpt-4o: [5]", 7, "router_settings.fallbacks.gpt-4o[0]", "expected text"),
    ("optional_pre_call_checks: [sesion_affinity]", 6, "router_settings.optional_pre_call_checks[0]", "must be one of"),
    ("model_group_affinity_config: {gpt-4o: [x]}", 6, "router_settings.model_group_affinity_config.gpt-4o[0]", "must be one of"),
    ("provider_budget_config:\n  openai: {budget_limit: 1}", 7, "router_settings.provider_budget_config.openai.budget_duration", "missing"),
    ("provider_budget_config:\n  openai: {budget_limit: 1, time_period: 1x}", 7, "router_settings.provider_budget_config.openai.time_period", "such as 30s"),
    ("routing_groups: [{group_name: a, models: [], routing_strategy: least-busy}]", 6, "router_settings.routing_groups[0].models", "at least one entry"),
    ("routing_groups: [{group_name: a, models: [gpt-4o]}]", 6, "router_settings.routing_groups[0].routing_strategy", "missing"),
    ("routing_groups: [{group_name: a, models: [gpt-4o], routing_strategy: least-bsy}]", 6, "router_settings.routing_groups[0].routing_strategy", "no such"),
    ("default_priority: 256", 6, "router_settings.default_priority", "must be at most 255"),
    ("default_max_parallel_requests: 0", 6, "router_settings.default_max_parallel_requests", "must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("router", "line", "key", "message"), WRONG)
def test_wrong_values_of_the_router(router: str, line: int, key: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        settings_of(router)
    (error,) = caught.value.errors
    assert (error.file, error.line, error.key) == ("f.yaml", line, key)
    assert message in error.reason


@pytest.mark.parametrize(
    ("router", "line", "key", "hint"),
    [
        ("fallbacks:\n- gpt-4o: [openai/o4]", 7, "router_settings.fallbacks[0].gpt-4o[0]", "did you mean 'openai/o3'?"),
        ("context_window_fallbacks:\n  gpt-4o: [a/b]", 7, "router_settings.context_window_fallbacks.gpt-4o[0]", "add it to model_list"),
        ("default_fallbacks: [gpt-4o, gpt-4]", 6, "router_settings.default_fallbacks[1]", "did you mean 'gpt-4o'?"),
        ("provider_budget_config:\n  opneai: {budget_limit: 1, time_period: 1d}", 7, "router_settings.provider_budget_config.opneai", "did you mean 'openai'?"),
    ],
)  # fmt: skip
def test_names_that_nothing_has(router: str, line: int, key: str, hint: str) -> None:
    problem = problem_of(settings_of(router))
    assert (problem.file, problem.line, problem.key, problem.hint) == ("f.yaml", line, key, hint)


def test_targets_may_be_aliases_patterns_and_ids() -> None:
    text = """
model_list:
- {model_name: a, litellm_params: {model: openai/a, api_key: k, silent_model: [alias, b/c]}, model_info: {id: one}}
- {model_name: "b/*", litellm_params: {model: "openai/*", api_key: k}}
router_settings: {model_group_alias: {alias: a}, fallbacks: [{a: [alias, b/x, one]}, {b/x: [a]}]}
"""
    settings = loads(text, env={})
    assert settings.notices == ()
    assert made(settings)["rules"].fallbacks == {"a": ("alias", "b/x", "one"), "b/x": ("a",)}


# --- notices

NOTICES = [
    ("fallbacks: [{gpt-4: [gpt-4o]}]", "no_effect", "router_settings.fallbacks[0].gpt-4", "did you mean 'gpt-4o'?"),
    ("fallbacks: [{'claude/*': [gpt-4o]}]", "no_effect", "router_settings.fallbacks[0].claude/*", "no request asks for a pattern"),
    ("model_group_retry_policy: {o3: {TimeoutErrorRetries: 1}}", "no_effect", "router_settings.model_group_retry_policy.o3", "no model of model_list"),
    ("routing_groups: [{group_name: a, models: [claude/x], routing_strategy: least-busy}]", "no_effect", "router_settings.routing_groups[0].models[0]",
     "did you mean 'claude/*'?"),
    ("routing_groups: [{group_name: a, models: [gpt-4o], routing_strategy: auto-router}]", "not_implemented", "router_settings.routing_groups[0].routing_strategy",
     "adaptive is used"),
    ("hedge: {groups: [gpt-5]}", "no_effect", "router_settings.hedge.groups[0]", "no model of model_list"),
    ("optional_pre_call_checks: [forward_client_headers_by_model_group]", "not_implemented", "router_settings.optional_pre_call_checks[0]", ""),
    ("tag_budget_config: {t: {max_budget: 1, budget_duration: 1d, rpm_limit: 5}}", "not_implemented", "router_settings.tag_budget_config.t.rpm_limit", "not enforced"),
    *[(f"{name}: 1", "not_implemented", f"router_settings.{name}", "") for name in
      ("polling_interval", "client_ttl", "debug_level", "alerting_config", "cache_responses", "assistants_config", "tag_routing_prefix",
       "ignore_invalid_deployments", "set_verbose", "fallback_on_unsupported_params")],
    ("redis_hots: x", "unknown", "router_settings.redis_hots", "did you mean 'redis_host'?"),
]  # fmt: skip


@pytest.mark.parametrize(("router", "level", "key", "hint"), NOTICES)
def test_keys_without_effect_are_told(router: str, level: str, key: str, hint: str) -> None:
    settings = settings_of(router)
    (notice,) = settings.notices
    assert (notice.level, notice.line, notice.key) == (level, FIRST, key)
    assert hint in notice.hint
    made(settings)


# --- deployments


def deployment(params: str = "", info: str = "", entry: str = "", router: str = "") -> Deployment:
    text = f"""
model_list:
- model_name: m
  litellm_params: {{model: openai/gpt-4o, api_key: k, {params}}}
  model_info: {{{info}}}
{entry and f"  {entry}"}
router_settings: {{{router}}}
"""
    settings = loads(text, env={})
    assert settings.notices == ()
    problems: list[ConfigError] = []
    table = deployments_of(settings, {}, problems)
    assert problems == []
    assert table is not None
    return table.all[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"params": "weight: 2, rpm: '6', tpm: 1000"}, {"weight": 2, "rpm": 6, "tpm": 1000}),
        ({"entry": "rpm: 6\n  tpm: 9"}, {"rpm": 6, "tpm": 9}),
        ({"info": "rpm: 6, tpm: 9"}, {"rpm": 6, "tpm": 9}),
        ({"params": "order: '1', max_parallel_requests: '10'"}, {"order": 1, "max_parallel": 10}),
        ({"params": "num_retries: 0"}, {"num_retries": 0}),
        ({"params": "max_retries: 4"}, {"num_retries": 4}),
        ({"params": "cooldown_time: 0"}, {"cooldown_s": 0}),
        ({"info": "cooldown_time: 7"}, {"cooldown_s": 7}),
        ({"params": "tags: [free, default]"}, {"tags": {"free", "default"}}),
        ({"params": "tags: [free]", "entry": "tags: [eu]"}, {"tags": {"free", "eu"}}),
        ({"params": "tags: free"}, {"tags": {"free"}}),
        ({"params": "tag_regex: ['^User-Agent: claude-code/.*']"}, {"tag_regex": ("^User-Agent: claude-code/.*",)}),
        ({"params": "max_budget: 0.5, budget_duration: 1d"}, {"max_budget": 0.5, "budget_s": 86400}),
        ({"params": "region_name: eu"}, {"region": "eu"}),
        ({"params": "region: eu"}, {"region": "eu"}),
        ({"params": "silent_model: m"}, {"mirrors": ("m",)}),
        ({"params": "silent_model: [m, n]"}, {"mirrors": ("m", "n")}),
        ({"params": "input_cost_per_token: 1e-6", "info": "output_cost_per_token: 2e-6"}, {"input_cost": 1e-6, "output_cost": 2e-6}),
        ({"info": "max_input_tokens: 8192, max_tokens: 4096"}, {"max_input_tokens": 8192}),
        ({"info": "max_tokens: 4096"}, {"max_input_tokens": 4096}),
        ({"info": "allowed_fails: 0, allowed_fails_policy: {TimeoutErrorAllowedFails: 2, BadRequestErrorAllowedFails: null}"},
         {"allowed_fails": 0, "allowed_fails_policy": {"Timeout": 2}}),
        ({"info": "team_id: 7, mode: embedding"}, {"team": "7", "mode": "embedding"}),
        ({"info": "health_check_model: openai/gpt-4o-mini, health_check_timeout: 20, disable_background_health_check: true"},
         {"health_model": "gpt-4o-mini", "health_timeout_s": 20, "unchecked": True}),
        ({"router": "default_litellm_params: {num_retries: 1, max_budget: 1, budget_duration: 30s}"}, {"num_retries": 1, "max_budget": 1, "budget_s": 30}),
    ],
)  # fmt: skip
def test_what_an_entry_says_about_routing(given: dict[str, str], expected: dict[str, Any]) -> None:
    usual, found = deployment(), deployment(**given)
    names = [field.name for field in fields(Deployment) if field.name not in ("id", "provider", "rules", "rules_of", "deadlines", "stream_deadlines", "aliases")]  # fmt: skip
    assert {name: getattr(found, name) for name in names if getattr(found, name) != getattr(usual, name)} == expected


def test_deadlines() -> None:
    found = deployment(router="connect_timeout: 900ms, ttft_timeout: 7, inter_chunk_timeout: '30', stream_timeout: 9")
    assert found.stream_deadlines is not None
    assert (found.deadlines.connect_s, found.stream_deadlines.connect_s) == (0.9, 0.9)
    assert (found.stream_deadlines.first_byte_s, found.stream_deadlines.between_bytes_s) == (7, 30)
    own = deployment(params="timeout: 60, stream_timeout: 15", router="ttft_timeout: 7, timeout: 5")
    assert own.stream_deadlines is not None
    assert (own.deadlines.total_s, own.stream_deadlines.first_byte_s) == (60, 15)


ENTRY = "model_list:\n- model_name: m\n  litellm_params:\n    model: openai/x\n    api_key: k\n"


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("    max_budget: 5", 6, "litellm_params.max_budget", "a budget needs a period"),
        ("    tag_regex: ['(']", 6, "litellm_params.tag_regex[0]", "not a regular expression"),
        ("    order: first", 6, "litellm_params.order", "expected a whole number"),
        ("    max_budget: 5\n    budget_duration: 30", 7, "litellm_params.budget_duration", "expected text"),
        ("    max_budget: 5\n    budget_duration: 1 year", 7, "litellm_params.budget_duration", "such as 30s"),
        ("  model_info:\n    allowed_fails_policy: {Timeouts: 1}", 7, "model_info.allowed_fails_policy.Timeouts", "no such kind of error"),
    ],
)  # fmt: skip
def test_wrong_values_of_an_entry(text: str, line: int, key: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(ENTRY + text, env={})
    (error,) = caught.value.errors
    assert (error.line, error.key) == (line, f"model_list[0].{key}")
    assert message in error.reason


@pytest.mark.parametrize(
    ("text", "line", "key", "hint"),
    [
        ("    budget_duration: 1d", 6, "litellm_params.budget_duration", "no max_budget beside it"),
        (
            "    num_retries: 1\n    max_retries: 2",
            7,
            "litellm_params.max_retries",
            "num_retries beside it goes before",
        ),
        ("    rpm: 1\n  model_info: {rpm: 2}", 7, "model_info.rpm", "litellm_params.rpm goes before it"),
        ("    cooldown_time: 1\n  model_info: {cooldown_time: 2}", 7, "model_info.cooldown_time", "goes before it"),
    ],
)
def test_an_entry_with_keys_that_another_one_overrules(text: str, line: int, key: str, hint: str) -> None:
    (notice,) = loads(ENTRY + text, env={}).notices
    assert (notice.level, notice.line, notice.key) == ("no_effect", line, f"model_list[0].{key}")
    assert hint in notice.hint


@pytest.mark.parametrize("key", ["blocked: true", "supports_vision: true"])
def test_what_is_not_done_yet_is_told(key: str) -> None:
    (notice,) = loads(f"{ENTRY}  model_info: {{{key}}}", env={}).notices
    assert notice.level == "not_implemented"


def test_a_mirror_that_does_not_exist_and_a_health_check_elsewhere() -> None:
    settings = loads(ENTRY + "    silent_model: [mm]\n  model_info: {health_check_model: azure/x}", env={})
    problem = problem_of(settings)
    assert (problem.line, problem.key, problem.hint) == (6, "model_list[0].litellm_params.silent_model[0]", "did you mean 'm'?")  # fmt: skip
    problems: list[ConfigError] = []
    assert deployments_of(settings, {}, problems) is None
    assert [(p.line, p.key) for p in problems] == [(7, "model_list[0].model_info.health_check_model")]
    assert "write a model of openai" in problems[0].hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90ms", 0.09), ("1.5s", 1.5), ("30s", 30), ("10m", 600), ("24h", 86400), ("1d", 86400), ("1w", 604800),
     ("1mo", 2592000), ("7", 7), ("", 0), ("-1s", 0), ("1y", 0), ("s", 0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)
