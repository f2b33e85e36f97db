"""LiteLLM's whole configuration: no key disappears, every notice has the line of its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tianji_mw.config import Settings, load
from tianji_mw.errors import ConfigErrors

FULL = Path(__file__).with_name("full.yaml")
ENV = {"AZURE_API_KEY": "sk-azure-0001", "AZ": "sk-azure-0002", "GATEWAY_MASTER_KEY": "sk-master-0001"}

#: First part of a written path -> where it is found in canonical settings.
RENAMED = {
    "litellm_settings": "settings",
    "environment_variables": "environment",
    "litellm_params": "params",
    "litellm_credential_name": "credential_name",
}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(FULL, env=ENV)


def leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in leaves(v, f"{path}.{k}" if path else k)]
    if isinstance(value, list) and value:
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, f"{path}[{i}]")]
    return [path]


def present(settings: Settings, path: str) -> bool:
    """Whether the leaf `path`, as written, has a value in the settings."""
    value: Any = settings
    parts = path.replace("[", ".[").split(".")
    if parts[0] == "guardrails":
        parts = [p for p in parts if p != "litellm_params"]
    for part in parts:
        if part.startswith("["):
            value = value[int(part[1:-1])]
            continue
        name = {"guardrail_name": "name"}.get(part, RENAMED.get(part, part))
        if isinstance(value, dict):
            if name not in value:
                return False
            value = value[name]
        elif hasattr(value, name):
            value = getattr(value, name)
        elif name in getattr(value, "options", {}):
            value = value.options[name]
        else:
            return False
    return True


def moved(settings: Settings, path: str) -> bool:
    """Whether it has a value as a routing key, which LiteLLM also reads in other blocks."""
    block, _, rest = path.partition(".")
    return block in ("litellm_settings", "general_settings") and present(settings, f"router_settings.{rest}")


#: The stores of secrets are opened before the rest is validated.
TAKEN_OUT = ("general_settings.key_management_", "general_settings.use_azure_key_vault", "secret_manager")


def test_no_key_disappears(settings: Settings) -> None:
    written = leaves(yaml.safe_load(FULL.read_text()))
    reported = {n.key for n in settings.notices if n.file == str(FULL)}
    lost = [
        path
        for path in written
        if not path.startswith(("include", *TAKEN_OUT))
        and not present(settings, path)
        and not moved(settings, path)
        and not any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in reported)
    ]
    assert len(written) > 150
    assert lost == []


def test_every_notice_has_the_line_of_its_key(settings: Settings) -> None:
    for notice in settings.notices:
        assert notice.line is not None
        line = Path(notice.file).read_text().splitlines()[notice.line - 1]
        assert notice.key.rsplit(".", 1)[-1] in line
        assert notice.level == ("no_effect" if notice.key.endswith("max_retries") else "not_implemented")


def test_nothing_reported_is_also_implemented(settings: Settings) -> None:
    # Of two keys that mean the same, one has no effect; the field is there, and empty.
    unset = {n.key for n in settings.notices if n.level == "no_effect"}
    assert unset == {"model_list[0].litellm_params.max_retries"}
    assert settings.model_list[0].params.max_retries is None
    keys = [n.key for n in settings.notices if n.file == str(FULL) and n.key not in unset]
    assert [key for key in keys if present(settings, key)] == []


def test_values_arrive_typed(settings: Settings) -> None:
    first, second = settings.model_list
    assert (first.model_name, first.params.model) == ("chat-main", "azure/my-deployment")
    assert (first.params.weight, first.params.rpm, first.params.timeout) == (2, 600, 60)
    assert first.params.api_key is not None
    assert first.params.api_key.reveal() == "sk-azure-0001"  # the deployment's own key wins over the credential's
    assert first.model_info.id == "stable-id-1"
    assert (first.file, first.line) == (str(FULL), 5)
    assert (second.model_name, second.line) == ("chat-b", 2)
    assert settings.general_settings.max_body_bytes == 20 << 20
    assert settings.general_settings.answer_limit_bytes == 20 << 20
    assert settings.environment["REDIS_HOST"].reveal() == "cache"
    assert settings.guardrails[0].mode == ("pre_call", "post_call")


def test_strict_refuses_every_notice(settings: Settings) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(FULL, env=ENV, strict=True)
    assert [(e.file, e.line, e.key) for e in caught.value.errors] == [(n.file, n.line, n.key) for n in settings.notices]


def test_places_are_found_by_canonical_path(settings: Settings) -> None:
    place = settings.where("model_list", 0, "params", "model")
    assert (place.file, place.line, place.key) == (str(FULL), 7, "model_list[0].litellm_params.model")
    error = settings.error("no such provider", "model_list", 1, "params", "model", hint="did you mean 'openai'?")
    assert error.message.endswith(
        "models.yaml:3: model_list[0].tianji_params.model: no such provider (did you mean 'openai'?)"
    )
    assert settings.where("guardrails", 7, "mode").key == "guardrails[7].mode"
