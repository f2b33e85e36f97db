"""The YAML reader: the same values as PyYAML, lines where people look for them, and bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tianji_mw.config.lines import parse
from tianji_mw.config.nodes import MAX_DEPTH, MAX_VALUES, Node, plain
from tianji_mw.errors import ConfigError, ConfigErrors


def read(text: str) -> Node:
    errors: list[ConfigError] = []
    node = parse(text, "f.yaml", errors)
    assert errors == []
    return node


@pytest.mark.parametrize(
    "text",
    ["", "# nothing", "a: 1", "a: [1, 2.5, 0x1F, 1e3, 1_000, 0o17, 017, 1:30]", "a: [yes, No, ON, off, true, y]",
     "a: [~, null, '']", "a: |\n  x\n  y\nb: >\n  x\n  y", "base: &b {x: 1, y: {z: 2}}\nc: {<<: *b, x: 5}",
     "l: &l [1, {a: b}]\nm: *l", "a: {<<: [{x: 1}, {x: 2, y: 3}], z: 1}", "'a b': \"\\u00e9\"",
     "a: !!str 5", "a: {'<<': 1}",
     "? a\n: b", "a: !!int '7'", "a: .inf", "--- {a: b}\n...", "a: 1.0.0", "\ufeffa: 1"],
)  # fmt: skip
def test_same_values_as_pyyaml(text: str) -> None:
    assert plain(read(text)) == yaml.safe_load(text)


def test_dates_stay_text() -> None:
    assert plain(read("v: 2024-10-21\nt: 2024-10-21T10:00:00Z")) == {"v": "2024-10-21", "t": "2024-10-21T10:00:00Z"}


def test_lines_and_keys() -> None:
    places: dict[tuple[str | int, ...], Node] = {}
    plain(read("a:\n  b: &x\n    c: 1\n  d:\n    - 1\n    - *x\n  e: *x\n"), places)
    found = {loc: (node.line, node.key) for loc, node in places.items()}
    assert found["a", "b"] == (2, "a.b")
    assert found["a", "b", "c"] == (3, "a.b.c")
    assert found["a", "d", 1] == (6, "a.d[1]")
    assert found["a", "e"] == (7, "a.e")
    assert found["a", "e", "c"] == (3, "a.e.c")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500_000,
        "- " * 100_000,
        "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "l0: &l0 [x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)),
        "m0: &m0 {a: 1, b: 2}\n"
        + "\n".join(f"m{n}: &m{n} {{{', '.join(f'k{k}: *m{n - 1}' for k in range(9))}}}" for n in range(1, 12)),
        "a: [" + "1," * (MAX_VALUES + 1) + "]",
        "a: &a [*a]",
    ],
)
def test_hostile_documents_are_refused(text: str) -> None:
    with pytest.raises(ConfigErrors):
        parse(text, "f.yaml", [])


@pytest.mark.parametrize(
    "text", ["a: \x00", "a: \x07", "a\n\ud800", "a: " + "9" * 5000, "a: !!float x", "a: !!bool maybe"]
)
def test_unreadable_text_is_an_error_with_a_line(text: str) -> None:
    errors: list[ConfigError] = []
    try:
        parse(text, "f.yaml", errors)
    except ConfigErrors as found:
        errors += found.errors
    assert [e.line for e in errors] == [text.count("\n") + 1]


def test_pyyaml_is_loaded_with_the_first_file_only() -> None:
    code = (
        "import sys, tianji_mw.config as c; "
        "a = 'yaml' in sys.modules; c.loads('{}'); assert (a, 'yaml' in sys.modules) == (False, True)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
