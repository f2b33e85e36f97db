"""From `Settings` to a live `Stack`: every block of the config becomes a layer, a deployment or an error that names it.

The order of the YAML does not matter; layers are sorted by phase.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from tianji_mw.call import Limits
from tianji_mw.errors import ConfigError, ConfigErrors
from tianji_mw.gateway import Gateway
from tianji_mw.routes import Routes
from tianji_mw.stack import Stack

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.config.blocks import VirtualKey as KeySettings
    from tianji_mw.config.settings import Settings
    from tianji_mw.upstream import TransportOptions


def compose(
    settings: Settings,
    *,
    env: Mapping[str, str] | None = None,
    terminal: ASGIApp | None = None,
) -> Stack:
    """The stack of these settings. `terminal` replaces the gateway (ingress mode).

    Raises ConfigErrors with all wrong places at once.
    """
    from tianji_mw.apis import ALL, TEXT

    environment = {**(os.environ if env is None else env), **{k: v.reveal() for k, v in settings.environment.items()}}
    limits = limits_of(settings)
    options: dict[str, Any] = {"limits": limits, "routes": Routes(TEXT if terminal else ALL)}
    problems: list[ConfigError] = []
    layers = [
        *_authentication(settings, options),
        *_callbacks(settings, environment, options, problems),
        *_guardrails(settings, environment, options, problems),
        *_secrets(settings, options),
    ]
    if terminal is None:
        terminal = gateway = _gateway(settings, environment, options, problems)
    else:
        gateway = None
    layers += _cache(settings, environment, options, gateway, problems)
    layers += _routing(settings, environment, options, terminal, problems)
    if problems:
        raise ConfigErrors(problems)
    layers.sort(key=lambda layer: layer.cls.phase)  # type: ignore[attr-defined]
    return Stack(layers, terminal)


def limits_of(settings: Settings) -> Limits:
    """The bounds of a call that the config sets."""
    general = settings.general_settings
    return Limits(
        max_body_bytes=general.max_body_bytes,
        receive_timeout_s=general.receive_timeout_s,
        max_event_bytes=general.max_event_bytes,
        max_answer_bytes=general.answer_limit_bytes,
    )


def upstream_of(settings: Settings) -> TransportOptions:
    """How upstreams are connected to. Raises ConfigError for a CA bundle that cannot be read."""
    from tianji_mw.upstream import TransportOptions

    general, verify = settings.general_settings, settings.settings.ssl_verify
    try:
        context = verify if isinstance(verify, bool) else ssl.create_default_context(cafile=verify)
    except OSError as error:
        text = f"the CA bundle cannot be read: {error.strerror or type(error).__name__}"
        raise settings.error(text, "settings", "ssl_verify") from None
    return TransportOptions(
        ssl_context=context,
        max_connections=general.upstream_max_connections,
        keep_alive_s=general.upstream_keep_alive_s,
        http2=general.upstream_http2,
    )


def _gateway(
    settings: Settings, env: Mapping[str, str], options: dict[str, Any], problems: list[ConfigError]
) -> ASGIApp | None:
    from tianji_mw.compose.deployments import deployments_of

    table = deployments_of(settings, env, problems)
    if table is None:
        return None
    try:
        upstream = upstream_of(settings)
    except ConfigError as error:
        problems.append(error)
        return None
    usage = settings.general_settings.always_include_stream_usage
    return Gateway(table, always_include_usage=usage, upstream=upstream, **options)


def _routing(
    settings: Settings,
    env: Mapping[str, str],
    options: dict[str, Any],
    terminal: ASGIApp | None,
    problems: list[ConfigError],
) -> list[Middleware]:
    """In front of the gateway; in front of an app of one's own where the config has deployments to choose from."""
    from tianji_mw.compose.deployments import deployments_of
    from tianji_mw.compose.routing import routing_of
    from tianji_mw.routing.middleware import Routing

    foreign = terminal is not None and not isinstance(terminal, Gateway)
    if foreign and not (settings.model_list and getattr(terminal, "uses_deployments", True)):
        return []
    given = routing_of(settings, env, problems)
    if terminal is None or given is None:
        return []  # what is wrong is told
    table = terminal.deployments if isinstance(terminal, Gateway) else deployments_of(settings, env, problems)
    return [Middleware(Routing, deployments=table, **given, **options)] if table is not None else []


