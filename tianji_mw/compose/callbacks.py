"""From the config's callbacks to destinations of the layer: found by name, with their settings, filters and policies.

A callback that cannot be found or built stops the start: a log that is not written must never pass for a log.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from tianji_mw import plugins
from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.destination import Destination, Events
from tianji_mw.compose.callback_policy import Policy, policy_of
from tianji_mw.config.explain import reason
from tianji_mw.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from tianji_mw.config.blocks import VirtualKey
    from tianji_mw.config.settings import Settings

log = logging.getLogger("tianji_mw.callbacks")

#: LiteLLM's and the Go port's names where ours differ.
ALIASES: Final[Mapping[str, str]] = {
    "arize_phoenix": "phoenix",
    "aws_sqs": "sqs",
    "azure_storage": "azure_blob",
    "gcs_bucket": "gcs",
    "langfuse_otel": "langfuse",
    "opentelemetry": "otel",
    "s3_v2": "s3",
    "smtp_email": "email",
    "weave": "wandb",
    "weave_otel": "wandb",
}
#: In the lists of callbacks LiteLLM and the port mean the destination of records by it, in `alerting` that of alerts.
_RECORDS: Final[Mapping[str, str]] = {"webhook": "generic_api"}
#: Blocks of settings beside `callback_settings`.
_PARAMS: Final[Mapping[str, str]] = {
    "datadog": "datadog_params",
    "datadog_llm_observability": "datadog_llm_observability_params",
    "gcs": "gcs_callback_params",
    "s3": "s3_callback_params",
    "sqs": "aws_sqs_callback_params",
}
#: Variables for the batches of every destination that has none of its own.
_BATCHES: Final = {"batch_size": "DEFAULT_BATCH_SIZE", "flush_interval_s": "DEFAULT_FLUSH_INTERVAL_SECONDS"}
_ALERT_FIELDS: Final = ("alerting_threshold", "alert_types", "alerting_args", "alert_type_config")
#: Of `alerting_args`, what destinations take; and those that LiteLLM's `alert_types` is for.
_ALERT_ARGS: Final = ("budget_alert_ttl", "log_to_console")
_CHATS: Final = frozenset({"slack", "ms_teams"})
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]+")

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A destination that the config names."""

    name: str
    kind: str
    place: Place
    events: Events = "all"
    options: Mapping[str, Any]
    team: str = ""
    key: VirtualKey | None = None


def destinations_of(settings: Settings, env: Mapping[str, str], problems: list[ConfigError]) -> list[Destination]:
    """One for each that the config names; what is wrong is added to `problems`."""
    found: dict[str, Destination] = {}
    for wanted in (*_listed(settings), *_configured(settings), *_of_teams(settings), *_of_keys(settings)):
        try:
            made = _destination(settings, wanted, env)
        except ConfigError as error:
            problems.append(error)
            continue
        except SetupError as error:
            problems.append(settings.error(error.message, *wanted.place))
            continue
        if made.name in found:
            text = f"two callbacks have the name {made.name!r}; give one of them another `name`"
            problems.append(settings.error(text, *wanted.place))
        found[made.name] = made
    return [*found.values(), *_alerts(settings, [*found.values()], env, problems)]


# --- what the config names


def _listed(settings: Settings) -> Iterator[_Wanted]:
    """`callbacks`, `success_callback`, `failure_callback`: a name in both of the last two hears of all calls."""
    keys = settings.settings
    events: dict[str, set[str]] = {}
    places: dict[str, Place] = {}
    lists: tuple[tuple[str, tuple[str, ...], set[str]], ...] = (
        ("callbacks", keys.callbacks, {"success", "failure"}),
        ("success_callback", keys.success_callback, {"success"}),
        ("failure_callback", keys.failure_callback, {"failure"}),
    )
    for key, names, kinds in lists:
        for at, name in enumerate(names):
            events.setdefault(name, set()).update(kinds)
            places.setdefault(name, ("settings", key, at))
    for name, kinds in events.items():
        options = settings.callback_settings.get(name, {})
        kind = str(options.get("callback_type") or name)
        hears: Events = "all" if len(kinds) == 2 else "success" if "success" in kinds else "failure"
        yield _Wanted(name=name, kind=kind, place=places[name], events=hears, options=options)


def _configured(settings: Settings) -> Iterator[_Wanted]:
    """The structured form: `callback_configs: [{type, name, ...}]`."""
    for at, entry in enumerate(settings.settings.callback_configs):
        place: Place = ("settings", "callback_configs", at)
        kind = entry.get("type")
        if not isinstance(kind, str) or not kind:
            yield _Wanted(name="", kind="", place=place, options={})
            continue
        name = str(entry.get("name") or kind)
        yield _Wanted(
            name=name,
            kind=kind,
            place=place,
            options={key: value for key, value in entry.items() if key not in ("type", "name")},
        )


