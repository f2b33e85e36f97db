"""From `model_list` to deployments: which provider, which key, which address, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tianji_mw.compose.deployments import deployments_of
from tianji_mw.config import from_dict
from tianji_mw.errors import ConfigError
from tianji_mw.providers.anthropic import Anthropic
from tianji_mw.providers.azure_openai import AzureOpenAI
from tianji_mw.providers.base import Provider
from tianji_mw.providers.mock import Mock
from tianji_mw.providers.openai import OpenAI
from tianji_mw.providers.openai_compatible import OpenAICompatible
from tianji_mw.routing.base import Deployment


class Own(Provider):
    """A provider outside of the package."""

    name: str = "own-one"
    depth: int = 1

    @property
    def speaks(self) -> frozenset[str]:
        return frozenset({"chat_completions"})


def build(
    *entries: dict[str, Any], env: dict[str, str] | None = None, **blocks: Any
) -> tuple[list[Deployment], list[str]]:
    """Deployments, and the texts of what is wrong."""
    models = [{"model_name": "m", "litellm_params": entry, "model_info": entry.pop("info", {})} for entry in entries]
    settings = from_dict({"model_list": models, **blocks}, env=env or {})
    problems: list[ConfigError] = []
    table = deployments_of(settings, env or {}, problems)
    return list(table.all) if table else [], [problem.message for problem in problems]


def one(entry: dict[str, Any], **options: Any) -> Deployment:
    built, problems = build(entry, **options)
    assert not problems
    return built[0]


def wrong(entry: dict[str, Any], **options: Any) -> str:
    built, problems = build(entry, **options)
    assert not built
    assert len(problems) == 1
    return problems[0]


@pytest.mark.parametrize(
    ("entry", "kind", "name", "model"),
    [
        ({"model": "gpt-4o"}, OpenAI, "openai", "gpt-4o"),
        ({"model": "openai/gpt-4o"}, OpenAI, "openai", "gpt-4o"),
        ({"model": "openai/*"}, OpenAI, "openai", "*"),
        ({"model": "custom_openai/x"}, OpenAI, "openai", "x"),
        ({"model": "anthropic/claude-x"}, Anthropic, "anthropic", "claude-x"),
        ({"model": "azure/dep", "api_base": "https://r.openai.azure.com"}, AzureOpenAI, "azure", "dep"),
        ({"model": "azure_ai/dep", "api_base": "https://r.services.ai.azure.com/models"}, AzureOpenAI, "azure", "dep"),
        ({"model": "groq/llama-3"}, OpenAICompatible, "groq", "llama-3"),
        ({"model": "together_ai/meta-llama/Llama-3"}, OpenAICompatible, "together_ai", "meta-llama/Llama-3"),
        ({"model": "openai_like/x", "api_base": "http://h/v1"}, OpenAICompatible, "openai_compatible", "x"),
        ({"model": "llama-3", "api_base": "https://api.groq.com/openai/v1"}, OpenAICompatible, "groq", "llama-3"),
        ({"model": "dep", "custom_llm_provider": "azure", "api_base": "https://r.x"}, AzureOpenAI, "azure", "dep"),
        ({"model": "mock/echo"}, Mock, "mock", "echo"),
        ({"model": "openai/gpt-4o", "mock_response": "hi"}, Mock, "mock", "gpt-4o"),
        ({"model": f"{__name__}:Own/x"}, Own, "own-one", "x"),
        ({"model": "x", "custom_llm_provider": f"{__name__}:Own", "depth": 3}, Own, "own-one", "x"),
    ],
)
def test_which_provider(
    entry: dict[str, Any], kind: type[Provider], name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    found = one(entry)
    assert type(found.provider) is kind
    assert (found.provider.name, found.model) == (name, model)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"model": "opnai/gpt-4o"}, "the provider 'opnai' is not known (did you mean openai/gpt-4o?)"),
        (
            {"model": "meta-llama/Llama-3", "api_base": "http://h/v1"},
            "write openai/meta-llama/Llama-3 and set api_base",
        ),
        ({"model": "os.path/x"}, "the provider 'os.path' is not known"),
        ({"model": "registry/x"}, "the provider 'registry' is not known"),
        ({"model": "auth/x"}, "the provider 'auth' is not known"),
        ({"model": "nowhere_pkg:Thing/x"}, "the provider 'nowhere_pkg:Thing' is not known"),
        ({"model": "*"}, "no provider is named"),
        ({"model": "azure/dep"}, "azure needs 'api_base'"),
        ({"model": "litellm_proxy/x"}, "has no address of its own: set 'api_base' or LITELLM_PROXY_API_BASE"),
        ({"model": "openai/x", "latency_s": 1}, "latency_s: the provider 'openai' has no such setting"),
        ({"model": "openai/x", "azure_ad_token": "t"}, "azure_ad_token: the provider 'openai' has no such setting"),
        ({"model": "mock/x", "latency_s": -1}, "latency_s: Input should be greater than or equal to 0"),
        ({"model": "mock/x", "error_status": 200}, "error_status: must be a status from 400 to 599"),
        ({"model": "openai/x", "mock_response": {"a": 1}}, "mock_response: only text can be mocked"),
        ({"model": "openai/x", "additional_drop_params": ["tools[x]"]}, "'tools[x]' is neither a name nor a path"),
        ({"model": "cloudflare/x"}, "set 'account_id' here, or CLOUDFLARE_ACCOUNT_ID in the environment"),
        ({"model": "cloudflare/x", "account_id": "a/b"}, "'account_id' may hold letters"),
    ],
)
def test_what_is_wrong_is_named(entry: dict[str, Any], text: str) -> None:
    assert text in wrong(entry)


def test_two_wrong_entries_are_told_together() -> None:
    _, problems = build({"model": "opnai/a"}, {"model": "azure/b"})
    assert len(problems) == 2


# --- keys and addresses


def key_of(entry: dict[str, Any], env: dict[str, str]) -> str:
    key = one(entry, env=env).provider.api_key
    return key.reveal() if key else ""


def test_key_of_the_entry_before_the_environment() -> None:
    env = {"OPENAI_API_KEY": "env", "TOGETHER_API_KEY": "second"}
    assert key_of({"model": "openai/x", "api_key": "own"}, env) == "own"
    assert key_of({"model": "openai/x"}, env) == "env"
    assert key_of({"model": "together_ai/x"}, env) == "second"
    assert key_of({"model": "together_ai/x"}, {**env, "TOGETHERAI_API_KEY": "first"}) == "first"
    assert key_of({"model": "groq/x"}, env) == ""


def test_address_of_the_entry_before_the_environment_before_the_providers() -> None:
    env = {"HOSTED_VLLM_API_BASE": "http://vllm/v1", "OPENAI_BASE_URL": "http://proxy/v1"}
    assert one({"model": "hosted_vllm/x", "api_base": "http://own/v1"}, env=env).provider.base == "http://own/v1"
    assert one({"model": "hosted_vllm/x"}, env=env).provider.base == "http://vllm/v1"
    assert one({"model": "hosted_vllm/x"}).provider.base == "http://localhost:8000/v1"
    assert one({"model": "openai/x"}, env=env).provider.base == "http://proxy/v1"


def test_placeholders_of_an_address() -> None:
    url = "https://api.cloudflare.com/client/v4/accounts/{}/ai/v1"
    env = {"CLOUDFLARE_ACCOUNT_ID": "from-env"}
    assert one({"model": "cloudflare/x", "account_id": "own"}, env=env).provider.base == url.format("own")
    assert one({"model": "cloudflare/x"}, env=env).provider.base == url.format("from-env")
    assert one({"model": "cloudflare/x", "api_base": "https://a.example"}).provider.base == "https://a.example"


def test_a_provider_of_the_users_own() -> None:
    providers = {
        "own": {"base_url": "https://llm.example/v1", "api_key_env": "OWN_KEY", "headers": {"x-api-key": "{api_key}"}},
        "groq": {"base_url": "https://groq-proxy.example/v1"},
    }
    env = {"OWN_KEY": "k-own"}
    blocks = {"general_settings": {"providers": providers}}
    found = one({"model": "own/m1"}, env=env, **blocks).provider
    assert (found.name, found.base) == ("own", "https://llm.example/v1")
    assert found.api_key
    assert found.api_key.reveal() == "k-own"
    assert one({"model": "groq/m1"}, **blocks).provider.base == "https://groq-proxy.example/v1"


@pytest.mark.parametrize("name", ["openai", "azure", "mock", "anthropic"])
def test_a_users_provider_cannot_take_a_built_in_name(name: str) -> None:
    blocks = {"general_settings": {"providers": {name: {"base_url": "https://x.example"}}}}
    assert "a provider of this name is built in" in wrong({"model": "mock/x"}, **blocks)


def test_fields_from_the_environment() -> None:
    env = {"OPENAI_ORGANIZATION": "org-1", "AZURE_API_VERSION": "2024-10-21", "AZURE_API_BASE": "https://r.x"}
    openai, azure = one({"model": "openai/x"}, env=env).provider, one({"model": "azure/x"}, env=env).provider
    assert isinstance(openai, OpenAI)
    assert isinstance(azure, AzureOpenAI)
    assert openai.organization == "org-1"
    assert (azure.api_version, azure.base) == ("2024-10-21", "https://r.x")
    assert one({"model": "openai/x", "organization": "own"}, env=env).provider.organization == "own"  # type: ignore[attr-defined]


def test_a_login_of_the_entry_is_not_overruled_by_a_key_of_the_environment() -> None:
    env = {"AZURE_API_KEY": "env-key", "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "s"}
    base = {"model": "azure/x", "api_base": "https://r.x"}
    login = {"tenant_id": "t2", "client_id": "c2", "client_secret": "s2"}
    with_login, with_key = one({**base, **login}, env=env).provider, one(dict(base), env=env).provider
    assert isinstance(with_login, AzureOpenAI)
    assert isinstance(with_key, AzureOpenAI)
    assert (with_login.api_key, with_login.tenant_id) == (None, "t2")
    assert with_key.api_key
    assert with_key.tenant_id == ""


# --- fields of requests


def test_defaults_go_where_they_belong() -> None:
    entry = {
        "model": "openai/x", "temperature": 0.2, "max_tokens": 9, "stop": "END", "dimensions": 3, "stream": True,
        "reasoning_effort": "low", "top_k": 4, "extra_body": {"own": 1}, "response_format": {"type": "json_object"},
    }  # fmt: skip
    rules = {name: dict(rule.defaults) for name, rule in one(entry).rules_of.items()}
    everywhere = {"own": 1}
    generated = {"temperature": 0.2, "top_k": 4, **everywhere}
    chat = {"max_tokens": 9, "stop": "END", "reasoning_effort": "low", "response_format": {"type": "json_object"}}
    assert rules["chat_completions"] == {**generated, **chat}
    assert rules["completions"] == {**generated, "max_tokens": 9, "stop": "END"}
    assert rules["responses"] == {**generated, "max_output_tokens": 9, "reasoning": {"effort": "low"}}
    assert rules["messages"] == {**generated, "max_tokens": 9, "stop_sequences": ["END"]}
    assert rules["embeddings"] == {**everywhere, "dimensions": 3}
    assert rules["moderations"] == rules["rerank"] == rules["count_tokens"] == everywhere


def test_deadlines() -> None:
    found = one({"model": "openai/x", "timeout": 60, "stream_timeout": 15})
    assert (found.deadlines.first_byte_s, found.deadlines.total_s) == (60, 60)
    assert found.stream_deadlines
    assert (found.stream_deadlines.first_byte_s, found.stream_deadlines.total_s) == (15, None)
    default = one({"model": "openai/x"}, litellm_settings={"request_timeout": 7})
    assert (default.deadlines.total_s, default.deadlines.between_bytes_s) == (7, 7)


def test_ids_are_stable_and_differ() -> None:
    first = [
        d.id
        for d in build({"model": "openai/x"}, {"model": "openai/x"}, {"model": "openai/y", "info": {"id": "own"}})[0]
    ]
    again = [
        d.id
        for d in build({"model": "openai/x"}, {"model": "openai/x"}, {"model": "openai/y", "info": {"id": "own"}})[0]
    ]
    assert first == again
    assert len(set(first)) == 3
    assert first[2] == "own"


def test_base_model_reaches_a_provider_that_asks_for_it() -> None:
    azure = one({"model": "azure/x", "api_base": "https://r.x", "info": {"base_model": "azure/o3"}}).provider
    assert isinstance(azure, AzureOpenAI)
    assert azure.base_model == "azure/o3"
    one({"model": "openai/x", "info": {"base_model": "gpt-4o"}})
