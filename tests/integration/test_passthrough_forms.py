"""Forms that go through unread, over real HTTP: the one field that is replaced, and that nothing is held."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.uploads import AUDIO, END, FORM, MODEL, OK, RENAMED, file_part, part, scope_of, send
from tests.unit.providers.served import KEY, Build, config, error
from tianji_mw.errors import InvalidRequest
from tianji_mw.passthrough_form import Form
from tianji_mw.testing import FakeLLM, Reply

# --- forms


async def test_a_form_goes_through_with_the_providers_model_name(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json(OK)]
    rest = file_part(b"\x00\xff" * 9) + part("language", b"en") + END
    driven = await send(app, MODEL + rest)
    [request] = llm.requests
    assert (driven.status, driven.json) == (200, OK)
    assert request.body == RENAMED + rest
    assert (request.path, request.headers["content-type"]) == (AUDIO, FORM)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-length"] == str(len(request.body))


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_however_the_form_is_cut(llm: FakeLLM, app: Any, size: int) -> None:
    llm.replies = [Reply.json(OK)]
    whole = part("language", b"en") + MODEL + file_part(b"sound" * 20) + END
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    assert (await send(app, *parts)).status == 200
    assert llm.requests[0].body == whole.replace(MODEL, RENAMED)


async def test_a_small_file_may_come_first(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json(OK)]
    assert (await send(app, file_part(b"s" * 1000) + MODEL + END)).status == 200
    assert RENAMED in llm.requests[0].body


async def test_a_large_file_may_come_first_too(llm: FakeLLM, app: Any) -> None:
    """Some clients write the file first; the form is then held until it names its model."""
    llm.replies = [Reply.json(OK)]
    chunks = [file_part(b"s" * 200_000)[i : i + 16384] for i in range(0, 200_100, 16384)]
    assert (await send(app, *chunks, MODEL + END)).status == 200
    assert llm.requests[0].body == b"".join(chunks) + RENAMED + END


async def test_a_file_above_the_limit_may_not(llm: FakeLLM, build: Build) -> None:
    app = build(config(llm) | {"general_settings": {"max_request_size_mb": 0.1}})
    chunks = [file_part(b"s" * 200_000)[i : i + 16384] for i in range(0, 200_100, 16384)]
    driven = await send(app, *chunks, MODEL + END)
    assert (driven.status, llm.requests) == (400, [])
    assert error(driven)["param"] == "model"
    assert "must come before the file" in error(driven)["message"]


async def test_what_stands_in_a_file_is_no_field(llm: FakeLLM, app: Any) -> None:
    llm.replies = [Reply.json(OK)]
    fake = b'Content-Disposition: form-data; name="model"\r\n\r\nexpensive\r\n'
    whole = file_part(fake) + MODEL + END
    assert (await send(app, whole)).status == 200
    assert llm.requests[0].body == whole.replace(MODEL, RENAMED)


SECOND = [
    b'Content-Disposition: form-data; name="model"',
    b"content-disposition: form-data; name=model",
    b'Content-Disposition: form-data; name="mo\\del"',
    b"Content-Disposition: form-data; name*=utf-8''model",
    b'Content-Disposition: form-data; name="%6dodel"',
    b'Content-Disposition: form-data;\r\n\tname="model"',
    b'X-Other: 1\r\nContent-Disposition : form-data; filename="x"; name="MODEL"',
]


@pytest.mark.parametrize("head", SECOND)
@pytest.mark.parametrize("cut", [True, False])
async def test_a_second_model_is_refused(llm: FakeLLM, app: Any, head: bytes, cut: bool) -> None:
    """Else a key that may use one model could name another that the provider reads."""
    again = b"--XX\r\n%b\r\n\r\nexpensive\r\n" % head
    parts = [MODEL, file_part(b"s" * 100_000), again, END] if cut else [MODEL + file_part(b"s") + again + END]
    driven = await send(app, *parts)
    assert driven.status == 400
    assert "must come once" in error(driven)["message"]
    assert not llm.requests


async def test_a_form_without_a_boundary(llm: FakeLLM, app: Any) -> None:
    assert (await send(app, b"x", kind="multipart/form-data")).status == 400


async def test_a_form_without_a_model(llm: FakeLLM, app: Any) -> None:
    driven = await send(app, part("language", b"en") + END)
    assert (driven.status, error(driven)["param"], llm.requests) == (400, "model", [])


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), st.data())
def test_the_field_is_found_at_every_cut(before: bytes, content: bytes, data: st.DataObject) -> None:
    whole = part("a", before.replace(b"--XX", b"")) + MODEL + file_part(content.replace(b"--XX", b"")) + END
    form, rest = Form(FORM), whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        form.feed(rest[:size])
        rest = rest[size:]
    assert form.span is not None
    assert whole[slice(*form.span)] == b"gpt-4o"


def test_a_part_head_without_end_is_refused() -> None:
    form = Form(FORM)
    form.feed(b"--XX\r\n" + b"x" * 8000)
    with pytest.raises(InvalidRequest, match="too long"):
        form.feed(b"x" * 2000)


# --- nothing is held


class Sink:
    """An HTTP server that notes when bytes come and keeps none of them."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.size = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        wanted = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while self.size < wanted and (data := await reader.read(65536)):
            self.size += len(data)
            self.first.set()
        body = orjson.dumps(OK)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        await writer.drain()
        writer.close()


async def upload(build: Build, chunks: int, size: int, before_last: Any = None) -> Sink:
    """Send a form in chunks; `before_last` is awaited before the last one goes out."""
    sink = Sink()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    app = build({"model_list": [{"model_name": "gpt-4o", "litellm_params": {"model": "openai/w", "api_base": url}}]})
    start, end = MODEL + part("file", b"", more='; filename="a"')[:-2], b"\r\n" + END
    total = len(start) + chunks * size + len(end)
    left, sent = chunks + 2, []

    async def receive() -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            await asyncio.Event().wait()
        if left == 0 and before_last is not None:
            await before_last(sink)
        await asyncio.sleep(0)
        body = start if left == chunks + 1 else end if left == 0 else bytes(size)
        return {"type": "http.request", "body": body, "more_body": left > 0}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = scope_of(total)
    await app(scope, receive, keep)
    server.close()
    assert sent[0]["status"] == 200
    assert sink.size == total - len("gpt-4o") + len("w")
    return sink


async def test_the_provider_has_the_first_bytes_before_the_client_has_sent_the_last(build: Build) -> None:
    async def wait(sink: Sink) -> None:
        async with asyncio.timeout(5):
            await sink.first.wait()

    await upload(build, 4, 65536, before_last=wait)


@pytest.mark.slow
async def test_a_large_upload_needs_little_memory(build: Build) -> None:
    await upload(build, 2, 65536)
    tracemalloc.start()
    try:
        await upload(build, 800, 65536)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
