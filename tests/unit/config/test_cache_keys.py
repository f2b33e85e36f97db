"""The cache in the config: LiteLLM's and the Go port's spelling, what becomes of each key, what is refused where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from tianji_mw.apis.base import Usage
from tianji_mw.cache.dual import Dual
from tianji_mw.cache.key import short
from tianji_mw.cache.memory import Memory
from tianji_mw.cache.middleware import Cache
from tianji_mw.cache.redis import RedisStore
from tianji_mw.cache.storable import APIS
from tianji_mw.compose import compose
from tianji_mw.compose.prices import price_of
from tianji_mw.config import Settings, loads
from tianji_mw.driver import inner_layers
from tianji_mw.errors import ConfigErrors
from tianji_mw.identity.middleware import Authentication

MODELS = "model_list: [{model_name: m, litellm_params: {model: mock/echo}}]\n"
#: Lines before the first one of `PARAMS`'s own.
PARAMS = "litellm_settings:\n  cache: true\n  cache_params:\n"


def settings_of(text: str, env: dict[str, str] | None = None) -> Settings:
    return loads(MODELS + text, env=env or {})


def cache_of(text: str, env: dict[str, str] | None = None) -> Cache | None:
    """The cache of the stack that this config makes."""
    app = compose(settings_of(text, env), env=env or {}).app
    return next((layer for layer in inner_layers(app) if isinstance(layer, Cache)), None)


def made(text: str, env: dict[str, str] | None = None) -> Cache:
    found = cache_of(text, env)
    assert found is not None
    return found


def params(**given: Any) -> str:
    """`cache_params` with these, each on a line of its own: the first is line 5 of the file."""
    return PARAMS + "".join(f"    {name}: {value}\n" for name, value in given.items())


def refused(text: str) -> str:
    with pytest.raises(ConfigErrors) as error:
        cache_of(text)
    assert len(error.value.errors) == 1
    return error.value.errors[0].message


# --- whether there is one


@pytest.mark.parametrize("text", ["", "litellm_settings: {cache: false}\n", params(supported_call_types="[]")])
def test_without_a_cache_there_is_no_layer(text: str) -> None:
    assert cache_of(text) is None


def test_params_of_a_cache_that_is_off_are_named() -> None:
    notices = settings_of("litellm_settings: {cache_params: {type: redis}}\n").notices
    assert [(notice.line, notice.key) for notice in notices] == [(2, "litellm_settings.cache_params")]
    assert "cache: true" in str(notices[0])


def test_cache_alone_is_memory_or_redis_where_the_environment_says_where() -> None:
    text = "litellm_settings: {cache: true}\n"
    assert isinstance(made(text).store, Memory)
    store = made(text, {"REDIS_HOST": "cache.internal", "REDIS_PORT": "7000", "REDIS_PASSWORD": "pw-1"}).store
    assert isinstance(store, RedisStore)
    assert (store.host, store.port) == ("cache.internal", 7000)
    assert store.password is not None
    assert store.password.reveal() == "pw-1"
    assert "pw-1" not in repr(store)


@pytest.mark.parametrize(
    "text",
    [
        "cache: true\ncache_params: {type: memory, ttl: 5}\n",
        "tianji_settings: {cache: true, cache_params: {type: memory, ttl: 5}}\n",
        "general_settings: {cache: true, cache_params: {type: memory, ttl: 5}}\n",
        "litellm_settings: {cache: 'true', cache_params: {type: local, ttl: '5'}}\n",
    ],
)
def test_every_place_and_spelling(text: str) -> None:
    cache = made(text)
    assert isinstance(cache.store, Memory)
    assert cache.rules.ttl_s == 5
    assert settings_of(text).notices == ()


# --- stores


@pytest.mark.parametrize(
    ("kind", "store"), [("local", Memory), ("memory", Memory), ("redis", RedisStore), ("dual", Dual)]
)
def test_types(kind: str, store: type[Any]) -> None:
    assert type(made(params(type=kind), {"REDIS_HOST": "cache.internal"}).store) is store


def test_the_config_says_where_redis_is_before_the_environment() -> None:
    env = {"REDIS_URL": "redis://other:1/2", "REDIS_PASSWORD": "pw-1"}
    for text in (params(type="redis", host="cache.internal"), params(host="cache.internal")):
        store = made(text, env).store
        assert isinstance(store, RedisStore)
        assert (store.host, store.port, store.db) == ("cache.internal", 6379, 0)
        assert store.password is not None  # what the config leaves out


@pytest.mark.parametrize(
    ("kind", "told"), [("redis", "nothing says where Redis is"), ("redis-cluster", "a cluster needs some of its nodes")]
)
def test_a_redis_nowhere_is_refused(kind: str, told: str) -> None:
    assert told in refused(params(type=kind))


def test_an_address_with_a_login_is_a_secret() -> None:
    text = params(type="redis", url="redis://user:canary-3@cache.internal:7000/2")
    store = made(text).store
    assert isinstance(store, RedisStore)
    assert (store.host, store.port, store.username, store.db) == ("cache.internal", 7000, "user", 2)
    settings = settings_of(text)
    assert "canary-3" not in str(settings.normalised()) + repr(settings) + repr(store)


@pytest.mark.parametrize(
    "nodes",
    [
        {"type": "redis", "redis_startup_nodes": '[{host: 10.0.0.1, port: "7001"}]'},
        {"type": "redis-cluster", "redis_startup_nodes": "[{host: 10.0.0.1, port: 7001}]"},
        {"type": "redis_cluster", "addrs": '["10.0.0.1:7001"]'},
    ],
)
def test_a_cluster_in_every_spelling(nodes: dict[str, str]) -> None:
    store = made(params(**nodes)).store
    assert isinstance(store, RedisStore)
    assert store.startup_nodes == (("10.0.0.1", 7001),)


def test_references_are_followed_and_secrets_stay_secret() -> None:
    env = {"H": "cache.internal", "P": "7000", "PW": "canary-1", "T": "9"}
    text = params(type="redis", host="os.environ/H", port="os.environ/P", password="os.environ/PW", ttl="os.environ/T")
    cache = made(text, env)
    assert isinstance(cache.store, RedisStore)
    assert (cache.store.host, cache.store.port, cache.rules.ttl_s) == ("cache.internal", 7000, 9)
    shown = settings_of(text, env).normalised()
    assert "canary-1" not in str(shown) + repr(cache.store)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"type": "disk", "disk_cache_dir": "/x", "max_item_bytes": 99}, {"folder": Path("/x"), "max_item_bytes": 99}),
        (
            {"type": "s3", "s3_bucket_name": "b", "s3_path": "p", "s3_aws_secret_access_key": "os.environ/S"},
            {"bucket": "b", "path": "p"},
        ),
        ({"type": "gcs", "gcs_bucket_name": "b", "gcs_path": "p"}, {"bucket": "b", "path": "p"}),
        (
            {"type": "azure-blob", "azure_account_url": "https://a.blob.core.windows.net", "azure_blob_container": "c"},
            {"endpoint_url": "https://a.blob.core.windows.net", "container": "c"},
        ),
    ],
    ids=lambda given: given.get("type", ""),
)
def test_litellms_keys_of_other_stores(given: dict[str, str], fields: dict[str, Any]) -> None:
    cache = made(params(**given, default_in_memory_ttl=3, ttl=60), {"S": "canary-4"})
    assert {name: getattr(cache.store, name) for name in fields} == fields
    assert cache.rules.ttl_s == (3 if given["type"] == "disk" else 60)
    assert "canary-4" not in repr(cache.store)


def test_a_memory_before_redis_with_times_of_its_own() -> None:
    store = made(
        params(type="dual", host="h", default_in_memory_ttl=3, default_in_redis_ttl=7, redis_flush_size=20)
    ).store
    assert isinstance(store, Dual)
    assert (store.memory_ttl_s, store.redis_ttl_s, store.flush_size) == (3, 7, 20)


# --- rules


def test_litellms_keys_become_rules() -> None:
    rules = made(
        params(
            type="local", mode="default_off", ttl=60, namespace="team a",
            supported_call_types="[acompletion, embedding]", stale_while_revalidate_s=5, stale_if_error_s=10,
            cache_scope="key", cache_remote_media="true", max_item_bytes=1000, max_messages=4,
        )
    ).rules  # fmt: skip
    assert (rules.default_on, rules.ttl_s, rules.namespace, rules.scope) == (
        False,
        60,
        "team-a-" + short("team a", 8),
        "key",
    )
    assert rules.apis == {"chat_completions", "embeddings"}
    assert (rules.stale_while_revalidate_s, rules.stale_if_error_s) == (5, 10)
    assert (rules.remote_media, rules.max_item_bytes) == (True, 1000)


def test_what_a_config_leaves_out() -> None:
    rules = made(params(type="local")).rules
    assert (rules.ttl_s, rules.default_on, rules.scope, rules.namespace) == (3600, True, "team", "tianji")
    assert (rules.apis, rules.groups, rules.remote_media) == (APIS, {}, False)


@pytest.mark.parametrize(
    ("text", "ttl_s"),
    [
        (params(type="local", default_in_memory_ttl=3), 3),
        (params(type="redis", host="h", default_in_memory_ttl=3, default_in_redis_ttl=7), 7),
        (params(type="redis", host="h", ttl=60, default_in_redis_ttl=7), 7),
        ("litellm_settings: {cache: true, default_in_memory_ttl: 9, default_redis_ttl: 8}\n", 9),
        ("litellm_settings: {cache: true, cache_params: {host: h}, default_redis_ttl: 8}\n", 8),
    ],
)
def test_the_time_that_answers_are_kept(text: str, ttl_s: float) -> None:
    assert made(text).rules.ttl_s == ttl_s


def test_a_semantic_cache_brings_its_scope() -> None:
    rules = made(params(type="local", semantic="{}", semantic_cache_scope="end_user")).rules
    assert rules.scope == "end_user"
    message = refused(params(type="local", semantic="{}", semantic_cache_scope="key", cache_scope="team"))
    assert "litellm_settings.cache_params.semantic_cache_scope" in message


def test_a_model_in_two_groups_is_refused() -> None:
    message = refused("router_settings: {caching_groups: [[m, n], [n, o]]}\n" + params(type="local"))
    assert message.startswith("<string>:2: router_settings.caching_groups[1]: 'n' stands in two groups")


def test_models_that_share_their_answers() -> None:
    groups = made("router_settings: {caching_groups: [[m, n]]}\n" + params(type="local")).rules.groups
    assert groups["m"] == groups["n"]


@pytest.mark.parametrize(
    ("text", "keyless"),
    [("", True), ("general_settings: {master_key: sk-1}\n", False), ("virtual_keys: [{key: sk-2}]\n", False)],
)
def test_without_keys_all_calls_are_of_one_tenant(text: str, keyless: bool) -> None:
    assert made(text + params(type="local")).rules.keyless is keyless


async def test_what_a_key_says_of_the_cache_reaches_its_calls() -> None:
    entry = "key: sk-2, organization_id: acme, allowed_cache_controls: [ttl], metadata: {cache: {no-store: true}}"
    app = compose(settings_of(f"virtual_keys: [{{{entry}}}]\n"), env={}).app
    layer = next(one for one in inner_layers(app) if isinstance(one, Authentication))
    found = await layer._identifier.identify(Headers({"authorization": "Bearer sk-2"}))
    assert found is not None
    assert found.metadata["cache"] == {"no-store": True}
    assert list(found.metadata["allowed_cache_controls"]) == ["ttl"]
    assert found.metadata["organization_id"] == "acme"


# --- notices and errors


@pytest.mark.parametrize("key", ["enable_redis_auth_cache", "enable_caching_on_provider_specific_optional_params"])
def test_keys_without_effect_are_named(key: str) -> None:
    notices = settings_of(f"litellm_settings: {{cache: true, {key}: true}}\n").notices
    assert [notice.key for notice in notices] == [f"litellm_settings.{key}"]


def test_transcriptions_are_accepted_and_named() -> None:
    text = params(supported_call_types="[acompletion, atranscription]")
    assert made(text).rules.apis == {"chat_completions"}
    assert [(n.line, n.key) for n in settings_of(text).notices] == [
        (5, "litellm_settings.cache_params.supported_call_types[1]")
    ]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tll", "5", "did you mean 'ttl'?"),
        ("type", "redsi", "did you mean 'redis'?"),
        ("type", "qdrant-semantic", "redis-semantic"),
        ("mode", "always", "'default_on' or 'default_off'"),
        ("ttl", "soon", "expected a number"),
        ("ttl", "-1", "must be at least 0"),
        ("cache_scope", "tem", "'global', 'org', 'team', 'key' or 'end_user'"),
        ("cache_remote_media", "maybe", "expected true or false"),
        ("max_item_bytes", "0", "must be at least 1"),
        ("similarity_threshold", "0.9", "semantic"),
    ],
)
def test_wrong_params_are_named_with_file_line_key_and_cure(key: str, value: str, told: str) -> None:
    message = refused(params(**{key: value}))
    assert message.startswith(f"<string>:5: litellm_settings.cache_params.{key}: ")
    assert told in message


def test_a_wrong_call_type_is_named() -> None:
    message = refused(params(type="local", supported_call_types="[aembedding, acompletoin]"))
    assert message.startswith("<string>:6: litellm_settings.cache_params.supported_call_types[1]: unknown call type")
    assert "did you mean 'acompletion'?" in message


def test_a_wrong_url_is_not_shown() -> None:
    message = refused(params(type="redis", url="http://user:canary-2@cache:6379"))
    assert message.startswith("<string>:")
    assert "redis://" in message
    assert "canary-2" not in message


# --- prices


def test_prices_of_deployments_make_what_was_saved() -> None:
    text = (
        "model_list:\n"
        "  - {model_name: a, litellm_params: {model: mock/a, input_cost_per_token: 0.5, output_cost_per_token: '2'}}\n"
        "  - {model_name: a, litellm_params: {model: mock/a, input_cost_per_token: 9, output_cost_per_token: 9}}\n"
        "  - {model_name: b, litellm_params: {model: mock/b}, model_info: {input_cost_per_token: 0.25}}\n"
        "  - {model_name: c, litellm_params: {model: mock/c}}\n"
        "  - {model_name: c-*, litellm_params: {model: mock/*, output_cost_per_token: 3}}\n"
        "router_settings: {model_group_alias: {also-b: b}}\n"
    )
    settings = loads(text, env={})
    assert settings.notices == ()
    price = price_of(settings)
    assert price is not None
    usage = Usage(4, 1, source="provider")
    assert [price(model, usage) for model in ("a", "b", "also-b", "c", "c-1", "unknown")] == [4, 1, 1, 0, 3, 0]
    assert price_of(settings_of("")) is None
