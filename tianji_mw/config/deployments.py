"""Completes the entries of `model_list`: credential by name, default params, and which key of `params` is whose.

Works on resolved nodes, before they become models. It chooses no provider and knows none.
"""

from __future__ import annotations

from math import isfinite
from typing import Final

from tianji_mw.config import known
from tianji_mw.config.nodes import Node, kind
from tianji_mw.config.routing_checks import check_deployment
from tianji_mw.config.settings import Notice
from tianji_mw.config.sift import TYPED_PARAMS, nearest, nearest_param, notice
from tianji_mw.config.values import as_switch, is_secret_name, secret_of
from tianji_mw.errors import ConfigError

_WHOLE_NUMBERS: Final = known.NUMERIC_PARAMS - {
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "speed",
}  # fmt: skip


def complete(root: Node, errors: list[ConfigError], notices: list[Notice]) -> None:
    """Fills and sorts the params of every deployment in place."""
    credentials = _credentials(root, errors)
    router = root.child("router_settings")
    defaults = router.child("default_params") if router else None
    deployments = root.child("model_list")
    for entry in deployments.items if deployments else ():
        params = entry.child("params")
        if params is None or not isinstance(params.value, dict):
            continue
        _add_credential(params, credentials, errors)
        for name, node in (defaults.fields if defaults else {}).items():
            params.fields.setdefault(name, node)
        check_deployment(entry, params, errors, notices)
        _sort(params, errors)
        _check_mode(entry, notices)
    if defaults is not None:
        _sort(defaults, errors)


def _credentials(root: Node, errors: list[ConfigError]) -> dict[str, Node]:
    entries = root.child("credential_list")
    found: dict[str, Node] = {}
    for entry in entries.items if entries else ():
        name, values = entry.child("credential_name"), entry.child("credential_values")
        if name is None or not isinstance(name.value, str) or values is None:
            continue
        if name.value in found:
            errors.append(name.error(f"this name stands twice, first in {found[name.value].place}"))
        found.setdefault(name.value, values)
    return found


def _add_credential(params: Node, credentials: dict[str, Node], errors: list[ConfigError]) -> None:
    name = params.child("credential_name")
    if name is None or not isinstance(name.value, str):
        return
    values = credentials.get(name.value)
    if values is None:
        meant = nearest(name.value, credentials)
        hint = f"did you mean {meant!r}?" if meant else "add it to credential_list"
        errors.append(name.error("no credential of this name in credential_list", hint=hint))
        return
    for key, node in values.fields.items():
        params.fields.setdefault(key, node)


def _sort(params: Node, errors: list[ConfigError]) -> None:
    """Typed keys stay, OpenAI's params go to `defaults`, the rest is the provider's."""
    typed = {"defaults": _part(params), "extra": _part(params)}
    for name, node in params.fields.items():
        if node.value is None:
            continue
        if name in TYPED_PARAMS:
            typed[name] = _set_only(node) if name.endswith("headers") else node
        elif name in known.OPENAI_PARAMS:
            typed["defaults"].fields[name] = _typed_default(name, node, errors)
        else:
            typed["extra"].fields[name] = _provider_param(name, node)
    params.value = typed


def _part(params: Node) -> Node:
    return Node({}, params.file, params.line, params.key)


def _set_only(headers: Node) -> Node:
    """Headers without those whose variable is not set, where that is allowed."""
    if isinstance(headers.value, dict):
        headers.value = {name: node for name, node in headers.value.items() if node.value is not None}
    return headers


def _provider_param(name: str, node: Node) -> Node:
    # A misspelt api_key holds a real key: treat it as what was meant.
    if isinstance(node.value, str) and (is_secret_name(name) or is_secret_name(nearest_param(name))):
        return Node(secret_of(node.value), node.file, node.line, node.key)
    return node


def _typed_default(name: str, node: Node, errors: list[ConfigError]) -> Node:
    """The default with the type OpenAI's API wants; variables are always text."""
    value = node.value
    if name in known.SWITCH_PARAMS:
        value = as_switch(value)
        if not isinstance(value, bool):
            errors.append(node.error(f"expected true or false, got {kind(value)}"))
    elif name in known.NUMERIC_PARAMS:
        number = _number(value, whole=name in _WHOLE_NUMBERS)
        if number is None:
            wanted = "a whole number" if name in _WHOLE_NUMBERS else "a number"
            errors.append(node.error(f"expected {wanted}, got {kind(value)}"))
        value = number
    else:
        return node
    return Node(value, node.file, node.line, node.key)


def _number(value: object, *, whole: bool) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value) if whole and not isinstance(value, float) else _finite(float(value), whole=whole)
    except (ValueError, OverflowError):
        return None


def _finite(number: float, *, whole: bool) -> int | float | None:
    """The number if JSON can say it, which NaN and infinity cannot."""
    if not isfinite(number) or (whole and not number.is_integer()):
        return None
    return int(number) if whole else number


def _check_mode(entry: Node, notices: list[Notice]) -> None:
    info = entry.child("model_info")
    mode = info.child("mode") if info else None
    if mode is not None and isinstance(mode.value, str) and mode.value not in known.MODES:
        meant = nearest(mode.value, known.MODES)
        notices.append(notice("unknown", mode, f"did you mean {meant!r}?" if meant else "not a mode the suite knows"))
