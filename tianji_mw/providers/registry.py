"""The registry of OpenAI-compatible providers: `providers.json`, and what the config adds to it. No code per entry.

The file's keys are LiteLLM's (`base_url`, `api_key_env`, `api_base_env`, `param_mappings`, `constraints`,
`special_handling`, `headers`, `supported_endpoints`) and the Go port's (`auth_header`, `auth_prefix`). It only reads
specs; `openai_compatible.py` acts on them. Every key it takes has an effect, any other is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tianji_mw.errors import ConfigError
from tianji_mw.redact import Secret

#: Registry names of endpoints, as our API names.
_ENDPOINTS: Final[Mapping[str, str]] = MappingProxyType(
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
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE)
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
#: What may fill a placeholder: a part of a host name or of a path, nothing that changes the address's structure.
_FILLING: Final = re.compile(r"[A-Za-z0-9_.-]+")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
#: LiteLLM's choice between two of its classes; they are one here.
_BASE_CLASSES: Final = frozenset({"openai_gpt", "openai_like"})

Constraint = Literal["temperature_max", "temperature_min", "temperature_min_with_n_gt_1"]
Handling = Literal["convert_content_list_to_string", "force_store_false"]


class Spec(BaseModel):
    """One entry: where an OpenAI-compatible API lives, and how it differs from OpenAI's.

    >>> Spec(base_url="https://llm.example/v1", api_key_env="LLM_KEY").api_key_env
    ('LLM_KEY',)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    #: The address before `/chat/completions`; `{account_id}` is filled from the deployment or the environment.
    base_url: str = ""
    api_key_env: tuple[str, ...] = ()
    api_base_env: tuple[str, ...] = ()
    #: Renamed request fields, e.g. `max_completion_tokens` -> `max_tokens`.
    param_mappings: dict[str, str] = {}
    #: Values are clamped, not refused.
    constraints: dict[Constraint, float] = {}
    special_handling: dict[Handling, bool] = {}
    #: Further headers; `{api_key}` stands for the key.
    headers: dict[str, str | Secret] = {}
    supported_endpoints: tuple[str, ...] = ("/v1/chat/completions", "/v1/embeddings")
    #: Request fields that are left out.
    drop_params: tuple[str, ...] = ()
    chat_path: str = "chat/completions"
    #: Header of the key; empty sends none.
    auth_header: str = "authorization"
    auth_prefix: str = "Bearer "

    @field_validator("api_key_env", "api_base_env", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(_PLACEHOLDER.sub("x", value))
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise ValueError("expected an address such as https://api.example.com/v1")
        return value.rstrip("/")

    @field_validator("supported_endpoints")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [endpoint for endpoint in value if endpoint not in _ENDPOINTS]:
            raise ValueError(f"unknown endpoint {unknown[0]!r}; there are {', '.join(_ENDPOINTS)}")
        return value

    @property
    def speaks(self) -> frozenset[str]:
        """Names of the client APIs that go through as they are."""
        return frozenset(_ENDPOINTS[endpoint] for endpoint in self.supported_endpoints)

    @property
    def is_local(self) -> bool:
        """Whether its own address is on this machine; such servers need no key."""
        return urlsplit(self.base_url).hostname in _LOOPBACK

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names in braces in the address."""
        return tuple(dict.fromkeys(_PLACEHOLDER.findall(self.base_url)))

    def filled(self, value_of: Callable[[str], str]) -> Spec:
        """The same with the placeholders of its address replaced. Raises ValueError for a value that does not fit."""
        found = {name: value_of(name) for name in self.placeholders}
        for name, value in found.items():
            if not _FILLING.fullmatch(value):
                raise ValueError(f"{name!r} may hold letters, digits, dots, dashes and underscores only")
        url = _PLACEHOLDER.sub(lambda match: found[match[1]], self.base_url)
        return self.model_copy(update={"base_url": url})


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Spec]:
    """The entries that ship with the suite."""
    text = files("tianji_mw.providers").joinpath("providers.json").read_text("utf-8")
    entries = json.loads(text, object_pairs_hook=_unique)
    return MappingProxyType({name: Spec.model_validate(entry) for name, entry in entries.items()})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("providers.json names a key twice")
    return found


def read(name: str, entry: Mapping[str, Any], *, file: str = "", line: int | None = None) -> Spec:
    """A user's entry (`general_settings.providers`). Raises ConfigError naming the key."""
    place = ["general_settings", "providers", name]
    given = {key: value for key, value in entry.items() if key != "name"}
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "a provider's name holds letters, digits, '_', '.' and '-' only", file=file, line=line, key=".".join(place)
        )
    if given.pop("base_class", "openai_gpt") not in _BASE_CLASSES:
        key = ".".join([*place, "base_class"])
        raise ConfigError("must be openai_gpt or openai_like, which are one here", file=file, line=line, key=key)
    try:
        spec = Spec.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = ".".join([*place, *(str(part) for part in first["loc"] if part != "[key]")])
        text = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConfigError(text, file=file, line=line, key=key) from None
    if not (spec.base_url or spec.api_base_env):
        raise ConfigError("needs 'base_url' or 'api_base_env'", file=file, line=line, key=".".join(place))
    return spec


def by_host(api_base: str, specs: Mapping[str, Spec]) -> str | None:
    """The provider whose address has this host; a model without a prefix is taken for its."""
    host = urlsplit(api_base).hostname
    if not host or host in _LOOPBACK:
        return None
    return next((name for name, spec in specs.items() if urlsplit(spec.base_url).hostname == host), None)
