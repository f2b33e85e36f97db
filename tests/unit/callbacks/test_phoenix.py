"""Phoenix's settings: endpoints and projects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.records import a_payload, a_record
from tianji_mw.callbacks.phoenix import Phoenix


@pytest.mark.parametrize(
    ("endpoint", "protocol", "where"),
    [
        ("http://localhost:6006", "http/protobuf", "http://localhost:6006/v1/traces"),
        ("http://localhost:6006/v1/traces", "http/protobuf", "http://localhost:6006/v1/traces"),
        ("https://app.phoenix.arize.com/s/me/", "http/protobuf", "https://app.phoenix.arize.com/s/me/v1/traces"),
        ("http://localhost:4317/x", "http/protobuf", "http://localhost:4317/x/v1/traces"),
        ("http://localhost:4317", "grpc", "http://localhost:4317"),
        ("grpc://phoenix", "grpc", "grpc://phoenix:4444"),
    ],
)
def test_the_endpoint_says_which_protocol_it_is(endpoint: str, protocol: str, where: str) -> None:
    phoenix = Phoenix(endpoint=endpoint, grpc_port=4444)
    assert phoenix.protocol == protocol
    assert (phoenix.endpoint if protocol == "grpc" else phoenix.url_of("traces")) == where


@pytest.mark.parametrize(
    ("of_key", "project"),
    [
        ({}, "mine"),
        ({"phoenix_project_name": "team"}, "team"),
        ({"phoenix_project_name": "team", "phoenix_project_name_override": "over"}, "over"),
        ({"phoenix_project_name": 5}, "mine"),
        (None, "mine"),
    ],
)
def test_projects_are_of_keys_and_not_of_requests(of_key: Any, project: str) -> None:
    asked = {"phoenix_project_name": "theirs", "phoenix_project_name_override": "theirs"}
    metadata = {**a_payload()["metadata"], "user_api_key_auth_metadata": of_key, "requester_metadata": asked}
    phoenix = Phoenix(project_name="mine")
    assert phoenix.resource(a_record(metadata=metadata))["openinference.project.name"] == project


def test_a_login_of_ones_own() -> None:
    assert Phoenix().extra_headers(a_record()) == {}
    assert Phoenix(api_key="k", headers="Authorization=Bearer%20x").extra_headers(a_record()) == {}
    (login,) = Phoenix(api_key="k").extra_headers(a_record()).values()
    assert login.reveal() == "Bearer k"  # type: ignore[union-attr]
