"""Which deployments the tags of a request leave: pure functions, no strategy.

Without tags in the request: deployments tagged `default`, else all. With tags: those that have one of them (or all, as
the config says), else those tagged `default`. `!tag` leaves out those that have it, `&tag` leaves only those. A
deployment's `tag_regex` is searched in the request's `User-Agent: ...`; a match counts like a common tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from tianji_mw.errors import SetupError
from tianji_mw.routing.base import Deployment

_DEFAULT: Final = "default"
#: Characters of a header that are searched, and patterns that are kept compiled.
_LONGEST_HEADER: Final = 1000
_PATTERNS: Final = 1000


class Wanted(NamedTuple):
    """A request's tags, sorted by what they demand."""

    some: frozenset[str]
    must: frozenset[str]
    never: frozenset[str]


def wanted(tags: frozenset[str]) -> Wanted:
    """What these tags demand.

    >>> wanted(frozenset({"eu", "!old"})).never
    frozenset({'old'})
    """
    must = frozenset(tag[1:] for tag in tags if tag[:1] == "&" and len(tag) > 1)
    never = frozenset(tag[1:] for tag in tags if tag[:1] == "!" and len(tag) > 1)
    return Wanted(frozenset(tag for tag in tags if tag[:1] not in ("&", "!")), must, never)


def tagged(
    deployments: Sequence[Deployment], tags: frozenset[str], *, match_any: bool, header: str = ""
) -> tuple[Deployment, ...]:
    """The deployments that stay; nobody: the request's tags fit none of them."""
    some, must, never = wanted(tags)
    allowed = [one for one in deployments if must <= one.tags and never.isdisjoint(one.tags)]
    fitting = tuple(one for one in allowed if _fits(one, some, header, match_any=match_any))
    if fitting:
        return fitting
    if must and not some:
        return tuple(allowed)
    default = tuple(one for one in allowed if _DEFAULT in one.tags)
    if default or some or any(_DEFAULT in one.tags for one in deployments):
        return default
    return tuple(allowed)


def _fits(one: Deployment, some: frozenset[str], header: str, *, match_any: bool) -> bool:
    if some and (not some.isdisjoint(one.tags) if match_any else some <= one.tags):
        return True
    # Where all tags are demanded, a header is no way around those of the deployment.
    return bool(one.tag_regex) and (match_any or not one.tags) and _matches(one.tag_regex, header)


def checked(pattern: str) -> Any:
    """A `tag_regex`, compiled by RE2: linear in the text. Raises SetupError; call it at the start for every pattern."""
    try:
        import re2
    except ModuleNotFoundError:
        raise SetupError('tag_regex needs a package; pip install "tianji-mw[guardrails]"') from None
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else error
        text = "its syntax is at github.com/google/re2/wiki/Syntax"
        raise SetupError(f"tag_regex {pattern[:200]!r}: RE2 does not take it ({reason}); {text}") from None


# A pattern means the same for ever: what is kept is no state, and a router has a few.
_compiled: Final = lru_cache(maxsize=_PATTERNS)(checked)


def _matches(patterns: Sequence[str], header: str) -> bool:
    # A lone surrogate cannot be given to RE2.
    text = header[:_LONGEST_HEADER]
    text = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return bool(text) and any(_compiled(pattern).search(text) for pattern in patterns)