def _of_teams(settings: Settings) -> Iterator[_Wanted]:
    """`default_team_settings: [{team_id, success_callback, failure_callback, langfuse_public_key, ...}]`."""
    lists = ("callbacks", "success_callback", "failure_callback")
    for at, entry in enumerate(settings.settings.default_team_settings):
        team = str(entry.get("team_id") or "")
        options = {key: value for key, value in entry.items() if key not in (*lists, "team_id")}
        for key, hears in zip(lists, ("all", "success", "failure"), strict=True):
            names = entry.get(key) or ()
            for name in [names] if isinstance(names, str) else names:
                yield _Wanted(
                    name=f"{name}-{team}",
                    kind=str(name),
                    place=("settings", "default_team_settings", at),
                    events=hears,  # type: ignore[arg-type]  # one of the three above
                    options=_prefixed(str(name), options),
                    team=team,
                )


def _of_keys(settings: Settings) -> Iterator[_Wanted]:
    """`virtual_keys[].metadata.logging: [{callback_name, callback_type, callback_vars}]`."""
    hears: Mapping[object, Events] = {"success": "success", "failure": "failure"}
    for at, key in enumerate(settings.virtual_keys):
        for entry in key.metadata.get("logging") or ():
            if isinstance(entry, dict) and (name := entry.get("callback_name")):
                variables = entry.get("callback_vars")
                yield _Wanted(
                    name=f"{name}-{key.alias or key.key_sha256 or at}",
                    kind=str(name),
                    place=("virtual_keys", at, "metadata"),
                    events=hears.get(entry.get("callback_type"), "all"),
                    options=variables if isinstance(variables, dict) else {},
                    key=key,
                )


