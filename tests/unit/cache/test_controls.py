"""What a request says about the cache, in its body, its headers and its key's settings."""

from __future__ import annotations

from typing import Any

import pytest

from tianji_mw.apis.chat_completions import ChatCompletions
from tianji_mw.cache.controls import Controls, controls_of
from tianji_mw.call import Limits, open_call
from tianji_mw.errors import InvalidRequest, PermissionDenied
from tianji_mw.identity.base import Identity
from tianji_mw.runtime import Runtime

OFF = Controls(read=False, write=False)


def controls(header: str = "", key: Any = None, *, default_on: bool = True, **fields: Any) -> Controls:
    headers = [(b"cache-control", header.encode())] if header else []
    scope = {"method": "POST", "path": "/", "headers": headers}

    async def receive() -> dict[str, Any]:
        raise AssertionError

    call = open_call(ChatCompletions(), scope, receive, runtime=Runtime(), limits=Limits())
    call._request = fields
    if key is not None:
        call.identity = Identity(key_hash="h", metadata=key)
    return controls_of(call, default_on=default_on)


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({}, Controls()),
        ({"no-cache": True}, Controls(read=False)),
        ({"no-store": True}, Controls(write=False)),
        ({"no-cache": True, "no-store": True}, OFF),
        ({"no-cache": False}, Controls()),
        ({"ttl": 300}, Controls(ttl_s=300)),
        ({"s-maxage": 600}, Controls(max_age_s=600)),
        ({"s-max-age": 0}, Controls(max_age_s=0)),
        ({"namespace": "x"}, Controls(namespace="x")),
        ({"use-cache": True}, Controls()),
        ({"something-new": 1}, Controls()),
    ],
)
def test_the_field(cache: dict[str, Any], expected: Controls) -> None:
    assert controls(cache=cache) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("no-cache", Controls(read=False)),
        ("No-Store, no-cache", OFF),
        ("max-age=5", Controls(max_age_s=5)),
        ("max-age=0", Controls(max_age_s=0)),
        ("s-maxage=60", Controls(ttl_s=60)),
        ("private, must-revalidate", Controls()),
        ("max-age=", Controls()),
    ],
)
def test_the_header(header: str, expected: Controls) -> None:
    assert controls(header) == expected


def test_the_field_goes_before_the_header() -> None:
    assert controls("max-age=5", cache={"s-maxage": 9}).max_age_s == 9


def test_off_unless_asked_for() -> None:
    assert controls(default_on=False) == OFF
    assert controls("max-age=9", default_on=False) == OFF
    assert controls(default_on=False, cache={"use-cache": True}) == Controls()
    assert controls(default_on=False, caching=True) == Controls()
    assert controls(caching=False) == OFF


def test_a_key_has_defaults_and_limits() -> None:
    assert controls(key={"cache": {"no-cache": True}}) == Controls(read=False)
    assert controls(key={"cache": {"ttl": 5}}, cache={"ttl": 6}) == Controls(ttl_s=6)
    allowed = {"allowed_cache_controls": ["no-cache", "s-maxage"], "cache": {"ttl": 5}}
    assert controls(key=allowed, cache={"s-maxage": 1}) == Controls(max_age_s=1, ttl_s=5)
    with pytest.raises(PermissionDenied, match="cache control 'no-store' not allowed for this key") as refused:
        controls(key=allowed, cache={"no-store": True})
    assert (refused.value.status, refused.value.code) == (403, "cache_control_not_allowed")
    with pytest.raises(PermissionDenied):
        controls("no-store", key=allowed)


@pytest.mark.parametrize(
    "cache",
    ["yes", [], {"no-cache": 1}, {"ttl": "5"}, {"ttl": -1}, {"ttl": True}, {"s-maxage": None, "namespace": 5},
     {"namespace": "x" * 300}],
)  # fmt: skip
def test_wrong_ones_are_refused(cache: Any) -> None:
    with pytest.raises(InvalidRequest, match="cache"):
        controls(cache=cache)
