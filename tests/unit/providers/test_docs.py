"""docs/providers.md says what is true: its example runs, its registry is the shipped one."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.support.stack import ANSWER, CHAT
from tests.unit.providers.served import Build, stacks
from tianji_mw.providers import registry
from tianji_mw.testing import FakeLLM, Reply, drive

TEXT = (Path(__file__).parents[3] / "docs" / "providers.md").read_text("utf-8")


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    async with stacks() as found:
        yield found


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_registry_in_the_docs_is_the_shipped_one() -> None:
    listed = TEXT.partition("## The registry")[2]
    assert re.findall(r"^\| `([^`]+)` \|", listed, re.MULTILINE) == list(registry.shipped())
    for name, spec in registry.shipped().items():
        row = next(line for line in listed.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(variable in row for variable in spec.api_key_env)
        assert spec.base_url.removeprefix("https://") in row


def test_every_key_of_an_entry_is_in_the_docs() -> None:
    table = TEXT.partition("## A provider by config alone")[2].partition("## A provider of your own")[0]
    for key in (*registry.Spec.model_fields, *registry._ENDPOINTS):
        assert f"`{key}`" in table


async def test_the_provider_of_the_docs_works(llm: FakeLLM, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = blocks("python")
    module = ModuleType("acme_provider_of_the_docs")
    exec(compile(code, "providers.md", "exec"), module.__dict__)
    module.Acme.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    mapping = yaml.safe_load(blocks("yaml")[1].replace("my_pkg.my_mod", module.__name__))
    mapping["model_list"][0]["litellm_params"]["api_base"] = llm.url
    llm.replies = [Reply.json(ANSWER)]
    app = build(mapping, {"ACME_API_KEY": "acme-key"})
    driven = await drive(app, {**CHAT, "model": "acme-large", "seed": 3})
    [request] = llm.requests
    assert driven.json == ANSWER
    assert request.path == "/v3/generate"
    assert (request.headers["x-acme-key"], request.headers["x-acme-cluster"]) == ("acme-key", "us")
    assert request.json == {"model": "large-2", "messages": CHAT["messages"]}
    assert driven.headers["x-tianji-dropped-params"] == "seed"


async def test_the_entry_of_the_docs_works(build: Build) -> None:
    app = build(yaml.safe_load(blocks("yaml")[0]), {"ACME_API_KEY": "k"})
    [deployment] = app.deployments.all
    assert deployment.provider.base == "https://eu.llm.acme.example/v1"
    assert deployment.provider.api_key.reveal() == "k"
