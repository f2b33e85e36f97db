"""Arize Phoenix: every call as OpenInference spans, by OTLP over HTTP or gRPC, self-hosted or in its cloud.

Source: Phoenix's documentation, LiteLLM's `arize_phoenix` callback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.otlp import openinference
from tianji_mw.callbacks.otlp.exporter import Headers, OtlpCallback
from tianji_mw.callbacks.otlp.spans import Attributes, Span
from tianji_mw.callbacks.record import content
from tianji_mw.redact import Secret

#: Of a key's or a team's metadata; the first one wins.
_PROJECTS: Final = ("phoenix_project_name_override", "phoenix_project_name")


class Phoenix(OtlpCallback):
    """Sends calls to Phoenix.

    >>> Phoenix(endpoint="http://phoenix:6006", project_name="gateway")
    """

    title: ClassVar[str] = "Phoenix"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("PHOENIX_API_KEY",),
        "endpoint": ("PHOENIX_COLLECTOR_ENDPOINT", "PHOENIX_COLLECTOR_HTTP_ENDPOINT"),
        "project_name": ("PHOENIX_PROJECT_NAME", "PHOENIX_PROJECT"),
        "headers": ("PHOENIX_CLIENT_HEADERS",),
        "grpc_port": ("PHOENIX_GRPC_PORT",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "phoenix_api_key": "api_key",
        "phoenix_collector_endpoint": "endpoint",
        "phoenix_collector_http_endpoint": "endpoint",
        "collector_endpoint": "endpoint",
        "phoenix_project_name": "project_name",
        "phoenix_client_headers": "headers",
    }

    #: `grpc://host`, or port 4317 without a path, means gRPC. Cloud: https://app.phoenix.arize.com/s/<space>.
    endpoint: str = "http://localhost:6006"
    #: The metadata of a key or a team may name another one: `phoenix_project_name`. A request may not.
    project_name: str = "default"
    #: Of gRPC, where the endpoint has no port.
    grpc_port: int = Field(default=4317, ge=1, le=65535)

    @model_validator(mode="after")
    def _chosen(self) -> Phoenix:
        """The endpoint says which protocol it is."""
        try:
            parts = urlsplit(self.endpoint)
            port = parts.port
        except ValueError:
            return self  # `start` says that it is no address
        bare = not parts.path.strip("/")
        if "protocol" not in self.model_fields_set and (parts.scheme == "grpc" or (port == 4317 and bare)):
            object.__setattr__(self, "protocol", "grpc")
        if self.protocol == "grpc" and parts.scheme and port is None:
            object.__setattr__(self, "endpoint", f"{parts.scheme}://{parts.netloc}:{self.grpc_port}")
        return self

    def resource(self, record: Record) -> Attributes:
        name = self.project_of(record)
        return {"service.name": name, "openinference.project.name": name}

    def project_of(self, record: Record) -> str:
        """The key's project, else the configured one. What the client sends has no say: it would leave its tenant."""
        known = content.mapping(content.mapping(record.data.get("metadata")).get("user_api_key_auth_metadata"))
        named = (content.word(known.get(field)) for field in _PROJECTS)
        return next((name for name in named if name), self.project_name)

    def attributes(self, span: Span, record: Record) -> Attributes:
        return openinference.span_attributes(span, record)

    def extra_headers(self, record: Record) -> Headers:
        """The key as a bearer token. Where `headers` has a login of its own, that one is sent."""
        if self.api_key is None or any(name.lower() == "authorization" for name in self.headers):
            return {}
        return {"authorization": Secret(f"Bearer {self.api_key.reveal()}")}

    def url_of(self, signal: Any) -> str:
        return f"{self.endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/{signal}"
