"""From the config's `guardrails` to entries of the layer: found by name, with their options and what a failure means.

A guardrail that cannot be found or built stops the start: a missing check must never pass for a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tianji_mw import plugins
from tianji_mw.compose.reasons import first_line
from tianji_mw.config.values import as_switch
from tianji_mw.errors import ConfigError, SetupError
from tianji_mw.guardrails.base import Guardrail
from tianji_mw.guardrails.entry import Entry, FailOpen

if TYPE_CHECKING:
    from tianji_mw.config.blocks import GuardrailSettings
    from tianji_mw.config.settings import Settings

#: LiteLLM's names where ours differ.
ALIASES: Final[Mapping[str, str]] = {
    "azure/prompt_shield": "azure_prompt_shield",
    "azure/text_moderations": "azure_text_moderation",
    "azure/text_moderation": "azure_text_moderation",
    "generic_guardrail_api": "generic",
    "hide-secrets": "secret_leak",
    "hide_secrets": "secret_leak",
    "lakera_v2": "lakera",
    "litellm_content_filter": "content_filter",
    "openai_moderation": "moderation",
}
_MAX_RETRIES: Final = 5


def entries_of(settings: Settings, env: Mapping[str, str], problems: list[ConfigError]) -> list[Entry]:
    """One entry for each of the config; what is wrong is added to `problems`."""
    entries: list[Entry] = []
    for index, entry in enumerate(settings.guardrails):
        where = ("guardrails", index, "params", "guardrail")
        try:
            entries.append(_entry(settings, entry, index, env))
        except ConfigError as error:
            problems.append(error)
        except SetupError as error:
            problems.append(settings.error(error.message, *where))
        except (TypeError, ValueError) as error:
            problems.append(settings.error(f"the guardrail refuses its options: {first_line(error)}", *where))
        if entries and entries[-1].name in {other.name for other in entries[:-1]}:
            problems.append(settings.error("another guardrail has this name", "guardrails", index, "name"))
    return entries


def _entry(settings: Settings, entry: GuardrailSettings, index: int, env: Mapping[str, str]) -> Entry:
    options = dict(entry.options)
    fail_open = _fail_open(settings, options, index)
    retries = _number(settings, options.pop("num_retries", 0), index, "num_retries")
    dry_run = as_switch(options.pop("dry_run", False))
    if not isinstance(dry_run, bool):
        raise settings.error("expected true or false", "guardrails", index, "params", "dry_run")
    release = options.pop("release", None)
    if options.pop("streaming_buffer_until_moderated", None) is True:
        release = release or "whole"
    if release not in (None, "audit", "window", "whole"):
        raise settings.error("must be audit, window or whole", "guardrails", index, "params", "release")
    if "timeout" in options:
        options["timeout_s"] = options.pop("timeout")
    kind = plugins.find("guardrails", ALIASES.get(entry.guardrail, entry.guardrail), Guardrail)
    given = {kind.aliases.get(name, name) for name, value in options.items() if value is not None}
    for field, variables in kind.env_fields.items():
        found = next((env[name] for name in variables if env.get(name)), "")
        if found and field not in given:
            options[field] = found
    return Entry(
        check=kind(mode=entry.mode, **options),
        name=entry.name,
        always=entry.default_on,
        fail_open=fail_open,
        retries=retries,
        release=release,
        dry_run=dry_run or set(entry.mode) == {"logging_only"},
    )


def _fail_open(settings: Settings, options: dict[str, Any], index: int) -> FailOpen:
    """LiteLLM's `unreachable_fallback` and `fail_on_error`, and the Go port's `failure_policy`."""
    chosen: FailOpen = "never"
    for name, meaning in (("unreachable_fallback", "unreachable"), ("failure_policy", "always")):
        value = options.pop(name, None)
        if value not in (None, "", "fail_open", "fail_closed"):
            raise settings.error("must be fail_open or fail_closed", "guardrails", index, "params", name)
        if value == "fail_open":
            chosen = "always" if meaning == "always" or chosen == "always" else "unreachable"
    on_error = as_switch(options.pop("fail_on_error", True))
    if not isinstance(on_error, bool):
        raise settings.error("expected true or false", "guardrails", index, "params", "fail_on_error")
    return chosen if on_error else "always"


def _number(settings: Settings, value: object, index: int, name: str) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MAX_RETRIES:
        raise settings.error(f"expected a whole number from 0 to {_MAX_RETRIES}", "guardrails", index, "params", name)
    return value
