"""The registry: every shipped entry is sane, every key of the format has an effect, everything else is refused."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from tianji_mw import plugins
from tianji_mw.bridges.base import Context
from tianji_mw.errors import ConfigError
from tianji_mw.providers import registry
from tianji_mw.providers.openai_compatible import OpenAICompatible
from tianji_mw.providers.registry import Spec
from tianji_mw.redact import Secret

LOCAL = {"localhost", "127.0.0.1"}
CHAT = "chat_completions"


def provider(*, key: str = "sk-own-key", base: str = "", **entry: Any) -> OpenAICompatible:
    spec = Spec.model_validate({"base_url": "https://llm.example/v1", "api_key_env": "OWN_KEY", **entry})
    return OpenAICompatible(name="own", spec=spec, api_key=Secret(key) if key else None, api_base=base)


def prepared(request: dict[str, Any], wire: str = CHAT, **entry: Any) -> tuple[dict[str, Any], list[str]]:
    """The request as it goes out, and what was left out of it."""
    context, made = Context(call_id="1", model="m", created=0), provider(**entry)
    request = dict(request)
    if made.prepares(request, wire, "m"):
        made.prepare(request, wire, context)
    return request, context.dropped


# --- what ships


@pytest.mark.parametrize("name", sorted(registry.shipped()))
def test_shipped_entry(name: str) -> None:
    spec = registry.shipped()[name]
    url = urlsplit(spec.base_url.replace("{", "").replace("}", ""))
    assert registry._NAME.fullmatch(name)
    assert name not in plugins.names("providers")
    if not spec.base_url:
        assert spec.api_base_env
    elif url.hostname in LOCAL:
        assert spec.is_local
    else:
        assert url.scheme == "https"
        assert spec.api_key_env
    assert not spec.base_url.endswith("/")
    assert CHAT in spec.speaks
    assert all(
        variable.isupper() and variable.replace("_", "").isalnum()
        for variable in (*spec.api_key_env, *spec.api_base_env)
    )


def test_there_are_enough_of_them_and_no_address_stands_twice() -> None:
    addresses = [spec.base_url for spec in registry.shipped().values() if spec.base_url]
    assert len(registry.shipped()) >= 80
    assert len(set(addresses)) == len(addresses)


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        registry._unique([("a", 1), ("a", 2)])


@pytest.mark.parametrize(
    "name", ["groq", "deepseek", "xai", "together_ai", "fireworks_ai", "openrouter", "hosted_vllm", "ollama"]
)
def test_well_known_names(name: str) -> None:
    assert name in registry.shipped()


# --- each key


async def test_address_and_key() -> None:
    made = provider()
    assert made.url(CHAT, "m", stream=False) == "https://llm.example/v1/chat/completions"
    assert made.url("embeddings", "m", stream=False) == "https://llm.example/v1/embeddings"
    assert await made.credentials() == [("authorization", "Bearer sk-own-key")]
    assert provider(base="http://10.0.0.1/v2/").url(CHAT, "m", stream=False) == "http://10.0.0.1/v2/chat/completions"


def test_chat_path() -> None:
    assert provider(chat_path="/v2/chat").url(CHAT, "m", stream=False) == "https://llm.example/v1/v2/chat"


async def test_auth_header_and_prefix() -> None:
    assert await provider(auth_header="X-Api-Key", auth_prefix="").credentials() == [("x-api-key", "sk-own-key")]
    assert await provider(auth_header="").credentials() == []
    assert provider(auth_header="", key="").lacks() == ""


async def test_headers_with_and_without_the_key() -> None:
    made = provider(headers={"Api-Sub": "k={api_key}", "X-Team": "core"})
    assert await made.credentials() == [("api-sub", "k=sk-own-key")]
    assert made.headers((), {}, await made.credentials()) == {"x-team": "core", "api-sub": "k=sk-own-key"}
    keyless = provider(headers={"Api-Sub": "{api_key}"}, key="")
    assert await keyless.credentials() == []
    assert keyless.lacks() == "set OWN_KEY, or 'api_key'"


async def test_header_values_may_be_secret() -> None:
    made = provider(headers={"x-api-key": Secret("{api_key}"), "x-other-key": Secret("fixed-secret")})
    assert made.headers((), {}, await made.credentials()) == {"x-api-key": "sk-own-key", "x-other-key": "fixed-secret"}
    assert [secret.reveal() for secret in made.secrets] == ["sk-own-key", "fixed-secret"]


def test_several_key_variables() -> None:
    assert Spec(api_key_env=["A", "B"]).api_key_env == ("A", "B")  # type: ignore[arg-type]
    assert Spec(api_key_env="A").api_key_env == ("A",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        # Both names: the provider's own one holds.
        ({"max_completion_tokens": 5, "max_tokens": 3}, {"max_tokens": 3}),
    ],
)
def test_param_mappings(request_: dict[str, Any], expected: dict[str, Any]) -> None:
    assert prepared(request_, param_mappings={"max_completion_tokens": "max_tokens"})[0] == expected


def test_mappings_that_swap_two_names() -> None:
    assert prepared({"a": 1, "b": 2}, param_mappings={"a": "b", "b": "a"})[0] == {"b": 1, "a": 2}


@pytest.mark.parametrize(
    ("request_", "temperature"),
    [
        ({"temperature": 2}, 1.5),
        ({"temperature": 0}, 0.1),
        ({"temperature": 1}, 1),
        ({"temperature": 0.2, "n": 2}, 0.5),
        ({"temperature": "hot"}, "hot"),
        ({"temperature": True}, True),
    ],
)
def test_constraints_clamp(request_: dict[str, Any], temperature: object) -> None:
    limits = {"temperature_max": 1.5, "temperature_min": 0.1, "temperature_min_with_n_gt_1": 0.5}
    assert prepared(request_, constraints=limits)[0]["temperature"] == temperature


def test_drop_params_are_told() -> None:
    assert prepared({"seed": None, "n": 1, "user": "u"}, drop_params=["seed", "n"]) == ({"user": "u"}, ["seed", "n"])


def test_force_store_false() -> None:
    special = {"force_store_false": True}
    assert prepared({}, special_handling=special)[0] == {"store": False}
    assert prepared({}, wire="embeddings", special_handling=special)[0] == {}


def test_content_lists_become_strings() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    request = {"messages": [{"role": "user", "content": parts}, {"role": "user", "content": image}]}
    found, _ = prepared(request, special_handling={"convert_content_list_to_string": True})
    assert [message["content"] for message in found["messages"]] == ["ab", image]
    assert request["messages"][0]["content"] is parts


def test_an_untouched_request_stays() -> None:
    made = provider(
        param_mappings={"a": "b"}, constraints={"temperature_max": 1}, special_handling={"force_store_false": False}
    )
    assert not made.prepares({"model": "m", "messages": []}, CHAT, "m")


def test_supported_endpoints_are_what_it_speaks() -> None:
    made = provider(supported_endpoints=["/v1/chat/completions", "/v1/messages", "/v1/audio", "/v1/rerank"])
    assert made.speaks == {CHAT, "messages", "passthrough", "rerank"}
    assert made.bridge("messages") is None
    assert made.bridge("responses") is not None
    only_embeds = provider(supported_endpoints=["/v1/embeddings"])
    with pytest.raises(Exception, match="'own' does not serve responses"):
        only_embeds.bridge("responses")


# --- the address


def test_placeholders() -> None:
    spec = Spec(base_url="https://{host}/a/{account_id}/v1")
    assert spec.placeholders == ("host", "account_id")
    values = {"host": "x.example", "account_id": "a-1"}
    assert spec.filled(values.__getitem__).base_url == "https://x.example/a/a-1/v1"


@pytest.mark.parametrize("value", ["evil.example/x?", "a/../b", "a b", "@evil.example", "{host}", ""])
def test_a_filling_cannot_change_the_address(value: str) -> None:
    with pytest.raises(ValueError, match="'id' may hold"):
        Spec(base_url="https://h.example/{id}").filled(lambda name: value)


def test_an_address_is_found_by_its_host() -> None:
    specs = {**registry.shipped(), "own": Spec(base_url="https://llm.example/v1")}
    assert registry.by_host("https://api.groq.com/openai/v1", specs) == "groq"
    assert registry.by_host("https://llm.example/other", specs) == "own"
    assert registry.by_host("http://localhost:11434/v1", specs) is None
    assert registry.by_host("https://unknown.example", specs) is None


@pytest.mark.parametrize(
    ("entry", "needs"),
    [
        ({}, "set OWN_KEY, or 'api_key'"),
        ({"base_url": "http://localhost:1/v1"}, ""),
        ({"api_key_env": []}, ""),
    ],
)
def test_who_needs_a_key(entry: dict[str, Any], needs: str) -> None:
    assert provider(key="", **entry).lacks() == needs
    assert provider(key="", base="http://10.0.0.1/v1", **entry).lacks() == ""


# --- the user's entries


def test_a_users_entry() -> None:
    spec = registry.read(
        "own", {"name": "own", "base_url": "https://a.example/v1/", "base_class": "openai_like", "auth_prefix": ""}
    )
    assert (spec.base_url, spec.auth_prefix) == ("https://a.example/v1", "")


@pytest.mark.parametrize(
    ("name", "entry", "text"),
    [
        ("own", {"base_url": "ftp://a.example"}, "general_settings.providers.own.base_url: expected an address"),
        ("own", {"base_url": "https://a.example?x=1"}, "expected an address"),
        ("own", {"base_url": "https://a.example", "auth_heder": "x"}, "own.auth_heder: unknown key"),
        ("own", {"base_url": "https://a.example", "provider_info": {}}, "own.provider_info: unknown key"),
        ("own", {"base_url": "https://a.example", "constraints": {"temperature": 1}}, "own.constraints.temperature"),
        ("own", {"base_url": "https://a.example", "special_handling": {"magic": True}}, "own.special_handling.magic"),
        (
            "own",
            {"base_url": "https://a.example", "supported_endpoints": ["/v1/realtime"]},
            "unknown endpoint '/v1/realtime'",
        ),
        ("own", {"base_url": "https://a.example", "base_class": "x"}, "own.base_class: must be"),
        ("own", {}, "needs 'base_url' or 'api_base_env'"),
        ("a/b", {"base_url": "https://a.example"}, "letters, digits"),
    ],
)
def test_a_wrong_entry_is_named(name: str, entry: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.read(name, entry, file="c.yaml", line=3)
    assert "c.yaml:3" in caught.value.message
    assert text in caught.value.message
