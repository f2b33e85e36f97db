"""What an entry of `model_list` says about routing: the fields of `Deployment`, and its deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tianji_mw.compose.provider import is_built_in
from tianji_mw.config.routing_values import seconds_of
from tianji_mw.errors import SetupError
from tianji_mw.routing.tag import checked
from tianji_mw.upstream import Deadlines

if TYPE_CHECKING:
    from tianji_mw.config.blocks import Deployment as Entry
    from tianji_mw.config.settings import Settings


def routing_fields(
    settings: Settings, entry: Entry, index: int, model: str, specs: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of the `Deployment` that `entry` is; `model` is the provider's own name of its model."""
    params, info = entry.params, entry.model_info
    for at, pattern in enumerate(params.tag_regex):
        try:
            checked(pattern)
        except SetupError as error:
            raise settings.error(error.message, "model_list", index, "params", "tag_regex", at) from None
    return {
        "weight": params.weight,
        "rpm": _first(entry.rpm, params.rpm, info.rpm),
        "tpm": _first(entry.tpm, params.tpm, info.tpm),
        "max_parallel": params.max_parallel_requests,
        "order": params.order,
        "tags": frozenset((*entry.tags, *params.tags)),
        "tag_regex": params.tag_regex,
        "team": info.team_id or "",
        "team_model_name": info.team_public_model_name or "",
        "region": params.region_name or "",
        "input_cost": _first(params.input_cost_per_token, info.input_cost_per_token),
        "output_cost": _first(params.output_cost_per_token, info.output_cost_per_token),
        "max_input_tokens": _first(info.max_input_tokens, info.max_tokens),
        "num_retries": _first(params.num_retries, params.max_retries),
        "cooldown_s": _first(params.cooldown_time, info.cooldown_time),
        "allowed_fails": info.allowed_fails,
        "allowed_fails_policy": info.allowed_fails_policy,
        "max_budget": params.max_budget,
        "budget_s": seconds_of(params.budget_duration) if params.budget_duration else None,
        "mirrors": params.silent_model,
        "mode": info.mode or "",
        "unchecked": info.disable_background_health_check,
        "health_model": _health_model(settings, entry, index, model, specs),
        "health_timeout_s": info.health_check_timeout,
    }


def deadlines_of(settings: Settings, entry: Entry) -> tuple[Deadlines, Deadlines]:
    """For plain answers and for streams: the deployment's, else the router's, else the general ones."""
    params, router = entry.params, settings.router_settings
    usual = Deadlines()
    plain = params.timeout or router.timeout or settings.settings.request_timeout
    first = params.stream_timeout or router.ttft_timeout or router.stream_timeout or plain
    between = usual.between_bytes_s or plain
    connect = router.connect_timeout or usual.connect_s
    return (
        Deadlines(connect_s=connect, first_byte_s=plain, between_bytes_s=min(plain, between), total_s=plain),
        Deadlines(
            connect_s=connect,
            first_byte_s=first,
            between_bytes_s=router.inter_chunk_timeout or min(first, between),
        ),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _health_model(settings: Settings, entry: Entry, index: int, model: str, specs: Mapping[str, Any]) -> str:
    """The provider's own name of the model that health checks use."""
    wanted = entry.model_info.health_check_model or ""
    whole, explicit = entry.params.model, entry.params.custom_llm_provider
    prefix = f"{explicit}/" if explicit else whole.removesuffix(model) if whole.endswith(f"/{model}") else ""
    if not prefix or wanted.startswith(prefix):
        return wanted.removeprefix(prefix)
    theirs, slash, _ = wanted.partition("/")
    if slash and (theirs in specs or is_built_in(theirs)):
        text = "a health check asks the deployment's own provider"
        hint = f"write a model of {prefix.rstrip('/')}"
        raise settings.error(text, "model_list", index, "model_info", "health_check_model", hint=hint)
    return wanted
