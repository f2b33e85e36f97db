"""References in every form; missing ones are listed together, with lines and without values."""

from __future__ import annotations

from typing import Any

import pytest

from tianji_mw.config import loads
from tianji_mw.config.values import Referenced
from tianji_mw.errors import ConfigErrors, UnresolvedReference
from tianji_mw.redact import Secret

ENV = {
    "KEY": "sk-env-000001",
    "HOST": "h.example",
    "N": "3",
    "ON": "true",
    "EMPTY": "",
    "FILE": "sk-file-1\n",
    "low": "x",
}


def organization(text: str, **env: str) -> str | None:
    params = f"{{model: openai/x, organization: {text}}}"
    return (
        loads(f"model_list: [{{model_name: m, litellm_params: {params}}}]", env=ENV | env)
        .model_list[0]
        .params.organization
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("os.environ/HOST", "h.example"),
        ('"${HOST}"', "h.example"),
        ("$HOST", "h.example"),
        ("$low", "x"),
        ('"${NONE:-fallback}"', "fallback"),
        ('"${EMPTY:-fallback}"', "fallback"),
        ('"${HOST:-fallback}"', "h.example"),
        ('"a ${HOST} b ${N} c"', "a h.example b 3 c"),
        ("Bearer os.environ/KEY", "Bearer sk-env-000001"),
        ("a/os.environ/KEY", "a/os.environ/KEY"),
        ("os.environ/FILE", "sk-file-1"),
        ('"$${HOST}"', "${HOST}"),
        ("$$HOST", "$HOST"),
        ("cost $5", "cost $5"),
        ('"$ {HOST}"', "$ {HOST}"),
    ],
)
def test_forms(text: str, value: str) -> None:
    assert organization(text) == value
    assert type(organization(text)) is str


def test_typed_fields_take_their_type() -> None:
    settings = loads(
        """
model_list:
- model_name: m
  litellm_params:
    model: openai/x
    weight: os.environ/N
    timeout: ${N}
    drop_params: $ON
    temperature: os.environ/N
    max_tokens: os.environ/N
    parallel_tool_calls: os.environ/ON
    additional_drop_params: ["${HOST}"]
    vertex_project: os.environ/N
general_settings: {max_connections: os.environ/N, always_include_stream_usage: os.environ/ON}
""",
        env=ENV,
    )
    params = settings.model_list[0].params
    assert (params.weight, params.timeout, params.drop_params) == (3.0, 3.0, True)
    assert params.defaults == {"temperature": 3.0, "max_tokens": 3, "parallel_tool_calls": True}
    assert params.additional_drop_params == ("h.example",)
    assert params.extra["vertex_project"] == "3"
    assert settings.general_settings.max_connections == 3
    assert settings.general_settings.always_include_stream_usage is True


def test_environment_variables_are_visible_and_returned_not_set() -> None:
    settings = loads(
        """
environment_variables: {A: plain, B: "${A}-${HOST}", PORT: 0o17, FLAG: true, PATH: "/x:${PATH:-none}"}
general_settings: {master_key: os.environ/B}
""",
        env=ENV,
    )
    found = {name: value.reveal() for name, value in settings.environment.items()}
    assert found == {"A": "plain", "B": "plain-h.example", "PORT": "0o17", "FLAG": "true", "PATH": "/x:none"}
    assert settings.general_settings.master_key == Secret("plain-h.example")


def test_missing_ones_are_listed_together() -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(
            """
model_list:
- model_name: m
  litellm_params:
    model: openai/x
    api_key: os.environ/NOT_SET_1
    extra_headers: {x-a: "t ${NOT_SET_2}"}
    weight: $NOT_SET_3
    api_version: os.environ/HOST
guardrails:
- guardrail_name: g
  litellm_params: {guardrail: g, mode: pre_call, words: [ok, "${NOT_SET_4}"]}
general_settings:
  master_key: os.environ/NOT_SET_5
  database_url: os.environ/NOT_NEEDED
""",
            file="f.yaml",
            env=ENV,
        )
    errors = caught.value.errors
    assert [(e.line, e.key) for e in errors] == [
        (6, "model_list[0].litellm_params.api_key"),
        (7, "model_list[0].litellm_params.extra_headers.x-a"),
        (8, "model_list[0].litellm_params.weight"),
        (12, "guardrails[0].litellm_params.words[1]"),
        (14, "general_settings.master_key"),
    ]
    assert all(isinstance(e, UnresolvedReference) and e.file == "f.yaml" for e in errors)
    assert all(f"NOT_SET_{n}" in e.message for n, e in enumerate(errors, 1))
    assert not any(value in str(caught.value) for value in ("sk-env", "h.example"))


