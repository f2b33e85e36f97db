"""The keys of logging and alerting: LiteLLM's in `litellm_settings` and `general_settings`, and a few of our own.

What a destination's own settings are, its class knows; here they are free-form, with credentials as secrets.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tianji_mw.config.blocks import Block
from tianji_mw.config.values import Count, FreeForm, Headers, Megabytes, Name, Seconds, Switch, wrong

#: Of a destination, or `package.module:Class`: it also names files of the spool.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _callback_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise wrong("expected the name of a callback, such as s3_v2, or package.module:Class")
    return value


Names = Annotated[tuple[Annotated[str, AfterValidator(_callback_name)], ...], BeforeValidator(_as_list)]
Texts = Annotated[tuple[Name, ...], BeforeValidator(_as_list)]


class CallbackKeys(Block):
    """Keys of `litellm_settings` that say what is logged, and where to."""

    #: Of calls that went well and calls that failed; of the first alone; of the second alone.
    callbacks: Names = ()
    success_callback: Names = ()
    failure_callback: Names = ()
    #: The structured form: `type`, perhaps `name`, and the destination's settings in one mapping each.
    callback_configs: tuple[FreeForm, ...] = ()

    s3_callback_params: FreeForm = Field(default_factory=dict)
    gcs_callback_params: FreeForm = Field(default_factory=dict)
    aws_sqs_callback_params: FreeForm = Field(default_factory=dict)
    dynamodb_table_name: Name | None = None
    generic_logger_headers: Headers = Field(default_factory=dict)
    datadog_params: FreeForm = Field(default_factory=dict)
    datadog_llm_observability_params: FreeForm = Field(default_factory=dict)
    #: Callbacks of single teams: `team_id`, `success_callback`, `failure_callback` and the destinations' settings.
    default_team_settings: tuple[FreeForm, ...] = ()

    turn_off_message_logging: Switch = False
    redact_user_api_key_info: Switch = False
    redact_messages_in_exceptions: Switch = False
    #: True: `no-log` of a request has no effect.
    global_disable_no_log_param: Switch = False
    #: False: the header `x-litellm-disable-callbacks` has no effect.
    allow_dynamic_callback_disabling: Switch = True
    #: True: a request may have its content logged although `turn_off_message_logging` is on.
    allow_dynamic_message_logging: Switch = False
    disable_add_user_agent_to_request_tags: Switch = False
    extra_spend_tag_headers: Texts = ()
    request_correlation_in_logs: Switch = False
    forward_traceparent_to_llm_provider: Switch = False
    #: Bytes of a request or an answer that are logged; of larger ones only the size.
    max_logged_mb: Megabytes = 1.0

    #: Where records wait: a folder, or `memory`. Without it TIANJI_SPOOL_DIR, else the user's state folder.
    spool_dir: Name | None = None
    spool_max_mb: Megabytes = 1024.0
    #: What happens to records that a destination does not take.
    on_flush_failure: Literal["spool", "retry", "discard"] = "spool"

    prometheus_metrics_config: tuple[FreeForm, ...] = ()
    prometheus_exclude_metrics: Texts = ()
    prometheus_exclude_labels: Texts = ()
    prometheus_latency_buckets: tuple[float, ...] = ()
    custom_prometheus_metadata_labels: Texts = ()
    custom_prometheus_tags: Texts = ()
    prometheus_emit_stream_label: Switch = False
    prometheus_metrics_max_series_per_metric: Count | None = None
    enable_end_user_cost_tracking_prometheus_only: Switch = False
    disable_end_user_cost_tracking_prometheus_only: Switch = False
    prometheus_emit_rate_limit_labels: Switch = False
    prometheus_emit_input_sequence_length_label: Switch = False
    prometheus_end_user_metrics_max_series_per_metric: Count | None = None
    #: False: `/metrics` on the main port asks for no key.
    require_auth_for_metrics_endpoint: Switch | None = None

    def prometheus(self) -> dict[str, Any]:
        """The settings of the destination `prometheus` that stand here and not beside it."""
        names = [name for name in CallbackKeys.model_fields if "prometheus" in name]
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}


class AlertKeys(Block):
    """Keys of `general_settings` that say who is alerted, and of what."""

    alerting: Texts = ()
    #: Seconds after which a call counts as slow.
    alerting_threshold: Seconds | None = None
    alert_types: Texts | None = None
    alerting_args: FreeForm = Field(default_factory=dict)
    #: Slack addresses by alert type: text or a list.
    alert_to_webhook_url: FreeForm = Field(default_factory=dict)
    alert_type_config: FreeForm = Field(default_factory=dict)
