"""`Settings` in code: defaults, immutability, JSON Schema, the printable form, keys and credentials."""

from __future__ import annotations

import doctest
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

import tianji_mw.config.settings
from tianji_mw.config import Settings, from_dict, loads
from tianji_mw.config.known import NOT_IMPLEMENTED
from tianji_mw.config.sift import IMPLEMENTED

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_an_empty_configuration_has_safe_defaults() -> None:
    for settings in (
        Settings(),
        loads("", env={}),
        from_dict({}, env={}),
        loads("model_list:\nlitellm_settings: ~\n", env={}),
    ):
        general = settings.general_settings
        assert (general.drain_delay_s, general.grace_s, general.flush_s) == (5, 120, 10)
        assert (general.header_timeout_s, general.max_header_bytes, general.max_headers) == (10, 16384, 100)
        assert (general.max_connections, general.max_body_bytes, general.strict_env) == (None, 32 << 20, True)
        assert settings.notices == ()
        assert settings.settings.ssl_verify is True


def test_settings_do_not_change_and_know_their_fields() -> None:
    with pytest.raises(ValidationError):
        Settings().model_list = ()  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(typo=1)  # type: ignore[call-arg]


def test_no_key_is_both_implemented_and_not() -> None:
    for block, names in NOT_IMPLEMENTED.items():
        assert names & IMPLEMENTED[block] == frozenset()
    assert NOT_IMPLEMENTED.keys() == IMPLEMENTED.keys()


def test_json_schema_and_printable_form() -> None:
    schema = Settings.model_json_schema()
    assert {"model_list", "general_settings", "virtual_keys"} <= schema["properties"].keys()
    assert "line" not in schema["$defs"]["Deployment"]["properties"]
    json.dumps(schema)
    settings = from_dict({"virtual_keys": [{"key": "sk-1", "expires": "2027-01-31"}]}, env={})
    assert json.loads(json.dumps(settings.normalised())) == settings.normalised()
    assert settings.normalised()["virtual_keys"][0]["expires"] == "2027-01-31T00:00:00Z"


def test_virtual_keys() -> None:
    digest = "AB" * 32
    settings = loads(
        f"""
virtual_keys:
- {{key: sk-1, alias: ci, models: ["chat-*"], tags: [a], metadata: {{x: 1}}, expires: 2027-01-31T12:00:00+02:00}}
- {{key_sha256: {digest}, team: t, expires: 2027-01-31 12:00:00}}
""",
        env={},
    )
    first, second = settings.virtual_keys
    assert (first.alias, first.models, first.tags, first.metadata) == ("ci", ("chat-*",), ("a",), {"x": 1})
    assert first.expires == datetime(2027, 1, 31, 10, tzinfo=UTC)
    assert (second.key, second.key_sha256, second.team) == (None, digest.lower(), "t")
    assert second.expires == datetime(2027, 1, 31, 12, tzinfo=UTC)


def test_credentials_and_default_params_fill_what_is_missing() -> None:
    settings = loads(
        """
model_list:
- {model_name: a, litellm_params: {model: azure/a, litellm_credential_name: prod, api_version: own}}
- {model_name: b, litellm_params: {model: openai/b, timeout: 9, temperature: 1}}
credential_list:
- credential_name: prod
  credential_values: {api_key: $K, api_version: theirs, base_url: "https://az.example"}
router_settings: {default_tianji_params: {timeout: 5, temperature: 0, aws_region_name: eu}}
""",
        env={"K": "sk-azure"},
    )
    a, b = (d.params for d in settings.model_list)
    assert a.api_key is not None
    assert (a.api_key.reveal(), a.api_version, a.api_base) == ("sk-azure", "own", "https://az.example")
    assert (a.timeout, a.defaults, a.extra) == (5, {"temperature": 0}, {"aws_region_name": "eu"})
    assert (b.timeout, b.defaults) == (9, {"temperature": 1})
    assert settings.router_settings.default_params.timeout == 5
    assert settings.credential_list[0].credential_name == "prod"


def test_wildcards_and_dates_written_without_quotes() -> None:
    settings = loads(
        'model_list: [{model_name: "anthropic/*", litellm_params: {model: "anthropic/*", api_version: 2024-10-21}}]',
        env={},
    )
    assert settings.model_list[0].model_name == "anthropic/*"
    assert settings.model_list[0].params.api_version == "2024-10-21"


def test_from_dict_refuses_what_yaml_cannot_say() -> None:
    from tianji_mw.errors import ConfigErrors

    with pytest.raises(ConfigErrors) as caught:
        from_dict({"model_list": [object()], "general_settings": {1: 2}, "guardrails": b"x"}, env={})
    assert {e.key for e in caught.value.errors} >= {"model_list[0]", "general_settings", "guardrails"}
    nested: dict[str, object] = {}
    nested["litellm_settings"] = nested
    with pytest.raises(ConfigErrors, match="nested deeper"):
        from_dict(nested, env={})


def test_docstrings_and_documentation_run() -> None:
    assert doctest.testmod(tianji_mw.config.settings).failed == 0
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        env = {name: "sk-value" for name in re.findall(r"[A-Z][A-Z0-9_]{2,}", block)}
        assert loads(block, env=env).notices == ()
