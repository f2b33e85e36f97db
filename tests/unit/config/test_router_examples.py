"""LiteLLM's documented router configurations: they load unchanged, without a word, and mean what they mean there."""

from __future__ import annotations

from typing import Any

import pytest

from tianji_mw import plugins
from tianji_mw.compose.deployments import deployments_of
from tianji_mw.compose.routing import routing_of
from tianji_mw.config import loads
from tianji_mw.errors import ConfigError
from tianji_mw.routing.base import Deployment, Picker
from tianji_mw.routing.rules import Budget, HealthRules, RoutingRules
from tianji_mw.routing.table import Deployments

ENV = {
    "AZURE_API_KEY": "sk-azure", "OPENAI_API_KEY": "sk-openai", "AZURE_API_BASE": "https://az.example",
    "REDIS_HOST": "redis.internal", "REDIS_PASSWORD": "pw-1", "REDIS_PORT": "1992",
}  # fmt: skip


class Loaded:
    """A configuration that has become what the router needs."""

    def __init__(self, text: str) -> None:
        settings = loads(text, env=ENV, strict=True)
        problems: list[ConfigError] = []
        table, routing = deployments_of(settings, ENV, problems), routing_of(settings, ENV, problems)
        assert problems == []
        assert settings.notices == ()
        assert table is not None
        assert routing is not None
        assert set(routing) == {"picker", "rules", "redis"}
        self.table: Deployments = table
        self.picker: Any = routing["picker"]
        self.rules: RoutingRules = routing["rules"]
        self.redis: Any = routing["redis"]

    def uses(self, file: str) -> bool:
        return type(self.picker) is plugins.find("routing", file, Picker)

    def fields(self, name: str) -> list[Any]:
        return [getattr(deployment, name) for deployment in self.table.all]


AZURE = """
model_list:
  - model_name: gpt-3.5-turbo
    litellm_params:
      model: azure/gpt-turbo-small-eu
      api_base: https://my-endpoint-europe-berri-992.openai.azure.com/
      api_key: os.environ/AZURE_API_KEY
      rpm: 6
  - model_name: gpt-3.5-turbo
    litellm_params:
      model: azure/gpt-turbo-large
      api_base: https://openai-france-1234.openai.azure.com/
      api_key: os.environ/AZURE_API_KEY
      rpm: 1440
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
"""


def test_load_balancing_with_redis() -> None:
    found = Loaded(
        AZURE
        + """
router_settings:
  routing_strategy: simple-shuffle # Literal["simple-shuffle", "least-busy", "usage-based-routing"]
  model_group_alias: {"gpt-4": "gpt-3.5-turbo"} # all requests with `gpt-4` go to `gpt-3.5-turbo`
  num_retries: 2
  timeout: 30                                  # 30 seconds
  redis_host: os.environ/REDIS_HOST            # set this when using multiple litellm proxy deployments
  redis_password: os.environ/REDIS_PASSWORD
  redis_port: os.environ/REDIS_PORT
"""
    )
    assert found.uses("shuffle")
    assert found.rules == RoutingRules(num_retries=2)
    assert found.fields("rpm") == [6, 1440, None]
    assert [d.model for d in found.table.serving("gpt-4")] == ["gpt-turbo-small-eu", "gpt-turbo-large"]
    assert {d.total_s for d in found.fields("deadlines")} == {30}
    assert (found.redis.host, found.redis.port, found.redis.password.reveal()) == ("redis.internal", 1992, "pw-1")


def test_weighted_deployments() -> None:
    found = Loaded(
        """
model_list:
  - model_name: o1
    litellm_params: {model: azure/o1-preview, api_key: os.environ/AZURE_API_KEY, api_base: https://a.example, weight: 9}
  - model_name: o1
    litellm_params: {model: openai/o1-preview, api_key: os.environ/OPENAI_API_KEY, weight: 1}
router_settings: {routing_strategy: simple-shuffle}
"""
    )
    assert found.fields("weight") == [9, 1]


def test_limits_beside_the_params() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
    tpm: 100000
    rpm: 10000
"""
    )
    assert (found.fields("tpm"), found.fields("rpm")) == ([100000], [10000])
    assert found.uses("adaptive")  # nothing was asked for


@pytest.mark.parametrize(
    ("router", "file", "args"),
    [
        ("""
  routing_strategy: latency-based-routing
  routing_strategy_args: {"ttl": 10, "lowest_latency_buffer": 0.5}
""", "latency", {"ttl": 10, "lowest_latency_buffer": 0.5}),
        ("""
  routing_strategy: usage-based-routing-v2
  enable_pre_call_checks: true
  redis_host: os.environ/REDIS_HOST
  redis_password: os.environ/REDIS_PASSWORD
  redis_port: os.environ/REDIS_PORT
