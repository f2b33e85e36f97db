"""Deployments from the config's `model_list`: finds each provider, gives it its fields, and names what is wrong."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic import ValidationError

from tianji_mw import plugins
from tianji_mw.errors import ConfigError, PluginNotFound, SetupError
from tianji_mw.params import ParamRules
from tianji_mw.providers import registry
from tianji_mw.providers.base import Provider
from tianji_mw.redact import Secret
from tianji_mw.routing.base import Deployment, Deployments
from tianji_mw.upstream import Deadlines

if TYPE_CHECKING:
    from tianji_mw.config.blocks import Deployment as Entry
    from tianji_mw.config.settings import Settings

#: LiteLLM's provider names where ours differ.
ALIASES: Final[Mapping[str, str]] = {
    "azure": "azure_openai",
    "azure_ai": "azure_openai",
    "custom_openai": "openai",
    "text-completion-openai": "openai",
}
#: Fields of the config's params that providers may have.
_FIELDS: Final = ("api_version", "organization", "azure_ad_token", "tenant_id", "client_id", "client_secret", "azure_scope")


def deployments_of(settings: Settings, env: Mapping[str, str], problems: list[ConfigError]) -> Deployments | None:
    """The table of all deployments; what is wrong is added to `problems`, and None returned then."""
    specs = dict(registry.shipped())
    before = len(problems)
    for name, spec in settings.general_settings.providers.items():
        place = settings.where("general_settings", "providers", name)
        try:
            specs[name] = registry.read(name, spec, file=place.file, line=place.line)
        except ConfigError as error:
            problems.append(error)
    built: list[Deployment] = []
    for index, entry in enumerate(settings.model_list):
        try:
            built.append(_deployment(settings, entry, index, env, specs))
        except SetupError as error:
            own = isinstance(error, ConfigError)
            problems.append(error if own else settings.error(error.message, "model_list", index, "params", "model"))  # type: ignore[arg-type]
    aliases = {name: alias.model for name, alias in settings.router_settings.model_group_alias.items()}
    hidden = [name for name, alias in settings.router_settings.model_group_alias.items() if alias.hidden]
    return Deployments(built, aliases, hidden) if len(problems) == before else None


def _deployment(
    settings: Settings, entry: Entry, index: int, env: Mapping[str, str], specs: Mapping[str, registry.Spec]
) -> Deployment:
    params, router = entry.params, settings.router_settings
    provider, model = _provider(settings, entry, index, env, specs)
    plain = params.timeout or router.timeout or settings.settings.request_timeout
    first = params.stream_timeout or router.stream_timeout or plain
    between = Deadlines().between_bytes_s or plain
    shown = {"model_name": entry.model_name, "index": index, **params.model_dump(mode="json", exclude_none=True)}
    drop = params.drop_params if params.drop_params is not None else settings.settings.drop_params
    return Deployment(
        id=entry.model_info.id or hashlib.sha256(orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        model_name=entry.model_name,
        model=model,
        provider=provider,
        deadlines=Deadlines(first_byte_s=plain, between_bytes_s=min(plain, between), total_s=plain),
        stream_deadlines=Deadlines(first_byte_s=first, between_bytes_s=between),
        weight=params.weight,
        rpm=params.rpm,
        tpm=params.tpm,
        rules=ParamRules(
            defaults={**params.defaults, **params.extra_body},
            drop_unsupported=drop,
            drop=tuple(params.additional_drop_params),
            allowed=frozenset(params.allowed_openai_params),
        ),
    )


def _provider(
    settings: Settings, entry: Entry, index: int, env: Mapping[str, str], specs: Mapping[str, registry.Spec]
) -> tuple[Provider, str]:
    """The provider with its fields set, and the model's name without the provider's."""
    params = entry.params
    extra = dict(params.extra)
    where = ("model_list", index, "params")
    if isinstance(params.mock_response, str):
        return plugins.find("providers", "mock", Provider)(text=params.mock_response), params.model  # type: ignore[call-arg]
    name, model = _split(settings, params.model, params.custom_llm_provider or "", params.api_base, specs, where)
    kind: type[Provider]
    if name in specs and name not in plugins.names("providers"):
        from tianji_mw.providers.openai_compatible import OpenAICompatible

        kind, spec = OpenAICompatible, specs[name]
        extra["spec"] = spec
        key_env, base_env = spec.api_key_env, spec.api_base_env
    else:
        kind = plugins.find("providers", ALIASES.get(name, name), Provider)
        key_env, base_env = kind.key_env, kind.base_env
    fields: dict[str, Any] = {**extra, **{field: v for field in _FIELDS if (v := getattr(params, field)) is not None}}
    fields["name"] = name if name in specs else kind.model_fields["name"].default or name
    fields["api_base"] = str(params.api_base or "") or _first(env, base_env)
    # The environment's key goes to the provider's own address only, or to one that the same environment names.
    key = params.api_key or (Secret(found) if (found := _first(env, key_env)) else None)
    fields["api_key"] = key
    fields["extra_headers"] = {**params.headers, **params.extra_headers}
    unknown = sorted(fields.keys() - kind.model_fields.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], kind.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise settings.error(f"the provider '{name}' has no such setting", *where, unknown[0], hint=hint)
    try:
        return kind.model_validate(fields), model
    except ValidationError as error:
        found_error = error.errors()[0]
        raise settings.error(found_error["msg"].removeprefix("Value error, "), *where, *found_error["loc"]) from None


def _split(
    settings: Settings,
    model: str,
    explicit: str,
    api_base: object,
    specs: Mapping[str, registry.Spec],
    where: tuple[str | int, ...],
) -> tuple[str, str]:
    """Provider and model of `provider/model`; without a known prefix, the host of `api_base` decides, else openai."""
    if explicit:
        return explicit, model.removeprefix(f"{explicit}/")
    prefix, slash, rest = model.partition("/")
    if slash and (prefix in specs or _exists(prefix)):
        return prefix, rest
    if api_base and (found := registry.by_host(str(api_base))):
        return found, model
    if model == "*":
        raise settings.error("no provider is named", *where, "model", hint="write one entry per provider, such as openai/*")
    if not slash:
        return "openai", model
    known = [*specs, *plugins.names("providers"), *ALIASES]
    near = difflib.get_close_matches(prefix, known, n=1)
    hint = f"did you mean {near[0]}/{rest}?" if near else f"for an OpenAI-compatible server write openai/{model} and set api_base"
    raise settings.error(f"the provider '{prefix}' is not known", *where, "model", hint=hint)


def _exists(name: str) -> bool:
    if name in ALIASES:
        return True
    try:
        plugins.find("providers", name, Provider)
    except PluginNotFound:
        return False
    return True


def _first(env: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((env[name] for name in names if env.get(name)), "")
