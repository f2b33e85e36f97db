# ruff: noqa: E501
"""Wrong configurations: each is refused, or reported, with file, line, key and what to do."""

from __future__ import annotations

import pytest

from tianji_mw.config import loads
from tianji_mw.errors import ConfigErrors

MODEL = "model_list:\n- model_name: m\n  litellm_params:\n    model: openai/x\n"

#: text, line, key, words of the message, words of the hint
ERRORS = [
    # YAML itself
    ("- a\n- b", 1, "", "a configuration is a mapping, this is a list", ""),
    ("just text", 1, "", "a mapping, this is text", ""),
    ("a: 1\na: 2", 2, "a", "the same key stands twice, first in f.yaml:1", ""),
    ("general_settings:\n  grace_s: 1\n\n  grace_s: 1", 4, "general_settings.grace_s", "twice, first in f.yaml:2", ""),
    ("router_settings:\n  model_group_alias:\n    4: x", 3, "router_settings.model_group_alias", "key must be text", "quotes"),
    ("router_settings:\n  model_group_alias:\n    on: x", 3, "router_settings.model_group_alias", "key must be text", "quotes"),
    ("? [a]\n: b", 1, "", "every key must be text", ""),
    ("a: !!python/name:os.system x", 1, "a", "cannot be read", "in quotes"),
    ("a: !thing {b: c}", 1, "a", "YAML tags are not supported", ""),
    ("a: *b", 1, "a", "an alias (*) to an anchor (&)", ""),
    ("a: 1\n---\nb: 2", 2, "", "a second YAML document", "include"),
    ("a:\n  <<: 5", 2, "a.<<", "merges mappings only", ""),
    # wrong types
    ("model_list: {}", 1, "model_list", "expected a list, got a mapping", ""),
    ("model_list:\n- text", 2, "model_list[0]", "expected a mapping, got text", ""),
    ("litellm_settings: [a]", 1, "litellm_settings", "expected a mapping, got a list", ""),
    ("general_settings: 5", 1, "general_settings", "expected a mapping, got a number", ""),
    ("environment_variables: [a]", 1, "environment_variables", "expected a mapping, got a list", ""),
    ("environment_variables:\n  A: [b]", 2, "environment_variables.A", "expected text, got a list", ""),
    ("environment_variables:\n  A=: b", 2, "environment_variables.A=", "cannot be the name of a variable", ""),
    ("litellm_settings:\n  drop_params: maybe", 2, "litellm_settings.drop_params", "expected true or false, got other text", ""),
    ("litellm_settings:\n  ssl_verify: 5", 2, "litellm_settings.ssl_verify", "expected true or false or text, got a number", ""),
    ("litellm_settings:\n  request_timeout: soon", 2, "litellm_settings.request_timeout", "expected a number, got other text", ""),
    ("litellm_settings:\n  request_timeout: true", 2, "litellm_settings.request_timeout", "expected a number, got true/false", ""),
    ("litellm_settings:\n  request_timeout: 0", 2, "litellm_settings.request_timeout", "must be above 0", ""),
    ("general_settings:\n  grace_s: -1", 2, "general_settings.grace_s", "must be at least 0", ""),
    ("general_settings:\n  grace_s: .inf", 2, "general_settings.grace_s", "expected a finite number", ""),
    ("general_settings:\n  max_connections: 0", 2, "general_settings.max_connections", "must be at least 1", ""),
    ("general_settings:\n  max_headers: 1.5", 2, "general_settings.max_headers", "expected a whole number", ""),
    ("general_settings:\n  max_request_size_mb: 0", 2, "general_settings.max_request_size_mb", "must be above 0", ""),
    ("general_settings:\n  providers: {x: 5}", 2, "general_settings.providers.x", "expected a mapping, got a number", ""),
    ("general_settings:\n  master_key: 1234567", 2, "general_settings.master_key", "expected text, got a number", "quotes"),
    ("general_settings:\n  master_key: ''", 2, "general_settings.master_key", "the secret is empty", ""),
    ("general_settings:\n  master_key: 'sk-a b '", 2, "general_settings.master_key", "spaces around it", ""),
    ('general_settings:\n  master_key: "sk\\nx"', 2, "general_settings.master_key", "line break", ""),
    ("litellm_settings:\n  success_callback: [[s3]]", 2, "litellm_settings.success_callback[0]", "expected text, got a list", ""),
    # deployments
    ("model_list:\n- litellm_params: {model: a/b}", 2, "model_list[0].model_name", "required key is missing", ""),
    ("model_list:\n- model_name: m", 2, "model_list[0].litellm_params", "required key is missing", ""),
    ("model_list:\n- model_name: m\n  tianji_params:\n    api_key: k", 3, "model_list[0].tianji_params.model", "missing", ""),
    ("model_list:\n- model_name: m\n  litellm_params: x", 3, "model_list[0].litellm_params", "expected a mapping, got text", ""),
    ("model_list:\n- {model_name: '', litellm_params: {model: a/b}}", 2, "model_list[0].model_name", "must not be empty", ""),
    (MODEL.replace(" m\n", " 4\n"), 2, "model_list[0].model_name", "expected text, got a number", "quotes"),
    (MODEL + "    weight: -2", 5, "model_list[0].litellm_params.weight", "must be at least 0", ""),
    (MODEL + "    api_base: example.com/v1", 5, "model_list[0].litellm_params.api_base", "an address such as", ""),
    (MODEL + "    api_base: 'http://h:x/'", 5, "model_list[0].litellm_params.api_base", "an address such as", ""),
    (MODEL + "    temperature: hot", 5, "model_list[0].litellm_params.temperature", "expected a number, got text", ""),
    (MODEL + "    max_tokens: 1.5", 5, "model_list[0].litellm_params.max_tokens", "expected a whole number", ""),
    (MODEL + "    stream: often", 5, "model_list[0].litellm_params.stream", "expected true or false", ""),
    (MODEL + "    extra_headers: {x-a: 5}", 5, "model_list[0].litellm_params.extra_headers.x-a", "expected text", "quotes"),
    (MODEL + "    headers: {'a b': c}", 5, "model_list[0].litellm_params.headers", "the name of a header", ""),
    (MODEL + '    headers: {a: "b\\r\\nc: d"}', 5, "model_list[0].litellm_params.headers.a", "line break", ""),
    (MODEL + "    additional_drop_params: seed", 5, "model_list[0].litellm_params.additional_drop_params", "expected a list", ""),
    (MODEL + "    litellm_credential_name: prd\ncredential_list:\n- {credential_name: prod, credential_values: {}}",
     5, "model_list[0].litellm_params.litellm_credential_name", "no credential of this name", "did you mean 'prod'?"),
    ("credential_list:\n- {credential_name: a, credential_values: {}}\n- {credential_name: a, credential_values: {}}",
     3, "credential_list[1].credential_name", "stands twice, first in f.yaml:2", ""),
    ("model_list:\n" + "- {model_name: m, litellm_params: {model: a/b}, model_info: {id: 1}}\n" * 2,
     3, "model_list[1].model_info.id", "the other one is in f.yaml:2", ""),
    # routing, guardrails, keys
    ("router_settings:\n  routing_strategy: simple-shufle", 2, "router_settings.routing_strategy", "no such routing strategy",
     "did you mean 'simple-shuffle'?"),
    ("router_settings:\n  model_group_alias: {a: 5}", 2, "router_settings.model_group_alias.a", "expected a mapping", ""),
    ("guardrails:\n- litellm_params: {guardrail: g, mode: pre_call}", 2, "guardrails[0].guardrail_name", "missing", ""),
    ("guardrails:\n- guardrail_name: g", 2, "guardrails[0].litellm_params", "required key is missing", ""),
    ("guardrails:\n- guardrail_name: g\n  litellm_params:\n    guardrail: g", 3, "guardrails[0].litellm_params.mode", "missing", ""),
    ("guardrails:\n- guardrail_name: g\n  litellm_params: {guardrail: g, mode: precall}", 3,
     "guardrails[0].litellm_params.mode", "must be one of", "did you mean 'pre_call'?"),
    ("guardrails:\n- guardrail_name: g\n  litellm_params: {guardrail: g, mode: []}", 3,
     "guardrails[0].litellm_params.mode", "at least one", ""),
    ("guardrails:\n- guardrail_name: g\n  litellm_params: {guardrail: g, mode: {tags: {}}}", 3,
     "guardrails[0].litellm_params.mode", "at least one", "`tags` and `default`"),
    ("virtual_keys:\n- {alias: a}", 2, "virtual_keys[0]", "either `key` or `key_sha256`", ""),
    ("virtual_keys:\n- {key: sk-a, key_sha256: " + "ab" * 32 + "}", 2, "virtual_keys[0]", "one of the two", ""),
    ("virtual_keys:\n- {key_sha256: abc}", 2, "virtual_keys[0].key_sha256", "64 hexadecimal digits", ""),
    ("virtual_keys:\n- {key: sk-a, expires: tomorrow}", 2, "virtual_keys[0].expires", "a date and time such as", ""),
    ("virtual_keys:\n- {key: sk-a, expires: 1700000000}", 2, "virtual_keys[0].expires", "a date and time such as", ""),
    ("virtual_keys:\n- {key: sk-a}\n- {key: sk-a}", 3, "virtual_keys[1].key", "stands twice, first in f.yaml:2", ""),
    ("virtual_keys:\n- {key: sk-a, models: gpt-4}", 2, "virtual_keys[0].models", "expected a list, got text", ""),
]  # fmt: skip