def _prefixed(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings for several callbacks those for this one: the ones that begin with its name, and the policies."""
    kind = ALIASES.get(name, name)
    starts = (f"{name}_", f"{kind}_", f"{name.partition('_')[0]}_")  # `weave_project_id` is for `weave_otel`
    return {key: value for key, value in options.items() if key.startswith(starts) or key in Policy.model_fields}


# --- making them


def _destination(settings: Settings, wanted: _Wanted, env: Mapping[str, str]) -> Destination:
    if not wanted.kind:
        raise settings.error("the entry has no `type`; write the name of a callback", *wanted.place)
    name = ALIASES.get(wanted.kind, wanted.kind)
    kind = plugins.find("callbacks", _RECORDS.get(name, name), Callback)  # type: ignore[type-abstract]
    options = {**_renamed(kind, _of_block(settings, name)), **_renamed(kind, wanted.options)}
    options.pop("callback_type", None)
    if settings.settings.turn_off_message_logging and "turn_off_message_logging" in kind.model_fields:
        options.setdefault("turn_off_message_logging", True)  # it tells somebody else what to keep
    policy, own = policy_of(kind, options, lambda key, text: _wrong(settings, wanted, key, text))
    callback = _built(kind, own, env, lambda key, text: _wrong(settings, wanted, key, text))
    teams = policy.teams | {wanted.team} if wanted.team else policy.teams
    filters = {**policy.fields(settings.settings.on_flush_failure), **_of_key(settings, wanted)}
    return Destination(
        callback=callback,
        name=_UNFIT.sub("-", wanted.name.rpartition(":")[2])[:100],
        events=policy.hears or wanted.events,
        teams=teams,
        **filters,
    )


def _renamed(kind: type[Callback], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in our names, so that one that stands nearer replaces one that is written otherwise elsewhere."""
    for key in kind.no_effect.keys() & options.keys():
        log.warning("%s of the callback %s has no effect: %s", key, kind.__name__, kind.no_effect[key])
    options = {key: value for key, value in options.items() if key not in kind.no_effect}
    return {_name(kind, key): value for key, value in options.items()}


def _name(kind: type[Callback], key: str) -> str:
    general = {"flush_interval": "flush_interval_s", "timeout": "timeout_s"}
    return kind.aliases.get(key, key if key in kind.model_fields else general.get(key, key))


def _of_block(settings: Settings, name: str) -> dict[str, Any]:
    """What stands for this callback outside of `callback_settings`."""
    keys = settings.settings
    if name == "prometheus":
        return keys.prometheus()
    if name == "dynamodb" and keys.dynamodb_table_name:
        return {"dynamodb_table_name": keys.dynamodb_table_name}
    if name == "generic_api" and keys.generic_logger_headers:
        return {"generic_logger_headers": keys.generic_logger_headers}
    return dict(getattr(keys, _PARAMS[name])) if name in _PARAMS else {}


def _built(kind: type[Callback], options: dict[str, Any], env: Mapping[str, str], wrong: Any) -> Callback:
    given = {kind.aliases.get(name, name) for name in options}
    for field, variables in kind.env_fields.items():
        value = next((env[name] for name in variables if env.get(name)), "")
        if value and field not in given:
            options[field] = value
            given.add(field)
    for field, variable in _BATCHES.items():
        if field not in given and field in kind.model_fields and env.get(variable):
            options[field] = env[variable]
    try:
        return kind(**options)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        if first["type"] == "value_error":  # a sentence of the callback's own
            key = ".".join(str(step) for step in first["loc"])
            raise wrong(key, str(first["ctx"]["error"])) from None
        raise wrong(*reason(invalid)) from None


def _wrong(settings: Settings, wanted: _Wanted, key: str, text: str) -> ConfigError:
    """An error at the key where it is written, as far as that is known."""
    if wanted.place[:2] != ("settings", "callback_configs") and wanted.name in settings.callback_settings:
        return settings.error(f"{wanted.name}: {text}", "callback_settings", wanted.name, *([key] if key else []))
    named = f"{wanted.name}: {key}: {text}" if key else f"{wanted.name}: {text}"
    return settings.error(named, *wanted.place)


def _of_key(settings: Settings, wanted: _Wanted) -> dict[str, Any]:
    """The filter for the calls of one key. A key that may change, or is not known yet, is found by its alias."""
    key = wanted.key
    if key is None:
        return {}
    if key.key_sha256:
        return {"key_hash": key.key_sha256}
    if key.key is not None and key.key.ready and not key.key.changes:
        return {"key_hash": hashlib.sha256(key.key.reveal().encode()).hexdigest()}
    if not key.alias:
        raise settings.error("callbacks of a key from a secret manager need its `alias`", *wanted.place)
    return {"keys": frozenset({key.alias})}


# --- alerts


def _alerts(
    settings: Settings, found: list[Destination], env: Mapping[str, str], problems: list[ConfigError]
) -> list[Destination]:
    """Those of `general_settings.alerting`, and the one that finds what to alert of."""
    general = settings.general_settings
    made: list[Destination] = []
    known = {one.name for one in found}
    for at, name in enumerate(general.alerting):
        wanted = _Wanted(
            name=name, kind=name, place=("general_settings", "alerting", at), options=_alert_options(settings, name)
        )
        kind = ALIASES.get(name, name)
        try:
            if name not in known:
                made.append(_alert_destination(settings, wanted, kind, env))
        except ConfigError as error:
            problems.append(error)
        except SetupError as error:
            problems.append(settings.error(error.message, *wanted.place))
    sends = any("alert" in one.callback.kinds for one in (*found, *made))
    if sends and "alerting" not in known and not problems:
        given = {name: value for name in _ALERT_FIELDS if (value := getattr(general, name))}
        place: Place = ("general_settings", "alerting")
        wanted = _Wanted(name="alerting", kind="alerting", place=place, options=given)
        try:
            made.append(_destination(settings, wanted, env))
        except ConfigError as error:
            problems.append(error)
    return made


def _alert_destination(settings: Settings, wanted: _Wanted, name: str, env: Mapping[str, str]) -> Destination:
    kind = plugins.find("callbacks", name, Callback)  # type: ignore[type-abstract]
    if "alert" not in kind.kinds:
        raise settings.error(f"{wanted.name!r} takes no alerts; use slack, ms_teams, webhook or email", *wanted.place)
    options = _renamed(kind, wanted.options)
    policy, own = policy_of(kind, options, lambda key, text: _wrong(settings, wanted, key, text))
    callback = _built(kind, own, env, lambda key, text: _wrong(settings, wanted, key, text))
    return Destination(callback=callback, name=wanted.name, **policy.fields(settings.settings.on_flush_failure))


def _alert_options(settings: Settings, name: str) -> dict[str, Any]:
    """The settings of a destination of alerts: its own, and what `general_settings` say of all."""
    general = settings.general_settings
    options = dict(settings.callback_settings.get(name, {}))
    shared: dict[str, Any] = {key: general.alerting_args[key] for key in _ALERT_ARGS if key in general.alerting_args}
    if name in _CHATS and general.alert_types:
        shared["alert_types"] = general.alert_types
    if name == "slack" and general.alert_to_webhook_url:
        shared["alert_to_webhook_url"] = general.alert_to_webhook_url
    return {**shared, **options}
