"""One spelling per key: LiteLLM's and the Go port's names become ours, in every file, before anything is validated.

The same setting in two spellings with different values is an error that names both places. It drops no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from tianji_mw.config import known
from tianji_mw.config.nodes import Node, kind, plain
from tianji_mw.errors import ConfigError

_PARAMS_BLOCK: Final = {"litellm_params": "params", "tianji_params": "params"}

#: Block -> other spelling -> our spelling.
ALIASES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "root": {"litellm_settings": "settings", "tianji_settings": "settings", "keys": "virtual_keys"},
        "model_list": _PARAMS_BLOCK,
        "params": {
            "base_url": "api_base",
            "litellm_credential_name": "credential_name",
            "tianji_credential_name": "credential_name",
            "region": "region_name",
        },
        "router_settings": {
            "default_litellm_params": "default_params",
            "default_tianji_params": "default_params",
            "max_retries": "num_retries",
        },
        "budgets": {"budget_limit": "max_budget", "time_period": "budget_duration"},
        "general_settings": {
            "tianji_key_header_name": "litellm_key_header_name",
            "tianji_jwtauth": "litellm_jwtauth",
        },
        "guardrails": _PARAMS_BLOCK,
        "virtual_keys": {"key_alias": "alias", "team_id": "team", "user_id": "user"},
    }
)

#: Our spelling -> the one most people write, for messages about a key that is missing.
USUAL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "params": "litellm_params",
        "settings": "litellm_settings",
        "default_params": "default_litellm_params",
        "credential_name": "litellm_credential_name",
    }
)


def canonical(root: Node, errors: list[ConfigError]) -> None:
    """Renames the keys of one file in place."""
    _rename(root, "root", errors)
    general = root.child("general_settings")
    if general is not None and "guardrails" in general.fields:
        # Some deployments keep them here; the contract accepts both places.
        _put(root, "guardrails", general.fields.pop("guardrails"), errors)
    _gather(root, errors)
    for block in ("router_settings", "general_settings"):
        _rename(root.child(block), block, errors)
    _router(root, errors)
    for block in ("model_list", "guardrails", "virtual_keys", "credential_list"):
        entries = root.child(block)
        for entry in entries.items if entries else ():
            _rename(entry, block, errors)
            params = entry.child("params")
            if block == "model_list":
                _rename(params, "params", errors)
            elif block == "guardrails" and params is not None:
                # The Go port has them beside the params; overlooked, the guardrail would be off.
                for name in ("default_on", "failure_policy"):
                    if name in entry.fields:
                        _put(params, name, entry.fields.pop(name), errors)
            elif block == "credential_list":
                _rename(entry.child("credential_values"), "params", errors)
    _detect_prompt_injection(root)


def _router(root: Node, errors: list[ConfigError]) -> None:
    """What stands in the blocks of `router_settings`, and of the keys that `litellm_settings` may have in its place."""
    for parent in (root.child("router_settings"), root.child("settings")):
        for key in ("provider_budget_config", "tag_budget_config"):
            budgets = parent.child(key) if parent else None
            for budget in budgets.fields.values() if budgets else ():
                _rename(budget, "budgets", errors)
    router = root.child("router_settings")
    if router is None:
        return
    _rename(router.child("default_params"), "params", errors)
    _redis(router, errors)


def _redis(router: Node, errors: list[ConfigError]) -> None:
    """`redis_*` and `cache_kwargs` become fields of `redis`; each keeps its own place."""
    kwargs = router.fields.pop("cache_kwargs", None)
    if kwargs is not None and kwargs.value is not None and not isinstance(kwargs.value, dict):
        _put(router, "redis", kwargs, errors)  # its wrong type is reported there
    found = {name: router.fields.pop(name) for name in sorted(known.REDIS_KEYS) if name in router.fields}
    for name, node in [*found.items(), *(kwargs.fields.items() if kwargs else ())]:
        redis = router.child("redis")
        if redis is None or redis.value is None:
            redis = router.fields["redis"] = Node({}, node.file, node.line, f"{router.key}.redis")
        if isinstance(redis.value, dict):
            _put(redis, name.removeprefix("redis_"), node, errors)


def _gather(root: Node, errors: list[ConfigError]) -> None:
    """`callbacks`, `cache`, `alerting` at the top level or in `general_settings`, where they belong."""
    general = root.child("general_settings")
    for parent, key, home in (
        (root, "callbacks", "settings"),
        (general, "callbacks", "settings"),
        (root, "alerting", "general_settings"),
        *((place, key, "settings") for place in (root, general) for key in ("cache", "cache_params")),
    ):
        if parent is not None and key in parent.fields:
            found = parent.fields.pop(key)
            block = root.fields.setdefault(home, Node({}, found.file, found.line, home))
            _put(block, key, found, errors)


def _detect_prompt_injection(root: Node) -> None:
    """LiteLLM's callback of this name is a guardrail; `prompt_injection_params` are its options."""
    name = "detect_prompt_injection"
    settings = root.child("settings")
    callbacks = settings.child("callbacks") if settings else None
    if settings is None or callbacks is None or name not in [one.value for one in callbacks.items]:
        return
    callbacks.value = [one for one in callbacks.items if one.value != name]
    if not callbacks.value:
        del settings.fields["callbacks"]
    options = settings.fields.pop("prompt_injection_params", None)

    def node(value: Any) -> Node:
        return Node(value, callbacks.file, callbacks.line, callbacks.key)

    fixed = {"guardrail": "prompt_injection", "mode": "pre_call", "default_on": True}
    params = {**(options.fields if options else {}), **{key: node(value) for key, value in fixed.items()}}
    listed = root.fields.setdefault("guardrails", node([]))
    listed.value = [*listed.items, node({"guardrail_name": node(name), "params": node(params)})]


def _rename(node: Node | None, block: str, errors: list[ConfigError]) -> None:
    if node is None:
        return
    for alias, name in ALIASES.get(block, {}).items():
        if alias in node.fields:
            _put(node, name, node.fields.pop(alias), errors)


def _put(parent: Node, name: str, found: Node, errors: list[ConfigError]) -> None:
    """Sets the member `name`, or joins it with what already stands there."""
    first = parent.fields.get(name)
    if first is None or first.value is None:
        parent.fields[name] = found
    elif found.value is not None:
        _join(first, found, errors)


def _join(first: Node, second: Node, errors: list[ConfigError]) -> None:
    if isinstance(first.value, dict) and isinstance(second.value, dict):
        for name, theirs in second.fields.items():
            _put(first, name, theirs, errors)
    elif kind(first.value) != kind(second.value) or plain(first) != plain(second):
        errors.append(
            second.error(
                f"set twice with different values, also as {first.key} in {first.place}", hint="keep one of them"
            )
        )
