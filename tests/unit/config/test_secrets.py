"""A secret of the configuration appears in no representation of anything, right or wrong."""

from __future__ import annotations

import copy
import json
import logging
import traceback

import pytest

from tianji_mw.config import Params, Settings, from_dict, loads, reveal
from tianji_mw.config.values import is_secret_name
from tianji_mw.errors import ConfigErrors
from tianji_mw.redact import MASK, Secret

CANARY = "CANARY-5f2c"

EVERYWHERE = """
environment_variables: {PLAIN: CANARY-5f2c-a, FROM: "${SECRET}"}
model_list:
- model_name: m
  litellm_params:
    model: openai/x
    api_key: CANARY-5f2c-b
    api_base: https://user:CANARY-5f2c@h.example/v1?key=CANARY-5f2c
    azure_ad_token: $SECRET
    client_secret: CANARY-5f2c-c
    extra_headers: {authorization: Bearer CANARY-5f2c, x-plain: "a${SECRET}b", X-Api-Key: CANARY-5f2c, x-open: hello}
    headers: {cookie: CANARY-5f2c}
    extra_body: {password: CANARY-5f2c, deep: [{x: "${SECRET}"}]}
    user: os.environ/SECRET
    metadata: {token: CANARY-5f2c}
    aws_secret_access_key: CANARY-5f2c-d
    vertex_credentials: {private_key: CANARY-5f2c, client_email: a@b}
    my_thing: $SECRET
    api_kye: CANARY-5f2c-e
  model_info: {id: one}
credential_list:
- credential_name: c
  credential_values: {api_key: CANARY-5f2c-f, deep: {password: CANARY-5f2c}}
  credential_info: {from: $SECRET}
router_settings: {default_litellm_params: {api_key: CANARY-5f2c-g}}
general_settings:
  master_key: CANARY-5f2c-h
  database_url: postgresql://u:CANARY-5f2c@h/db
  providers: {own: {base_url: "http://h", headers: {Authorization: CANARY-5f2c}, api_key: CANARY-5f2c, note: $SECRET}}
guardrails:
- guardrail_name: g
  litellm_params: {guardrail: g, mode: pre_call, api_key: CANARY-5f2c-i, deep: {token: CANARY-5f2c}, other: $SECRET}
virtual_keys:
- {key: CANARY-5f2c-j, alias: a, metadata: {secret: CANARY-5f2c, x: $SECRET}}
cache_params: {password: CANARY-5f2c}
unknown_block: {api_key: CANARY-5f2c}
"""
ENV = {"SECRET": f"{CANARY}-env"}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return loads(EVERYWHERE, file="f.yaml", env=ENV)


def test_no_representation_shows_one(settings: Settings) -> None:
    shown = [
        repr(settings), str(settings), f"{settings}", str(settings.model_dump()),
        str(settings.model_dump(mode="json")),
        settings.model_dump_json(), str(settings.normalised()),
        json.dumps(settings.normalised()), str(settings.notices),
        repr(settings._places), repr(list(settings)), str(vars(settings)["model_list"][0].params.extra),
        repr(copy.deepcopy(settings)),
        *(str(n) for n in settings.notices), repr(settings.model_list[0].params.extra), str(settings.environment),
    ]  # fmt: skip
    assert [text for text in shown if CANARY in text] == []
    assert len(shown) > 10


