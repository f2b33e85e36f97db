"""From the config's `guardrails` to entries of the layer: found by name, with their options and what a failure means.

A guardrail that cannot be found or built stops the start: a missing check must never pass for a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tianji_mw import plugins
from tianji_mw.compose.guardrail_policy import WrongPolicy, policy_of
from tianji_mw.compose.reasons import first_line
from tianji_mw.errors import ConfigError, SetupError
from tianji_mw.guardrails.base import Guardrail
from tianji_mw.guardrails.entry import Entry

if TYPE_CHECKING:
    from tianji_mw.config.blocks import GuardrailSettings
    from tianji_mw.config.settings import Settings

#: LiteLLM's names where ours differ.
ALIASES: Final[Mapping[str, str]] = {
    "azure/prompt_shield": "azure_prompt_shield",
    "azure/text_moderations": "azure_text_moderation",
    "azure/text_moderation": "azure_text_moderation",
    "detect_prompt_injection": "prompt_injection",
    "generic_guardrail_api": "generic",
    "hide-secrets": "secret_leak",
    "hide_secrets": "secret_leak",
    "lakera_v2": "lakera",
    "litellm_content_filter": "content_filter",
    "openai_moderation": "moderation",
}


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
    kind = plugins.find("guardrails", ALIASES.get(entry.guardrail, entry.guardrail), Guardrail)
    try:
        policy, options = policy_of(kind, entry.options, settings.settings.guardrail_defaults)
    except WrongPolicy as wrong:
        raise settings.error(wrong.reason, "guardrails", index, "params", wrong.key) from None
    if "timeout" in options:
        options["timeout_s"] = options.pop("timeout")
    given = {kind.aliases.get(name, name) for name, value in options.items() if value is not None}
    for field, variables in kind.env_fields.items():
        found = next((env[name] for name in variables if env.get(name)), "")
        if found and field not in given:
            options[field] = found
    if "folder" in kind.model_fields:  # files that it names are relative to the config
        options.setdefault("folder", Path(settings.where("guardrails", index).file).parent)
    return Entry(
        check=kind(mode=entry.mode, **options),
        name=entry.name,
        always=entry.default_on,
        modes_by_tag=entry.modes_by_tag,
        **policy.entry(),
    )


def by_model(settings: Settings, problems: list[ConfigError]) -> dict[str, list[str]]:
    """Guardrails that deployments name, by the model's name and its aliases. Also finds names that do not exist."""
    named: list[tuple[tuple[str | int, ...], tuple[str, ...]]] = []
    found: dict[str, list[str]] = {}
    for index, deployment in enumerate(settings.model_list):
        if names := deployment.params.guardrails:
            named.append((("model_list", index, "params", "guardrails"), names))
            found.setdefault(deployment.model_name, []).extend(names)
    for alias, target in settings.router_settings.model_group_alias.items():
        if target.model in found:
            found[alias] = found[target.model]
    named += [(("virtual_keys", at, "guardrails"), key.guardrails) for at, key in enumerate(settings.virtual_keys)]
    known = {entry.name for entry in settings.guardrails}
    for place, names in named:
        if unknown := set(names) - known:
            problems.append(settings.error(f"there is no guardrail {min(unknown)!r}", *place))
    return found
