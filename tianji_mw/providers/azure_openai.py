"""Azure OpenAI: deployments under one resource, API versions, key or Entra ID token.

Source: Azure OpenAI REST API reference. Both surfaces: `/openai/deployments/{deployment}/...?api-version=` and the
version-less `/openai/v1/...` (chosen when `api_version` is empty, `v1`, `latest` or `preview`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final
from urllib.parse import quote, urlencode

from pydantic import Field, PrivateAttr, field_validator, model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context
from tianji_mw.providers.auth.entra import DEFAULT_AUTHORITY, DEFAULT_SCOPE, EntraLogin
from tianji_mw.providers.auth.token import TokenSource
from tianji_mw.providers.base import OPENAI_PATHS, Provider
from tianji_mw.providers.openai import reasons, rename_limit
from tianji_mw.redact import Secret
from tianji_mw.upstream import RawHeaders

_V1: Final = frozenset({"", "v1", "latest", "preview"})
_SPEAKS: Final = frozenset({"chat_completions", "completions", "embeddings", "responses", "passthrough"})
#: Dated versions before this one have no Responses API.
_RESPONSES_SINCE: Final = "2025-03"
#: What operators copy from the portal behind the resource's own address.
_TAIL: Final = re.compile(r"(?<=[^/:])/(?:openai(?:/v1|/deployments/.*|/responses)?|models(?:/.*)?)/?(?:\?.*)?$")


class AzureOpenAI(Provider):
    """`model: azure/<deployment>`, with `api_base: https://<resource>.openai.azure.com`.

    Environment: AZURE_API_KEY, AZURE_API_BASE, AZURE_API_VERSION; without a key AZURE_AD_TOKEN, or AZURE_TENANT_ID and
    AZURE_CLIENT_ID with AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE; AZURE_AUTHORITY_HOST.
    """

    key_env: ClassVar[tuple[str, ...]] = ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_AI_API_KEY")
    base_env: ClassVar[tuple[str, ...]] = ("AZURE_API_BASE", "AZURE_OPENAI_ENDPOINT", "AZURE_AI_API_BASE")
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_version": ("AZURE_API_VERSION", "OPENAI_API_VERSION"),
        "azure_authority_host": ("AZURE_AUTHORITY_HOST",),
        "azure_scope": ("AZURE_SCOPE",),
    }
    login_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "azure_ad_token": ("AZURE_AD_TOKEN",),
        "tenant_id": ("AZURE_TENANT_ID",),
        "client_id": ("AZURE_CLIENT_ID",),
        "client_secret": ("AZURE_CLIENT_SECRET",),
        "azure_federated_token_file": ("AZURE_FEDERATED_TOKEN_FILE",),
    }

    name: str = "azure"
    api_version: str = ""
    #: A bearer token from Entra ID that somebody else keeps fresh.
    azure_ad_token: Secret | None = None
    #: A login at Entra ID: tenant and client, with a secret or a federated token file.
    tenant_id: str = ""
    client_id: str = ""
    client_secret: Secret | None = None
    azure_federated_token_file: str = ""
    azure_scope: str = DEFAULT_SCOPE
    azure_authority_host: str = Field(default=DEFAULT_AUTHORITY, pattern=r"^https?://[^/?#]+/?$")
    #: The model behind the deployment, whose name is free.
    base_model: str = ""

    _tokens: TokenSource | None = PrivateAttr(default=None)

    @field_validator("azure_authority_host", mode="before")
    @classmethod
    def _with_scheme(cls, value: object) -> object:
        # Azure's own libraries take a bare host.
        return f"https://{value}" if isinstance(value, str) and "://" not in value else value

    @model_validator(mode="after")
    def _complete(self) -> AzureOpenAI:
        if not self.api_base:
            raise ValueError("azure needs 'api_base' (https://<resource>.openai.azure.com) or AZURE_API_BASE")
        if self.client_secret and not (self.tenant_id and self.client_id):
            raise ValueError("a 'client_secret' needs 'tenant_id' and 'client_id' beside it")
        return self

    @property
    def speaks(self) -> frozenset[str]:
        if self.api_version not in _V1 and self.api_version < _RESPONSES_SINCE:
            return _SPEAKS - {"responses"}
        return _SPEAKS

    @property
    def base(self) -> str:
        return _TAIL.sub("", self.api_base).rstrip("/")

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        if self.api_version in _V1 or wire == "responses":
            return self._resource_url(OPENAI_PATHS[wire])
        return self._deployment_url(OPENAI_PATHS[wire], model)

    def path_url(self, path: str, model: str) -> str:
        # Audio and images belong to a deployment; files, batches and the like to the resource.
        if model and self.api_version not in _V1:
            return self._deployment_url(path, model)
        return self._resource_url(path)

    def _deployment_url(self, path: str, model: str) -> str:
        return f"{self.base}/openai/deployments/{quote(model, safe='')}/{path}?{self._version}"

    def _resource_url(self, path: str) -> str:
        if self.api_version not in _V1:
            return f"{self.base}/openai/{path}?{self._version}"
        return f"{self.base}/openai/v1/{path}{'?api-version=preview' if self.api_version == 'preview' else ''}"

    @property
    def _version(self) -> str:
        return urlencode({"api-version": self.api_version})

    async def credentials(self) -> RawHeaders:
        if self.azure_ad_token:
            return [("authorization", f"Bearer {self.azure_ad_token.reveal()}")]
        if self.api_key:
            return [("api-key", self.api_key.reveal())]
        if self.tenant_id and self.client_id and (self.client_secret or self.azure_federated_token_file):
            token = await self._source().get()
            return [("authorization", f"Bearer {token.reveal()}")]
        return []

    def lacks(self) -> str:
        if self._headers_say_who():
            return ""
        return "set AZURE_API_KEY, or 'api_key', or 'tenant_id', 'client_id' and 'client_secret'"

    def _source(self) -> TokenSource:
        # Not at construction: a provider is only settings until it is used.
        if self._tokens is None:
            login = EntraLogin(
                provider=self.name,
                tenant_id=self.tenant_id,
                client_id=self.client_id,
                client_secret=self.client_secret,
                token_file=self.azure_federated_token_file,
                scope=self.azure_scope,
                authority=self.azure_authority_host,
            )
            self._tokens = TokenSource(login.fetch)
        return self._tokens

    @property
    def secrets(self) -> tuple[Secret, ...]:
        token = self._tokens.current if self._tokens else None
        own = (self.azure_ad_token, self.client_secret, token)
        return (*super().secrets, *(secret for secret in own if secret))

    def prepares(self, request: Mapping[str, JSON], wire: str, model: str) -> bool:
        return wire == "chat_completions" and "max_tokens" in request and reasons(self.base_model or model)

    def prepare(self, request: dict[str, JSON], wire: str, context: Context) -> None:
        rename_limit(request)
