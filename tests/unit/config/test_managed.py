"""Secret managers in the configuration: LiteLLM's keys, several stores at once, and what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tianji_mw.config import Settings, loads
from tianji_mw.errors import ConfigErrors

DOCS = Path(__file__).parents[3] / "docs" / "secrets.md"
MASTER = "general_settings:\n  master_key: os.environ/MASTER\n"


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    (tmp_path / "MASTER").write_text("sk-from-the-manager\n")
    (tmp_path / "app").write_text('{"HOST": "https://h.example", "N": 30}')
    return tmp_path


def load(text: str, env: dict[str, str] | None = None, **options: Any) -> Settings:
    return loads(text, file="c.yaml", env=env or {}, **options)


def refused(text: str, env: dict[str, str] | None = None, **options: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(text, env, **options)
    return [error.message for error in caught.value.errors]


def managed(mounted: Path, more: str = "", key: str = "os.environ/MASTER") -> str:
    return (
        f"general_settings:\n  key_management_system: file\n"
        f"  key_management_settings: {{directory: {mounted}{more}}}\n  master_key: {key}\n"
    )


def master(settings: Settings) -> str:
    assert settings.general_settings.master_key is not None
    return settings.general_settings.master_key.reveal()


@pytest.mark.parametrize("key", ["os.environ/MASTER", "$MASTER", "${MASTER}", "${MASTER:-sk-default}"])
def test_the_manager_is_asked_before_the_environment(mounted: Path, key: str) -> None:
    assert master(load(managed(mounted, key=key), {"MASTER": "sk-env"})) == "sk-from-the-manager"


def test_what_it_does_not_have_comes_from_the_environment(mounted: Path) -> None:
    assert master(load(managed(mounted, key="os.environ/OTHER"), {"OTHER": "sk-env"})) == "sk-env"
    assert refused(managed(mounted, key="os.environ/OTHER")) == [
        "c.yaml:4: general_settings.master_key: file: OTHER: there is no such file"
    ]


def test_hosted_keys_are_the_only_ones_it_is_asked_for(mounted: Path) -> None:
    assert master(load(managed(mounted, ", hosted_keys: [OTHER]"), {"MASTER": "sk-env"})) == "sk-env"
    assert master(load(managed(mounted, ", hosted_keys: [MASTER]"), {"MASTER": "sk-env"})) == "sk-from-the-manager"
    assert "expected a list of names" in refused(managed(mounted, ", hosted_keys: MASTER"))[0]


def test_a_manager_that_is_only_written_to_is_not_read(mounted: Path) -> None:
    assert master(load(managed(mounted, ", access_mode: write_only"), {"MASTER": "sk-env"})) == "sk-env"
    assert "access_mode: must be one of" in refused(managed(mounted, ", access_mode: read"))[0]


def test_what_is_only_for_writing_is_named(mounted: Path) -> None:
    settings = load(managed(mounted, ", store_virtual_keys: true"))
    assert [(notice.key, notice.level) for notice in settings.notices] == [
        ("general_settings.key_management_settings.store_virtual_keys", "not_implemented")
    ]


@pytest.mark.parametrize(
    "block",
    [
        "secret_manager: {{type: file, directory: {0}}}\n" + MASTER,
        MASTER + "  secret_manager: {{type: file, directory: {0}}}\n",
        "secret_managers: {{corp: {{type: file, directory: {0}}}}}\n" + MASTER + "  key_management_system: corp\n",
        "secret_managers: {{corp: {{type: file, directory: {0}}}}}\ngeneral_settings:\n"
        "  master_key: secret://corp/MASTER\n",
        "general_settings:\n  master_key: file://{0}/MASTER\n",
    ],
)
def test_spellings(mounted: Path, block: str) -> None:
    assert master(load(block.format(mounted))) == "sk-from-the-manager"


def test_plain_fields_and_variables_come_from_it_too(mounted: Path) -> None:
    settings = load(f"""
