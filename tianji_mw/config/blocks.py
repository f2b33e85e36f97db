"""The typed blocks of the configuration: deployments, guardrails, virtual keys. The router's: `routing_keys.py`.

Each block validates alone and can be built in code. Spelling, references and unknown keys are the loader's work.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from tianji_mw.config.routing_values import FailsPolicy, Names, Patterns, Period, as_list
from tianji_mw.config.values import (
    Amount,
    Count,
    Credential,
    FreeForm,
    Headers,
    Integer,
    JsonForm,
    Name,
    Seconds,
    Switch,
    Url,
    Whole,
    wrong,
)

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Block(BaseModel):
    """One block: immutable, no unknown fields, and no error text that quotes a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())


class Placed(Block):
    """An entry of a list, with the place it was written at."""

    file: SkipJsonSchema[str] = Field(default="", repr=False, exclude=True)
    line: SkipJsonSchema[int | None] = Field(default=None, repr=False, exclude=True)


def _text_of_number(value: Any) -> Any:
    return str(value) if type(value) is int else value


class DefaultParams(Block):
    """What a deployment may say about its calls; `router_settings.default_params` uses it without a model.

    `defaults` are OpenAI params that fill what a request leaves out; `extra` is for the provider alone.
    """

    api_key: Credential | None = None
    api_base: Url | None = Field(default=None, repr=False)
    api_version: Name | None = None
    organization: Name | None = None
    credential_name: Name | None = None
    #: The provider by name, or `package.module:Class` of your own; otherwise the prefix of `model` says it.
    custom_llm_provider: Name | None = None
    azure_ad_token: Credential | None = None
    client_secret: Credential | None = None
    tenant_id: Name | None = None
    client_id: Name | None = None
    azure_scope: Name | None = None
    weight: Amount | None = None
    rpm: Amount | None = None
    tpm: Amount | None = None
    max_parallel_requests: Count | None = None
    #: Those with the lowest number are used first.
    order: Integer | None = None
    num_retries: Whole | None = None
    #: The same; `num_retries` goes before.
    max_retries: Whole | None = None
    #: Seconds out of use after a failure; 0: never.
    cooldown_time: Amount | None = None
    tags: Names = ()
    #: For `User-Agent: ...`.
    tag_regex: Patterns = ()
    #: US dollars in `budget_duration`.
    max_budget: Amount | None = None
    budget_duration: Period | None = None
    region_name: Name | None = None
    #: Model groups that get a copy of the calls.
    silent_model: Names = ()
    input_cost_per_token: Amount | None = None
    output_cost_per_token: Amount | None = None
    timeout: Seconds | None = None
    stream_timeout: Seconds | None = None
    extra_headers: Headers = Field(default_factory=dict)
    headers: Headers = Field(default_factory=dict)
    extra_body: JsonForm = Field(default_factory=dict, repr=False)
    drop_params: Switch | None = None
    additional_drop_params: tuple[Name, ...] = ()
    allowed_openai_params: tuple[Name, ...] = ()
    #: Guardrails that run on calls of this model, besides those of all calls.
    guardrails: tuple[Name, ...] = ()
    mock_response: str | dict[str, Any] | list[Any] | None = None
    defaults: JsonForm = Field(default_factory=dict, repr=False)
    extra: FreeForm = Field(default_factory=dict)


class Params(DefaultParams):
    """The params of one deployment: `model` is `provider/model`."""

    model: Name


