"""Brings the entries of `guardrails` into the shape of their model and finds entries that contradict each other.

Works on resolved nodes. Whether a guardrail exists is found out by the stack, not here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from tianji_mw.config.nodes import Loc, Node, join
from tianji_mw.errors import ConfigError

_GUARDRAIL_KEYS: Final = ("guardrail", "mode", "default_on")
_PLACED: Final = ("model_list", "guardrails", "virtual_keys")


def arrange(root: Node, errors: list[ConfigError]) -> dict[Loc, Node]:
    """Reshapes the entries in place; returns where their required keys would stand, for errors about missing ones."""
    ghosts: dict[Loc, Node] = {}
    for at, entry in _entries(root, "guardrails"):
        ghosts |= _guardrail(entry, ("guardrails", at), errors)
    for block in _PLACED:
        for _, entry in _entries(root, block):
            entry.fields["file"] = Node(entry.file, entry.file, entry.line, entry.key)
            entry.fields["line"] = Node(entry.line, entry.file, entry.line, entry.key)
    _unique_ids(root, errors)
    _unique_keys(root, errors)
    return ghosts


def _entries(root: Node, block: str) -> Iterator[tuple[int, Node]]:
    node = root.child(block)
    for at, entry in enumerate(node.items if node else ()):
        if isinstance(entry.value, dict):
            yield at, entry


def _guardrail(entry: Node, loc: Loc, errors: list[ConfigError]) -> dict[Loc, Node]:
    """`{guardrail_name, params: {guardrail, mode, ...}}` flattened, the guardrail's own options apart."""
    params = entry.child("params")
    name = entry.child("guardrail_name")
    flat: dict[str, Node] = {} if name is None else {"name": name}
    ghosts = {(*loc, "name"): Node(None, entry.file, entry.line, join(entry.key, "guardrail_name"))}
    if params is None or not isinstance(params.value, dict):
        params = params or Node(None, entry.file, entry.line, join(entry.key, "litellm_params"))
        entry.value = flat
        return ghosts | {(*loc, key): params for key in ("guardrail", "mode")}
    options = {key: node for key, node in params.fields.items() if key not in _GUARDRAIL_KEYS}
    flat |= {key: node for key, node in params.fields.items() if key in _GUARDRAIL_KEYS and node.value is not None}
    flat["options"] = Node(dict(options), params.file, params.line, params.key)
    _modes(flat, errors)
    entry.value = flat
    for key in ("guardrail", "mode"):
        ghosts[*loc, key] = Node(None, params.file, params.line, join(params.key, key))
    return ghosts


def _modes(flat: dict[str, Node], errors: list[ConfigError]) -> None:
    """LiteLLM's modes per tag, `{tags: {tag: modes}, default: modes}`, apart from the modes without a tag."""
    mode = flat.get("mode")
    if mode is None:
        return
    by_tag = isinstance(mode.value, dict)
    if by_tag:
        unknown = sorted(mode.fields.keys() - {"tags", "default"})
        errors += [mode.error("unknown key", hint="a mode per tag has `tags` and `default`", at=key) for key in unknown]
        flat["mode"] = mode.child("default") or Node([], mode.file, mode.line, mode.key)
        flat["modes_by_tag"] = mode.child("tags") or Node({}, mode.file, mode.line, mode.key)
    if flat["mode"].value == [] and not (by_tag and flat["modes_by_tag"].fields):
        hint = "a mode per tag has `tags` and `default`" if by_tag else ""
        errors.append(mode.error("needs at least one mode", hint=hint))
        flat["mode"] = Node("logging_only", mode.file, mode.line, mode.key)  # is not reported a second time


def _unique_ids(root: Node, errors: list[ConfigError]) -> None:
    seen: dict[str, Node] = {}
    for _, entry in _entries(root, "model_list"):
        info = entry.child("model_info")
        node = info.child("id") if info else None
        if node is None or not isinstance(node.value, str | int) or isinstance(node.value, bool):
            continue
        first = seen.setdefault(str(node.value), node)
        if first is not node:
            errors.append(node.error(f"two deployments have this id, the other one is in {first.place}"))


def _unique_keys(root: Node, errors: list[ConfigError]) -> None:
    seen: dict[str, Node] = {}
    for _, entry in _entries(root, "virtual_keys"):
        for name in ("key", "key_sha256"):
            node = entry.child(name)
            if node is None or not isinstance(node.value, str):
                continue
            text = node.value.strip()
            digest = (
                text.lower() if name == "key_sha256" else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
            )
            first = seen.setdefault(digest, node)
            if first is not node:
                errors.append(node.error(f"the same key stands twice, first in {first.place}"))