""", "usage", {}),
        ("""
  routing_strategy: usage-based-routing
  routing_strategy_args: {"ttl": 60}
""", "usage", {"ttl": 60}),
        ("\n  routing_strategy: cost-based-routing\n", "cost", {}),
        ("\n  routing_strategy: least-busy\n", "least_busy", {}),
    ],
)  # fmt: skip
def test_strategies(router: str, file: str, args: dict[str, Any]) -> None:
    found = Loaded(f"{AZURE}router_settings:{router}")
    assert found.uses(file)
    assert {name: getattr(found.picker, name) for name in args} == args
    assert (found.redis is not None) == ("redis_host" in router)
    assert found.rules == RoutingRules(pre_call_checks="enable_pre_call_checks" in router)


def test_costs_of_deployments() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
      input_cost_per_token: 0.00003
      output_cost_per_token: 0.00003
router_settings: {routing_strategy: cost-based-routing}
"""
    )
    assert (found.fields("input_cost"), found.fields("output_cost")) == ([0.00003], [0.00003])


RELIABLE = """
model_list:
  - model_name: zephyr-beta
    litellm_params: {model: openai/zephyr, api_base: http://0.0.0.0:8001, api_key: k}
  - model_name: gpt-3.5-turbo
    litellm_params: {model: openai/gpt-3.5-turbo, api_key: k}
  - model_name: gpt-3.5-turbo-16k
    litellm_params: {model: openai/gpt-3.5-turbo-16k, api_key: k}
  - model_name: claude-opus
    litellm_params: {model: anthropic/claude-opus, api_key: k}
"""


def test_fallbacks_retries_timeouts_and_cooldowns_of_the_settings() -> None:
    found = Loaded(
        RELIABLE
        + """
litellm_settings:
  num_retries: 3 # retry call 3 times on each model_name (e.g. zephyr-beta)
  request_timeout: 10 # raise Timeout error if call takes longer than 10s. Sets litellm.request_timeout
  fallbacks: [{"zephyr-beta": ["gpt-3.5-turbo"]}] # fallback to gpt-3.5-turbo if call fails num_retries
  context_window_fallbacks: [{"zephyr-beta": ["gpt-3.5-turbo-16k"]}, {"gpt-3.5-turbo": ["gpt-3.5-turbo-16k"]}]
  content_policy_fallbacks: [{"gpt-3.5-turbo": ["claude-opus"]}]
  default_fallbacks: ["claude-opus"]
  allowed_fails: 3 # cooldown model if it fails > 1 call in a minute.
  cooldown_time: 30 # how long to cooldown model if fails/min > allowed_fails
"""
    )
    assert found.rules == RoutingRules(
        num_retries=3,
        fallbacks={"zephyr-beta": ("gpt-3.5-turbo",), "*": ("claude-opus",)},
        context_window_fallbacks={"zephyr-beta": ("gpt-3.5-turbo-16k",), "gpt-3.5-turbo": ("gpt-3.5-turbo-16k",)},
        content_policy_fallbacks={"gpt-3.5-turbo": ("claude-opus",)},
        allowed_fails=3,
        cooldown_s=30,
    )
    assert {d.total_s for d in found.fields("deadlines")} == {10}


def test_the_same_in_router_settings() -> None:
    found = Loaded(
        RELIABLE
        + """
router_settings:
  fallbacks:
    - zephyr-beta: [gpt-3.5-turbo, claude-opus]
    - gpt-3.5-turbo:
        - claude-opus
  max_fallbacks: 3
  num_retries: 0
  retry_after: 5
  allowed_fails: 1
  cooldown_time: 100
  disable_cooldowns: True
"""
    )
    assert found.rules == RoutingRules(
        fallbacks={"zephyr-beta": ("gpt-3.5-turbo", "claude-opus"), "gpt-3.5-turbo": ("claude-opus",)},
        max_fallbacks=3, num_retries=0, retry_after_s=5, allowed_fails=1, cooldown_s=100, cooldowns=False,
    )  # fmt: skip


def test_retry_policy_and_allowed_fails_policy() -> None:
    found = Loaded(
        RELIABLE
        + """
router_settings:
  retry_policy:
    AuthenticationErrorRetries: 3
    TimeoutErrorRetries: 3
    RateLimitErrorRetries: 3
    ContentPolicyViolationErrorRetries: 4
    InternalServerErrorRetries: 4
  model_group_retry_policy: {"zephyr-beta": {"BadRequestErrorRetries": 1}}
  allowed_fails_policy:
    ContentPolicyViolationErrorAllowedFails: 1000 # Allow 1000 ContentPolicyViolationErrors before cooling down
    RateLimitErrorAllowedFails: 100 # Allow 100 RateLimitErrors before cooling down a deployment
"""
    )
    assert found.rules == RoutingRules(
        retry_policy={
            "Authentication": 3, "Timeout": 3, "RateLimit": 3, "ContentPolicyViolation": 4, "InternalServer": 4,
        },
        retry_policy_of={"zephyr-beta": {"BadRequest": 1}},
        allowed_fails_policy={"ContentPolicyViolation": 1000, "RateLimit": 100},
    )  # fmt: skip


