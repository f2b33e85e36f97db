"""Whatever stands in a configuration, loading ends with `Settings` or `ConfigErrors`, and prints no secret."""

from __future__ import annotations

import os
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tianji_mw.config import from_dict, loads
from tianji_mw.config.aliases import ALIASES
from tianji_mw.config.known import NOT_IMPLEMENTED, OPENAI_PARAMS
from tianji_mw.config.lines import parse
from tianji_mw.config.nodes import plain
from tianji_mw.config.sift import IMPLEMENTED
from tianji_mw.errors import ConfigErrors

FAST = settings(max_examples=int(os.environ.get("TIANJI_FUZZ_EXAMPLES", "60")), deadline=None,
                suppress_health_check=list(HealthCheck))  # fmt: skip

_ALL = {n for block in IMPLEMENTED for n in IMPLEMENTED[block] | NOT_IMPLEMENTED[block] | ALIASES.get(block, {}).keys()}
names = st.sampled_from(sorted((_ALL | OPENAI_PARAMS) - {"include"})) | st.text(max_size=6)
texts = st.text(max_size=12) | st.sampled_from(
    [
        "os.environ/A",
        "${A}",
        "$A",
        "${B:-x}",
        "${",
        "true",
        "3",
        "-1",
        "nan",
        "http://h",
        "http://[",
        "pre_call",
        "vault://x",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


def mapping(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys) | names, values, max_size=5)


def entries(block: str) -> st.SearchStrategy[Any]:
    inner = mapping(*IMPLEMENTED["params"], "guardrail", "mode", "default_on")
    own = st.fixed_dictionaries(
        {}, optional={"litellm_params": inner, "tianji_params": inner, "credential_values": inner}
    )
    return st.lists(st.builds(lambda a, b: {**a, **b}, mapping(*IMPLEMENTED[block]), own), max_size=3)


documents = st.fixed_dictionaries(
    {},
    optional={
        **{b: entries(b) | values for b in ("model_list", "guardrails", "virtual_keys", "credential_list")},
        **{b: mapping(*IMPLEMENTED[b]) | values for b in ("settings", "router_settings", "general_settings")},
        "litellm_settings": mapping(*IMPLEMENTED["settings"]) | values,
        "environment_variables": st.dictionaries(st.text(max_size=3), values, max_size=3) | values,
        "include": values,
    },
)


def check(load: Any) -> None:
    try:
        found = load()
    except ConfigErrors as error:
        if not error.errors:
            raise AssertionError("an error without a reason") from None
        return
    found.normalised()
    repr(found)
    found.model_dump_json()


@FAST
@given(values)
def test_any_value(value: Any) -> None:
    check(lambda: from_dict(value, env={"A": "1"}))


@FAST
@given(documents)
def test_any_document_of_known_keys(document: dict[str, Any]) -> None:
    check(lambda: from_dict(document, env={"A": "1"}))
    check(lambda: loads(yaml.safe_dump(document), env={"A": "sk-a"}))


@FAST
@given(
    st.text(alphabet=st.characters(codec=None), max_size=40) | st.text("ab:-[]{}&*!?|>%@`'\"#,\n\t <=~0$", max_size=40)
)
def test_any_text(text: str) -> None:
    check(lambda: loads(text, env={}))


@FAST
@given(values)
def test_reads_what_pyyaml_writes(value: Any) -> None:
    text = yaml.safe_dump({"a": value})
    assert repr(plain(parse(text, "f", []))) == repr(yaml.safe_load(text))