class ModelInfo(Block):
    """What is known about the model behind a deployment."""

    id: Annotated[Name, BeforeValidator(_text_of_number)] | None = None
    mode: Name | None = None
    base_model: Name | None = None
    #: Only calls of this team may use it.
    team_id: Annotated[Name, BeforeValidator(_text_of_number)] | None = None
    #: The name by which that team asks for it, besides `model_name`.
    team_public_model_name: Name | None = None
    #: Names by which the `models` of a key may list it, with others.
    access_groups: Names = ()
    #: Of a prompt; without the first, the second counts.
    max_input_tokens: Count | None = None
    max_tokens: Count | None = None
    rpm: Amount | None = None
    tpm: Amount | None = None
    cooldown_time: Amount | None = None
    allowed_fails: Whole | None = None
    allowed_fails_policy: FailsPolicy = Field(default_factory=dict)
    health_check_model: Name | None = None
    health_check_timeout: Seconds | None = None
    disable_background_health_check: Switch = False
    supports_assistant_prefill: Switch | None = None
    #: US dollars.
    input_cost_per_token: Amount | None = None
    output_cost_per_token: Amount | None = None


class Deployment(Placed):
    """One entry of `model_list`; entries of one `model_name` share its load. The name may hold `*`."""

    model_name: Name
    params: Params
    model_info: ModelInfo = ModelInfo()
    #: Here or in `params`.
    rpm: Amount | None = None
    tpm: Amount | None = None
    tags: Names = ()


class CredentialSettings(Block):
    """One entry of `credential_list`; its values are already merged into the deployments that name it."""

    credential_name: Name
    credential_values: FreeForm = Field(default_factory=dict)
    credential_info: FreeForm = Field(default_factory=dict)


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


GuardrailMode = Literal[
    "pre_call", "during_call", "post_call", "logging_only",
    "pre_mcp_call", "during_mcp_call", "post_mcp_call", "realtime_input_transcription",
]  # fmt: skip


GuardrailModes = Annotated[tuple[Annotated[GuardrailMode, BeforeValidator(_lower)], ...], BeforeValidator(as_list)]


class GuardrailSettings(Placed):
    """One entry of `guardrails`: a built-in name or the dotted path of a class, with its own options."""

    name: Name
    guardrail: Name
    mode: GuardrailModes
    #: Modes of calls with a tag, in place of `mode`.
    modes_by_tag: dict[Name, GuardrailModes] = Field(default_factory=dict)
    default_on: Switch = False
    options: FreeForm = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some_mode(self) -> GuardrailSettings:
        if not self.mode and not self.modes_by_tag:
            raise wrong("a guardrail needs a mode: pre_call, during_call, post_call or logging_only")
        return self

    @property
    def is_custom(self) -> bool:
        """Whether `guardrail` is the user's own class."""
        return "." in self.guardrail or ":" in self.guardrail


def _hash(value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip().lower()
        if not _SHA256.fullmatch(value):
            raise wrong("expected the SHA-256 of the key, 64 hexadecimal digits")
    return value


def _iso(value: Any) -> Any:
    if not isinstance(value, str | datetime):
        raise wrong("expected a date and time such as 2027-01-31T12:00:00Z")
    if isinstance(value, str) and value.strip().isdigit():  # pydantic would read it as seconds since 1970
        raise wrong("expected a date and time such as 2027-01-31T12:00:00Z")
    return value


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


class VirtualKey(Placed):
    """A key for clients: itself (`key`) or its hash (`key_sha256`), and what it may use. No models means all."""

    key: Credential | None = None
    key_sha256: Annotated[str, BeforeValidator(_hash)] | None = None
    alias: Name | None = None
    team: Name | None = None
    organization_id: Name | None = None
    user: Name | None = None
    models: tuple[Name, ...] = ()
    tags: tuple[Name, ...] = ()
    #: Guardrails that run on its calls, besides those of all calls; and whether those of all calls are left out.
    guardrails: tuple[Name, ...] = ()
    disable_global_guardrails: Switch = False
    #: Directives of `cache` that its requests may use; none means all.
    allowed_cache_controls: tuple[Name, ...] = ()
    metadata: FreeForm = Field(default_factory=dict)
    expires: Annotated[datetime, BeforeValidator(_iso), AfterValidator(_aware)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> VirtualKey:
        if (self.key is None) == (self.key_sha256 is None):
            raise wrong("give either `key` or `key_sha256`, one of the two")
        return self
