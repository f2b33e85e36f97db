"""What a router does besides choosing: retries, fallbacks, cooldowns, checks, affinity. The config's `router_settings`.

Plain values; `compose/routing.py` makes them from the config. Every default is LiteLLM's, unless it says why not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: Kinds of errors, by which retries and allowed fails are counted; `failure.py` says which error is which.
#: LiteLLM's `retry_policy` and `allowed_fails_policy` name them `<kind>ErrorRetries` and `<kind>ErrorAllowedFails`.
Kind = Literal[
    "BadRequest", "Authentication", "NotFound", "Timeout", "RateLimit", "ContentPolicyViolation", "ContextWindow",
    "InternalServer", "ServiceUnavailable", "BadGateway",
]  # fmt: skip

Affinity = Literal[
    "session_affinity", "deployment_affinity", "prompt_caching", "responses_api_deployment_check",
    "encrypted_content_affinity",
]  # fmt: skip

#: Model group -> what is tried when it failed, in this order; `*` is every group.
Fallbacks = Mapping[str, tuple[str, ...]]


@dataclass(slots=True, frozen=True, kw_only=True)
class Budget:
    """US dollars that may be spent in a period that begins with its first call."""

    limit: float
    period_s: float


@dataclass(slots=True, frozen=True, kw_only=True)
class Hedge:
    """A second attempt beside one that is slow to give its first content; the first of the two that does is taken."""

    #: Seconds to wait; None: the 95th percentile of what the group took lately.
    after_s: float | None = None
    #: At most so many of 100 calls get one.
    max_percent: float = 5.0
    #: Model groups that it holds for; empty: all.
    groups: frozenset[str] = frozenset()


@dataclass(slots=True, frozen=True, kw_only=True)
class HealthRules:
    """Background health checks, and whether they decide who is used."""

    #: Seconds between two checks; None: there are none.
    every_s: float | None = None
    concurrency: int = 8
    #: Whether a deployment that failed its check is left out.
    routing: bool = False
    #: An older result says nothing; None: two intervals.
    staleness_s: float | None = None
    #: 408 and 429 are no sign of bad health.
    ignore_transient: bool = False
    #: Whether `/health` tells why.
    details: bool = True


@dataclass(slots=True, frozen=True, kw_only=True)
class RoutingRules:
    """All of it."""

    # --- retries
    #: Further attempts within one group.
    num_retries: int = 2
    #: Seconds to wait before a retry, at least.
    retry_after_s: float = 0.0
    retry_policy: Mapping[Kind, int] = field(default_factory=dict)
    retry_policy_of: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    #: Retries that a group may spend for each of its calls when nothing succeeds any more; None: no limit.
    #: LiteLLM has none: its retries triple the load of an upstream that is down.
    retry_budget: float | None = 0.1
    #: Seconds for a call with all its attempts; None: no limit beside those of the attempts.
    total_timeout_s: float | None = None
    #: Seconds that a retry may wait for; a longer `retry-after` ends the group's attempts.
    longest_wait_s: float = 60.0

    # --- fallbacks
    max_fallbacks: int = 5
    fallbacks: Fallbacks = field(default_factory=dict)
    context_window_fallbacks: Fallbacks = field(default_factory=dict)
    content_policy_fallbacks: Fallbacks = field(default_factory=dict)
    #: Try every deployment of a group before another group.
    weighted_failover: bool = False
    #: Go on on another deployment when a stream breaks in the middle.
    continuation: bool = False
    hedge: Hedge | None = None

    # --- cooldowns
    cooldowns: bool = True
    cooldown_s: float = 5.0
    #: Failures in a minute; None: by the share of failures.
    allowed_fails: int | None = None
    allowed_fails_policy: Mapping[Kind, int] = field(default_factory=dict)

    # --- who may be chosen
    #: Leave out deployments whose context window is too small (LiteLLM's `enable_pre_call_checks`).
    pre_call_checks: bool = False
    #: `rpm` and `tpm` are limits with every strategy.
    enforce_limits: bool = False
    #: Requests at the same time for deployments that say nothing.
    max_parallel: int | None = None
    #: Of calls that say nothing: of those that wait for a place, the lowest number is first.
    default_priority: int = 0
    tag_filtering: bool = False
    #: One common tag is enough; else a deployment needs all tags of the request.
    tag_match_any: bool = True
    #: Whether requests may not bring tags of their own.
    reject_client_tags: bool = False
    provider_budgets: Mapping[str, Budget] = field(default_factory=dict)
    tag_budgets: Mapping[str, Budget] = field(default_factory=dict)
    health: HealthRules = HealthRules()

    # --- affinity
    affinity: frozenset[Affinity] = frozenset()
    affinity_of: Mapping[str, frozenset[Affinity]] = field(default_factory=dict)
    affinity_ttl_s: float = 3600.0
    #: A pin moves to the deployment that answered in its place.
    affinity_repin: bool = False