def test_strict_env_false_leaves_provider_params_out_with_a_notice() -> None:
    text = """
model_list:
- model_name: m
  litellm_params: {model: openai/x, api_key: os.environ/GONE, headers: {x-a: $GONE, x-b: c}, aws_region_name: $GONE}
credential_list: [{credential_name: c, credential_values: {api_key: os.environ/GONE}}]
general_settings: {strict_env: %s, master_key: os.environ/KEY}
"""
    settings = loads(text % "false", env=ENV)
    params = settings.model_list[0].params
    assert (params.api_key, params.headers, params.extra) == (None, {"x-b": "c"}, {})
    assert {(n.level, n.line) for n in settings.notices} == {("unresolved", 4), ("unresolved", 5)}
    assert len(settings.notices) == 4
    with pytest.raises(ConfigErrors):
        loads(text % "false", env=ENV, strict=True)
    with pytest.raises(ConfigErrors) as caught:
        loads(text % "true", env=ENV)
    assert len(caught.value.errors) == 4
    with pytest.raises(ConfigErrors, match="master_key"):  # outside provider params nothing is lenient
        loads(text % "false", env={})


@pytest.mark.parametrize("reference", ["oidc/google/aud", "os.environ/oidc/x/y", "conjur://x", "aws_kms/x"])
def test_other_secret_managers_are_refused_by_name(reference: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(f"general_settings:\n  master_key: {reference}\n", file="f.yaml", env={})
    (error,) = caught.value.errors
    assert (error.file, error.line, error.key) == ("f.yaml", 2, "general_settings.master_key")
    assert "not implemented yet" in error.reason


@pytest.mark.parametrize("text", ['"${}"', '"${a b}"', '"${X"', '"${X-y}"', "os.environ/", "os.environ/a b"])
def test_malformed_references(text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        organization(text)
    assert "refer" in str(caught.value) or "name of a variable" in str(caught.value)


def test_a_password_that_begins_with_a_dollar_is_not_printed() -> None:
    with pytest.raises(ConfigErrors) as caught:
        organization("$ecretPassword")
    assert "ecretPassword" not in str(caught.value)
    assert "$$" in str(caught.value)


def test_a_reference_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert organization("$KEY", KEY="${HOST} os.environ/HOST") == "${HOST} os.environ/HOST"
    text = "general_settings: {strict_env: false}\nmodel_list: [{model_name: m, litellm_params: {model: '$${HOST}'}}]"
    assert loads(text, env=ENV).model_list[0].params.model == "${HOST}"


def test_referenced_text_is_text_with_a_masked_repr() -> None:
    value: Any = Referenced("abc")
    assert (value, f"{value}", value + "d", repr(value)) == ("abc", "abc", "abcd", "'********'")


@pytest.mark.parametrize("name", ["MASTER_KEY", "JSON_LOGS", "GRACE_S", "SSL_VERIFY"])
def test_overrides_from_the_process_environment(name: str) -> None:
    values = {"MASTER_KEY": "$literal", "JSON_LOGS": "1", "GRACE_S": "9", "SSL_VERIFY": "/ca.pem"}
    env = {f"TIANJI_{name}": values[name]}
    text = "general_settings: {master_key: sk-file, grace_s: 1}\nlitellm_settings: {json_logs: false}"
    settings = loads(text, env=env)
    key = settings.general_settings.master_key
    found = {
        "MASTER_KEY": key.reveal() if key else "",
        "JSON_LOGS": settings.settings.json_logs,
        "GRACE_S": settings.general_settings.grace_s,
        "SSL_VERIFY": settings.settings.ssl_verify,
    }
    wanted = {"MASTER_KEY": "sk-file", "JSON_LOGS": False, "GRACE_S": 1, "SSL_VERIFY": True}
    wanted[name] = {"JSON_LOGS": True, "GRACE_S": 9}.get(name, values[name])
    assert found == wanted


def test_a_wrong_override_names_the_variable() -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads("", env={"TIANJI_GRACE_S": "soon"})
    (error,) = caught.value.errors
    assert (error.file, error.key) == ("environment", "TIANJI_GRACE_S")
    assert loads("", env={"TIANJI_GRACE_S": ""}).general_settings.grace_s == 120
