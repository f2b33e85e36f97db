"""`Settings`: the whole configuration, typed, immutable, with the notices about keys that have no effect yet.

Secrets inside are `Secret` from the start, so no representation of a `Settings` shows one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from tianji_mw.config.blocks import (
    Block,
    CredentialSettings,
    Deployment,
    GuardrailSettings,
    VirtualKey,
)
from tianji_mw.config.cache_keys import CacheKeys
from tianji_mw.config.callback_keys import AlertKeys, CallbackKeys
from tianji_mw.config.nodes import Loc, Place
from tianji_mw.config.routing_keys import HealthKeys, RouterSettings
from tianji_mw.config.values import Amount, Count, Credential, FreeForms, Megabytes, Name, Seconds, Switch, as_switch
from tianji_mw.errors import ConfigError
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.secrets.resolver import Resolver

_MIB = 1 << 20

NoticeLevel = Literal["not_implemented", "unknown", "unresolved", "no_effect"]


@dataclass(frozen=True, slots=True)
class Notice:
    """A key that has no effect: not implemented yet, unknown, unresolved where allowed, or with nothing to do."""

    level: NoticeLevel
    file: str
    line: int | None
    key: str
    hint: str = ""

    @property
    def message(self) -> str:
        """The sentence without the place."""
        match self.level:
            case "not_implemented":
                return "not implemented yet, has no effect"
            case "unknown":
                return "unknown key"
            case "unresolved":
                return "its variable is not set, the key is left out"
            case "no_effect":
                return "has no effect"

    def error(self) -> ConfigError:
        """The notice as an error, for a strict start."""
        return ConfigError(self.message, file=self.file, line=self.line, key=self.key, hint=self.hint)

    def __str__(self) -> str:
        return self.error().message


class BehaviourSettings(CacheKeys, CallbackKeys):
    """`litellm_settings`: how calls behave and what is logged."""

    drop_params: Switch = False
    #: For guardrails that do not say it themselves.
    skip_system_message_in_guardrail: Switch | None = None
    skip_tool_message_in_guardrail: Switch | None = None
    request_timeout: Seconds = 600.0
    json_logs: Switch = False
    set_verbose: Switch = False
    #: False switches the check of upstream certificates off; text is the path of a CA bundle.
    ssl_verify: Annotated[bool | Name, BeforeValidator(as_switch)] = True

    @property
    def guardrail_defaults(self) -> dict[str, bool]:
        """What guardrails do that do not say it themselves."""
        return {
            "skip_system_message_in_guardrail": self.skip_system_message_in_guardrail or False,
            "skip_tool_message_in_guardrail": self.skip_tool_message_in_guardrail or False,
        }


class GeneralSettings(AlertKeys, HealthKeys):
    """`general_settings`: access, limits of one process, drain, extra providers, health checks."""

    master_key: Credential | None = None
    litellm_key_header_name: Name | None = None
    always_include_stream_usage: Switch = False
    #: False: inside provider params a missing variable leaves the key out, with a notice, and the start goes on.
    strict_env: Switch = True
    #: More OpenAI-compatible providers: name -> an entry in the format of providers.json.
    providers: FreeForms = Field(default_factory=dict)

    max_request_size_mb: Megabytes = 32.0
    #: Takes precedence over `max_answer_bytes`.
    max_response_size_mb: Megabytes | None = None
    max_event_bytes: Count = _MIB
    max_answer_bytes: Count = 256 * _MIB
    receive_timeout_s: Seconds = 60.0

    drain_delay_s: Amount = 5.0
    grace_s: Amount = 120.0
    flush_s: Amount = 10.0

    header_timeout_s: Seconds = 10.0
    max_header_bytes: Count = 16384
    max_headers: Count = 100
    max_connections: Count | None = None
    #: Open connections to one upstream, seconds an idle one is kept, and HTTP/2 for upstreams that offer it.
    upstream_max_connections: Count = 2_000
    upstream_keep_alive_s: Seconds = 30.0
    upstream_http2: Switch = False

    @property
    def max_body_bytes(self) -> int:
        """The limit of a request body."""
        return int(self.max_request_size_mb * _MIB)

    @property
    def answer_limit_bytes(self) -> int:
        """The limit of an answer, whichever key set it."""
        return int(self.max_response_size_mb * _MIB) if self.max_response_size_mb else self.max_answer_bytes


class Settings(Block):
    """A whole configuration in canonical spelling.

    >>> Settings().general_settings.grace_s
    120.0
    """

    model_list: tuple[Deployment, ...] = ()
    settings: BehaviourSettings = BehaviourSettings()
    router_settings: RouterSettings = RouterSettings()
    general_settings: GeneralSettings = GeneralSettings()
    guardrails: tuple[GuardrailSettings, ...] = ()
    virtual_keys: tuple[VirtualKey, ...] = ()
    credential_list: tuple[CredentialSettings, ...] = ()
    #: Settings of single callbacks, by the name that the config calls them by.
    callback_settings: FreeForms = Field(default_factory=dict)
    #: Secrets that the app behind us may ask for, by name: `await call.secret("name")`.
    secrets: dict[str, Credential] = Field(default_factory=dict)
    #: `environment_variables`, resolved. The loader sets none of them; whoever owns the process does.
    environment: dict[str, Secret] = Field(default_factory=dict)

    _notices: tuple[Notice, ...] = PrivateAttr(default=())
    _resolver: Resolver | None = PrivateAttr(default=None)
    _hosted: Mapping[str, Secret] = PrivateAttr(default_factory=dict)
    _places: Mapping[Loc, Place] = PrivateAttr(default_factory=dict)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Every key of the files that has no effect, in the order of the files."""
        return self._notices

    @property
    def resolver(self) -> Resolver | None:
        """What the secrets of managers came from, and are kept fresh by; None where the config has none."""
        return self._resolver

    @property
    def hosted(self) -> Mapping[str, Secret]:
        """Secrets that stand for environment variables: `hosted_keys` of the secret manager."""
        return self._hosted

    def where(self, *loc: str | int) -> Place:
        """File, line and key as written of a canonical path, or of the nearest place above it.

        >>> Settings().where("model_list", 0, "params", "model").key
        'model_list[0].params.model'
        """
        for end in range(len(loc), 0, -1):
            if loc[:end] in self._places:
                return self._places[loc[:end]].inside(loc[end:])
        return Place("", None, "").inside(loc)

    def error(self, message: str, *loc: str | int, hint: str = "") -> ConfigError:
        """An error about a canonical path, for checks that only the owner of a block can make."""
        place = self.where(*loc)
        return ConfigError(message, file=place.file, line=place.line, key=place.key, hint=hint)

    def normalised(self) -> dict[str, Any]:
        """The printable form: canonical names, defaults filled in, every secret masked."""
        return self.model_dump(mode="json", exclude_none=True)
