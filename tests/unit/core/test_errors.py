"""The error tree: each leaf has the status, type and code that clients act upon."""

from __future__ import annotations

from typing import Any

import pytest

from tianji_mw import errors
from tianji_mw.apis.base import openai_error
from tianji_mw.errors import (
    AuthenticationFailed,
    ConfigError,
    ConfigErrors,
    MissingExtra,
    TianjiError,
    UpstreamError,
)

LEAVES: dict[str, tuple[int, str, str | None]] = {
    "InvalidRequest": (400, "invalid_request_error", None),
    "UnsupportedParams": (400, "invalid_request_error", "unsupported_parameter"),
    "UnknownModel": (404, "invalid_request_error", "model_not_found"),
    "RouteNotFound": (404, "invalid_request_error", "unknown_url"),
    "MethodNotAllowed": (405, "invalid_request_error", None),
    "BodyTooLarge": (413, "invalid_request_error", "request_too_large"),
    "UnsupportedEncoding": (415, "invalid_request_error", None),
    "ReceiveTimeout": (408, "timeout_error", None),
    "PermissionDenied": (403, "permission_error", None),
    "Blocked": (400, "invalid_request_error", "content_policy_violation"),
    "RateLimited": (429, "rate_limit_error", "rate_limit_exceeded"),
    "Overloaded": (503, "api_error", "overloaded"),
    "UpstreamUnreachable": (502, "api_error", None),
    "UpstreamTruncated": (502, "api_error", None),
    "UpstreamMalformed": (502, "api_error", None),
    "NoDeployment": (429, "rate_limit_error", None),
}


@pytest.mark.parametrize(("name", "facts"), LEAVES.items())
def test_what_a_leaf_tells_a_client(name: str, facts: tuple[int, str, str | None]) -> None:
    error: TianjiError = getattr(errors, name)("A sentence.")
    assert (error.status, error.kind, error.code) == facts
    assert openai_error(error)["error"]["message"] == "A sentence." == str(error)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, TianjiError) and name != "ConfigErrors":
            assert name in errors.__doc__


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (418, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
        (599, "api_error"),
    ],
)
def test_an_upstream_status_keeps_its_meaning(status: int, kind: str) -> None:
    error = UpstreamError("x", provider="p", status=status)
    assert (error.status, error.kind, error.provider) == (status, kind, "p")


def test_authentication_says_the_same_to_everybody() -> None:
    assert str(AuthenticationFailed()) == str(AuthenticationFailed())
    assert AuthenticationFailed().status == 401


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "wrong"),
        ({"file": "a.yaml"}, "a.yaml: wrong"),
        ({"file": "a.yaml", "line": 3, "key": "x.y", "hint": "write z"}, "a.yaml:3: x.y: wrong (write z)"),
    ],
)
def test_config_errors_name_file_line_key_and_cure(fields: Any, text: str) -> None:
    assert ConfigError("wrong", **fields).message == text


def test_several_config_errors_come_together() -> None:
    both = ConfigErrors([ConfigError("a"), ConfigError("b")])
    assert both.message == "a\nb"


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtra("boto3", "bedrock")
    assert isinstance(error, ImportError)
    assert "pip install 'tianji-mw[bedrock]'" in error.message
