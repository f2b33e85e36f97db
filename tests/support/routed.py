"""A stack from a config of a few lines, over upstreams that do as they are told: for tests of routing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import yaml

from tests.support.stack import ANSWER, Ends, stream_of
from tianji_mw.compose import compose
from tianji_mw.config import load
from tianji_mw.driver import inner_layers
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.router import Router
from tianji_mw.testing import Driven, FakeLLM, Received, Reply, drive, started

Says = Callable[[Received], Reply]


def ok(request: Received) -> Reply:
    """An answer in the form that was asked for."""
    if orjson.loads(request.body).get("stream"):
        return Reply.events(*stream_of("Hello", " you"))
    return Reply.json(ANSWER)


def fails(status: int, *, headers: Mapping[str, str] | None = None, code: str | None = None, text: str = "no") -> Says:
    """Always this error."""

    def says(request: Received) -> Reply:
        reply = Reply.json({"error": {"message": text, "type": "x", "param": None, "code": code}}, status=status)
        reply.headers.update(headers or {})
        return reply

    return says


class Routed:
    """The stack, its upstreams by name, and what its calls became."""

    def __init__(self, app: Any, llms: Mapping[str, FakeLLM]) -> None:
        self.app, self.llms = app, llms
        self.ends: Ends = app

    @property
    def router(self) -> Router:
        return next(layer for layer in inner_layers(self.app) if isinstance(layer, Routing)).router

    def asked(self) -> dict[str, int]:
        """Requests that each upstream got."""
        return {name: len(llm.requests) for name, llm in self.llms.items()}

    async def many(self, count: int, body: Any, *, at_once: int = 20, **options: Any) -> Counter[int]:
        """Send so many calls, some at a time; their statuses."""
        statuses: Counter[int] = Counter()
        left = iter(range(count))

        async def sender() -> None:
            for _ in left:
                statuses[(await drive(self.app, body, **options)).status] += 1

        await asyncio.gather(*(sender() for _ in range(at_once)))
        return statuses

    async def ask(self, body: Any, **options: Any) -> Driven:
        return await drive(self.app, body, **options)


def entry(name: str, url: str, **params: Any) -> dict[str, Any]:
    """An entry of `model_list`; `info` becomes its `model_info`."""
    info = params.pop("info", {})
    return {
        "model_name": name,
        "litellm_params": {"model": "openai/gpt-4o", "api_base": f"{url}/v1", "api_key": "sk-up", **params},
        "model_info": info,
    }


@asynccontextmanager
async def routed(
    says: Mapping[str, Says | Sequence[Reply]],
    models: Callable[[Mapping[str, str]], list[dict[str, Any]]],
    *,
    tmp_path: Any,
    **config: Any,
) -> AsyncIterator[Routed]:
    """`says`: what each upstream does; `models`: the model_list, from the upstreams' addresses by name."""
    async with AsyncExitStack() as stack:
        llms: dict[str, FakeLLM] = {}
        for name, does in says.items():
            llm = FakeLLM(does if callable(does) else ok)
            if not callable(does):
                llm.replies.extend(does)
            llms[name] = await stack.enter_async_context(llm)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"model_list": models({name: llm.url for name, llm in llms.items()}), **config}))
        settings = load(path, env={})
        assert not settings.notices, [str(found) for found in settings.notices]
        app = Ends(compose(settings, env={}).app, allow_order=True)
        yield Routed(await stack.enter_async_context(started(app)), llms)