def test_the_values_are_there(settings: Settings) -> None:
    params = settings.model_list[0].params
    assert isinstance(params.extra_headers["authorization"], Secret)
    assert isinstance(params.extra_headers["x-plain"], Secret)
    assert reveal(params.extra_headers["x-plain"]) == f"a{CANARY}-envb"
    assert params.extra_headers["x-open"] == "hello"
    assert params.extra_body == {"password": CANARY, "deep": [{"x": f"{CANARY}-env"}]}
    assert params.defaults["user"] == f"{CANARY}-env"
    assert isinstance(params.extra["aws_secret_access_key"], Secret)
    assert isinstance(params.extra["api_kye"], Secret)
    assert params.extra["my_thing"] == f"{CANARY}-env"
    assert reveal(params.extra["vertex_credentials"]) == {"private_key": CANARY, "client_email": "a@b"}
    assert params.api_base == f"https://user:{CANARY}@h.example/v1?key={CANARY}"
    assert settings.normalised()["model_list"][0]["params"]["api_base"] == "https://h.example/v1"
    assert settings.normalised()["general_settings"]["master_key"] == MASK
    assert isinstance(settings.guardrails[0].options["api_key"], Secret)


@pytest.mark.parametrize(
    "text",
    [
        f"general_settings: {{master_key: {{{CANARY}: 1}}}}".replace(f"{{{CANARY}: 1}}", f"[{CANARY}]"),
        f"general_settings: {{grace_s: {CANARY}}}",
        f"model_list: {CANARY}",
        f"model_list: [{CANARY}]",
        f"model_list: [{{model_name: m, litellm_params: {CANARY}}}]",
        f"router_settings: {{routing_strategy: {CANARY}}}",
        f"virtual_keys: [{{key: {CANARY}}}, {{key: {CANARY}}}]",
        f"virtual_keys: [{{key_sha256: {CANARY}, expires: {CANARY}}}]",
        f"guardrails: [{{guardrail_name: g, litellm_params: {{guardrail: g, mode: {CANARY}}}}}]",
        f"litellm_settings: {{drop_params: {CANARY}}}\ntianji_settings: {{drop_params: {CANARY}x}}",
        f"general_settings: {{master_key: '{CANARY}",
        f"general_settings: {{master_key: !x {CANARY}}}",
        f"general_settings: {{master_key: '${CANARY.lower().replace('-', '')}'}}",
        f"model_list: [{{model_name: m, litellm_params: {{model: a/b, api_base: {CANARY}, weight: {CANARY}}}}}]",
        f"model_list: [{{model_name: m, litellm_params: {{model: a/b, headers: {{a: \"{CANARY}\\n\"}}}}}}]",
        f"model_list: [{{model_name: m, litellm_params: {{model: a/b, n: {CANARY}}}}}]",
        f"model_list: [{{model_name: m, litellm_params: {{model: a/b, credential_name: {CANARY}}}}}]",
        f"general_settings: {{master_key: '{CANARY} '}}",
    ],
)  # fmt: skip
def test_no_error_shows_one(text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, env={})
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(caught.value.errors)
    for form in (CANARY, CANARY.lower().replace("-", "")):
        assert form not in shown.replace(text, "")


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        loads(EVERYWHERE, env=ENV)
    assert caplog.records == []


def test_blocks_built_in_code_protect_too() -> None:
    params = Params(model="a/b", api_key=CANARY, extra={"token": CANARY}, headers={"Authorization": CANARY})  # type: ignore[arg-type]
    assert CANARY not in repr(params)
    assert CANARY not in params.model_dump_json()


def test_from_dict_takes_secrets() -> None:
    key = Secret(CANARY)
    settings = from_dict({"general_settings": {"master_key": key}, "virtual_keys": [{"key": key}]}, env={})
    assert settings.general_settings.master_key == key


@pytest.mark.parametrize(
    ("name", "secret"),
    [("api_key", True), ("x-api-key", True), ("X-Goog-Api-Key", True), ("client_secret", True), ("apiKey", True),
     ("vertex_credentials", True), ("Authorization", True), ("password", True), ("aws_session_token", True),
     ("dsn", True),
     ("webhook_url", True), ("clientSecret", True),
     ("max_tokens", False), ("keyword", False), ("public_key", False), ("api_key_env", False), ("monkey", False),
     ("tokenizer", False), ("author", False), ("keys", False), ("aws_access_key_id", False)],
)  # fmt: skip
def test_which_names_are_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret
