"""Presidio in this process: with a language model, and what stops the start."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.presidio.stack import (
    CARD,
    MAIL,
    answer,
    ask,
    sent,
    served,
)
from tests.support.presidio_server import PresidioServer, text_of
from tests.support.stack import ANSWER, Serve, stream_of
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails import presidio_local
from tianji_mw.guardrails.presidio import Presidio
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply, drive

pytestmark = pytest.mark.slow


async def test_names_and_places_with_the_installed_model(llm: FakeLLM, serve: Serve) -> None:
    gateway = await served(
        serve, llm, output_parse_pii=True, pii_entities_config={"PERSON": "MASK", "LOCATION": "MASK"}
    )
    llm.replies.append(answer(content="Dear <PERSON_1> of <LOCATION_1>, Barack Obama is in Berlin."))
    llm.replies.append(Reply.events(*stream_of("Dear <PER", "SON_1> of <LOCATION_1>, ", "Barack Obama is in Berlin.")))
    for stream in (False, True):
        driven = await drive(gateway, ask("My name is Grace Hopper and I live in Paris.", stream=stream))
        assert sent(llm) == "My name is <PERSON_1> and I live in <LOCATION_1>."
        text = text_of(driven.body) if stream else driven.json["choices"][0]["message"]["content"]
        assert text == "Dear Grace Hopper of Paris, <PERSON> is in <LOCATION>."


@pytest.mark.parametrize("anonymizer", [False, True])
async def test_names_come_back_through_the_services(real: Any, llm: FakeLLM, serve: Serve, anonymizer: bool) -> None:
    """The real engine with its model, behind REST: mask in, restore out, also where the stream cuts the token."""
    async with FakeLLM(PresidioServer(real)) as service:
        env = {"PRESIDIO_ANALYZER_API_BASE": service.url, "PRESIDIO_ANONYMIZER_API_BASE": service.url * anonymizer}
        entities = {"PERSON": "MASK", "LOCATION": "MASK", "CREDIT_CARD": "BLOCK"}
        gateway = await served(serve, llm, env, output_parse_pii=True, pii_entities_config=entities)
        told, back = "🎉 Dear <PERSON_1> of <LOCATION_1>, Barack Obama is in Berlin.", "🎉 Dear Grace Hopper of Paris, "
        llm.replies += [answer(content=told), Reply.events(*stream_of(*told))]  # one character in each event
        for stream in (False, True):
            driven = await drive(gateway, ask("🎉 My name is Grace Hopper and I live in Paris.", stream=stream))
            assert sent(llm) == "🎉 My name is <PERSON_1> and I live in <LOCATION_1>."
            text = text_of(driven.body) if stream else driven.json["choices"][0]["message"]["content"]
            assert text == f"{back}<PERSON> is in <LOCATION>."
        refused = await drive(gateway, ask(f"Grace Hopper, card {CARD}"))
        assert (refused.status, len(llm.requests)) == (400, 2)
        assert b"Grace" not in refused.body


async def test_choices_of_a_stream_are_not_found_in_each_other(
    real: Any, llm: FakeLLM, serve: Serve, monkeypatch: Any
) -> None:
    monkeypatch.setattr(presidio_local, "build", lambda models: real)
    gateway = await served(serve, llm, pii_entities_config={"PERSON": "MASK"})

    def event(index: int, text: str) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({**ANSWER, "choices": [choice]})

    parts = [event(0, "it was Grace "), event(1, "it was Tom "), event(0, "Hopper."), event(1, "Hanks.")]
    llm.replies.append(Reply.events(*parts, *stream_of()[-2:]))
    driven = await drive(gateway, ask("hi", stream=True, n=2))
    texts = {0: "", 1: ""}
    for line in driven.body.split(b"\n"):
        if line.startswith(b"data: {"):
            choice = orjson.loads(line[6:])["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {0: "it was <PERSON>.", 1: "it was <PERSON>."}


async def test_the_loop_goes_on_while_the_engine_works(real: Any) -> None:
    check = Presidio(engine=real, threads=1)
    await check.start(Runtime())
    from tests.integration.test_guardrail_services import a_call, judged

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    began = time.monotonic()
    await judged(check, "Grace Hopper lives in Paris. " * 300, call=a_call(request={}))
    assert ticks > (time.monotonic() - began) * 5
    ticking.cancel()
    await check.aclose()


async def failed_start(check: Presidio) -> str:
    with pytest.raises(SetupError) as caught:
        await check.start(Runtime())
    await check.aclose()
    return caught.value.message


def with_pattern(pattern: Any) -> bytes:
    return orjson.dumps([{"name": "x", "supported_entity": "X", "patterns": [pattern]}])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"), (b"{", "no JSON"), (b"{}", "must hold a list"),
        (b'[{"name": "x"}]', "must hold a list"), (b'[{"name": "x", "supported_entity": "X"}]', "must hold a list"),
        (with_pattern({"name": "p", "regex": "(", "score": 1}), "not valid"), (with_pattern(1), "not valid"),
    ],
)  # fmt: skip
async def test_recognizers_that_cannot_be_read_stop_the_start(
    tmp_path: Path, blank: Any, content: bytes | None, told: str
) -> None:
    file = tmp_path / "own.json"
    if content is not None:
        file.write_bytes(content)
    assert told in await failed_start(Presidio(engine=blank, ad_hoc_recognizers=str(file)))


async def test_what_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch, blank: Any) -> None:
    assert "'PERSON'" in await failed_start(Presidio(engine=blank, entities={"PERSON": "mask"}))
    assert "'no_model' is not installed" in await failed_start(Presidio(nlp_model="no_model"))
    assert "the language is 'de'" in await failed_start(Presidio(language="de", engine=blank))
    assert "the language is 'fr'" in await failed_start(Presidio(language="fr", nlp_model={"en": "none"}))
    assert "no spaCy model for the language 'de'" in await failed_start(Presidio(language="de"))
    assert "no language 'zz'" in await failed_start(Presidio(language="zz", nlp_model="none"))
    assert "analyzer_api_base is no address" in await failed_start(Presidio(analyzer_api_base="ftp://x"))
    assert "anonymizer_api_base is no address" in await failed_start(
        Presidio(engine=blank, anonymizer_api_base="http://x:999999")
    )
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[presidio\]"):
        await Presidio().start(Runtime())


async def test_a_language_that_was_not_loaded_is_the_clients_fault(
    llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presidio_local, "build", lambda models: blank)
    driven = await drive(await served(serve, llm), ask("x", guardrail_config={"language": "de"}))
    assert (driven.status, driven.json["error"]["param"]) == (400, "guardrail_config.language")


async def test_an_engine_that_hangs_ends_in_time(llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: Any) -> None:
    class Slow:
        supported_languages = ("en",)
        get_supported_entities = blank.get_supported_entities

        def analyze(self, **options: Any) -> Any:
            time.sleep(1)
            raise ValueError(options["text"])

    monkeypatch.setattr(presidio_local, "build", lambda models: Slow())
    gateway = await served(serve, llm, timeout=0.2)
    began = time.monotonic()
    driven = await drive(gateway, ask(MAIL))
    assert driven.status == 503
    assert time.monotonic() - began < 0.9


async def test_an_engine_that_breaks_lets_nothing_pass(
    llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(**options: Any) -> Any:
        raise ValueError(options["text"])

    class Broken:
        supported_languages = ("en",)
        get_supported_entities = blank.get_supported_entities
        analyze = staticmethod(breaks)

    monkeypatch.setattr(presidio_local, "build", lambda models: Broken())
    driven = await drive(await served(serve, llm), ask(MAIL))
    assert (driven.status, llm.requests) == (503, [])
    assert MAIL not in caplog.text
