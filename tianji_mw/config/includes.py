"""Reads a configuration file and what it includes: lists append, mappings merge, the including file's scalars win.

Paths are relative to the including file. It resolves no references and knows no block but `include`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tianji_mw.config.aliases import canonical
from tianji_mw.config.nodes import Node, kind
from tianji_mw.errors import ConfigError, ConfigErrors

MAX_INCLUDES: Final = 5


def read(path: Path, errors: list[ConfigError]) -> Node:
    """The root node of the file at `path` with its includes merged."""
    return gather(_parse(path, errors), errors, (path,))


def gather(root: Node, errors: list[ConfigError], chain: tuple[Path, ...]) -> Node:
    """`root` in canonical spelling with its `include` files merged in, in their order. `chain` leads to this file."""
    if root.value is None:
        root.value = {}
    if not isinstance(root.value, dict):
        raise ConfigErrors([root.error(f"a configuration is a mapping, this is {kind(root.value)}")])
    canonical(root, errors)
    include = root.value.pop("include", None)
    if include is None or include.value is None:
        return root
    entries = include.items if isinstance(include.value, list) else [include]
    for entry in entries:
        included = _included(entry, errors, chain)
        if included is not None:
            merge(root, included, errors)
    return root


def _included(entry: Node, errors: list[ConfigError], chain: tuple[Path, ...]) -> Node | None:
    if not isinstance(entry.value, str) or not entry.value:
        errors.append(
            entry.error(f"expected the path of a file, got {kind(entry.value) if entry.value else 'nothing'}")
        )
        return None
    path = chain[-1].parent / entry.value
    names = " -> ".join(str(p) for p in (*chain, path))
    if _same(path) in {_same(p) for p in chain}:
        errors.append(entry.error(f"the files include each other: {names}"))
        return None
    if len(chain) > MAX_INCLUDES:
        errors.append(entry.error(f"more than {MAX_INCLUDES} levels of include: {names}"))
        return None
    try:
        return gather(_parse(path, errors, entry), errors, (*chain, path))
    except ConfigErrors as found:
        errors += found.errors
        return None


def _same(path: Path) -> str:
    try:
        return str(path.resolve())
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL byte: the read reports it better
        return str(path)


def _parse(path: Path, errors: list[ConfigError], entry: Node | None = None) -> Node:
    from tianji_mw.config.lines import parse  # PyYAML is loaded when a file is read, not when the package is imported

    at = entry or Node(None, str(path), None)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigErrors([ConfigError(f"not UTF-8 at byte {error.start}", file=str(path))]) from None
    except OSError as error:
        raise ConfigErrors([at.error(f"cannot read {path}: {error.strerror or 'no such file'}")]) from None
    except ValueError:
        raise ConfigErrors([at.error("this path cannot be read")]) from None
    return parse(text, str(path), errors)


def merge(into: Node, other: Node, errors: list[ConfigError]) -> None:
    """Adds `other` to the mapping `into`."""
    fields = into.fields
    for name, theirs in other.fields.items():
        ours = fields.get(name)
        if ours is None or ours.value is None:
            fields[name] = theirs
        elif isinstance(ours.value, dict) and isinstance(theirs.value, dict):
            merge(ours, theirs, errors)
        elif isinstance(ours.value, list) and isinstance(theirs.value, list):
            ours.value.extend(theirs.value)
        elif theirs.value is not None and kind(ours.value) != kind(theirs.value) and _nested(ours, theirs):
            errors.append(theirs.error(f"is {kind(theirs.value)} here and {kind(ours.value)} in {ours.place}"))


def _nested(*nodes: Node) -> bool:
    return any(isinstance(node.value, dict | list) for node in nodes)
