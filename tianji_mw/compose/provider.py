"""The provider of one `model_list` entry: found by name, given its fields, and its key from config or environment."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import ValidationError

from tianji_mw import plugins
from tianji_mw.compose.defaults import BODY_FIELDS
from tianji_mw.errors import PluginNotFound
from tianji_mw.providers import registry
from tianji_mw.providers.base import Provider
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.apis.base import JSON
    from tianji_mw.config.blocks import Deployment as Entry
    from tianji_mw.config.settings import Settings

#: LiteLLM's provider names where ours differ.
ALIASES: Final[Mapping[str, str]] = {
    "azure": "azure_openai",
    "azure_ai": "azure_openai",
    "custom_openai": "openai",
    "text-completion-openai": "openai",
    "openai_like": "openai_compatible",
}
#: Fields of the config's params that providers may have.
_FIELDS: Final = (
    "api_version", "organization", "azure_ad_token", "tenant_id", "client_id", "client_secret", "azure_scope",
)  # fmt: skip
_DOTTED: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Where = tuple[str | int, ...]


class Found(NamedTuple):
    """What an entry names."""

    provider: Provider
    #: The model's name without the provider's.
    model: str
    #: Fields of the entry that are neither ours nor the provider's, but the request body's.
    body: Mapping[str, JSON]


def provider_of(
    settings: Settings, entry: Entry, index: int, env: Mapping[str, str], specs: Mapping[str, registry.Spec]
) -> Found:
    """The provider of the entry at `index`. Raises ConfigError naming the key."""
    params, where = entry.params, ("model_list", index, "params")
    if params.mock_response is not None:
        if not isinstance(params.mock_response, str):
            raise settings.error("only text can be mocked", *where, "mock_response")
        mock = plugins.find("providers", "mock", Provider)
        return Found(mock(says=params.mock_response), params.model.partition("/")[2] or params.model, {})  # type: ignore[call-arg]
    name, model = _split(settings, params.model, params.custom_llm_provider or "", params.api_base, specs, where)
    body = {key: value for key, value in params.extra.items() if key in BODY_FIELDS}
    extra = {key: value for key, value in params.extra.items() if key not in BODY_FIELDS}
    fields: dict[str, Any] = {**extra, **{f: v for f in _FIELDS if (v := getattr(params, f)) is not None}}
    kind: type[Provider]
    if name in specs:
        from tianji_mw.providers.openai_compatible import OpenAICompatible

        kind, spec, fields["name"] = OpenAICompatible, specs[name], name
        key_env, base_env = spec.api_key_env, spec.api_base_env
    else:
        kind, spec = plugins.find("providers", ALIASES.get(name, name), Provider), None
        key_env, base_env = kind.key_env, kind.base_env
        fields["name"] = kind.model_fields["name"].default or name
    # As in LiteLLM, a key from the environment also goes to an address of the operator's; clients cannot set one.
    fields["api_base"] = str(params.api_base or "") or _first(env, base_env)
    if spec is not None:
        fields["spec"] = spec if fields["api_base"] else _filled(settings, name, spec, fields, env, where)
    fields["api_key"] = _key(params.api_key, kind, fields, key_env, env, settings.hosted)
    _from_environment(kind, fields, env)
    if entry.model_info.base_model and "base_model" in kind.model_fields:
        fields["base_model"] = entry.model_info.base_model
    fields["extra_headers"] = {**params.headers, **params.extra_headers}
    return Found(_built(settings, kind, name, fields, where), model, body)


def _key(
    given: Secret | None,
    kind: type[Provider],
    fields: Mapping[str, Any],
    variables: tuple[str, ...],
    env: Mapping[str, str],
    hosted: Mapping[str, Secret],
) -> Secret | None:
    """The entry's own key, else the secret manager's or the environment's; none with another login."""
    if given is not None:
        return given
    if any(name in fields for name in kind.login_fields):
        return None
    held = next((hosted[name] for name in variables if name in hosted), None)
    if held is not None:
        return held
    found = _first(env, variables)
    return Secret(found) if found else None


def _from_environment(kind: type[Provider], fields: dict[str, Any], env: Mapping[str, str]) -> None:
    """Fields that the entry leaves out and the environment knows."""
    wanted = dict(kind.env_fields) if fields["api_key"] else {**kind.env_fields, **kind.login_fields}
    for name, variables in wanted.items():
        if name not in fields and (found := _first(env, variables)):
            fields[name] = found


def _filled(
    settings: Settings, name: str, spec: registry.Spec, fields: dict[str, Any], env: Mapping[str, str], where: Where
) -> registry.Spec:
    """The spec with the placeholders of its address filled from the entry, or from `<PROVIDER>_<NAME>`."""

    def value_of(placeholder: str) -> str:
        variable = re.sub(r"\W", "_", f"{name}_{placeholder}").upper()
        found = str(fields.pop(placeholder, "")) or env.get(variable, "")
        if not found:
            hint = f"set {placeholder!r} here, or {variable} in the environment, or the whole 'api_base'"
            raise settings.error(f"the address of the provider '{name}' needs {placeholder!r}", *where, hint=hint)
        return found

    try:
        return spec.filled(value_of)
    except ValueError as error:
        raise settings.error(str(error), *where) from None


def _built(settings: Settings, kind: type[Provider], name: str, fields: dict[str, Any], where: Where) -> Provider:
    unknown = sorted(fields.keys() - kind.model_fields.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], kind.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "a field of the request body belongs under extra_body"
        raise settings.error(f"the provider '{name}' has no such setting", *where, unknown[0], hint=hint)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_input=False)[0]
        raise settings.error(found["msg"].removeprefix("Value error, "), *where, *found["loc"]) from None


def _split(
    settings: Settings, model: str, explicit: str, api_base: object, specs: Mapping[str, registry.Spec], where: Where
) -> tuple[str, str]:
    """Provider and model of `provider/model`; without a known prefix, the host of `api_base` decides, else openai."""
    if explicit:
        return explicit, model.removeprefix(f"{explicit}/")
    prefix, slash, rest = model.partition("/")
    if slash and (prefix in specs or is_built_in(prefix)):
        return prefix, rest
    if api_base and (found := registry.by_host(str(api_base), specs)):
        return found, model
    if model == "*":
        hint = "write one entry per provider, such as openai/*"
        raise settings.error("no provider is named", *where, "model", hint=hint)
    if not slash:
        return "openai", model
    near = [] if api_base else difflib.get_close_matches(prefix, [*specs, *plugins.names("providers"), *ALIASES], n=1)
    own = f"for an OpenAI-compatible server write openai/{model} and set api_base"
    hint = f"did you mean {near[0]}/{rest}?" if near else own
    raise settings.error(f"the provider '{prefix}' is not known", *where, "model", hint=hint)


def is_built_in(name: str) -> bool:
    """Whether there is code for a provider of this name: a file of ours, an entry point, or `package.module:Class`."""
    if name in ALIASES:
        return True
    # Without the colon, `gpt-4.1/x` or `os.path/x` would be imported to see what it is.
    if not (_DOTTED.fullmatch(name) or name.replace("-", "_").isidentifier()):
        return False
    try:
        plugins.find("providers", name, Provider)
    except PluginNotFound:
        return False
    return True


def _first(env: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((env[name] for name in names if env.get(name)), "")
