"""Paths whose bodies go through unread, over real HTTP: audio, images, files, batches. Forms have their own file."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.uploads import END, MODEL, OK, file_part, part, scope_of, send
from tests.unit.providers.served import KEY, Build, config, error
from tianji_mw.testing import FakeLLM, Reply

# --- JSON and binary


async def test_speech_comes_in_chunks_as_it_arrives(llm: FakeLLM, app: Any) -> None:
    sound = {"content-type": "audio/mpeg", "x-request-id": "r1", "set-cookie": "a=b"}
    llm.replies = [Reply(headers=sound, parts=[b"\x00one", b"\xfftwo"], chunked=True, pause_s=0.05)]
    body = b'{"input": "hi",  "model": "gpt-4o", "voice": "x"}'
    driven = await send(app, body, path="/v1/audio/speech", kind="application/json")
    assert llm.requests[0].body == body.replace(b"gpt-4o", b"gpt-4o-2024")
    assert [part for part in driven.bodies if part] == [b"\x00one", b"\xfftwo"]
    assert (driven.headers["content-type"], driven.headers["llm_provider-x-request-id"]) == ("audio/mpeg", "r1")
    assert "set-cookie" not in driven.headers


async def test_images(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json({"data": [{"b64_json": "AA"}]})]
    driven = await send(app, b'{"model":"gpt-4o","prompt":"x"}', path="/images/generations", kind="application/json")
    assert driven.json == {"data": [{"b64_json": "AA"}]}
    assert llm.requests[0].path == "/v1/images/generations"


async def test_a_model_written_with_escapes_is_replaced_too(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json({})]
    body = b'{"mod\\u0065l":"gpt-4o","prompt":"x"}'
    await send(app, body, path="/v1/images/generations", kind="application/json")
    assert llm.requests[0].json == {"model": "gpt-4o-2024", "prompt": "x"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"model":"a","model":"b"}', 400, "invalid_json"),
        (b'{"prompt":"x"}', 400, "missing_required_parameter"),
        (b'{"model":7}', 400, "missing_required_parameter"),
        (b'{"model":"unknown"}', 404, "model_not_found"),
    ],
)
async def test_wrong_bodies(llm: FakeLLM, app: Any, body: bytes, status: int, code: str) -> None:
    driven = await send(app, body, path="/v1/images/generations", kind="application/json")
    assert (driven.status, error(driven)["code"], llm.requests) == (status, code, [])


async def test_a_body_that_nobody_can_read_names_no_model(llm: FakeLLM, app: Any) -> None:
    for kind, more in (("text/plain", {}), ("application/json", {"content-encoding": "gzip"})):
        driven = await send(app, b'{"model":"gpt-4o"}', path="/v1/audio/speech", kind=kind, headers=more)
        assert driven.status in (400, 415)
    assert not llm.requests


async def test_json_over_the_limit(llm: FakeLLM, build: Build) -> None:
    app = build({**config(llm), "general_settings": {"max_request_size_mb": 0.001}})
    driven = await send(
        app, b'{"model":"gpt-4o","prompt":"%b"}' % (b"x" * 4000), path="/v1/audio/speech", kind="application/json"
    )
    assert driven.status == 413


# --- files and batches


@pytest.mark.parametrize(
    ("method", "path", "query", "sent"),
    [
        ("GET", "/v1/files", b"purpose=batch&limit=2", "/v1/files?purpose=batch&limit=2"),
        ("GET", "/files/file-1", b"", "/v1/files/file-1"),
        ("DELETE", "/v1/files/file-1", b"", "/v1/files/file-1"),
        ("GET", "/v1/files/file-1/content", b"", "/v1/files/file-1/content"),
        ("GET", "/v1/files/audio/content", b"", "/v1/files/audio/content"),
        ("GET", "/v1/files/", b"", "/v1/files"),
        ("POST", "/v1/batches", b"", "/v1/batches"),
        ("POST", "/v1/batches/b_1/cancel", b"", "/v1/batches/b_1/cancel"),
        (
            "GET",
            "/v1/vector_stores/v/files/f",
            b"custom_llm_provider=openai&a=%26b",
            "/v1/vector_stores/v/files/f?a=%26b",
        ),
        ("GET", "/v1/files/a?b#c", b"", "/v1/files/a%3Fb%23c"),
        ("GET", "/v1/files/%2e%2e", b"", None),
        ("GET", "/v1/files", b"model=gpt-4o", "/v1/files"),
    ],
)
async def test_paths_and_queries(
    llm: FakeLLM, app: Any, method: str, path: str, query: bytes, sent: str | None
) -> None:
    llm.replies = [Reply.json({"ok": True})]
    body = b'{"input_file_id":"f"}' if method == "POST" else b""
    driven = await send(app, body, path=path, method=method, kind="application/json", scope={"query_string": query})
    if sent is None:
        assert driven.status in (400, 404)
        assert not llm.requests
        return
    assert driven.json == {"ok": True}
    assert (llm.requests[0].method, llm.requests[0].path, llm.requests[0].body) == (method, sent, body)


async def test_an_upload_of_a_file(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json({"id": "file-1"})]
    whole = part("purpose", b"batch") + file_part(b"{}\n" * 50_000) + END
    driven = await send(app, *[whole[i : i + 9999] for i in range(0, len(whole), 9999)], path="/v1/files")
    assert driven.json == {"id": "file-1"}
    assert llm.requests[0].body == whole


async def test_a_model_behind_a_large_file_breaks_the_upload_off(llm: FakeLLM, app: Any) -> None:
    whole = part("purpose", b"batch") + file_part(b"s" * 200_000) + MODEL + END
    driven = await send(app, *[whole[i : i + 9999] for i in range(0, len(whole), 9999)], path="/v1/files")
    assert driven.status == 400
    assert "must come once, and before its file" in error(driven)["message"]


@pytest.mark.parametrize(
    "path", ["/v1/files/../admin", "/v1/files/..", "/v1/files/x/../../y", "/v1/files//x", "/v1/files/./x"]
)
async def test_paths_that_climb_are_refused(llm: FakeLLM, app: Any, path: str) -> None:
    driven = await send(app, path=path, method="GET")
    assert driven.status in (400, 404, 405)
    assert not llm.requests


async def test_a_mounted_gateway(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json({}), Reply.json({})]
    for root in ("/llm", "/files"):
        await send(app, path=f"{root}/v1/files/f1", method="GET", scope={"root_path": root})
    assert [request.path for request in llm.requests] == ["/v1/files/f1"] * 2


async def test_azure_puts_audio_under_its_deployment(llm: FakeLLM, build: Build) -> None:
    llm.replies = [Reply.json(OK), Reply.json({})]
    app = build(config(llm, model="azure/my-whisper", api_base=llm.url, api_version="2024-10-21"))
    await send(app, MODEL + file_part(b"s") + END)
    await send(app, path="/v1/files", method="GET", scope={"query_string": b"limit=1"})
    assert [request.path for request in llm.requests] == [
        "/openai/deployments/my-whisper/audio/transcriptions?api-version=2024-10-21",
        "/openai/files?api-version=2024-10-21&limit=1",
    ]
    assert llm.requests[0].headers["api-key"] == KEY


# --- refusals and failures


@pytest.mark.parametrize(
    ("model", "path"), [("anthropic/claude", "/v1/files"), ("mock/x", "/v1/files"), ("deepseek/x", "/v1/files")]
)
async def test_no_provider_speaks_it(llm: FakeLLM, build: Build, model: str, path: str) -> None:
    mapping = config(llm, model=model)
    if model.startswith("mock"):
        mapping["model_list"][0]["litellm_params"] = {"model": model}
    app = build(mapping)
    assert (await send(app, path=path, method="GET")).status == 404
    driven = await send(app, MODEL + file_part(b"s") + END)
    assert (driven.status, error(driven)["code"]) == (400, "unsupported_endpoint")
    assert not llm.requests


async def test_a_provider_may_be_named(llm: FakeLLM, build: Build) -> None:
    llm.replies = [Reply.json({})] * 3
    first, second = config(llm), config(llm, model="groq/x", api_base=f"{llm.url}/groq", name="g")
    app = build({"model_list": first["model_list"] + second["model_list"]})
    await send(app, path="/v1/files", method="GET")
    await send(app, path="/v1/files", method="GET", scope={"query_string": b"custom_llm_provider=groq"})
    await send(app, path="/v1/files", method="GET", headers={"custom-llm-provider": "groq"})
    assert [request.path for request in llm.requests] == ["/v1/files", "/groq/files", "/groq/files"]
    unknown = await send(app, path="/v1/files", method="GET", scope={"query_string": b"provider=none"})
    assert unknown.status == 404


async def test_restrictions_of_a_key_hold(llm: FakeLLM, build: Build) -> None:
    llm.replies = [Reply.json(OK)] * 3
    keys = [{"key": "sk-client-1", "models": ["other"]}, {"key": "sk-client-2", "models": ["gpt-4o"]}]
    app = build({**config(llm), "virtual_keys": keys})
    body = MODEL + file_part(b"s") + END
    refused = await send(app, body, headers={"authorization": "Bearer sk-client-1"})
    assert (refused.status, error(refused)["code"]) == (404, "model_not_found")
    assert (
        await send(app, path="/v1/files", method="GET", headers={"authorization": "Bearer sk-client-1"})
    ).status == 404
    assert (await send(app, body)).status == 401
    assert not llm.requests
    assert (await send(app, body, headers={"authorization": "Bearer sk-client-2"})).status == 200
    assert "sk-client" not in str(llm.requests[0].headers)


async def test_without_a_key_nothing_is_sent(build: Build) -> None:
    app = build({"model_list": [{"model_name": "gpt-4o", "litellm_params": {"model": "openai/whisper-1"}}]})
    driven = await send(app, MODEL + file_part(b"s") + END)
    assert (driven.status, error(driven)["code"]) == (401, "missing_api_key")


async def test_errors_pass_byte_for_byte(llm: FakeLLM, app: Any) -> None:
    raw = b'{ "error": {"message": "bad file", "own": 1} }'
    head = {"content-type": "application/json", "retry-after": "3"}
    llm.replies = [Reply(status=422, headers=head, parts=[raw]), Reply(status=500, parts=[f"<p>{KEY}</p>".encode()])]
    driven = await send(app, MODEL + file_part(b"s") + END)
    assert (driven.status, driven.body, driven.headers["retry-after"]) == (422, raw, "3")
    other = await send(app, MODEL + file_part(b"s") + END)
    assert (other.status, error(other)["type"]) == (500, "api_error")
    assert KEY.encode() not in other.body


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_download_that_is_cut_is_no_success(llm: FakeLLM, app: Any, chunked: bool) -> None:
    llm.replies = [
        Reply(headers={"content-type": "audio/mpeg"}, parts=[b"x" * 100, b"y" * 100], chunked=chunked, cut_after=120)
    ]
    driven = await send(app, b'{"model":"gpt-4o"}', path="/v1/audio/speech", kind="application/json")
    assert driven.status == 200
    assert not driven.complete
    assert isinstance(driven.error, ConnectionError)


async def test_an_upstream_that_does_not_answer(llm: FakeLLM, build: Build) -> None:
    llm.replies = [Reply.json(OK, delay_s=3)]
    driven = await send(build(config(llm, timeout=0.2)), MODEL + file_part(b"s") + END)
    assert (driven.status, error(driven)["type"]) == (408, "timeout_error")


async def test_a_client_that_leaves_during_its_upload(llm: FakeLLM, app: Any) -> None:
    messages = [
        {"type": "http.request", "body": MODEL + file_part(b"s"), "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = await by_hand(app, messages)
    assert sent == []
    assert not llm.requests
    assert app.runtime.counts["calls", "passthrough client_gone"] == 1


async def test_a_client_that_leaves_while_the_provider_works(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json(OK, delay_s=5), Reply.json(OK, delay_s=5)]
    for parts in ([MODEL + END], [MODEL, file_part(b"s" * 100_000) + END]):
        messages = [{"type": "http.request", "body": p, "more_body": p is not parts[-1]} for p in parts]
        async with asyncio.timeout(2):
            assert await by_hand(app, [*messages, {"type": "http.disconnect"}]) == []
    for _ in range(100):
        await asyncio.sleep(0.01)
        if llm.dropped == 2:
            break
    assert llm.dropped == 2


async def by_hand(app: Any, messages: list[Any]) -> list[Any]:
    """What an app sends to a client that says exactly this."""
    sent: list[Any] = []
    waiting = list(reversed(messages))
    whole = all("body" in message for message in messages[:-1]) and not messages[-2]["more_body"]
    length = sum(len(message.get("body", b"")) for message in messages) + (0 if whole else 1000)

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = scope_of(length)
    await app(scope, receive, keep)
    return sent
