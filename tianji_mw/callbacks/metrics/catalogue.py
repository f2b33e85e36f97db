"""The metrics of the `prometheus` callback: names, kinds and labels, our own and LiteLLM's. No plugin, no values.

LiteLLM's names and labels are those of its `PrometheusLogger`; a counter's name gets `_total` on the page where it does
not end so already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

#: `last`: a gauge that whoever writes it sets for all. `sum` and `max`: a gauge that each process has of its own.
Kind = Literal["counter", "histogram", "last", "sum", "max"]

#: What stands where a value was not taken: too many series, too long, or a name that nothing vouches for.
OTHER: Final = "other"
#: LiteLLM's buckets for latencies, in seconds; the last one, without a bound, is not written.
LATENCY: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 420, 600)
#: For what takes milliseconds.
SHORT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
#: Labels with few values that we chose: they stay when a series is folded into `other`, so that sums by them are right.
CLOSED: Final = frozenset(
    {
        "api", "error_type", "exception_status", "hook_type", "input_sequence_length", "metric", "outcome",
        "rate_limit_category", "rate_limit_type", "reason", "result", "service_tier", "side", "status", "status_code",
        "stream", "type",
    }
)  # fmt: skip
#: Whose values every client of an installation can choose: only on demand.
CLIENT_LABELS: Final = frozenset({"client_ip", "user_agent", "user_email"})


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `missing` is the value of a label without one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    missing: str = ""

    def folded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The series that stands for those beyond the limit."""
        return tuple(
            value if name in CLOSED or name.startswith("tag_") else OTHER
            for name, value in zip(self.labels, labels, strict=True)
        )


def _own(kind: Kind, name: str, labels: str, text: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"tianji_{name}", kind, text, tuple(labels.split()), buckets)


#: Our own. `model` is the name that clients use, `deployment` the id of what served it, `team` the team's alias.
OF_CALLS: Final = (
    _own("counter", "requests_total", "api model provider outcome status team key", "LLM calls that ended."),
    _own("histogram", "request_duration_seconds", "api model provider outcome", "Time of a whole call.", LATENCY),
    _own("histogram", "time_to_first_token_seconds", "api model provider", "From request to first content.", LATENCY),
    _own(
        "histogram", "overhead_seconds", "api", "From request to the first byte upstream, guardrails included.", SHORT
    ),
    _own("counter", "tokens_total", "type model provider team key", "Tokens: input and output."),
    _own("counter", "token_details_total", "type model provider", "Parts of the tokens that are counted already."),
    _own("counter", "cost_usd_total", "model provider team key", "What calls cost, in US dollars."),
    _own("counter", "response_bytes_total", "api", "Bytes of answers that left."),
    _own("counter", "cache_requests_total", "result model", "Calls that were looked up in the cache."),
    _own("counter", "upstream_attempts_total", "provider deployment status error", "Requests to providers."),
    _own("histogram", "upstream_duration_seconds", "provider deployment", "Time of requests to providers.", LATENCY),
    _own("counter", "guardrail_runs_total", "guardrail side status", "Calls that a guardrail looked at."),
    _own("counter", "guardrail_failures_total", "guardrail side", "Questions that a guardrail gave no answer to."),
    _own("histogram", "guardrail_duration_seconds", "guardrail side", "Time that a guardrail took of a call.", LATENCY),
)
#: Of processes, and of the metrics themselves.
OF_PROCESSES: Final = (
    _own("counter", "calls_total", "api outcome", "LLM calls that ended, counted where they end."),
    _own("counter", "events_total", "event detail", "What went wrong without failing a call."),
    _own("counter", "edge_total", "reason", "Connections and requests that the server itself turned away."),
    _own("sum", "inflight_calls", "", "LLM calls that are being served."),
    _own("sum", "draining", "", "Processes that end."),
    _own("max", "degraded", "who", "What works worse than it should."),
    _own("counter", "metrics_records_total", "result", "Records that were counted here, and those that were not."),
    _own("counter", "metrics_folded_total", "metric", "Updates of series beyond the limit, counted as 'other'."),
    _own("sum", "metrics_series", "metric", "Series of a metric."),
    Metric("process_max_resident_memory_bytes", "sum", "Memory of all processes, at its highest."),
)

_CALLER: Final = "hashed_api_key api_key_alias team team_alias user end_user"
_KEY: Final = "hashed_api_key api_key_alias"
_CLIENT: Final = "user_email client_ip user_agent"
_DEPLOYMENT: Final = "litellm_model_name model_id api_base api_provider"
_SERVED: Final = "requested_model model_id api_provider"
_TOKENS: Final = f"{_CALLER} model user_email {_SERVED}"
_LATENCIES: Final = f"{_CALLER} model_group model {_SERVED} service_tier"
_CACHED: Final = f"{_CALLER} model model_id api_provider"
_TRIED: Final = f"model_group requested_model {_DEPLOYMENT} {_KEY} team team_alias client_ip user_agent"
_GUARDED: Final = "guardrail_name status error_type hook_type"
_SPARE: Final = f"model_group {_DEPLOYMENT} {_KEY}"


