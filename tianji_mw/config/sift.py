"""Takes out of the tree every key that has no effect and reports it by name and line; nothing is ignored silently.

A key is a field of a model, known and not implemented yet, or unknown. Values are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from tianji_mw.config import blocks, known
from tianji_mw.config.aliases import ALIASES
from tianji_mw.config.nodes import Node
from tianji_mw.config.routing_keys import RouterSettings
from tianji_mw.config.settings import BehaviourSettings, GeneralSettings, Notice, NoticeLevel, Settings

_NOT_KEYS: Final = frozenset({"file", "line"})

#: The fields of `params` an operator can write; the others are filled by the loader.
TYPED_PARAMS: Final = frozenset(blocks.Params.model_fields) - {"defaults", "extra"}

#: Block -> the keys that have an effect.
IMPLEMENTED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "root": frozenset(Settings.model_fields) - {"environment"}
        | {"environment_variables", "include"}
        | known.MANAGER_ROOT_KEYS,
        "model_list": frozenset(blocks.Deployment.model_fields) - _NOT_KEYS,
        "params": TYPED_PARAMS | known.OPENAI_PARAMS | known.PROVIDER_PARAMS,
        "model_info": frozenset(blocks.ModelInfo.model_fields),
        # Some of them are the router's by now, and stand here for what was meant by a wrong one.
        "settings": frozenset(BehaviourSettings.model_fields) | known.SHARED_ROUTER_KEYS,
        "router_settings": frozenset(RouterSettings.model_fields) | known.REDIS_KEYS | {"cache_kwargs"},
        "general_settings": frozenset(GeneralSettings.model_fields)
        | known.MANAGER_GENERAL_KEYS
        | known.HEALTH_ROUTER_KEYS,
        "credential_list": frozenset(blocks.CredentialSettings.model_fields),
        "guardrails": frozenset({"guardrail_name", "params"}),
        "virtual_keys": frozenset(blocks.VirtualKey.model_fields) - _NOT_KEYS,
    }
)
_PLAIN_BLOCKS: Final = ("settings", "router_settings", "general_settings")
#: Where a misplaced key most likely belongs, best first.
_HOMES: Final = ("root", "general_settings", "settings", "router_settings", "params", "model_info", "virtual_keys")
_LISTS: Final = ("model_list", "credential_list", "guardrails", "virtual_keys")


def notice(level: NoticeLevel, node: Node, hint: str = "") -> Notice:
    """A notice about the key at `node`."""
    return Notice(level, node.file, node.line, node.key, hint)


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name out of `names` that was probably meant, or nothing."""
    found = get_close_matches(name[:80], sorted(names), n=1, cutoff=cutoff)
    return found[0] if found else ""


def sift(root: Node, notices: list[Notice]) -> None:
    """Removes the keys without effect from a canonical tree."""
    _sift(root, "root", notices)
    for block in _PLAIN_BLOCKS:
        _sift(root.child(block), block, notices)
    router = root.child("router_settings")
    _sift_params(router.child("default_params") if router else None, notices)
    for block in _LISTS:
        entries = root.child(block)
        for entry in entries.items if entries else ():
            _sift(entry, block, notices)
            if block == "model_list":
                _sift(entry.child("model_info"), "model_info", notices)
                _sift_params(entry.child("params"), notices)
            elif block == "credential_list":
                _sift_params(entry.child("credential_values"), notices)


def _sift(node: Node | None, block: str, notices: list[Notice]) -> None:
    if node is None:
        return
    implemented, later = IMPLEMENTED[block], known.NOT_IMPLEMENTED[block]
    for name in [n for n in node.fields if n not in implemented]:
        found = node.fields.pop(name)
        if name in later:
            notices.append(_not_implemented(name, found))
        else:
            notices.append(notice("unknown", found, _meant(name, block)))


def _not_implemented(name: str, node: Node) -> Notice:
    return notice("not_implemented", node, "this restriction is not enforced" if name in known.RESTRICTIONS else "")


def _sift_params(node: Node | None, notices: list[Notice]) -> None:
    """Like the other blocks, except that an unknown key may be a provider's own and stays."""
    if node is None:
        return
    implemented, later = IMPLEMENTED["params"], known.NOT_IMPLEMENTED["params"]
    for name, found in list(node.fields.items()):
        if name in implemented:
            continue
        if name in later:
            notices.append(_not_implemented(name, node.fields.pop(name)))
        elif meant := nearest_param(name):
            notices.append(notice("unknown", found, f"passed to the provider; did you mean {meant!r}?"))


def nearest_param(name: str) -> str:
    """The key of `params` a name is a likely misspelling of."""
    candidates = IMPLEMENTED["params"] | known.NOT_IMPLEMENTED["params"] | ALIASES["params"].keys()
    return nearest(name, candidates, 0.8)


def _meant(name: str, block: str) -> str:
    if meant := nearest(name, IMPLEMENTED[block] | known.NOT_IMPLEMENTED[block] | ALIASES.get(block, {}).keys(), 0.75):
        return f"did you mean {meant!r}?"
    homes = [b for b in _HOMES if name in IMPLEMENTED[b] or name in known.NOT_IMPLEMENTED[b]]
    if homes:
        return "it belongs at the top level of the file" if homes[0] == "root" else f"it belongs in {_usual(homes[0])}"
    meant = nearest(name, IMPLEMENTED[block] | known.NOT_IMPLEMENTED[block])
    return f"did you mean {meant!r}?" if meant else ""


def _usual(block: str) -> str:
    return {"settings": "litellm_settings", "params": "litellm_params"}.get(block, block)
