"""Deployments from the config's `model_list`: a provider, deadlines and rules each; what is wrong is named together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson

from tianji_mw.compose.defaults import bad_path, rules_by_api
from tianji_mw.compose.deployment_routing import deadlines_of, routing_fields
from tianji_mw.compose.provider import is_built_in, provider_of
from tianji_mw.errors import ConfigError, SetupError
from tianji_mw.providers import registry
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.table import Deployments

if TYPE_CHECKING:
    from tianji_mw.config.blocks import Deployment as Entry
    from tianji_mw.config.settings import Settings
    from tianji_mw.providers.base import Provider


def deployments_of(settings: Settings, env: Mapping[str, str], problems: list[ConfigError]) -> Deployments | None:
    """The table of all deployments; what is wrong is added to `problems`, and None returned then."""
    before = len(problems)
    specs = _specs(settings, problems)
    aliases = {name: alias.model for name, alias in settings.router_settings.model_group_alias.items()}
    hidden = [name for name, alias in settings.router_settings.model_group_alias.items() if alias.hidden]
    built: list[Deployment] = []
    for index, entry in enumerate(settings.model_list):
        try:
            built.append(_deployment(settings, entry, index, env, specs, aliases))
        except ConfigError as error:
            problems.append(error)
        except SetupError as error:
            problems.append(settings.error(error.message, "model_list", index, "params", "model"))
    return Deployments(built, aliases, hidden) if len(problems) == before else None


def _prefills(entry: Entry, provider: Provider) -> bool:
    said = entry.model_info.supports_assistant_prefill
    return provider.prefills if said is None else said


def _specs(settings: Settings, problems: list[ConfigError]) -> dict[str, registry.Spec]:
    """The registry: what ships, and the config's own entries, which may replace it."""
    specs = dict(registry.shipped())
    for name, entry in settings.general_settings.providers.items():
        place = settings.where("general_settings", "providers", name)
        if is_built_in(name):
            text = "a provider of this name is built in; choose another"
            problems.append(settings.error(text, "general_settings", "providers", name))
            continue
        try:
            specs[name] = registry.read(name, entry, file=place.file, line=place.line)
        except ConfigError as error:
            problems.append(error)
    return specs


def _deployment(
    settings: Settings,
    entry: Entry,
    index: int,
    env: Mapping[str, str],
    specs: Mapping[str, registry.Spec],
    aliases: Mapping[str, str],
) -> Deployment:
    params = entry.params
    if wrong := bad_path(params.additional_drop_params):
        where = ("model_list", index, "params", "additional_drop_params")
        raise settings.error(f"{wrong!r} is neither a name nor a path such as tools[*].strict", *where)
    found = provider_of(settings, entry, index, env, specs)
    drop = params.drop_params if params.drop_params is not None else settings.settings.drop_params
    rules = rules_by_api(params, found.body, drop)
    plain, stream = deadlines_of(settings, entry)
    shown = {"model_name": entry.model_name, "index": index, **params.model_dump(mode="json", exclude_none=True)}
    return Deployment(
        id=entry.model_info.id or hashlib.sha256(orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        model_name=entry.model_name,
        model=found.model,
        provider=found.provider,
        deadlines=plain,
        stream_deadlines=stream,
        rules=rules["chat_completions"],
        rules_of=rules,
        aliases=aliases if "*" in found.model else {},
        prefills=_prefills(entry, found.provider),
        **routing_fields(settings, entry, index, found.model, specs),
    )
