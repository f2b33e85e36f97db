"""Uploads pass through while they are still coming in: the provider has read the first part before the last is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from tests.interop.support import MASTER_KEY, UPSTREAM_KEY, Loop, served
from tianji_mw import Gateway, Secret
from tianji_mw.providers.openai import OpenAI
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.table import Deployments
from tianji_mw.transport import client
from tianji_mw.upstream import Deadlines

FIELD = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt\r\n'
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
SIZE = 200_000


class SlowEar:
    """An upstream that says when it has read how much, and answers at the end."""

    def __init__(self) -> None:
        self.read = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"--B--" not in self.read and (data := await reader.read(65536)):
            self.read += data
        body = b'{"text":"heard"}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n" + body)
        writer.close()

    async def has(self, size: int) -> None:
        async with asyncio.timeout(3):
            while len(self.read) < size:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("place", ["server", "process"])
async def test_an_upload_is_not_collected_first(place: str, loop: Loop) -> None:
    ear = SlowEar()

    async def form() -> AsyncIterator[bytes]:
        yield FIELD + FILE + b"x" * SIZE
        await ear.has(SIZE)
        yield b"y" * SIZE
        await ear.has(2 * SIZE)
        yield b"\r\n--B--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=B", "authorization": f"Bearer {MASTER_KEY}"}
    async with AsyncExitStack() as exits:
        upstream = await exits.enter_async_context(await asyncio.start_server(ear, "127.0.0.1", 0))
        base = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}/v1"
        provider = OpenAI(api_base=base, api_key=Secret(UPSTREAM_KEY))
        table = Deployments(
            [Deployment(id="a", model_name="gpt", model="whisper", provider=provider, deadlines=Deadlines())]
        )
        http: Any
        if place == "process":
            http = await exits.enter_async_context(client(Gateway(table), "httpx2"))
        else:
            url = exits.enter_context(served(loop, Gateway(table)))
            http = await exits.enter_async_context(httpx2.AsyncClient(base_url=url, trust_env=False))
        response = await http.post("/v1/audio/transcriptions", content=form(), headers=headers)
    assert (response.status_code, response.json()) == (200, {"text": "heard"})
    head, _, body = ear.read.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    assert b"whisper" in body
    assert body.count(b"x") >= SIZE
    assert body.count(b"y") >= SIZE