secret_managers: {{corp: {{type: file, directory: "{mounted}"}}}}
environment_variables: {{SOME_KEY: secret://corp/MASTER, HOST: "secret://corp/app#HOST"}}
model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_key: os.environ/SOME_KEY
      api_base: "${{HOST}}/v1"
      timeout: secret://corp/app#N
""")
    params = settings.model_list[0].params
    assert params.api_key is not None
    assert (params.api_key.reveal(), params.api_base, params.timeout) == (
        "sk-from-the-manager", "https://h.example/v1", 30.0,
    )  # fmt: skip
    assert settings.environment["SOME_KEY"].reveal() == "sk-from-the-manager"
    assert "sk-from" not in repr(settings) + str(settings.normalised())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("general_settings: {key_management_system: hashicorp_valt}", "no secret manager 'hashicorp_valt' (did you"),
        ("general_settings: {key_management_system: aws_kms}", "'aws_kms' is not implemented (there are: "),
        ("general_settings: {use_google_kms: true}", "use_google_kms: the secret manager 'google_kms' is not impl"),
        ("general_settings: {key_management_system: [a]}", "key_management_system: expected text, got a list"),
        ("general_settings: {key_management_settings: {hosted_keys: [a], directory: x}}", "key_management_system is"),
        ("secret_managers: {a: {directory: /x}}", "secret_managers.a.type: a secret manager needs a type"),
        ("secret_managers: {a: {type: file, directry: /x}}", "a.directry: the secret manager 'file' has no such"),
        ("secret_managers: {a: {type: file, cache_ttl: 0}}", "secret_managers.a.cache_ttl: "),
        ("secret_managers: {a: {type: vault, token: env://A}}", "a.token: the settings of a secret manager cannot"),
        ("secret_managers: {a: {type: vault, token: os.environ/A}}", "a.token: the environment variable A is not"),
        ("secret_managers: {a: {type: no.such:Class}}", "module 'no.such' cannot be imported"),
        ("general_settings: {master_key: secret://corp/x}", "no secret manager named 'corp'; there are: env"),
        ("general_settings: {master_key: 'vault://a/../b'}", "'..' between slashes"),
        ("general_settings: {secret_cache: {file: /tmp/x}}", "'passphrase' is missing"),
        ("general_settings: {secret_cache: {file: /tmp/x, passphrase: short}}", "at least 16 characters"),
        ("general_settings: {secret_cache: {fiel: /tmp/x}}", "secret_cache.fiel: "),
        ("secrets: {a: env://NOT_SET}", "secrets.a: env: the environment variable NOT_SET is not set"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    (message,) = refused(text)
    assert message.startswith("c.yaml:1: ")
    assert said in message


def test_a_login_of_the_config_is_not_mixed_with_one_of_the_environment() -> None:
    env = {
        "HCP_VAULT_TOKEN": "hvs.env", "HCP_VAULT_APPROLE_ROLE_ID": "r", "HCP_VAULT_APPROLE_SECRET_ID": "s",
        "HCP_VAULT_MOUNT_NAME": "kv",
    }  # fmt: skip
    text = "secret_managers: {own: {type: vault, token: hvs.own}, other: {type: vault}}"
    resolver = load(text, env, resolving="skip").resolver
    assert resolver is not None
    own, other = (resolver.stores[name].model_dump() for name in ("own", "other"))
    assert (own["approle_role_id"], own["mount"]) == (None, "kv")
    assert (other["approle_role_id"], other["mount"]) == ("r", "kv")


def test_the_documentation_loads() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        env = {name: "a value, sixteen characters" for name in re.findall(r"os.environ/([A-Z_]+)", block)}
        assert load(block, env, resolving="skip").notices == ()


def test_several_of_one_kind_need_their_names(mounted: Path) -> None:
    text = "secret_managers: {a: {type: file}, b: {type: file}}\ngeneral_settings: {master_key: file:///x}"
    assert "several secret managers are of this kind (a, b)" in refused(text)[0]


def test_only_credentials_can_come_later(mounted: Path) -> None:
    text = (
        "model_list:\n- model_name: m\n  litellm_params:\n    model: openai/m\n"
        f"    api_key: file://{mounted}/absent\n    api_base: file://{mounted}/absent\n"
    )
    assert refused(text, resolving="defer") == [
        "c.yaml:6: model_list[0].litellm_params.api_base: only credentials can be resolved later, and this is none"
    ]
    params = load(text, resolving="skip").model_list[0].params
    assert params.api_base is None
    assert params.api_key is not None
    assert not params.api_key.ready


def test_no_store_is_asked_when_none_has_to_be(mounted: Path) -> None:
    settings = load(managed(mounted), resolving="skip")
    assert settings.resolver is not None
    assert [(entry.task, entry.fetched) for entry in settings.resolver.entries] == [(None, 0.0)]
    assert load("general_settings: {master_key: os.environ/A}", {"A": "sk-a"}).resolver is None
