"""Arize AX: every call as OpenInference spans, by OTLP over gRPC or HTTP.

Source: Arize's OTLP documentation, LiteLLM's `arize` callback. Phoenix, its open-source sibling, is in `phoenix.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import field_validator, model_validator

from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.otlp import openinference
from tianji_mw.callbacks.otlp.exporter import Headers, OtlpCallback, Protocol
from tianji_mw.callbacks.otlp.sampling import in_sample
from tianji_mw.callbacks.otlp.spans import Attributes, Span
from tianji_mw.redact import Secret


class Arize(OtlpCallback):
    """Sends calls to Arize AX.

    >>> Arize(space_id="U3Bh...", api_key="ak-...", project_name="gateway")
    """

    title: ClassVar[str] = "Arize"
    needs: ClassVar[tuple[str, ...]] = ("space_id", "api_key")
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "space_id": ("ARIZE_SPACE_ID", "ARIZE_SPACE_KEY"),
        "api_key": ("ARIZE_API_KEY",),
        "project_name": ("ARIZE_PROJECT_NAME",),
        "endpoint": ("ARIZE_ENDPOINT",),
        "http_endpoint": ("ARIZE_HTTP_ENDPOINT",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "arize_api_key": "api_key",
        "arize_space_id": "space_id",
        "arize_space_key": "space_id",
        "space_key": "space_id",
        "arize_project_name": "project_name",
        "arize_endpoint": "endpoint",
        "arize_http_endpoint": "http_endpoint",
        "arize_otlp_protocol": "protocol",
        "arize_success_sampling_rate": "success_sampling_rate",
        "arize_error_sampling_rate": "error_sampling_rate",
    }

    space_id: Secret | None = None
    #: Made by Arize at the first span.
    project_name: str = "litellm"
    #: Of gRPC; Europe: https://otlp.eu-west-1a.arize.com.
    endpoint: str = "https://otlp.arize.com/v1"
    #: With it, spans go over HTTP.
    http_endpoint: str = ""
    #: Shares of calls that are sent, by trace; all where it is no number from 0 to 1.
    success_sampling_rate: float = 1.0
    error_sampling_rate: float = 1.0

    @field_validator("success_sampling_rate", "error_sampling_rate", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            return 1.0
        return found if 0 <= found <= 1 else 1.0

    @model_validator(mode="after")
    def _chosen(self) -> Arize:
        """The protocol is that of the endpoint which is given; gRPC without one, as at Arize and in LiteLLM."""
        chosen: Protocol = self.protocol
        if "protocol" not in self.model_fields_set:
            chosen = "http/protobuf" if self.http_endpoint else "grpc"
        object.__setattr__(self, "protocol", chosen)
        if chosen != "grpc" and self.http_endpoint:
            object.__setattr__(self, "endpoint", self.http_endpoint)
        return self

    def resource(self, record: Record) -> Attributes:
        return {
            "service.name": self.project_name,
            "openinference.project.name": self.project_name,
            "model_id": self.project_name,
        }

    def attributes(self, span: Span, record: Record) -> Attributes:
        return openinference.span_attributes(span, record)

    def extra_headers(self, record: Record) -> Headers:
        """Both names of the space: the older one is what earlier gateways of theirs read."""
        if self.space_id is None or self.api_key is None:
            return {}
        headers = {"arize-space-id": self.space_id, "api_key": self.api_key}
        return headers if self.protocol != "grpc" else {**headers, "space_id": self.space_id}

    def url_of(self, signal: Any) -> str:
        """The default address ends in `/v1` already."""
        base = self.endpoint.rstrip("/").removesuffix("/v1/traces").removesuffix("/v1")
        return f"{base}/v1/{signal}"

    async def write(self, batch: Sequence[Record]) -> None:
        if kept := [record for record in batch if self.keeps(record)]:
            await super().write(kept)

    def keeps(self, record: Record) -> bool:
        """Whether the call is in the sample: calls of one trace, and attempts to send one, get the same answer."""
        failed = record.data.get("status") == "failure"
        rate = self.error_sampling_rate if failed else self.success_sampling_rate
        return in_sample(record.data, rate)
