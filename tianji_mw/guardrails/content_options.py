"""Options of `content_filter`, as LiteLLM spells them, and the ids that there are. No file is read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tianji_mw.guardrails.content_prebuilt import KNOWN

Action = Literal["block", "mask"]

#: What the harm scorer knows.
BUILT_IN: Final = ("hate", "violence", "self_harm", "sexual")
#: LiteLLM's ids that mean one of them.
CATEGORY_ALIASES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("bias_gender", "bias_racial", "bias_religious", "bias_sexual_orientation"), "hate"),
    **dict.fromkeys(
        (
            "harm_toxic_abuse",
            "harm_toxic_abuse_au",
            "harm_toxic_abuse_de",
            "harm_toxic_abuse_es",
            "harm_toxic_abuse_fr",
        ),
        "hate",
    ),
    "harmful_violence": "violence",
    "harmful_self_harm": "self_harm",
    "harmful_child_safety": "sexual",
}
_LEVELS: Final[Mapping[object, int]] = {"low": 1, "medium": 2, "high": 3, "1": 1, "2": 2, "3": 3, 1: 1, 2: 2, 3: 3}


def _level(value: Any) -> Any:
    found = None
    if isinstance(value, int | str) and not isinstance(value, bool):
        found = _LEVELS.get(value.strip().lower() if isinstance(value, str) else value)
    if found is None:
        raise ValueError("expected low, medium or high")
    return found


def _small(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def level_name(severity: int) -> str:
    """low, medium or high."""
    return ("low", "medium", "high")[severity - 1]


#: 1 to 3.
Severity = Annotated[int, BeforeValidator(_level)]
Act = Annotated[Action, BeforeValidator(_small)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]


class Options(BaseModel):
    """Base of the options: a key that has no effect is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class CategoryRule(Options):
    """What happens to a category: one of ours, or the one of `category_file`."""

    category: _Id
    enabled: bool = True
    action: Act | None = None
    severity_threshold: Severity | None = None
    category_file: Path | None = None

    @property
    def built_in(self) -> str:
        """The id of the harm scorer's category; empty where it is another one."""
        name = CATEGORY_ALIASES.get(self.category, self.category)
        return name if name in BUILT_IN and self.category_file is None else ""


class Keyword(Options):
    keyword: Text
    severity: Severity = 2


class CategoryWords(Options):
    """A category of the user's own: the content of a `category_file`, or an entry of `own_categories`."""

    category_name: _Id = "own"
    display_name: str = ""
    description: str = ""
    default_action: Act = "block"
    keywords: tuple[Keyword, ...] = ()
    #: They keep the keywords of their own sentence, and of this category, from counting.
    exceptions: tuple[Text, ...] = ()
    #: One of each in the same sentence counts; neither does alone.
    identifier_words: tuple[Text, ...] = ()
    additional_block_words: tuple[Text, ...] = ()
    #: These count whatever else the sentence says.
    always_block_keywords: tuple[Keyword, ...] = ()
    phrase_patterns: tuple[Text, ...] = ()
    inherit_from: Path | None = None


class BlockedWord(Options):
    keyword: Text
    action: Act = "block"
    description: str | None = None


class Pattern(Options):
    """A prebuilt pattern by name, or a regular expression."""

    pattern_type: Annotated[Literal["prebuilt", "regex"], BeforeValidator(_small)]
    pattern_name: str | None = None
    name: str | None = None
    pattern: Text | None = None
    action: Act = "block"

    @property
    def title(self) -> str:
        """How it is called in answers, labels and errors."""
        return (self.pattern_name if self.pattern_type == "prebuilt" else self.name or self.pattern_name) or "regex"

    @model_validator(mode="after")
    def _whole(self) -> Pattern:
        if self.pattern_type == "regex":
            if not self.pattern:
                raise ValueError(f"the regex {self.title!r} has no `pattern`")
        elif self.pattern_name not in KNOWN:
            raise ValueError(unknown("prebuilt pattern", self.pattern_name or "", KNOWN))
        return self


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The error about a name that we do not have, with the ones that we have."""
    return f"there is no {what} {name!r}; known are {', '.join(sorted(known))}"