def test_policies_of_one_deployment() -> None:
    found = Loaded(
        """
model_list:
  - model_name: fake-openai-endpoint
    litellm_params:
      model: openai/predibase
      api_key: "anything"
      api_base: http://0.0.0.0:8080
      num_retries: 1
      cooldown_time: 0
      max_parallel_requests: 10
    model_info:
      id: pred-1
      allowed_fails: 1
      allowed_fails_policy: {RateLimitErrorAllowedFails: 2}
router_settings: {default_max_parallel_requests: 20}
"""
    )
    (one,) = found.table.all
    assert (one.id, one.num_retries, one.cooldown_s, one.max_parallel) == ("pred-1", 1, 0, 10)
    assert (one.allowed_fails, one.allowed_fails_policy) == (1, {"RateLimit": 2})
    assert found.rules == RoutingRules(max_parallel=20)


def test_aliases_hidden_and_shown() -> None:
    found = Loaded(
        RELIABLE
        + """
router_settings:
  model_group_alias: {"gpt-4": "gpt-3.5-turbo", "gpt-old": {"model": "gpt-3.5-turbo", "hidden": true}}
"""
    )
    assert "gpt-4" in found.table.names()
    assert "gpt-old" not in found.table.names()
    assert found.table.serving("gpt-old")[0].model == "gpt-3.5-turbo"


def test_tag_routing() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-4
    litellm_params: {model: openai/fake, api_key: fake-key, api_base: https://x.example/, tags: ["free"]}
  - model_name: gpt-4
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, tags: ["paid"]}
  - model_name: gpt-4
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
      tags: ["default"] # All untagged requests will get routed to this
      tag_regex: ["^User-Agent: claude-code/.*"]
router_settings:
  enable_tag_filtering: True
  tag_filtering_match_any: False
general_settings:
  master_key: sk-1234
  reject_clientside_metadata_tags: true
"""
    )
    assert found.fields("tags") == [{"free"}, {"paid"}, {"default"}]
    assert found.table.all[2].tag_regex == ("^User-Agent: claude-code/.*",)
    assert found.rules == RoutingRules(tag_filtering=True, tag_match_any=False, reject_client_tags=True)


def test_budgets_of_providers_deployments_and_tags() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, max_budget: 0.01, budget_duration: 1d}
  - model_name: gpt-4o-mini
    litellm_params: {model: openai/gpt-4o-mini, api_key: k, max_budget: 10, budget_duration: 30d}
router_settings:
  optional_pre_call_checks: ["router_budget_limiting"]
  provider_budget_config:
    openai:
      budget_limit: 0.000000000001 # float of $ value budget for time period
      time_period: 1d # can be 1d, 2d, 30d, 1mo, 2mo
    azure:
      budget_limit: 100
      time_period: 1d
    anthropic:
      budget_limit: 100
      time_period: 10d
    vertex_ai:
      budget_limit: 100
      time_period: 12d
    gemini:
      budget_limit: 100
      time_period: 2mo
  redis_host: os.environ/REDIS_HOST
  redis_port: os.environ/REDIS_PORT
  redis_password: os.environ/REDIS_PASSWORD
litellm_settings:
  tag_budget_config:
    product:chat-bot: # (Tag)
      max_budget: 0.00001
      budget_duration: 1d
    product:chat-bot-2: {max_budget: 100, budget_duration: 24h}
"""
    )
    day = 86400
    assert found.rules.provider_budgets == {
        "openai": Budget(limit=1e-12, period_s=day),
        "azure": Budget(limit=100, period_s=day),
        "anthropic": Budget(limit=100, period_s=10 * day),
        "vertex_ai": Budget(limit=100, period_s=12 * day),
        "gemini": Budget(limit=100, period_s=60 * day),
    }
    assert found.rules.tag_budgets == {
        "product:chat-bot": Budget(limit=0.00001, period_s=day),
        "product:chat-bot-2": Budget(limit=100, period_s=day),
    }
    assert [(d.max_budget, d.budget_s) for d in found.table.all] == [(0.01, day), (10, 30 * day)]
    assert found.table.all[0].provider.name in found.rules.provider_budgets


def test_order_and_pre_call_checks() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-4
    litellm_params:
      model: azure/gpt-4-primary
      api_key: os.environ/AZURE_API_KEY
      api_base: os.environ/AZURE_API_BASE
      order: 1  # highest priority
      region_name: "eu"
    model_info: {base_model: azure/gpt-4-1106-preview, max_input_tokens: 8192}
  - model_name: gpt-4
    litellm_params:
      model: azure/gpt-4-fallback
      api_key: os.environ/AZURE_API_KEY
      api_base: os.environ/AZURE_API_BASE
      order: 2  # used when order=1 fails
