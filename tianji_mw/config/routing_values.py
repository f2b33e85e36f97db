"""The types of single values of the routing keys: times with a unit, counts per kind of error, lists of names.

What is written stays as it is where people read it again: a period is text, and `seconds_of` gives its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from tianji_mw.config.values import Amount, Name, Whole, wrong
from tianji_mw.routing.rules import Kind

_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|mo|[smhdw]?)")
#: LiteLLM's units; its month is the calendar's, ours has 30 days.
_UNIT_S: Final = {
    "": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "mo": 2_592_000.0,
}  # fmt: skip
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_NO: Final = frozenset({"false", "off", "no"})


def seconds_of(text: str) -> float:
    """The seconds in `90ms`, `1.5s`, `10m`, `24h`, `7d`, `2w`, `1mo`; 0 for other text.

    >>> seconds_of("24h")
    86400.0
    """
    found = _TIME.fullmatch(text.strip().lower())
    return float(found[1]) * _UNIT_S[found[2]] if found else 0.0


def as_list(value: Any) -> Any:
    """One text as a list of it."""
    return [value] if isinstance(value, str) else value


def _span(value: Any) -> Any:
    # A variable that holds a bare number is text too, and pydantic reads it.
    return seconds_of(value) or value if isinstance(value, str) else value


def _period(value: str) -> str:
    if not value.strip()[-1:].isalpha() or seconds_of(value) <= 0:
        raise wrong("expected a number and a unit, such as 30s, 10m, 24h, 7d or 1mo")
    return value


def _kind(ending: str) -> Callable[[str], Kind]:
    """Reads LiteLLM's `TimeoutErrorRetries`; our `Timeout` is understood too."""
    known: dict[str, Kind] = {f"{kind}Error{ending}": kind for kind in _KINDS}
    known |= {kind: kind for kind in _KINDS}

    def read(name: str) -> Kind:
        if name not in known:
            near = get_close_matches(name[:80], known, n=1)
            raise wrong(
                f"no such kind of error; {f'did you mean {near[0]}?' if near else f'e.g. TimeoutError{ending}'}"
            )
        return known[name]

    return read


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise wrong(f"not a regular expression: {error.msg}") from None
    return value


def _no_limit(value: Any) -> Any:
    if type(value) is int:
        return float(value)  # pydantic takes 0 for false
    return False if isinstance(value, str) and value.strip().lower() in _NO else value


#: A time in seconds, or text with a unit.
Span: TypeAlias = Annotated[
    float, BeforeValidator(_span), Field(gt=0, allow_inf_nan=False, json_schema_extra={"examples": [1.5, "90ms"]})
]
#: A time as text with its unit.
Period: TypeAlias = Annotated[str, AfterValidator(_period)]
#: Names, or one.
Names: TypeAlias = Annotated[tuple[Name, ...], BeforeValidator(as_list)]
#: Regular expressions, or one.
Patterns: TypeAlias = Annotated[tuple[Annotated[Name, AfterValidator(_pattern)], ...], BeforeValidator(as_list)]
#: Retries, and failures that are let pass, per kind of error.
RetryPolicy: TypeAlias = dict[Annotated[Kind, BeforeValidator(_kind("Retries"))], Whole]
FailsPolicy: TypeAlias = dict[Annotated[Kind, BeforeValidator(_kind("AllowedFails"))], Whole]
#: Retries per call that a group may spend when nothing succeeds; false: as many as there are.
RetryBudget: TypeAlias = Annotated[Amount | Literal[False], BeforeValidator(_no_limit)]
