"""The gateway in the four places where an SDK may meet it, and what the SDK and the upstreams said on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from fastapi import FastAPI
from openai import AsyncOpenAI
from starlette.middleware import Middleware

from tests.interop.apps.guard import NoCodename
from tests.interop.support import MASTER_KEY, UPSTREAM_KEY, Loop, fake_llm, served
from tests.support.processes import sidecar
from tianji_mw import Guardrails, Stack
from tianji_mw.testing import FakeLLM, Received

#: The sidecar's own process, behind uvicorn, mounted in a wrapped FastAPI app behind uvicorn, and in process.
MODES = ("sidecar", "server", "mounted", "process")
#: Public model names and what the provider calls them.
UPSTREAM_NAMES = {"gpt": "gpt-4.1-2025-04-14", "chat-only": "llama-3.3-70b-versatile", "claude": "claude-sonnet-4-5"}

CONFIG = """
model_list:
  - {{model_name: gpt, params: {{model: openai/gpt-4.1-2025-04-14, api_base: "{openai}/v1", api_key: {key}}}}}
  - {{model_name: chat-only, params: {{model: own/llama-3.3-70b-versatile, api_key: {key}}}}}
  - {{model_name: claude, params: {{model: anthropic/claude-sonnet-4-5, api_base: "{anthropic}", api_key: {key}}}}}
  - {{model_name: dead, params: {{model: openai/gone, api_base: "http://127.0.0.1:9/v1", api_key: {key}}}}}
  - {{model_name: slow, params: {{model: openai/slow, api_base: "{openai}/v1", api_key: {key}, timeout: 0.3}}}}
router_settings: {{num_retries: 0}}
general_settings:
  master_key: {master}
  providers: {{own: {{base_url: "{chat}/v1", supported_endpoints: [/v1/chat/completions]}}}}
"""


@dataclass
class Setup:
    """One place: its address, its upstreams, and the requests that SDK clients made."""

    mode: str
    url: str
    stack: Stack
    #: Upstreams by public model name.
    upstreams: dict[str, FakeLLM]
    sent: list[httpx2.Request] = field(default_factory=list)
    answers: list[httpx2.Response] = field(default_factory=list)

    def reset(self) -> None:
        self.sent.clear()
        self.answers.clear()
        for llm in self.upstreams.values():
            llm.replies.clear()
            llm.requests.clear()

    def script(self, model: str, *replies: Any) -> None:
        self.upstreams[model].replies.extend(replies)

    def reached(self, model: str) -> Received:
        """The one request that the upstream got."""
        [request] = self.upstreams[model].requests
        return request

    @asynccontextmanager
    async def openai(self, **options: Any) -> AsyncIterator[AsyncOpenAI]:
        options = {"api_key": MASTER_KEY, "max_retries": 0, "base_url": f"{self.url}/v1", **options}
        async with self._http() as http, AsyncOpenAI(http_client=http, **options) as client:
            yield client

    @asynccontextmanager
    async def anthropic(self, **options: Any) -> AsyncIterator[AsyncAnthropic]:
        options = {"api_key": MASTER_KEY, "max_retries": 0, "base_url": self.url, **options}
        async with self._http() as http, AsyncAnthropic(http_client=http, **options) as client:
            yield client

    def _http(self) -> Any:
        async def sent(request: httpx2.Request) -> None:
            self.sent.append(request)

        async def answered(response: httpx2.Response) -> None:
            self.answers.append(response)

        hooks = {"request": [sent], "response": [answered]}
        if self.mode == "process":
            return self.stack.httpx_client("httpx2", event_hooks=hooks)
        return httpx2.AsyncClient(event_hooks=hooks, trust_env=False, timeout=20)

    def unchanged(self, model: str, path: str) -> Received:
        """The request reached the upstream byte for byte, but for the model's name; and no key went the wrong way."""
        received, request = self.reached(model), self.sent[-1]
        old, new = f'"model":"{model}"'.encode(), f'"model":"{UPSTREAM_NAMES[model]}"'.encode()
        assert request.content.count(old) == 1
        assert received.body == request.content.replace(old, new)
        assert received.path == path
        self.keys_stay()
        return received

    def keys_stay(self) -> None:
        """The client's key never reaches an upstream, the upstream's never the client; every answer has its id."""
        for llm in self.upstreams.values():
            for request in llm.requests:
                assert MASTER_KEY not in f"{request.headers}{request.path}"
                assert MASTER_KEY.encode() not in request.body
                assert UPSTREAM_KEY in f"{request.headers}"
        for response in self.answers:
            assert UPSTREAM_KEY not in f"{response.headers.raw}"
            assert len(response.headers["x-request-id"]) == 36
            if response.is_closed and hasattr(response, "_content"):
                assert UPSTREAM_KEY.encode() not in response.content


@contextmanager
def setup(loop: Loop, mode: str, config: Path) -> Iterator[Setup]:
    """Start the upstreams and the gateway."""
    with ExitStack() as exits:
        llms = {name: exits.enter_context(fake_llm(loop)) for name in ("openai", "chat", "anthropic")}
        urls = {name: llm.url for name, llm in llms.items()}
        config.write_text(CONFIG.format(**urls, key=UPSTREAM_KEY, master=MASTER_KEY))
        stack = Stack.from_config(config, env={})
        url = "http://tianji"
        if mode == "sidecar":
            running = exits.enter_context(sidecar(config.parent, config.read_text(), "--quiet"))
            url = running.url
        elif mode == "server":
            url = exits.enter_context(served(loop, stack.app))
        elif mode == "mounted":
            app = FastAPI()
            app.mount("/llm", stack.app)
            guarded = Stack([Middleware(Guardrails, checks=[NoCodename()])]).wrap(app)
            url = exits.enter_context(served(loop, guarded)) + "/llm"
        upstreams = {
            "gpt": llms["openai"],
            "slow": llms["openai"],
            "chat-only": llms["chat"],
            "claude": llms["anthropic"],
        }
        yield Setup(mode, url, stack, upstreams)
