"""Secrets through the whole gateway: from a YAML file and mounted secrets to what an upstream is sent."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import hvac
import pytest

from tests.integration.secret_stores.servers import ROOT_TOKEN, bao
from tests.support.stack import ANSWER, CHAT, STREAM, Serve, stream_of
from tianji_mw.call import current_call
from tianji_mw.compose import compose
from tianji_mw.config import from_dict
from tianji_mw.errors import ConfigErrors
from tianji_mw.gateway import Gateway
from tianji_mw.secrets.base import SecretNotFound
from tianji_mw.secrets.file import Files
from tianji_mw.secrets.middleware import SECRETS_KEY, Secrets
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Received, Reply, drive


class Upstream:
    """An LLM that knows its keys."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)
        self.seen: list[str] = []
        self.refused = 0

    def __call__(self, request: Received) -> Reply:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.seen.append(key)
        if key not in self.keys:
            self.refused += 1
            return Reply.json({"error": {"message": f"wrong key {key}", "code": "invalid_api_key"}}, status=401)
        if b'"stream":true' in request.body.replace(b" ", b""):
            return Reply.events(*stream_of("Hello"))
        return Reply.json(ANSWER)


def config(tmp_path: Path, url: str, reference: str, more: str = "") -> Path:
    path = tmp_path / "config.yaml"
    model = f"{{model: openai/gpt-4o, api_base: '{url}/v1', api_key: '{reference}'}}"
    path.write_text(f"model_list:\n  - {{model_name: gpt-4o, litellm_params: {model}}}\n{more}\n")
    return path


def mount(tmp_path: Path, name: str, value: str) -> Path:
    """A secret as Kubernetes changes one: a new file takes the place of the old in one step."""
    path, draft = tmp_path / name, tmp_path / f".{name}"
    draft.write_text(value)
    draft.replace(path)
    return path


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_replaced_key_is_fetched_and_the_call_goes_on(
    tmp_path: Path, serve: Serve, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream = Upstream("sk-canary-old-1")
    async with FakeLLM(upstream) as llm:
        key = mount(tmp_path, "key", "sk-canary-old-1\n")
        app = await serve(Gateway.from_config(config(tmp_path, llm.url, f"file://{key}?ttl=86400"), env={}))
        assert (await drive(app, body)).status == 200
        mount(tmp_path, "key", "sk-canary-new-2")
        upstream.keys = {"sk-canary-new-2"}
        driven = await drive(app, body)
        assert driven.status == 200
        assert upstream.seen == ["sk-canary-old-1", "sk-canary-old-1", "sk-canary-new-2"]
        upstream.keys = set()
        refused = await drive(app, body)
        assert refused.status == 401
        assert len(upstream.seen) == 4  # the store says the same: nothing to try again with
        assert "sk-canary" not in repr(refused.messages) + repr(driven.messages) + caplog.text


async def test_uploads_are_sent_again_with_the_new_key_too(tmp_path: Path, serve: Serve) -> None:
    upstream = Upstream("sk-old")
    async with FakeLLM(upstream) as llm:
        key = mount(tmp_path, "key", "sk-old")
        app = await serve(Gateway.from_config(config(tmp_path, llm.url, f"file://{key}?ttl=86400"), env={}))
        body = {"model": "gpt-4o", "input": "hi", "voice": "alloy"}
        assert (await drive(app, body, path="/v1/audio/speech")).status == 200
        mount(tmp_path, "key", "sk-new")
        upstream.keys = {"sk-new"}
        assert (await drive(app, body, path="/v1/audio/speech")).status == 200
        assert upstream.seen == ["sk-old", "sk-old", "sk-new"]


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [True, False])
async def test_rotation_under_load(tmp_path: Path, serve: Serve, overlap: bool) -> None:
    upstream = Upstream("sk-0")
    async with FakeLLM(upstream) as llm:
        key = mount(tmp_path, "key", "sk-0")
        app = await serve(Gateway.from_config(config(tmp_path, llm.url, f"file://{key}?ttl=1"), env={}))
        statuses: list[int] = []

        async def call() -> None:
            statuses.append((await drive(app, CHAT)).status)

        async def rotate() -> None:
            for turn in range(1, 4):
                await asyncio.sleep(2)
                name = f"sk-{turn}"
                upstream.keys = {name, f"sk-{turn - 1}"} if overlap else {name}
                mount(tmp_path, "key", name)
            await asyncio.sleep(2)

        rotating = asyncio.create_task(rotate())
        calls: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not rotating.done():
            while len(calls) < (loop.time() - began) * 200:  # by the clock, so that a slow turn is made up for
                calls.append(asyncio.create_task(call()))
            await asyncio.sleep(0.004)
        await asyncio.gather(*calls, rotating)
        assert len(statuses) > 1500
        assert set(statuses) == {200}
        assert len(upstream.seen) <= 2 * len(statuses)
        assert len(set(upstream.seen)) == 4
        if overlap:
            assert upstream.refused == 0


