"""Which model group is tried when one has failed: by the kind of the failure, then by the general lists. No cycles."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from tianji_mw.apis.base import JSON
from tianji_mw.errors import InvalidRequest, UnknownModel
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.rules import Fallbacks, RoutingRules
from tianji_mw.routing.selector import group_for
from tianji_mw.routing.table import Deployments

if TYPE_CHECKING:
    from tianji_mw.call import Call

_TYPED = {"ContextWindow": "context_window_fallbacks", "ContentPolicyViolation": "content_policy_fallbacks"}
#: Names that a request may list: each is looked at after each failure.
_MOST_NAMES: Final = 100


def next_group(
    call: Call,
    rules: RoutingRules,
    table: Deployments,
    failure: Failure,
    listed: Sequence[str],
    tried: Collection[str],
) -> str | None:
    """The first of these groups that the caller may use and that was not tried; None when there is none."""
    return next(usable(call, rules, table, failure, listed, tried), None)


def usable(
    call: Call,
    rules: RoutingRules,
    table: Deployments,
    failure: Failure,
    listed: Sequence[str],
    tried: Collection[str],
) -> Iterator[str]:
    """All of these groups that the caller may use and that were not tried."""
    if failure.falls_back and call.request.get("disable_fallbacks") is not True and len(tried) <= rules.max_fallbacks:
        yield from (name for name in listed if table.group(name) not in tried and _allowed(call, table, name))


def targets(call: Call, rules: RoutingRules, name: str, failure: Failure, group: str) -> Sequence[str]:
    """The list that holds for this failure, in its order: of the name that was asked for, or of its group."""
    typed = _TYPED.get(failure.kind, "")
    asked = _asked(call, typed, name) if typed else None
    if asked is None and typed:
        asked = _of(getattr(rules, typed), name, group)
    if not asked:
        asked = _asked(call, "fallbacks", name)
        if asked is None:
            asked = _of(rules.fallbacks, name, group)
    return asked


def _of(lists: Fallbacks, name: str, group: str) -> Sequence[str]:
    # An alias that has no list of its own has that of what it stands for.
    return listed(lists, name) if name in lists else listed(lists, group)


def listed(lists: Fallbacks, group: str) -> Sequence[str]:
    """The entry for a group: its name, its name without the provider's, one whose name without it is this, `*`."""
    if (found := lists.get(group)) is not None:
        return found
    bare = group.partition("/")[2]
    if bare and (found := lists.get(bare)) is not None:
        return found
    for name, found in lists.items():
        if name.partition("/")[2] == group:
            return found
    return lists.get("*", ())


def has_any(
    call: Call, rules: RoutingRules, table: Deployments, group: str, failure: Failure, tried: Collection[str]
) -> bool:
    """Whether another group would be tried after this one."""
    return (
        next_group(call, rules, table, failure, targets(call, rules, group, failure, table.group(group)), tried)
        is not None
    )


def check(call: Call) -> None:
    """Raise InvalidRequest for lists of the request that cannot be used, before anything is tried."""
    for field in ("fallbacks", *_TYPED.values()):
        _asked(call, field, None)


def _asked(call: Call, field: str, group: str | None) -> Sequence[str] | None:
    """The request's own list: names, or lists by group as in the config; None where it has none.

    `group` None: the lists of all groups together. Raises InvalidRequest.
    """
    value = call.request.get(field)
    if value is None:
        return None
    names: list[JSON] = []
    entries = value if isinstance(value, list) else [value]
    if any(len(found) > _MOST_NAMES for found in (entries, *entries[:_MOST_NAMES]) if isinstance(found, list | dict)):
        raise InvalidRequest(f"'{field}' may hold {_MOST_NAMES} names at most.", param=field)
    for entry in entries:
        by_group = isinstance(entry, dict) and entry and all(isinstance(found, list) for found in entry.values())
        if by_group and "messages" not in entry:
            names += chain(*entry.values()) if group is None else listed(entry, group)
        else:
            names.append(entry)
        if len(names) > _MOST_NAMES:
            raise InvalidRequest(f"'{field}' may hold {_MOST_NAMES} names at most.", param=field)
    return [_name(entry, field) for entry in names]


def _name(entry: JSON, field: str) -> str:
    if isinstance(entry, dict) and entry.keys() == {"model"}:
        entry = entry["model"]
    if isinstance(entry, dict) and "messages" in entry:
        # They would reach a model without having passed the guardrails, the cache and the logs.
        raise InvalidRequest(f"Entries of '{field}' cannot bring messages of their own.", param=field)
    if not isinstance(entry, str) or not entry:
        raise InvalidRequest(f"'{field}' must be a list of model names.", param=field)
    return entry


def _allowed(call: Call, table: Deployments, target: str) -> bool:
    if call.identity is not None and not call.identity.allows(target):
        return False
    try:
        group_for(call, table, target)
    except UnknownModel:
        return False
    return True
