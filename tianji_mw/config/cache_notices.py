"""Says which keys of the cache have no effect, and why: nothing is ignored silently."""

from __future__ import annotations

from typing import Final

from tianji_mw.config.nodes import Node
from tianji_mw.config.settings import Notice
from tianji_mw.config.sift import notice
from tianji_mw.config.values import as_switch

#: Switches that ask for what is so anyway.
_ANYWAY: Final = {
    "enable_redis_auth_cache": "virtual keys are in memory, there is nothing to look up",
    "enable_caching_on_provider_specific_optional_params": "parameters that nobody knows are always part of the key",
}
_FILES: Final = ("transcription", "atranscription")


def tell_cache(root: Node, notices: list[Notice]) -> None:
    """Adds the notices about `litellm_settings`; works on resolved nodes and changes none."""
    settings = root.child("settings")
    if settings is None:
        return
    for name, why in _ANYWAY.items():
        node = settings.child(name)
        if node is not None and as_switch(node.value) is True:
            notices.append(notice("no_effect", node, why))
    params = settings.child("cache_params")
    if params is None:
        return
    switch = settings.child("cache")
    if switch is None or as_switch(switch.value) is False:
        notices.append(notice("no_effect", params, "the cache is off; write `cache: true` beside it"))
    types = params.child("supported_call_types")
    files = [node for node in (types.items if types else ()) if node.value in _FILES]
    notices += [notice("no_effect", node, "uploads stream by unread, their answers are not kept") for node in files]
