"""What is made once for a deployment: the same headers object for the transport, and a rotated key at once."""

from __future__ import annotations

from typing import Any

from tests.support.stack import CHAT, Serve, gateway
from tianji_mw.providers.openai import OpenAI
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply, drive
from tianji_mw.upstream import RawHeaders, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

KEYS = ["sk-first", "sk-first", "sk-second"]


class Rotating(OpenAI):
    """A provider whose key changes between requests."""

    async def credentials(self) -> RawHeaders:
        return [("authorization", f"Bearer {KEYS[len(SENT)]}")]


SENT: list[RawHeaders] = []


class Noting(Http1Transport):
    async def send(self, request: UpstreamRequest) -> Any:
        SENT.append(request.headers)
        return await super().send(request)


async def test_headers_are_one_object_until_the_key_changes(llm: FakeLLM, serve: Serve) -> None:
    SENT.clear()
    llm.replies += [Reply.json({"choices": []})] * 3
    provider = Rotating(api_base=f"{llm.url}/v1", api_key=Secret("sk-unused"))
    app = await serve(gateway(llm.url, provider=provider, runtime=Runtime(transport_factory=Noting)))
    for _ in range(3):
        assert (await drive(app, CHAT)).status == 200
    assert SENT[0] is SENT[1]
    assert SENT[1] is not SENT[2]
    assert [r.headers["authorization"] for r in llm.requests] == [f"Bearer {key}" for key in KEYS]


async def test_headers_that_a_client_passes_on_are_its_own_alone(llm: FakeLLM, serve: Serve) -> None:
    llm.replies += [Reply.json({"choices": []})] * 2
    app = await serve(gateway(llm.url))
    await drive(app, CHAT, headers={"openai-beta": "assistants=v2"})
    await drive(app, CHAT)
    assert [r.headers.get("openai-beta") for r in llm.requests] == ["assistants=v2", None]
