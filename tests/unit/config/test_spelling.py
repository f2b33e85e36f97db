"""Both spellings of every block, and what happens when they disagree."""

from __future__ import annotations

import pytest

from tianji_mw.config import from_dict, loads
from tianji_mw.errors import ConfigErrors


@pytest.mark.parametrize("params", ["litellm_params", "tianji_params", "params"])
@pytest.mark.parametrize("block", ["litellm_settings", "tianji_settings", "settings"])
def test_every_spelling_gives_the_same_settings(params: str, block: str) -> None:
    settings = from_dict(
        {
            "model_list": [{"model_name": "m", params: {"model": "openai/x", "base_url": "http://h/v1"}}],
            block: {"drop_params": True},
            "router_settings": {f"default_{params}": {"timeout": 5}},
            "keys": [{"key": "sk-1", "key_alias": "ci", "team_id": "t", "user_id": "u"}],
        },
        env={},
    )
    assert settings.model_list[0].params.api_base == "http://h/v1"
    assert settings.model_list[0].params.timeout == 5
    assert settings.settings.drop_params
    key = settings.virtual_keys[0]
    assert (key.alias, key.team, key.user) == ("ci", "t", "u")
    assert settings.notices == ()


def test_two_spellings_that_agree_or_complete_each_other_are_fine() -> None:
    settings = loads(
        """
litellm_settings: {drop_params: true, json_logs: true}
tianji_settings: {drop_params: true, request_timeout: 30}
""",
        env={},
    )
    assert (settings.settings.drop_params, settings.settings.json_logs) == (True, True)
    assert settings.settings.request_timeout == 30


@pytest.mark.parametrize(
    ("text", "line", "key", "other"),
    [
        ("litellm_settings: {drop_params: true}\ntianji_settings: {drop_params: false}",
         2, "tianji_settings.drop_params", "litellm_settings.drop_params in f.yaml:1"),
        ("litellm_settings: {drop_params: true}\ntianji_settings: {drop_params: 1}",
         2, "tianji_settings.drop_params", "litellm_settings.drop_params in f.yaml:1"),
        ("model_list:\n- model_name: m\n  litellm_params: {model: a/b}\n  tianji_params: {model: a/c}",
         4, "model_list[0].tianji_params.model", "model_list[0].litellm_params.model in f.yaml:3"),
        ("model_list:\n- model_name: m\n  litellm_params:\n    model: a/b\n    api_base: http://a\n    base_url: http://b",
         6, "model_list[0].litellm_params.base_url", "model_list[0].litellm_params.api_base in f.yaml:5"),
        ("virtual_keys:\n- {key: sk-1}\nkeys: []", 3, "keys", "virtual_keys in f.yaml:1"),
        ("guardrails: []\ngeneral_settings:\n  guardrails: [1]", 3, "general_settings.guardrails",
         "guardrails in f.yaml:1"),
    ],
)  # fmt: skip
def test_two_spellings_that_disagree_name_both_places(text: str, line: int, key: str, other: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, file="f.yaml", env={})
    error = caught.value.errors[0]
    assert (error.file, error.line, error.key) == ("f.yaml", line, key)
    assert other in error.reason


def test_guardrails_are_also_read_from_general_settings_and_go_keeps_default_on_outside() -> None:
    settings = from_dict(
        {
            "general_settings": {
                "guardrails": [
                    {
                        "guardrail_name": "g",
                        "default_on": True,
                        "tianji_params": {"guardrail": "my.Class", "mode": "PRE_CALL"},
                    }
                ]
            }
        },
        env={},
    )
    guardrail = settings.guardrails[0]
    assert (guardrail.default_on, guardrail.mode, guardrail.is_custom) == (True, ("pre_call",), True)
    assert settings.notices == ()


@pytest.mark.parametrize("name", ["simple-shuffle", "shuffle", "weighted", "Simple-Shuffle", "lowest-latency"])
def test_strategies_keep_the_name_they_were_given(name: str) -> None:
    settings = from_dict({"router_settings": {"routing_strategy": name}}, env={})
    assert settings.router_settings.routing_strategy == name.lower()
    assert settings.notices == ()


def test_other_known_strategies_are_reported_by_name() -> None:
    settings = loads("router_settings:\n  routing_strategy: quality-router\n", file="f.yaml", env={})
    (notice,) = settings.notices
    assert (notice.level, notice.line, notice.key) == ("not_implemented", 2, "router_settings.routing_strategy")
    assert "quality-router" in notice.hint
    assert settings.router_settings.routing_strategy == "adaptive"


def test_model_group_alias_in_both_forms() -> None:
    aliases = {"gpt-4": "gpt-4o", "old": {"model": "gpt-4o", "hidden": True}}
    found = from_dict({"router_settings": {"model_group_alias": aliases}}, env={}).router_settings.model_group_alias
    assert (found["gpt-4"].model, found["gpt-4"].hidden, found["old"].hidden) == ("gpt-4o", False, True)
