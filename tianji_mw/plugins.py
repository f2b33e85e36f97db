"""Finds plugins by name: file convention, then entry points, then a dotted path. Nothing is loaded in bulk.

`find("guardrails", "pii", Guardrail)` looks for the single concrete subclass of `Guardrail` in
`tianji_mw/guardrails/pii.py`, then for an entry point `pii` in the group `tianji_mw.guardrails`, and takes
`my_pkg.my_mod:MyClass` (or `my_pkg.my_mod.MyClass`, as LiteLLM writes it) as it stands. A new integration is one new
file and no edit anywhere.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from tianji_mw.errors import PluginNotFound

T = TypeVar("T")


class PluginSettings(BaseModel):
    """Base of plugins whose fields are their configuration; construction has no side effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: Environment variables that fill a field which the config leaves out, in this order.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: LiteLLM's and other names of our fields; the class itself takes them.
    aliases: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _our_names(cls, fields: Any) -> Any:
        return in_our_names(fields, cls.aliases)


def find(concern: str, name: str, base: type[T]) -> type[T]:
    """The plugin class `name` of a concern. Raises PluginNotFound with what was tried and the nearest name."""
    if ":" in name or "." in name:
        return _dotted(name, base)
    package = f"tianji_mw.{concern}"
    if name.isidentifier() and name not in ("base", "middleware") and find_spec(f"{package}.{name}") is not None:
        return _only_subclass(importlib.import_module(f"{package}.{name}"), base)
    entries = tuple(entry_points(group=package, name=name))
    if len({entry.value for entry in entries}) > 1:
        raise PluginNotFound(
            f"plugin {name!r}: several packages claim it: {', '.join(entry.value for entry in entries)}"
        )
    for entry in entries:
        try:
            found = entry.load()
        except (ImportError, AttributeError) as error:
            raise PluginNotFound(f"entry point {entry.value} cannot be loaded ({error})") from error
        return _checked(found, base, f"entry point {entry.value}")
    near = difflib.get_close_matches(name, names(concern), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise PluginNotFound(
        f"no plugin {name!r} for {concern}: there is no file tianji_mw/{concern}/{name}.py, no entry point {name!r} in "
        f"the group {package!r}, and it is no 'package.module:Class'{hint}"
    )


def in_our_names(fields: Any, aliases: Mapping[str, str]) -> Any:
    """A plugin's settings with other names (`aliases`: theirs -> ours) replaced; what is no mapping stays.

    Raises ValueError for a setting that stands twice.
    """
    if not isinstance(fields, dict):
        return fields
    if twice := [name for name, field in aliases.items() if name in fields and field in fields]:
        raise ValueError(f"'{twice[0]}' and '{aliases[twice[0]]}' are the same setting; write one of them")
    return {aliases.get(name, name): value for name, value in fields.items()}


def names(concern: str) -> list[str]:
    """Names of the plugins that ship with the suite and of installed entry points."""
    package = importlib.import_module(f"tianji_mw.{concern}")
    own = [
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if m.name not in ("base", "middleware") and not m.ispkg and not m.name.startswith("_")
    ]
    return sorted({*own, *(entry.name for entry in entry_points(group=f"tianji_mw.{concern}"))})


def _dotted(name: str, base: type[T]) -> type[T]:
    module_name, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PluginNotFound(f"plugin {name!r}: module {module_name!r} cannot be imported ({error})") from error
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise PluginNotFound(f"plugin {name!r}: module {module_name!r} has no {attribute!r}") from None
    return _checked(found, base, name)


def _only_subclass(module: ModuleType, base: type[T]) -> type[T]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        shown = ", ".join(cls.__name__ for cls in found) or "none"
        raise PluginNotFound(f"{module.__file__} must define one {base.__name__}, and defines {shown}")
    return found[0]


def _checked(found: object, base: type[T], where: str) -> type[T]:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginNotFound(f"{where} is not a subclass of {base.__module__}.{base.__name__}")
    return found
