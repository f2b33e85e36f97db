"""The registry of OpenAI-compatible providers: `providers.json`, and what the user's config adds to it. No code per entry.

The file's keys are LiteLLM's (`base_url`, `api_key_env`, `api_base_env`, `param_mappings`, `constraints`,
`special_handling`, `headers`, `supported_endpoints`) and the Go port's (`auth_header`, `auth_prefix`). It only reads
specs; `openai_compatible.py` acts on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tianji_mw.errors import ConfigError

#: Registry names of endpoints, as our API names.
_ENDPOINTS: Mapping[str, str] = MappingProxyType(
    {
        "/v1/chat/completions": "chat_completions",
        "/v1/completions": "completions",
        "/v1/embeddings": "embeddings",
        "/v1/responses": "responses",
        "/v1/messages": "messages",
        "/v1/moderations": "moderations",
        "/v1/rerank": "rerank",
        "/v1/audio": "passthrough",
        "/v1/images": "passthrough",
        "/v1/files": "passthrough",
    }
)


class Spec(BaseModel):
    """One entry: where an OpenAI-compatible API lives, and how it differs from OpenAI's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str
    api_key_env: tuple[str, ...] = ()
    api_base_env: tuple[str, ...] = ()
    #: Renamed request fields, e.g. `max_completion_tokens` -> `max_tokens`.
    param_mappings: dict[str, str] = {}
    #: `temperature_max`, `temperature_min`: values are clamped, not refused.
    constraints: dict[str, float] = {}
    #: `convert_content_list_to_string`, `force_store_false`.
    special_handling: dict[str, bool] = {}
    #: Further headers; `{api_key}` stands for the key.
    headers: dict[str, str] = {}
    supported_endpoints: tuple[str, ...] = ("/v1/chat/completions", "/v1/embeddings")
    drop_params: tuple[str, ...] = ()
    chat_path: str = "chat/completions"
    auth_header: str = "authorization"
    auth_prefix: str = "Bearer "
    provider_info: dict[str, Any] = Field(default={}, repr=False)

    @field_validator("api_key_env", "api_base_env", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def speaks(self) -> frozenset[str]:
        """Names of the client APIs that go through as they are."""
        return frozenset(_ENDPOINTS[e] for e in self.supported_endpoints if e in _ENDPOINTS)


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Spec]:
    """The entries that ship with the suite."""
    text = files("tianji_mw.providers").joinpath("providers.json").read_text("utf-8")
    return MappingProxyType({name: Spec.model_validate(entry) for name, entry in json.loads(text).items()})


def read(name: str, entry: Mapping[str, Any], *, file: str = "", line: int | None = None) -> Spec:
    """A user's entry (`general_settings.providers`). Raises ConfigError naming the key."""
    if "name" in entry:
        entry = {key: value for key, value in entry.items() if key != "name"}
    try:
        return Spec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["general_settings", "providers", name, *(str(part) for part in first["loc"])])
        raise ConfigError(first["msg"], file=file, line=line, key=key) from None


def by_host(api_base: str) -> str | None:
    """The provider whose address has this host; a model without a prefix is taken for its."""
    host = urlsplit(api_base).hostname
    for name, spec in shipped().items():
        known = urlsplit(spec.base_url).hostname
        if known == host and known not in (None, "localhost", "127.0.0.1"):
            return name
    return None
