"""The options that every callback of the config takes, whatever it is: what it hears of, and how it is delivered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.destination import Events
from tianji_mw.config.blocks import Block
from tianji_mw.config.explain import reason
from tianji_mw.config.values import Name, Seconds, Switch
from tianji_mw.delivery import OnFailure
from tianji_mw.errors import ConfigError

#: LiteLLM's words for what a destination hears of.
_HEARD: Final[Mapping[str, str]] = {"llm_api_success": "success", "llm_api_failure": "failure"}


def _as_set(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[frozenset[Name], BeforeValidator(_as_set)]


class Policy(Block):
    """LiteLLM's names, and `events`, filters, rates and `on_flush_failure` of our own."""

    events: Literal["all", "success", "failure"] | None = None
    #: LiteLLM's form of it: `llm_api_success`, `llm_api_failure`.
    event_types: tuple[Literal["llm_api_success", "llm_api_failure"], ...] | None = None
    message_logging: Switch = True
    turn_off_message_logging: Switch = False
    redact_user_api_key_info: Switch = False
    sample_rate: float = Field(default=1.0, ge=0, le=1)
    failure_sample_rate: float = Field(default=1.0, ge=0, le=1)
    models: Names = frozenset()
    teams: Names = frozenset()
    keys: Names = frozenset()
    tags: Names = frozenset()
    on_flush_failure: OnFailure | None = None
    max_retries: int | None = Field(default=None, ge=0, le=1000)
    retry_delay: Seconds = 0.5

    @property
    def hears(self) -> Events | None:
        """What it hears of, where the options say it."""
        if self.events is not None or self.event_types is None:
            return self.events
        kinds = {_HEARD[kind] for kind in self.event_types}
        return "all" if len(kinds) == 2 else "success" if "success" in kinds else "failure"

    def fields(self, on_failure: OnFailure) -> dict[str, Any]:
        """Fields of a `Destination`; `on_failure` is for destinations that do not say it."""
        return {
            "content": self.message_logging and not self.turn_off_message_logging,
            "key_info": not self.redact_user_api_key_info,
            "sample_rate": self.sample_rate,
            "failure_sample_rate": self.failure_sample_rate,
            "models": self.models,
            "keys": self.keys,
            "tags": self.tags,
            "on_failure": self.on_flush_failure or on_failure,
            "max_retries": 5 if self.max_retries is None else self.max_retries,
            "retry_delay_s": self.retry_delay,
        }


def policy_of(
    kind: type[Callback], options: Mapping[str, Any], wrong: Callable[[str, str], ConfigError]
) -> tuple[Policy, dict[str, Any]]:
    """The policy among a callback's options, and the options that are its own. Raises what `wrong` makes."""
    shared = Policy.model_fields.keys() - kind.model_fields.keys()
    given = {key: value for key, value in options.items() if key in shared and value is not None}
    own = {key: value for key, value in options.items() if key not in shared and value is not None}
    try:
        return Policy(**given), own
    except ValidationError as invalid:
        raise wrong(*reason(invalid)) from None