#: text, level, line, key, words of the hint
NOTICES = [
    ("litellm_setings: {}", "unknown", 1, "litellm_setings", "did you mean 'litellm_settings'?"),
    ("modellist: []", "unknown", 1, "modellist", "did you mean 'model_list'?"),
    ("qwertz: 1", "unknown", 1, "qwertz", ""),
    ("master_key: sk-a", "unknown", 1, "master_key", "belongs in general_settings"),
    ("general_settings:\n  model_list: []", "unknown", 2, "general_settings.model_list", "top level"),
    ("general_settings:\n  maser_key: sk-a", "unknown", 2, "general_settings.maser_key", "did you mean 'master_key'?"),
    ("general_settings:\n  drop_params: true", "unknown", 2, "general_settings.drop_params", "belongs in litellm_settings"),
    ("general_settings:\n  database_url: x", "not_implemented", 2, "general_settings.database_url", ""),
    ("general_settings:\n  allowed_ips: []", "not_implemented", 2, "general_settings.allowed_ips", "not enforced"),
    ("router_settings:\n  client_ttl: 1", "not_implemented", 2, "router_settings.client_ttl", ""),
    ("router_settings:\n  default_litellm_params:\n    rpd: 1", "not_implemented", 3,
     "router_settings.default_litellm_params.rpd", ""),
    (MODEL + "    mirror_percent: 1", "not_implemented", 5, "model_list[0].litellm_params.mirror_percent", ""),
    (MODEL + "    api_kye: k", "unknown", 5, "model_list[0].litellm_params.api_kye", "did you mean 'api_key'?"),
    (MODEL + "    temprature: 1", "unknown", 5, "model_list[0].litellm_params.temprature", "did you mean 'temperature'?"),
    (MODEL + "  model_info:\n    mode: chatt", "unknown", 6, "model_list[0].model_info.mode", "did you mean 'chat'?"),
    (MODEL + "  model_info:\n    tier: free", "not_implemented", 6, "model_list[0].model_info.tier", ""),
    (MODEL + "  model_nfo: {}", "unknown", 5, "model_list[0].model_nfo", "did you mean 'model_info'?"),
    ("virtual_keys:\n- {key: sk-a, blocked: true}", "not_implemented", 2, "virtual_keys[0].blocked", "not enforced"),
    ("virtual_keys:\n- {key: sk-a, modells: []}", "unknown", 2, "virtual_keys[0].modells", "did you mean 'models'?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "key", "message", "hint"), ERRORS)
def test_refused(text: str, line: int, key: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, file="f.yaml", env={})
    (error,) = caught.value.errors
    assert (error.file, error.line, error.key) == ("f.yaml", line, key)
    assert message in error.reason
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)
    assert not any(jargon in str(error) for jargon in ("validation", "pydantic", "type=", "input_value", "instance"))


@pytest.mark.parametrize(("text", "level", "line", "key", "hint"), NOTICES)
def test_reported(text: str, level: str, line: int, key: str, hint: str) -> None:
    (notice,) = loads(text, file="f.yaml", env={}).notices
    assert (notice.level, notice.file, notice.line, notice.key) == (level, "f.yaml", line, key)
    assert hint in notice.hint
    assert f"f.yaml:{line}: {key}" in str(notice)
    with pytest.raises(ConfigErrors) as caught:
        loads(text, file="f.yaml", env={}, strict=True)
    assert str(caught.value) == str(notice)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a: b\n c: d", 2, 3), ("a:\n\t- b", 2, 1), ("a: 1\nb: @x", 2, 4)],
)
def test_broken_yaml_names_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, file="f.yaml", env={})
    assert str(caught.value).startswith(f"f.yaml:{line}:{column}: not valid YAML: ")


def test_all_errors_of_a_file_come_together_in_its_order() -> None:
    text = """
general_settings: {grace_s: x, master_key: os.environ/NOPE}
model_list:
- model_name: m
- model_name: 5
  litellm_params: {model: a/b, weight: heavy}
litellm_settings:
  drop_params: 7
  drop_params: 8
guardrails: [{guardrail_name: g, litellm_params: {guardrail: g, mode: never}}]
"""
    with pytest.raises(ConfigErrors) as caught:
        loads(text, file="f.yaml", env={})
    assert [e.line for e in caught.value.errors] == [2, 2, 4, 5, 6, 8, 9, 10]
    assert str(caught.value).count("\n") == 7


def test_a_provider_key_of_its_own_is_no_news() -> None:
    settings = loads(MODEL + "    aws_region_name: eu\n    my_own_thing: 1", env={})
    assert settings.model_list[0].params.extra == {"aws_region_name": "eu", "my_own_thing": 1}
    assert settings.notices == ()
