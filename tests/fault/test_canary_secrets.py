"""No value of a secret manager in anything that is logged or shown at DEBUG, the SDKs' own logs included."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.test_secret_stores import FAST, REAL, Backend, Open
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.compose import compose
from tianji_mw.config import from_dict
from tianji_mw.secrets.middleware import Secrets
from tianji_mw.secrets.resolver import Resolver
from tianji_mw.testing import FakeLLM, Received, Reply, drive

FIRST, SECOND = "sk-canary-first-0123456789", "sk-canary-second-0123456789"


def upstream(request: Received) -> Reply:
    if SECOND in request.headers.get("authorization", ""):
        return Reply.json(ANSWER)
    return Reply.json({"error": {"message": f"wrong key {request.headers}"}}, status=401)


def put(backend: Backend, value: str) -> None:
    """The test's own use of an SDK may say what it likes."""
    logging.disable(logging.CRITICAL)
    backend.put("canary", value)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "open_", [*FAST, *(pytest.param(open_, marks=pytest.mark.slow) for open_ in REAL)], ids=lambda open_: open_.__name__
)
async def test_nothing_shows_a_value(
    open_: Open, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, logger=name)
    with ExitStack() as stack:
        backend = open_(stack, tmp_path, monkeypatch)
        put(backend, FIRST)
        resolver = Resolver({"it": backend.store})
        async with FakeLLM(upstream) as llm:
            params = {"model": "openai/gpt-4o", "api_base": f"{llm.url}/v1", "api_key": "unused"}
            settings = from_dict({"model_list": [{"model_name": "gpt-4o", "litellm_params": params}]}, env={})
            stack_ = compose(settings, env={})
            gateway = stack_.app
            provider = gateway.deployments.all[0].provider  # type: ignore[attr-defined]
            key = await resolver.get("secret://it/canary")
            object.__setattr__(provider, "api_key", key)
            app = await serve(Secrets(gateway, names={"canary": key}, resolver=resolver, allow_order=True))
            refused = await drive(app, CHAT)
            assert refused.status == 401
            put(backend, SECOND)
            key.entry.vain_until = 0.0
            good = await drive(app, CHAT)
            assert good.status == 200
            put(backend, " ")
            await resolver.refresh()
            shown = [
                repr(refused.messages), repr(good.messages), repr(app.runtime.counts), repr(resolver.report()),
                repr(key), repr(backend.store), repr(provider), caplog.text, repr(key.entry.error),
            ]  # fmt: skip
        assert key.reveal() == SECOND
        for text in shown:
            assert FIRST not in text
            assert SECOND not in text
            assert "canary-first" not in text