def _authentication(settings: Settings, options: dict[str, Any]) -> list[Middleware]:
    general = settings.general_settings
    if general.master_key is None and not settings.virtual_keys:
        return []
    from tianji_mw.identity.base import Identity
    from tianji_mw.identity.keys import Keys, VirtualKey, digest
    from tianji_mw.identity.middleware import Authentication

    groups = _access_groups(settings)
    keys = [
        VirtualKey(
            identity=Identity(
                key_hash=entry.key_sha256 or (digest(entry.key.reveal()) if entry.key and entry.key.ready else ""),
                alias=entry.alias or "",
                team=entry.team or "",
                user=entry.user or "",
                models=_models(entry, groups),
                tags=tuple(entry.tags),
                metadata=_metadata(entry),
            ),
            expires=entry.expires.timestamp() if entry.expires else None,
            live=entry.key,
        )
        for entry in settings.virtual_keys
    ]
    header = general.litellm_key_header_name or ""
    identifier = Keys(master_key=general.master_key, virtual_keys=keys, header_name=header)
    return [Middleware(Authentication, identifier=identifier, **options)]


def _access_groups(settings: Settings) -> Mapping[str, Sequence[str]]:
    """The models of each access group."""
    found: dict[str, list[str]] = {}
    for deployment in settings.model_list:
        for group in deployment.model_info.access_groups:
            found.setdefault(group, []).append(deployment.model_name)
    return found


def _models(entry: KeySettings, groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What a key may use: names of models and patterns, and the models of each access group that it names."""
    grouped = (model for name in entry.models for model in groups.get(name, ()))
    return tuple(dict.fromkeys((*entry.models, *grouped)))


def _metadata(entry: KeySettings) -> Mapping[str, Any]:
    """What the concerns read of a key: its own fields beside what is written under `metadata`."""
    found = dict(entry.metadata)
    if entry.guardrails:
        found["guardrails"] = [*entry.guardrails, *(found.get("guardrails") or ())]
    if entry.organization_id:
        found["organization_id"] = entry.organization_id
    if entry.allowed_cache_controls:
        found["allowed_cache_controls"] = entry.allowed_cache_controls
    if entry.disable_global_guardrails:
        found["disable_global_guardrails"] = True
    return found


def _callbacks(
    settings: Settings, env: Mapping[str, str], options: dict[str, Any], problems: list[ConfigError]
) -> list[Middleware]:
    keys = settings.settings
    named = (keys.callbacks, keys.success_callback, keys.failure_callback, keys.callback_configs)
    logged = any("logging" in key.metadata for key in settings.virtual_keys)
    if not any(named) and not logged and not keys.default_team_settings and not settings.general_settings.alerting:
        return []
    from tianji_mw.callbacks.middleware import Callbacks
    from tianji_mw.compose.callbacks import destinations_of
    from tianji_mw.compose.logging_rules import rules_of

    callbacks = destinations_of(settings, env, problems)
    return [Middleware(Callbacks, callbacks=callbacks, **rules_of(settings, env), **options)] if callbacks else []


def _cache(
    settings: Settings,
    env: Mapping[str, str],
    options: dict[str, Any],
    gateway: ASGIApp | None,
    problems: list[ConfigError],
) -> list[Middleware]:
    if not settings.settings.cache:
        return []
    from tianji_mw.cache.middleware import Cache
    from tianji_mw.compose.cache import cache_of

    given = cache_of(settings, env, gateway, problems)
    return [Middleware(Cache, **given, **options)] if given is not None else []


def _secrets(settings: Settings, options: dict[str, Any]) -> list[Middleware]:
    if settings.resolver is None and not settings.secrets:
        return []
    from tianji_mw.secrets.middleware import Secrets

    # The loader has decided what may be missing: here nothing is refused a second time.
    given: dict[str, Any] = {"names": settings.secrets, "resolver": settings.resolver, "allow_unresolved": True}
    return [Middleware(Secrets, **given, **options)]


def _guardrails(
    settings: Settings, env: Mapping[str, str], options: dict[str, Any], problems: list[ConfigError]
) -> list[Middleware]:
    if not settings.guardrails:
        return []
    from tianji_mw.compose.guardrails import by_model, entries_of
    from tianji_mw.guardrails.middleware import Guardrails

    checks = entries_of(settings, env, problems)
    return [Middleware(Guardrails, checks=checks, by_model=by_model(settings, problems), **options)]