async def test_a_store_that_is_gone_is_served_from_the_last_good_value(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM(Upstream("sk-1")) as llm:
        key = mount(tmp_path, "key", "sk-1")
        app = await serve(Gateway.from_config(config(tmp_path, llm.url, f"file://{key}?ttl=1"), env={}))
        runtime = app.runtime
        key.unlink()
        async with asyncio.timeout(10):
            while not runtime.degraded:
                assert (await drive(app, CHAT)).status == 200
                await asyncio.sleep(0.1)
        assert (await drive(app, CHAT)).status == 200
        mount(tmp_path, "key", "sk-1")
        async with asyncio.timeout(10):
            while runtime.degraded:
                await asyncio.sleep(0.1)


async def test_headers_composed_of_secrets_and_master_keys_follow(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        key, master = mount(tmp_path, "key", "sk-1"), mount(tmp_path, "master", "sk-master-1")
        path = tmp_path / "config.yaml"
        path.write_text(f"""
secret_managers:
  mounted: {{type: file, directory: {tmp_path}, cache_ttl: 1}}
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_base: {llm.url}/v1
      api_key: secret://mounted/key
      extra_headers: {{x-tenant: "Token ${{TENANT}}"}}
general_settings:
  key_management_system: mounted
  key_management_settings: {{hosted_keys: [TENANT]}}
  master_key: secret://mounted/master
""")
        mount(tmp_path, "TENANT", "tenant-1")
        app = await serve(Gateway.from_config(path, env={}))
        sent = await drive(app, CHAT, headers={"authorization": "Bearer sk-master-1"})
        assert sent.status == 200
        assert llm.requests[-1].headers["x-tenant"] == "Token tenant-1"
        mount(tmp_path, "TENANT", "tenant-2")
        mount(tmp_path, "master", "sk-master-2")
        async with asyncio.timeout(15):
            while (await drive(app, CHAT, headers={"authorization": "Bearer sk-master-2"})).status != 200:
                await asyncio.sleep(0.1)
            while llm.requests[-1].headers["x-tenant"] != "Token tenant-2":
                await asyncio.sleep(0.1)
                await drive(app, CHAT, headers={"authorization": "Bearer sk-master-2"})
        assert (await drive(app, CHAT, headers={"authorization": "Bearer sk-master-1"})).status == 401
        assert key.exists()
        assert master.exists()


async def test_a_hosted_key_stands_for_a_variable(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM(Upstream("sk-hosted")) as llm:
        mount(tmp_path, "OPENAI_API_KEY", "sk-hosted")
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list: [{{model_name: gpt-4o, litellm_params: {{model: openai/gpt-4o, api_base: "{llm.url}/v1"}}}}]
general_settings:
  key_management_system: file
  key_management_settings: {{directory: {tmp_path}, hosted_keys: [OPENAI_API_KEY, NOT_THERE]}}
""")
        app = await serve(Gateway.from_config(path, env={"OPENAI_API_KEY": "sk-of-the-environment"}))
        assert (await drive(app, CHAT)).status == 200


def test_everything_that_is_missing_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"""
model_list:
  - model_name: a
    litellm_params: {{model: openai/a, api_key: "file://{tmp_path}/absent"}}
  - model_name: b
    litellm_params: {{model: openai/b, api_key: env://NOT_SET, extra_headers: {{x-y: "file://{tmp_path}/empty"}}}}
secrets: {{named: "env://ALSO_NOT_SET"}}
""")
    mount(tmp_path, "empty", " \n")
    with pytest.raises(ConfigErrors) as caught:
        Stack.from_config(path, env={})
    found = sorted((error.line, error.key, error.reason) for error in caught.value.errors)
    assert found == [
        (4, "model_list[0].litellm_params.api_key", f"file: {tmp_path}/absent: there is no such file"),
        (6, "model_list[1].litellm_params.api_key", "env: the environment variable NOT_SET is not set"),
        (6, "model_list[1].litellm_params.extra_headers.x-y", f"file: {tmp_path}/empty: the secret is empty"),
        (7, "secrets.named", "env: the environment variable ALSO_NOT_SET is not set"),
    ]


class App:
    """An app of a user's that asks for secrets in both ways."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan")
        call = current_call()
        by_call = await call.secret("token") if call is not None else None
        by_scope = await scope[SECRETS_KEY].get("token")
        with pytest.raises(KeyError, match="there are: token"):
            await scope[SECRETS_KEY].get("env://PATH")
        text = f"{by_call.reveal() if by_call else '-'} {by_scope.reveal()} {scope[SECRETS_KEY]!r}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text})


async def test_a_wrapped_app_asks_by_name(tmp_path: Path, serve: Serve) -> None:
    mount(tmp_path, "t", "token-1")
    app = await serve(
        Secrets(App(), names={"token": "secret://mounted/t"}, stores={"mounted": Files(directory=tmp_path)})
    )
    assert (await drive(app, CHAT)).body == b"token-1 token-1 Named(token)"
    assert (await drive(app, {}, path="/users", method="POST")).body == b"- token-1 Named(token)"


async def test_names_of_a_config(tmp_path: Path, serve: Serve) -> None:
    mount(tmp_path, "t", "token-1")
    settings = from_dict({"secrets": {"token": f"file://{tmp_path}/t"}}, env={})
    app = await serve(compose(settings, env={}, terminal=App()).app)
    assert (await drive(app, CHAT)).body == b"token-1 token-1 Named(token)"


async def test_a_named_secret_that_is_missing_stops_the_start(tmp_path: Path, serve: Serve) -> None:
    layer = Secrets(App(), names={"token": "secret://mounted/t"}, stores={"mounted": Files(directory=tmp_path)})
    with pytest.raises(Exception, match=r"secrets\.token: mounted: t: there is no such file"):
        await serve(layer)
    later = Secrets(
        App(), names={"token": "secret://m/t"}, stores={"m": Files(directory=tmp_path)}, allow_unresolved=True
    )
    app = await serve(later)
    assert isinstance((await drive(app, CHAT)).error, SecretNotFound)
    mount(tmp_path, "t", "token-2")
    assert (await drive(app, CHAT)).body == b"token-2 token-2 Named(token)"


@pytest.mark.slow
async def test_a_restart_while_the_store_is_down(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "bao").mkdir()
    async with FakeLLM(Upstream("sk-1")) as llm:
        with bao(tmp_path / "bao") as running:
            client = hvac.Client(url=running.url, token=ROOT_TOKEN)
            client.secrets.kv.v2.create_or_update_secret(path="llm/openai", secret={"key": "sk-1", "other": "x"})
            more = f"""
secret_managers: {{corp: {{type: vault, address: "{running.url}", token: os.environ/TOKEN, timeout_s: 1}}}}
general_settings:
  secret_cache: {{file: {tmp_path}/last-good, passphrase: os.environ/PASSPHRASE}}
"""
            env = {"TOKEN": ROOT_TOKEN, "PASSPHRASE": "sixteen characters at least"}
            path = config(tmp_path, llm.url, "secret://corp/llm/openai#key", more)
            app = await serve(Gateway.from_config(path, env=env))
            assert (await drive(app, CHAT)).status == 200
            assert app.runtime.degraded == {}
        other = tmp_path / "other.yaml"
        other.write_text(path.read_text().partition("general_settings:\n  secret_cache")[0])
        with pytest.raises(ConfigErrors, match=r"api_key: corp: llm/openai: the server cannot be reached"):
            Gateway.from_config(other, env=env)
        again = await serve(Gateway.from_config(path, env=env))
        assert (await drive(again, CHAT)).status == 200
        assert again.runtime.degraded == {"secrets": "the last good values of secrets are used"}