def _theirs(kind: Kind, name: str, labels: str, text: str) -> Metric:
    buckets = LATENCY if kind == "histogram" else ()
    return Metric(f"litellm_{name}", kind, text, tuple(labels.split()), buckets, missing="None")


LITELLM: Final = (
    _theirs("counter", "proxy_total_requests_metric", f"{_CALLER} {_SERVED} status_code {_CLIENT} route", "Requests."),
    _theirs(
        "counter",
        "proxy_failed_requests_metric",
        f"{_CALLER} {_SERVED} exception_status exception_class {_CLIENT} route",
        "Requests without a good answer.",
    ),
    _theirs("counter", "requests_metric", f"{_CALLER} model {_CLIENT} {_SERVED}", "Calls that went well."),
    _theirs("counter", "spend_metric", f"{_CALLER} model {_CLIENT} {_SERVED} service_tier", "Cost in US dollars."),
    _theirs("counter", "total_tokens_metric", _TOKENS, "Tokens in and out."),
    _theirs("counter", "input_tokens_metric", _TOKENS, "Tokens in."),
    _theirs("counter", "output_tokens_metric", _TOKENS, "Tokens out."),
    _theirs("counter", "input_cached_tokens_metric", _TOKENS, "Tokens in that the provider had cached."),
    _theirs("counter", "input_cache_creation_tokens_metric", _TOKENS, "Tokens in that the provider put in a cache."),
    _theirs("counter", "input_audio_tokens_metric", _TOKENS, "Tokens in that are audio."),
    _theirs("counter", "output_reasoning_tokens_metric", _TOKENS, "Tokens out that are reasoning."),
    _theirs("counter", "output_audio_tokens_metric", _TOKENS, "Tokens out that are audio."),
    _theirs("histogram", "request_total_latency_metric", _LATENCIES, "Seconds of a whole call."),
    _theirs("histogram", "llm_api_latency_metric", _LATENCIES, "Seconds at the provider."),
    _theirs("histogram", "llm_api_time_to_first_token_metric", _LATENCIES, "Seconds to the first token of a stream."),
    _theirs("histogram", "overhead_latency_metric", _SPARE, "Seconds before the request went on, without guardrails."),
    _theirs("histogram", "overhead_with_guardrails_latency_metric", _SPARE, "The same with guardrails."),
    _theirs(
        "histogram",
        "deployment_latency_per_output_token",
        f"model_group {_DEPLOYMENT} {_KEY} team team_alias",
        "Seconds at the provider for each token out.",
    ),
    _theirs("last", "remaining_requests_metric", _SPARE, "Requests that the provider still allows."),
    _theirs("last", "remaining_tokens_metric", _SPARE, "Tokens that the provider still allows."),
    _theirs("counter", "deployment_total_requests", _TRIED, "Requests to a deployment."),
    _theirs("counter", "deployment_success_responses", _TRIED, "Good answers of a deployment."),
    _theirs(
        "counter",
        "deployment_failure_responses",
        f"{_TRIED} exception_status exception_class",
        "Requests to a deployment that failed.",
    ),
    _theirs("last", "deployment_state", _DEPLOYMENT, "0: the last request went well; 1: it failed."),
    _theirs("counter", "cache_hits_metric", _CACHED, "Calls answered from the cache."),
    _theirs("counter", "cache_misses_metric", _CACHED, "Calls that the cache had no answer for."),
    _theirs("counter", "cached_tokens_metric", _CACHED, "Tokens of answers from the cache."),
    _theirs("counter", "provider_cache_read_input_tokens_metric", _CACHED, "Tokens read from a provider's cache."),
    _theirs("counter", "provider_cache_creation_input_tokens_metric", _CACHED, "Tokens put in a provider's cache."),
    _theirs("histogram", "guardrail_latency_seconds", _GUARDED, "Seconds that a guardrail took of a call."),
    _theirs("counter", "guardrail_requests_total", _GUARDED, "Calls that a guardrail looked at."),
    _theirs("counter", "guardrail_errors_total", _GUARDED, "Calls in which a guardrail failed."),
    _theirs("counter", "callback_logging_failures_metric", "callback_name", "Records that a callback lost."),
    _theirs("sum", "in_flight_requests", "", "LLM calls that are being served."),
)
#: Of LiteLLM's, those that tell of no single caller: custom labels do not go there.
UNCUSTOMED: Final = frozenset(
    {
        metric.name
        for metric in LITELLM
        if metric.kind in ("last", "sum") or "guardrail_name" in metric.labels or "callback_name" in metric.labels
    }
)
LENGTH_LABELED: Final = frozenset(metric.name for metric in LITELLM if "service_tier" in metric.labels) - {
    "litellm_spend_metric"
}

Catalogue = Mapping[str, Metric]
