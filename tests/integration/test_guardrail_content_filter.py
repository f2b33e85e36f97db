"""`content_filter` of a YAML file, through HTTP: words, patterns and categories, plain and on streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.integration.test_guardrails import answer, config, request, served
from tests.support.stack import Ends, Serve, stream_of
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.errors import ConfigErrors
from tianji_mw.runs import Runs
from tianji_mw.testing import Driven, FakeLLM, Reply, drive


def named(**options: Any) -> dict[str, Any]:
    return {"name": "filter", "guardrail": "litellm_content_filter", "default_on": True, **options}


async def app_of(serve: Serve, llm: FakeLLM, folder: Path | None = None, **options: Any) -> Ends:
    text = yaml.safe_dump(orjson.loads(config(llm.url, named(**options))))
    if folder is None:
        return await served(serve, text)
    layer = Ends(compose(loads(text, file=str(folder / "config.yaml"), env={}), env={}).app, allow_order=True)
    await serve(layer)
    return layer


def fields(driven: Driven) -> dict[str, Any]:
    assert driven.status == 400
    found: dict[str, Any] = driven.json["error"]["provider_specific_fields"]
    return {key: value for key, value in found.items() if key not in ("error", "guardrail_name", "guardrail_mode")}


def streamed(driven: Driven) -> str:
    events = [orjson.loads(line[6:]) for line in driven.body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if "choices" in e)


WORDS = [
    {"keyword": "Project X", "action": "BLOCK", "description": "secret"},
    {"keyword": "acme", "action": "MASK"},
    {"keyword": "blue*", "action": "mask"},
]


async def test_blocked_words(llm: FakeLLM, serve: Serve) -> None:
    app = await app_of(serve, llm, blocked_words=WORDS)
    blocked = await drive(app, request("about ｐrojéct\n x, please"))
    assert fields(blocked) == {"category": "KEYWORD", "keyword": "Project X", "description": "secret"}
    llm.replies.append(answer("ask Acme for projects"))
    driven = await drive(app, request("acme and acmeology and Bluebird"))
    sent = llm.requests[0].json["messages"][0]["content"]
    assert sent == "[KEYWORD_REDACTED] and acmeology and [KEYWORD_REDACTED]bird"
    assert driven.json["choices"][0]["message"]["content"] == "ask [KEYWORD_REDACTED] for projects"
    assert app.ends[-1].note(Runs)["filter", "input"].masked == {"KEYWORD": 2}


@pytest.mark.parametrize("cut", range(1, 9))
async def test_words_on_streams_wherever_they_are_cut(llm: FakeLLM, serve: Serve, cut: int) -> None:
    app = await app_of(serve, llm, mode="post_call", blocked_words=WORDS, keyword_redaction_tag="***")
    word = "acme, acmeology"
    llm.replies.append(Reply.events(*stream_of("Ask ", word[:cut], word[cut:], ". And ", "acme."), pause_s=0.002))
    assert streamed(await drive(app, request("hi", stream=True))) == "Ask ***, acmeology. And ***."
    word = "project x"
    llm.replies.append(Reply.events(*stream_of("Fine. On ", word[:cut], word[cut:], " now. ", "More."), pause_s=0.002))
    driven = await drive(app, request("hi", stream=True))
    assert b"content_policy_violation" in driven.body
    assert "project x" not in streamed(driven)
    word = "projects xy"
    llm.replies.append(Reply.events(*stream_of("About ", word[:cut], word[cut:], " now. ", "More."), pause_s=0.002))
    assert streamed(await drive(app, request("hi", stream=True))) == "About projects xy now. More."


async def test_patterns(llm: FakeLLM, serve: Serve) -> None:
    patterns = [
        {"pattern_type": "prebuilt", "pattern_name": "email", "action": "MASK"},
        {"pattern_type": "prebuilt", "pattern_name": "visa", "action": "BLOCK"},
        {"pattern_type": "regex", "name": "emp", "pattern": r"\bE-\d{6}\b", "action": "MASK"},
    ]
    app = await app_of(serve, llm, patterns=patterns, pattern_redaction_format="<{pattern_name}>")
    assert fields(await drive(app, request("card 4111 1111 1111 1111"))) == {"category": "visa", "pattern": "visa"}
    llm.replies.append(answer("日本😀 e-123456 is fine"))
    driven = await drive(app, request("mail 😀 ada@example.com, card 4111 1111 1111 1112, E-654321"))
    sent = llm.requests[0].json["messages"][0]["content"]
    assert sent == "mail 😀 <EMAIL>, card 4111 1111 1111 1112, <EMP>"
    assert driven.json["choices"][0]["message"]["content"] == "日本😀 <EMP> is fine"
    llm.replies.append(Reply.events(*stream_of("See E-12", "3456 and ada@exa", "mple.com"), pause_s=0.002))
    assert streamed(await drive(app, request("hi", stream=True))) == "See <EMP> and <EMAIL>"


CATEGORY = {
    "category_name": "ships",
    "keywords": [{"keyword": "sink", "severity": "high"}, {"keyword": "row", "severity": "low"}],
    "exceptions": ["kitchen"],
    "identifier_words": ["captain"],
    "additional_block_words": ["drown"],
    "always_block_keywords": [{"keyword": "scuttle", "severity": "high"}],
    "phrase_patterns": [r"abandon\s+\w+\s+ship"],
}


async def test_a_category_of_a_file(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "ships.yaml").write_text(yaml.safe_dump(CATEGORY))
    rule = {"category": "ships", "enabled": True, "action": "BLOCK", "category_file": "ships.yaml"}
    app = await app_of(serve, llm, tmp_path, categories=[rule])
    high = {"category": "ships", "severity": "high"}
    assert fields(await drive(app, request("Sink it"))) == {**high, "keyword": "sink"}
    assert fields(await drive(app, request("the captain may drown"))) == high
    assert fields(await drive(app, request("Abandon the ship"))) == high
    assert fields(await drive(app, request("scuttle the kitchen"))) == {**high, "keyword": "scuttle"}
    # An exception excuses its own sentence, and no other one.
    assert fields(await drive(app, request("Clean the kitchen sink. Then sink the ship."))) == {
        **high,
        "keyword": "sink",
    }
    for text in ("Clean the kitchen sink", "a row of boats", "The captain left. They drown."):
        llm.replies.append(answer("fine"))
        assert (await drive(app, request(text))).status == 200, text


async def test_exceptions_on_streams(llm: FakeLLM, serve: Serve) -> None:
    app = await app_of(serve, llm, mode="post_call", own_categories=[CATEGORY])
    texts = ["In the ki", "tchen, the si", "nk. ", "Is clean. ", "And fine. " * 20, "The sink of the kitchen."]
    llm.replies.append(Reply.events(*stream_of(*texts), pause_s=0.002))
    assert streamed(await drive(app, request("hi", stream=True))) == "".join(texts)
    llm.replies.append(Reply.events(*stream_of("A kitchen. ", "Now si", "nk it."), pause_s=0.002))
    driven = await drive(app, request("hi", stream=True))
    assert streamed(driven) == "A kitchen. "
    assert b'"ships"' in driven.body


async def test_masked_categories(llm: FakeLLM, serve: Serve) -> None:
    rules = [{"category": "ships", "action": "MASK", "severity_threshold": "low"}]
    app = await app_of(serve, llm, own_categories=[CATEGORY], categories=rules)
    llm.replies.append(answer("fine"))
    await drive(app, request("Row, row. Sink!"))
    sent = llm.requests[0].json["messages"][0]["content"]
    assert sent == "[KEYWORD_REDACTED], [KEYWORD_REDACTED]. [KEYWORD_REDACTED]!"
    assert app.ends[-1].note(Runs)["filter", "input"].masked == {"ships": 3}


HARM = "I will kill you and your whole family tonight"


async def test_harm_without_any_option(llm: FakeLLM, serve: Serve) -> None:
    app = await app_of(serve, llm)
    found = fields(await drive(app, request(HARM)))
    assert (found["category"], set(found)) == ("violence", {"category", "severity"})
    llm.replies.append(answer("Use the kill command to end the process."))
    assert (await drive(app, request("How do I kill a process on Linux?"))).status == 200
    llm.replies.append(
        Reply.events(*stream_of("Hello. ", "I will ki", "ll you and your", " family. ", "Bye."), pause_s=0.002)
    )
    driven = await drive(app, request("hi", stream=True))
    assert streamed(driven) == "Hello. "
    assert b"content_policy_violation" in driven.body


async def test_harm_under_litellms_names(llm: FakeLLM, serve: Serve) -> None:
    app = await app_of(
        serve, llm, categories=[{"category": "bias_gender"}, {"category": "harmful_violence", "enabled": False}]
    )
    llm.replies.append(answer("fine"))
    assert (await drive(app, request(HARM))).status == 200
    app = await app_of(serve, llm, categories=[{"category": "harmful_violence", "severity_threshold": "high"}])
    assert fields(await drive(app, request(HARM)))["category"] == "violence"
    # As in LiteLLM, words alone are words alone.
    app = await app_of(serve, llm, blocked_words=WORDS)
    llm.replies.append(answer("fine"))
    assert (await drive(app, request(HARM))).status == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"categories": [{"category": "denied_insults"}]}, "no category 'denied_insults'; known are bias_gender"),
        ({"categories": [{"category": "hate", "severity_threshold": "huge"}]}, "severity_threshold"),
        ({"categories": [{"category": "hate", "acton": "MASK"}]}, "categories.0.acton"),
        ({"patterns": [{"pattern_type": "prebuilt", "pattern_name": "us_sn"}]}, "no prebuilt pattern 'us_sn'; known"),
        ({"patterns": [{"pattern_type": "regex", "name": "x"}]}, "the regex 'x' has no `pattern`"),
        ({"blocked_words": [{"keyword": "x", "action": "WARN"}]}, "blocked_words.0.action"),
        ({"image_model": "gpt-4o"}, "image_model is not supported"),
        ({"competitor_intent_config": {"brand_self": ["x"]}}, "competitor_intent_config is not supported"),
        ({"own_categories": [{**CATEGORY, "category_name": "hate"}]}, "'hate' is a built-in category"),
    ],
)  # fmt: skip
def test_wrong_options_stop_the_start(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        compose(loads(config("http://x", named(**options)), env={}), env={})
    assert said in caught.value.message


def regex(pattern: str) -> dict[str, Any]:
    return {"patterns": [{"pattern_type": "regex", "name": "emp", "pattern": pattern}]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (regex(r"(?<=E)\d+"), r"the regex 'emp' ((?<=E)\d+): look-around is not supported"),
        (regex(r"(a)\1"), "back references are not supported"),
        (regex("a("), "RE2 does not take it"),
        (regex("a*"), "it matches the empty text"),
        ({"blocked_words_file": "no.yaml"}, "blocked_words_file: there is no file"),
        ({"blocked_words_file": "../no.yaml"}, "give the absolute path"),
        ({"blocked_words_file": "bad.yaml"}, "bad.yaml:3: not valid YAML"),
        ({"blocked_words_file": "typo.yaml"}, "typo.yaml: blocked_words.0.keywrd: Extra inputs are not permitted"),
        ({"categories": [{"category": "x", "category_file": "no.yaml"}]}, "[0].category_file: there is no file"),
        ({"categories": [{"category": "x", "category_file": "empty.yaml"}]}, "category 'x' has nothing to look for"),
        ({"categories": [{"category": "x", "category_file": "loop.yaml"}]}, "inherits from itself"),
        ({"categories": [{"category": "x", "category_file": "list.json"}]}, "[0]: expected `match: a|b`"),
        ({"blocked_words": [{"keyword": "**"}]}, "the keyword '**' has no letters"),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_stops_the_start(
    llm: FakeLLM, serve: Serve, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    (tmp_path / "bad.yaml").write_text("a: b\nc: [\n")
    (tmp_path / "typo.yaml").write_text("blocked_words: [{keywrd: x, keyword: y}]")
    (tmp_path / "empty.yaml").write_text("category_name: x\n")
    (tmp_path / "loop.yaml").write_text("inherit_from: loop.yaml\n")
    (tmp_path / "list.json").write_text('[{"match": "a", "severity": 9}]')
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the server wraps it
        await app_of(serve, llm, tmp_path, **options)
    assert said in str(caught.value)


async def test_word_files_and_lists(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text("blocked_words: [{keyword: zebra, action: MASK}]")
    (tmp_path / "list.json").write_text(
        '[{"id": 1, "match": "gnu|emu", "severity": 4}, {"match": "ant", "severity": 1}]'
    )
    (tmp_path / "heir.yaml").write_text("inherit_from: list.json\nidentifier_words: [hunt]\n")
    rules = [
        {"category": "zoo", "category_file": "heir.yaml"},
        {"category": "birds", "category_file": "list.json", "action": "MASK"},
    ]
    app = await app_of(serve, llm, tmp_path, blocked_words_file="words.yaml", categories=rules)
    llm.replies.append(answer("fine"))
    await drive(app, request("a zebra, an emu, an ant"))
    assert llm.requests[0].json["messages"][0]["content"] == "a [KEYWORD_REDACTED], an [KEYWORD_REDACTED], an ant"
    assert fields(await drive(app, request("hunt the gnu"))) == {"category": "zoo", "severity": "high"}
