"""The keys of routing: LiteLLM's `router_settings` with what it reads in other blocks, and some of our own.

None means that `RoutingRules` has the default. What a strategy's own settings are, its class knows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from tianji_mw.config.blocks import Block, DefaultParams
from tianji_mw.config.cache_keys import StoreForm
from tianji_mw.config.routing_values import FailsPolicy, Names, Period, RetryBudget, RetryPolicy, Span
from tianji_mw.config.values import Amount, Count, FreeForm, Name, Seconds, Switch, Whole
from tianji_mw.routing.rules import Affinity

Check: TypeAlias = Literal[Affinity, "router_budget_limiting", "enforce_model_rate_limits"]
#: Model groups to try, per model group, in LiteLLM's form: a list of mappings.
FallbackList: TypeAlias = tuple[dict[Name, Names], ...]


class ModelAlias(Block):
    """Another public name for a model group; hidden ones are not listed."""

    model: Name
    hidden: Switch = False


class BudgetKeys(Block):
    """US dollars for a provider or a tag; LiteLLM's older names are `budget_limit` and `time_period`."""

    max_budget: Amount
    budget_duration: Period


class RoutingGroup(Block):
    """Model groups with a strategy of their own."""

    group_name: Name
    models: Annotated[Names, Field(min_length=1)]
    routing_strategy: Name
    routing_strategy_args: FreeForm = Field(default_factory=dict)


class HedgeKeys(Block):
    """A second attempt beside one that is slow; see `routing.rules.Hedge`."""

    after: Span | None = None
    max_percent: Annotated[Amount, Field(gt=0, le=100)] = 5.0
    groups: Names = ()


def _alias(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class RouterSettings(Block):
    """How calls are spread over deployments, and what is done when one fails."""

    #: LiteLLM's name, the name of a file in `tianji_mw/routing/`, or `package.module:Class`; without one, `adaptive`.
    routing_strategy: Name | None = None
    #: The fields of its class.
    routing_strategy_args: FreeForm = Field(default_factory=dict)
    routing_groups: tuple[RoutingGroup, ...] = ()
    #: Model groups that share answers: lists of names.
    caching_groups: tuple[tuple[Name, ...], ...] = ()
    model_group_alias: dict[str, Annotated[ModelAlias, BeforeValidator(_alias)]] = Field(default_factory=dict)
    default_params: DefaultParams = DefaultParams()
    #: Shared state of several processes: fields of `RedisSettings`. LiteLLM's `redis_*` and `cache_kwargs` become it.
    redis: StoreForm = Field(default_factory=dict)

    # --- timeouts
    timeout: Seconds | None = None
    stream_timeout: Seconds | None = None
    connect_timeout: Span | None = None
    #: Of streams: the first content, and each after another.
    ttft_timeout: Span | None = None
    inter_chunk_timeout: Span | None = None
    #: Of a call with all its attempts.
    total_timeout: Span | None = None

    # --- retries
    num_retries: Whole | None = None
    retry_after: Amount | None = None
    retry_policy: RetryPolicy = Field(default_factory=dict)
    model_group_retry_policy: dict[Name, RetryPolicy] = Field(default_factory=dict)
    retry_budget: RetryBudget | None = None
    hedge: HedgeKeys | None = None

    # --- fallbacks
    max_fallbacks: Whole | None = None
    fallbacks: FallbackList = ()
    context_window_fallbacks: FallbackList = ()
    content_policy_fallbacks: FallbackList = ()
    default_fallbacks: Names = ()
    enable_weighted_failover: Switch | None = None
    enable_mid_stream_fallback_continuation: Switch | None = None

    # --- cooldowns
    disable_cooldowns: Switch = False
    cooldown_time: Amount | None = None
    allowed_fails: Whole | None = None
    allowed_fails_policy: FailsPolicy = Field(default_factory=dict)

    # --- who may be chosen
    enable_pre_call_checks: Switch | None = None
    optional_pre_call_checks: tuple[Check, ...] = ()
    default_max_parallel_requests: Count | None = None
    default_priority: Annotated[Whole, Field(le=255)] | None = None
    enable_tag_filtering: Switch | None = None
    tag_filtering_match_any: Switch | None = None
    provider_budget_config: dict[Name, BudgetKeys] = Field(default_factory=dict)
    tag_budget_config: dict[Name, BudgetKeys] = Field(default_factory=dict)
    enable_health_check_routing: Switch | None = None
    health_check_staleness_threshold: Seconds | None = None
    health_check_ignore_transient_errors: Switch | None = None

    # --- affinity
    deployment_affinity_ttl_seconds: Seconds | None = None
    model_group_affinity_config: dict[Name, tuple[Affinity, ...]] = Field(default_factory=dict)
    session_affinity_repin_on_failover: Switch | None = None


class HealthKeys(Block):
    """Keys of `general_settings` about health checks, and one about the tags of requests."""

    background_health_checks: Switch = False
    health_check_interval: Seconds | None = None
    health_check_concurrency: Count | None = None
    #: False: `/health` says which deployments are well, and nothing of why.
    health_check_details: Switch | None = None
    #: Requests may not bring tags of their own.
    reject_clientside_metadata_tags: Switch = False
