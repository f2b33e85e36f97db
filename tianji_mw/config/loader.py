"""Loads a configuration: file and includes, one spelling per key, notices, references, then typed `Settings`.

Everything that is wrong is reported together as `ConfigErrors`. Nothing here connects to anything or changes the
process environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from tianji_mw.config import known
from tianji_mw.config.cache_notices import tell_cache
from tianji_mw.config.deployments import complete
from tianji_mw.config.entries import arrange
from tianji_mw.config.explain import explain
from tianji_mw.config.includes import gather, read
from tianji_mw.config.managed import Managers, Resolving
from tianji_mw.config.nodes import Loc, Node, Place, from_value, plain
from tianji_mw.config.overrides import override
from tianji_mw.config.references import References
from tianji_mw.config.routing_checks import check_routing, move_routing
from tianji_mw.config.settings import Notice, Settings
from tianji_mw.config.sift import notice, sift
from tianji_mw.config.values import as_switch
from tianji_mw.errors import ConfigError, ConfigErrors

_Found = TypeVar("_Found", ConfigError, Notice)

#: Mappings of typed fields, in which null means "not set"; inside free-form keys it is a value.
_BLOCKS: Final = ("settings", "router_settings", "general_settings")
_LISTS: Final = ("model_list", "credential_list", "guardrails", "virtual_keys")


def load(
    path: str | Path,
    *,
    env: Mapping[str, str] | None = None,
    strict: bool = False,
    resolving: Resolving = "fail",
) -> Settings:
    """The settings of the YAML file at `path`. Raises `ConfigErrors`, which lists every error found.

    `env` stands in for the process environment; `strict` turns notices into errors. References to secret managers are
    fetched; with `resolving="defer"` credentials that cannot be had yet come later, with "skip" none is asked for.
    """
    errors: list[ConfigError] = []
    return _settings(lambda: read(Path(path), errors), errors, env, strict, resolving)


def loads(
    text: str,
    *,
    file: str = "<string>",
    env: Mapping[str, str] | None = None,
    strict: bool = False,
    resolving: Resolving = "fail",
) -> Settings:
    """Like `load`, from text. `file` is named in errors, and includes are relative to its folder."""
    errors: list[ConfigError] = []

    def tree() -> Node:
        from tianji_mw.config.lines import parse  # loads PyYAML

        return gather(parse(text, file, errors), errors, (Path(file),))

    return _settings(tree, errors, env, strict, resolving)


def from_dict(
    mapping: Mapping[str, Any],
    *,
    file: str = "<mapping>",
    env: Mapping[str, str] | None = None,
    strict: bool = False,
    resolving: Resolving = "fail",
) -> Settings:
    """Like `load`, from a mapping of the same shape; errors name keys, there are no lines."""
    errors: list[ConfigError] = []
    root = partial(_of_mapping, mapping, file, errors)
    return _settings(root, errors, env, strict, resolving)


def _of_mapping(mapping: Mapping[str, Any], file: str, errors: list[ConfigError]) -> Node:
    return gather(from_value(mapping, file, errors), errors, (Path(file),))


def _settings(
    tree: Callable[[], Node],
    errors: list[ConfigError],
    env: Mapping[str, str] | None,
    strict: bool,
    resolving: Resolving,
) -> Settings:
    try:
        root = tree()
    except ConfigErrors as found:
        raise ConfigErrors(_ordered([*errors, *found.errors])) from None
    notices: list[Notice] = []
    env = os.environ if env is None else env
    override(root, env)
    move_routing(root, notices)
    sift(root, notices)
    managers = Managers(env, errors, resolving)
    _resolve(root, References(env, errors, managers), managers, notices)
    _drop_nulls(root)
    check_routing(root, errors, notices)
    _leave_out_callbacks(root, notices)
    tell_cache(root, notices)
    complete(root, errors, notices)
    settings = _validate(root, arrange(root, errors), errors)
    if strict:
        errors += [n.error() for n in notices]
    if errors or settings is None:
        raise ConfigErrors(_ordered(errors))
    settings._notices = _ordered(notices)
    settings._resolver, settings._hosted = managers.resolver, managers.hosted
    return settings


def _resolve(root: Node, references: References, managers: Managers, notices: list[Notice]) -> None:
    variables = root.fields.pop("environment_variables", None)
    references.define_literals(variables)
    managers.open(root, references, notices)
    managers.fetch(root, variables)
    references.define(variables)
    if variables is not None and variables.value is not None:
        root.fields["environment"] = variables
    general = root.child("general_settings")
    strict_env = general.child("strict_env") if general else None
    if strict_env is not None and references.resolve(strict_env) and as_switch(strict_env.value) is False:

        def unset(node: Node, name: str) -> None:
            notices.append(notice("unresolved", node, f"set {name}"))

        for params in _provider_params(root):
            references.resolve_all(params, lenient=unset)
    for block, node in root.fields.items():
        if block != "environment":
            references.resolve_all(node)


def _provider_params(root: Node) -> Iterable[Node]:
    for block, key in (("model_list", "params"), ("credential_list", "credential_values")):
        entries = root.child(block)
        for entry in entries.items if entries else ():
            if (params := entry.child(key)) is not None:
                yield params
    router = root.child("router_settings")
    if router is not None and (params := router.child("default_params")) is not None:
        yield params


def _drop_nulls(root: Node) -> None:
    blocks = [root, *(node for name in _BLOCKS if (node := root.child(name)))]
    for name in _LISTS:
        node = root.child(name)
        for entry in node.items if node else ():
            blocks += [entry, *(info for key in ("model_info",) if (info := entry.child(key)))]
    for block in blocks:
        for key in [k for k, node in block.fields.items() if node.value is None]:
            del block.fields[key]


def _leave_out_callbacks(root: Node, notices: list[Notice]) -> None:
    """Callbacks that LiteLLM has and this suite has not."""
    settings = root.child("settings")
    for key in ("callbacks", "success_callback", "failure_callback"):
        node = settings.child(key) if settings else None
        if node is None:
            continue
        if isinstance(node.value, str):
            node.value = [Node(node.value, node.file, node.line, node.key)]
        later = [one for one in node.items if isinstance(one.value, str) and one.value in known.CALLBACKS_LATER]
        notices += [notice("not_implemented", one, str(one.value)) for one in later]
        if isinstance(node.value, list):
            node.value = [one for one in node.items if one not in later]


def _validate(root: Node, ghosts: Mapping[Loc, Node], errors: list[ConfigError]) -> Settings | None:
    places: dict[Loc, Node] = {}
    value = plain(root, places)
    try:
        settings = Settings.model_validate(value)
    except ValidationError as error:
        errors += explain(error, {**ghosts, **places})
        return None
    settings._places = {loc: Place(node.file, node.line, node.key) for loc, node in places.items()}
    return settings


def _ordered(found: list[_Found]) -> tuple[_Found, ...]:
    """By file and line, the first one of each place: what follows from an error is no second error."""
    files = {one.file: at for at, one in reversed([*enumerate(found)])}
    first = {(one.file, one.line, one.key): one for one in reversed(found)}
    return tuple(sorted(first.values(), key=lambda one: (files[one.file], one.line or 0)))