router_settings:
  enable_pre_call_checks: true
  enable_weighted_failover: true
"""
    )
    assert found.fields("order") == [1, 2]
    assert found.fields("region") == ["eu", ""]
    assert found.fields("max_input_tokens") == [8192, None]
    assert found.rules == RoutingRules(pre_call_checks=True, weighted_failover=True)


def test_health_checks() -> None:
    found = Loaded(
        """
model_list:
  - model_name: openai/*
    litellm_params: {model: openai/*, api_key: os.environ/OPENAI_API_KEY}
    model_info: {health_check_model: openai/gpt-4o-mini, health_check_timeout: 10}
  - model_name: text-embedding-3-small
    litellm_params: {model: openai/text-embedding-3-small, api_key: os.environ/OPENAI_API_KEY}
    model_info: {mode: embedding, disable_background_health_check: true}
general_settings:
  background_health_checks: True # enable background health checks
  health_check_interval: 60 # frequency of background health checks
  health_check_details: False
  health_check_concurrency: 4
  enable_health_check_routing: true
  health_check_staleness_threshold: 120
  health_check_ignore_transient_errors: true
"""
    )
    assert found.rules == RoutingRules(
        health=HealthRules(
            every_s=60, concurrency=4, routing=True, staleness_s=120, ignore_transient=True, details=False
        )
    )
    one, two = found.table.all
    assert (one.health_model, one.health_timeout_s, one.unchecked) == ("gpt-4o-mini", 10, False)
    assert (two.mode, two.unchecked) == ("embedding", True)


def test_timeouts() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-3.5-turbo
    litellm_params:
      model: azure/gpt-turbo-small-eu
      api_base: https://my-endpoint-europe-berri-992.openai.azure.com/
      api_key: os.environ/AZURE_API_KEY
      timeout: 0.1                      # timeout in (seconds)
      stream_timeout: 0.01              # timeout for stream requests (seconds)
      max_retries: 5
  - model_name: gpt-3.5-turbo
    litellm_params: {model: openai/gpt-3.5-turbo, api_key: os.environ/OPENAI_API_KEY}
router_settings:
  timeout: 30
  stream_timeout: 8
"""
    )

    def of(deployment: Deployment) -> tuple[float | None, float | None, int | None]:
        assert deployment.stream_deadlines is not None
        return deployment.deadlines.total_s, deployment.stream_deadlines.first_byte_s, deployment.num_retries

    assert [of(deployment) for deployment in found.table.all] == [(0.1, 0.01, 5), (30, 8, None)]


def test_affinity_and_shared_answers() -> None:
    found = Loaded(
        AZURE
        + """
router_settings:
  optional_pre_call_checks: ["responses_api_deployment_check", "session_affinity", "prompt_caching"]
  deployment_affinity_ttl_seconds: 7200
  model_group_affinity_config: {"gpt-4o": ["deployment_affinity"]}
  caching_groups: [["gpt-4o", "gpt-3.5-turbo"]]
"""
    )
    assert found.rules == RoutingRules(
        affinity=frozenset({"responses_api_deployment_check", "session_affinity", "prompt_caching"}),
        affinity_of={"gpt-4o": frozenset({"deployment_affinity"})},
        affinity_ttl_s=7200,
    )


def test_enforced_rate_limits() -> None:
    found = Loaded(f'{AZURE}router_settings: {{optional_pre_call_checks: ["enforce_model_rate_limits"]}}')
    assert found.rules == RoutingRules(enforce_limits=True)


def test_a_silent_model() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-3.5-turbo
    litellm_params: {model: openai/gpt-3.5-turbo, api_key: os.environ/OPENAI_API_KEY, silent_model: gpt-4o}
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
"""
    )
    assert found.fields("mirrors") == [("gpt-4o",), ()]


def test_the_go_port() -> None:
    found = Loaded(
        """
model_list:
  - model_name: gpt-4o
    tianji_params: {model: openai/gpt-4o, api_key: $OPENAI_API_KEY, region: eu}
    tags: [premium]
tianji_settings: {fallbacks: [{gpt-4o: [gpt-4o]}]}
router_settings:
  routing_strategy: lowest-tpm-rpm
  max_retries: 2
  allowed_fails: 3
  cooldown_time: 60
  default_tianji_params: {timeout: 20}
"""
    )
    assert found.uses("usage")
    assert (found.fields("tags"), found.fields("region")) == ([{"premium"}], ["eu"])
    assert found.rules == RoutingRules(num_retries=2, allowed_fails=3, cooldown_s=60, fallbacks={"gpt-4o": ("gpt-4o",)})
