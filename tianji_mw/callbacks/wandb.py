"""Weights & Biases: every call as a span in Weave, by OTLP. No run is started, neither for a call nor for the process.

Source: Weave's OpenTelemetry documentation, LiteLLM's `weave_otel` callback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.otlp import weave_attributes
from tianji_mw.callbacks.otlp.exporter import Headers, OtlpCallback
from tianji_mw.callbacks.otlp.spans import Attributes, Span
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime


class Wandb(OtlpCallback):
    """Sends calls to W&B Weave.

    >>> Wandb(api_key="...", project_id="my-team/gateway")
    """

    title: ClassVar[str] = "W&B Weave"
    needs: ClassVar[tuple[str, ...]] = ("api_key", "project_id", "endpoint")
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("WANDB_API_KEY",),
        "project_id": ("WANDB_PROJECT_ID",),
        "endpoint": ("WANDB_HOST",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "wandb_api_key": "api_key",
        "weave_project_id": "project_id",
        "wandb_project_id": "project_id",
        "wandb_host": "endpoint",
        "host": "endpoint",
    }

    #: `entity/project`.
    project_id: str = ""
    #: `/otel/v1/traces` is appended; of a dedicated instance it is https://<host>/traces.
    endpoint: str = "https://trace.wandb.ai"
    #: Weave takes protobuf only.
    protocol: Literal["http/protobuf"] = "http/protobuf"
    #: Spans for its view of agents.
    agents: bool = False

    async def start(self, runtime: Runtime) -> None:
        parts = self.project_id.split("/")
        if self.project_id and not (len(parts) == 2 and all(part.strip() for part in parts)):
            raise SetupError(f"{self.title}: project_id is to be entity/project.")
        await super().start(runtime)

    def resource(self, record: Record) -> Attributes:
        entity, _, project = self.project_id.partition("/")
        return {"service.name": "tianji-mw", "wandb.entity": entity, "wandb.project": project}

    def attributes(self, span: Span, record: Record) -> Attributes:
        return weave_attributes.span_attributes(span, record)

    def extra_headers(self, record: Record) -> Headers:
        """The key, and the project once more for servers that do not read it from the resource."""
        if self.api_key is None:
            return {}
        return {"wandb-api-key": self.api_key, "project_id": self.project_id}

    def url_of(self, signal: Any) -> str:
        base = self.endpoint if "://" in self.endpoint else f"https://{self.endpoint}"
        base = base.rstrip("/").removesuffix("/v1/traces").removesuffix("/otel").removesuffix("/agents")
        return f"{base}/agents/otel/v1/traces" if self.agents else f"{base}/otel/v1/traces"
