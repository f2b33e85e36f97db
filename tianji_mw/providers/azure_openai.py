"""Azure OpenAI: deployments under one resource, API versions, key or Entra ID token.

Source: Azure OpenAI REST API reference. Both surfaces: `/openai/deployments/{deployment}/...?api-version=` and the
version-less `/openai/v1/...` (chosen when `api_version` is empty, `v1`, `latest` or `preview`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote, urlencode

import orjson
from pydantic import model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context
from tianji_mw.errors import UpstreamError
from tianji_mw.providers.base import OPENAI_PATHS, Provider
from tianji_mw.redact import Secret
from tianji_mw.upstream import RawHeaders

_V1 = frozenset({"", "v1", "latest", "preview"})


class AzureOpenAI(Provider):
    """`model: azure/<deployment>`. Environment: AZURE_API_KEY, AZURE_API_BASE, AZURE_API_VERSION."""

    key_env: ClassVar[tuple[str, ...]] = ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY")
    base_env: ClassVar[tuple[str, ...]] = ("AZURE_API_BASE", "AZURE_OPENAI_ENDPOINT")

    name: str = "azure"
    api_version: str = ""
    #: A bearer token from Entra ID, instead of a key.
    azure_ad_token: Secret | None = None

    @model_validator(mode="after")
    def _has_base(self) -> AzureOpenAI:
        if not self.api_base:
            raise ValueError("azure needs 'api_base' (https://<resource>.openai.azure.com) or AZURE_API_BASE")
        return self

    @property
    def speaks(self) -> frozenset[str]:
        return _SPEAKS

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        root = self.base.removesuffix("/v1").removesuffix("/openai")
        if self.api_version in _V1:
            query = "?" + urlencode({"api-version": "preview"}) if self.api_version == "preview" else ""
            return f"{root}/openai/v1/{OPENAI_PATHS[wire]}{query}"
        version = urlencode({"api-version": self.api_version})
        if wire == "responses":
            return f"{root}/openai/responses?{version}"
        return f"{root}/openai/deployments/{quote(model, safe='')}/{OPENAI_PATHS[wire]}?{version}"

    def path_url(self, path: str) -> str:
        root = self.base.removesuffix("/v1").removesuffix("/openai")
        if self.api_version in _V1:
            return f"{root}/openai/v1/{path}"
        return f"{root}/openai/{path}?{urlencode({'api-version': self.api_version})}"

    async def credentials(self) -> RawHeaders:
        if self.azure_ad_token:
            return [("authorization", f"Bearer {self.azure_ad_token.reveal()}")]
        return [("api-key", self.api_key.reveal())] if self.api_key else []

    @property
    def secrets(self) -> tuple[Secret, ...]:
        return (*super().secrets, self.azure_ad_token) if self.azure_ad_token else super().secrets

    def prepares(self, request: Mapping[str, JSON], wire: str) -> bool:
        return wire == "chat_completions" and "max_tokens" in request and _reasons(request)

    def prepare(self, request: dict[str, JSON], wire: str, context: Context) -> None:
        # Reasoning models refuse `max_tokens`; the newer field means the same.
        request.setdefault("max_completion_tokens", request.pop("max_tokens"))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = super().error(status, headers, body)
        if _inner_code(body) == "ResponsibleAIPolicyViolation":
            error.code = "content_filter"
        return error


_SPEAKS = frozenset({"chat_completions", "completions", "embeddings", "responses", "passthrough"})


def _reasons(request: Mapping[str, JSON]) -> bool:
    model = request.get("model")
    return isinstance(model, str) and model.startswith(("o1", "o3", "o4", "gpt-5"))


def _inner_code(body: bytes) -> str:
    """The code inside the code, which decides even when the outer one is generic."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    found = data.get("error") if isinstance(data, dict) else None
    inner = (found.get("innererror") or found.get("inner_error")) if isinstance(found, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, str) else ""
