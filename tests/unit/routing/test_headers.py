"""What answers say of their routing: no header may be broken, and none shows a secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from h11 import Response
from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import FAILED, Clock, call_of, runtime_of
from tests.support.stack import KEY, deployment
from tianji_mw.errors import UpstreamError
from tianji_mw.providers.openai import OpenAI
from tianji_mw.redact import Secret
from tianji_mw.routing import headers
from tianji_mw.routing.headers import Told, of_failure, of_fallbacks

RUNTIME = runtime_of(Clock())


def told(
    group: str = "m", *, base: str = "http://llm.example/v1", retries: int = 0, before: int = 0, **fields: Any
) -> dict[str, str]:
    one = deployment("http://x", provider=OpenAI(api_base=base, api_key=Secret(KEY)), **fields)
    pairs = Told().answer(call_of(RUNTIME), one, [*["x"] * before, group], retries, 2)
    Response(status_code=200, headers=pairs)  # a strict server takes them
    return {name.decode(): value.decode("latin-1") for name, value in pairs}


def test_all_of_them() -> None:
    found = told(id="d1", model="gpt-4o", region="eu")
    assert found["x-litellm-model-id"] == "d1"
    assert found["x-litellm-model-name"] == "openai/gpt-4o"
    assert found["x-litellm-model-api-base"] == "http://llm.example/v1"
    assert found["x-litellm-model-group"] == "m"
    assert found["x-litellm-model-region"] == "eu"
    assert (found["x-litellm-attempted-retries"], found["x-litellm-attempted-fallbacks"]) == ("0", "0")
    assert "x-litellm-max-retries" not in found
    found = told(retries=2, before=1)
    assert (found["x-litellm-attempted-retries"], found["x-litellm-attempted-fallbacks"]) == ("2", "1")
    assert found["x-litellm-max-retries"] == "2"
    assert "x-litellm-model-region" not in found


@pytest.mark.parametrize(
    "base",
    [
        "http://user:hunter22@llm.example/v1", "http://llm.example/v1?api_key=hunter22",
        "http://llm.example/v1?a=1&token=hunter22#hunter22", "http://hunter22@llm.example:8080/v1/",
    ],
)  # fmt: skip
def test_an_address_shows_no_secret(base: str) -> None:
    found = told(base=base)
    assert "hunter22" not in str(found)
    assert KEY not in str(found)
    assert found["x-litellm-model-api-base"].startswith("http://llm.example")


def test_errors_behind_a_fallback_are_short_ascii_json() -> None:
    failures = [FAILED._replace(error=UpstreamError("ü\r\nx-evil: 1" + "x" * 10_000, status=500))]
    failures += [FAILED, FAILED._replace(kind="ContextWindow", status=400, error=None)]
    name, value = of_fallbacks(failures)
    Response(status_code=200, headers=[(name, value)])
    first, second, third = json.loads(value)
    assert first["message"].startswith("ü\r\nx-evil: 1x")
    assert len(value) < 1_000
    assert second == {
        "message": "no", "type": "InternalServerError", "param": None, "code": "500",
    }  # fmt: skip
    assert (third["type"], third["message"]) == ("ContextWindowExceededError", "ContextWindow 400")


BAD = [
    "a\r\nset-cookie: x", "a\nb", "a\0b", "a\x01\x1f\x7fb", " a ", "\ta\t", "\xa0a\x85", "世界", "\ud800", "\r\n", "",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_clients_name_for_a_model_breaks_no_header(name: str) -> None:
    for value in (*told(name).values(), *told(id=name, region=name, model=name).values()):
        assert not {"\r", "\n", "\0"}.intersection(value)
    assert not {"\r", "\n", "\0"}.intersection("".join(of_failure([name], 0, None).values()))


@given(st.text(), st.text())
def test_any_name_makes_a_header_that_servers_take(group: str, region: str) -> None:
    told(group, region=region)
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in of_failure([group], 1, 2).items()]
    Response(status_code=500, headers=pairs)


def test_names_of_clients_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "_REMEMBERED", 10)
    made, one, call = Told(), deployment("http://x"), call_of(RUNTIME)
    for number in range(100):
        made.answer(call, one, [f"wild/{number}"], 0, None)
    assert len(made._fixed) <= 10
