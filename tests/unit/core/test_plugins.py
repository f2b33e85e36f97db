"""Lookup of plugins: file convention, entry point, dotted path; errors that name file, group and the nearest name."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tianji_mw import plugins
from tianji_mw.errors import PluginNotFound
from tianji_mw.guardrails.base import Guardrail
from tianji_mw.providers.base import Provider


class Mine(Guardrail):
    """A guardrail of the user's own."""


class NotOne:
    """Not a guardrail."""


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []

    def entry_points(**params: Any) -> EntryPoints:
        return EntryPoints(found).select(**params)

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    return found


@pytest.fixture
def concern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A concern `tianji_mw.testconcern` whose files the test writes."""
    package = ModuleType("tianji_mw.testconcern")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "tianji_mw.testconcern", package)
    yield tmp_path  # type: ignore[misc]
    for name in [name for name in sys.modules if name.startswith("tianji_mw.testconcern.")]:
        del sys.modules[name]


IMPORT = "from tianji_mw.guardrails.base import Guardrail\n"


def test_a_file_is_a_plugin() -> None:
    found = plugins.find("providers", "openai", Provider)
    assert (found.__name__, found.__module__) == ("OpenAI", "tianji_mw.providers.openai")


def test_the_single_concrete_subclass_of_a_file_is_taken(concern: Path) -> None:
    (concern / "pii.py").write_text(
        IMPORT + "import abc\nfrom tests.unit.core.test_plugins import Mine\nclass _Hidden(Guardrail): pass\n"
        "class Base(Guardrail, abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n"
        "class PII(Base):\n    def f(self): ...\n"
    )
    assert plugins.find("testconcern", "pii", Guardrail).__name__ == "PII"
    assert plugins.names("testconcern") == ["pii"]


@pytest.mark.parametrize(
    ("code", "shown"),
    [("x = 1\n", "none"), (IMPORT + "class A(Guardrail): pass\nclass B(Guardrail): pass\n", "A, B")],
)
def test_a_file_with_none_or_two_is_named(concern: Path, code: str, shown: str) -> None:
    (concern / "odd.py").write_text(code)
    with pytest.raises(PluginNotFound, match=rf"odd\.py must define one Guardrail, and defines {shown}"):
        plugins.find("testconcern", "odd", Guardrail)


@pytest.mark.parametrize("name", ["base", "middleware", "no-identifier", ""])
def test_files_that_are_no_plugins(name: str) -> None:
    with pytest.raises(PluginNotFound):
        plugins.find("guardrails", name, Guardrail)


def test_an_entry_point_is_found_after_the_files(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("mine", f"{__name__}:Mine", "tianji_mw.guardrails"))
    entries.append(EntryPoint("other", "does.not:Exist", "tianji_mw.guardrails"))  # never loaded
    assert plugins.find("guardrails", "mine", Guardrail) is Mine
    assert "mine" in plugins.names("guardrails")


def test_an_entry_point_does_not_replace_a_file(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("openai", f"{__name__}:NotOne", "tianji_mw.providers"))
    assert plugins.find("providers", "openai", Provider).__name__ == "OpenAI"


def test_two_packages_that_claim_one_name_are_an_error(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("mine", f"{__name__}:Mine", "tianji_mw.guardrails"))
    entries.append(EntryPoint("mine", "other.pkg:Mine", "tianji_mw.guardrails"))
    with pytest.raises(PluginNotFound, match=r"several packages claim it: .*other\.pkg:Mine"):
        plugins.find("guardrails", "mine", Guardrail)


def test_an_entry_point_that_cannot_be_loaded_is_named(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("mine", "does.not:Exist", "tianji_mw.guardrails"))
    with pytest.raises(PluginNotFound, match=r"does\.not:Exist cannot be loaded"):
        plugins.find("guardrails", "mine", Guardrail)


@pytest.mark.parametrize("name", [f"{__name__}:Mine", f"{__name__}.Mine"])
def test_a_dotted_path_is_taken_as_it_stands(name: str) -> None:
    assert plugins.find("guardrails", name, Guardrail) is Mine


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{__name__}:NotOne", "is not a subclass of tianji_mw.guardrails.base.Guardrail"),
        (f"{__name__}:IMPORT", "is not a subclass"),
        (f"{__name__}:Missing", "has no 'Missing'"),
        ("no.such.module:X", "cannot be imported"),
    ],
)
def test_a_wrong_dotted_path_says_what_is_wrong(name: str, reason: str) -> None:
    with pytest.raises(PluginNotFound, match=reason):
        plugins.find("guardrails", name, Guardrail)


def test_a_typing_error_gets_the_nearest_name() -> None:
    with pytest.raises(PluginNotFound, match=r"tianji_mw/providers/antropic\.py.*did you mean 'anthropic'") as caught:
        plugins.find("providers", "antropic", Provider)
    assert "'tianji_mw.providers'" in caught.value.message


def test_nothing_is_loaded_in_bulk(concern: Path) -> None:
    (concern / "good.py").write_text(IMPORT + "class Good(Guardrail): pass\n")
    (concern / "explodes.py").write_text("raise RuntimeError('imported')\n")
    assert plugins.find("testconcern", "good", Guardrail).__name__ == "Good"
    assert plugins.names("testconcern") == ["explodes", "good"]
    assert "tianji_mw.testconcern.explodes" not in sys.modules
