"""The config's fallbacks: what is tried after which model group, and whether what they name exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.config.sift import nearest
from tianji_mw.errors import ConfigError
from tianji_mw.routing.base import pattern

if TYPE_CHECKING:
    from tianji_mw.config.routing_keys import FallbackList, RouterSettings
    from tianji_mw.config.settings import Settings

_KEYS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
#: Where a name stands, and the name.
_Target = tuple[tuple[str | int, ...], str]


def fallbacks_of(router: RouterSettings) -> dict[str, Any]:
    """The fields of `RoutingRules` by name; `default_fallbacks` come after those that every group has anyway."""
    found: dict[str, Any] = {key: _joined(getattr(router, key)) for key in _KEYS}
    if router.default_fallbacks:
        every = (*found["fallbacks"].get("*", ()), *router.default_fallbacks)
        found["fallbacks"]["*"] = tuple(dict.fromkeys(every))
    return found


def _joined(listed: FallbackList) -> dict[str, tuple[str, ...]]:
    """A group that stands twice in the list has the targets of both."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in listed:
        for group, targets in entry.items():
            found[group] = tuple(dict.fromkeys((*found.get(group, ()), *targets)))
    return found


def check_targets(settings: Settings) -> list[ConfigError]:
    """An error for each fallback and each mirror that nothing serves: it would only be missed when it is needed."""
    problems: list[ConfigError] = []
    served, names = _served(settings)
    for loc, name in _targets(settings):
        if not served(name):
            meant = nearest(name, names)
            hint = f"did you mean {meant!r}?" if meant else "add it to model_list"
            problems.append(settings.error(f"no model serves {name[:200]!r}", *loc, hint=hint))
    return problems


def _served(settings: Settings) -> tuple[Callable[[str], bool], set[str]]:
    names = {entry.model_name for entry in settings.model_list} | settings.router_settings.model_group_alias.keys()
    ids = {entry.model_info.id for entry in settings.model_list}
    patterns = [pattern(name) for name in names if "*" in name]
    return lambda name: name in names or name in ids or any(one.fullmatch(name) for one in patterns), names


def _targets(settings: Settings) -> Iterator[_Target]:
    router = settings.router_settings
    for key in _KEYS:
        for index, entry in enumerate(getattr(router, key)):
            for group, targets in entry.items():
                yield from ((("router_settings", key, index, group, at), one) for at, one in enumerate(targets))
    for at, name in enumerate(router.default_fallbacks):
        yield ("router_settings", "default_fallbacks", at), name
    for index, deployment in enumerate(settings.model_list):
        for at, name in enumerate(deployment.params.silent_model):
            yield ("model_list", index, "params", "silent_model", at), name
