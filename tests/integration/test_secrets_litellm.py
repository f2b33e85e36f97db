"""A LiteLLM config with `key_management_system`, unchanged, in front of each of the four managers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.test_secret_stores import ROOT_TOKEN, Open, aws, azure, google, vault
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.gateway import Gateway
from tianji_mw.testing import FakeLLM, Reply, drive

pytestmark = pytest.mark.slow

CONFIG = """
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  key_management_system: {system}
  key_management_settings:
    access_mode: read_only
    {settings}
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_base: os.environ/UPSTREAM
      api_key: os.environ/OPENAI_API_KEY
"""
KEYS = {"LITELLM_MASTER_KEY": "sk-master-1", "OPENAI_API_KEY": "sk-openai-1"}
HOSTED = 'hosted_keys: ["LITELLM_MASTER_KEY", "OPENAI_API_KEY"]'
PRIMARY = "primary_secret_name: prod/llm"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.mark.parametrize(
    ("system", "open_", "settings"),
    [
        ("hashicorp_vault", vault, HOSTED),
        ("aws_secret_manager", aws, HOSTED),
        ("aws_secret_manager", aws, PRIMARY),
        ("google_secret_manager", google, HOSTED),
        ("azure_key_vault", azure, HOSTED),
    ],
)
async def test_keys_come_from_the_manager(
    system: str, open_: Open, settings: str, stack: ExitStack, tmp_path: Path, serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    backend = open_(stack, tmp_path, monkeypatch)
    if settings == PRIMARY:
        backend.put("prod/llm", json.dumps(KEYS))
    else:
        for name, value in KEYS.items():
            backend.put(name.replace("_", "-") if open_ is azure else name, value)
    env = settings_of(backend.store, tmp_path, monkeypatch)
    for name, key in BESIDE.get(system, {}).items():
        settings += f"\n    {name}: {json.dumps(key(backend.store))}"
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        path = tmp_path / "config.yaml"
        path.write_text(CONFIG.format(system=system, settings=settings))
        app = await serve(Gateway.from_config(path, env={**env, "UPSTREAM": f"{llm.url}/v1", **UNUSED}))
        driven = await drive(app, CHAT, headers={"authorization": "Bearer sk-master-1"})
        assert driven.status == 200
        assert llm.requests[-1].headers["authorization"] == "Bearer sk-openai-1"


#: The environment has them too, and is not asked where the manager has them.
UNUSED = {"LITELLM_MASTER_KEY": "sk-of-the-environment", "OPENAI_API_KEY": "sk-of-the-environment"}
#: What only a stand-in needs: where it listens, and that its name is not Microsoft's.
BESIDE = {
    "google_secret_manager": {"endpoint": lambda store: store.endpoint},
    "azure_key_vault": {
        "verify_challenge_resource": lambda store: False,
        "ca_bundle": lambda store: store.ca_bundle,
    },
}


def settings_of(store: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that LiteLLM's documentation asks for."""
    from tianji_mw.secrets.aws import AwsSecretsManager
    from tianji_mw.secrets.azure import AzureKeyVault
    from tianji_mw.secrets.google import GoogleSecretManager
    from tianji_mw.secrets.vault import HashicorpVault

    if isinstance(store, HashicorpVault):
        return {"HCP_VAULT_ADDR": store.address, "HCP_VAULT_TOKEN": ROOT_TOKEN}
    if isinstance(store, AwsSecretsManager):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        return {"AWS_REGION_NAME": "eu-west-1", "AWS_ENDPOINT_URL_SECRETS_MANAGER": str(store.endpoint_url)}
    if isinstance(store, GoogleSecretManager):
        assert store.credentials_json is not None
        path = folder / "sa.json"
        path.write_text(store.credentials_json.reveal())
        return {"GOOGLE_SECRET_MANAGER_PROJECT_ID": "p", "GCS_PATH_SERVICE_ACCOUNT": str(path)}
    assert isinstance(store, AzureKeyVault)
    assert store.client_secret is not None
    return {
        "AZURE_KEY_VAULT_URI": store.vault_url or "",
        "AZURE_TENANT_ID": store.tenant_id or "",
        "AZURE_CLIENT_ID": store.client_id or "",
        "AZURE_CLIENT_SECRET": store.client_secret.reveal(),
        "AZURE_AUTHORITY_HOST": store.authority_host or "",
    }
