"""A few settings from the process environment, `TIANJI_<KEY>`; they win over the files.

A table, not pydantic-settings: importing that costs 270 ms, three times everything else here, for eight names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tianji_mw.config.nodes import Node
from tianji_mw.config.values import Referenced

#: Variable -> block and key.
OVERRIDES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "TIANJI_MASTER_KEY": ("general_settings", "master_key"),
        "TIANJI_STRICT_ENV": ("general_settings", "strict_env"),
        "TIANJI_MAX_CONNECTIONS": ("general_settings", "max_connections"),
        "TIANJI_DRAIN_DELAY_S": ("general_settings", "drain_delay_s"),
        "TIANJI_GRACE_S": ("general_settings", "grace_s"),
        "TIANJI_REQUEST_TIMEOUT": ("settings", "request_timeout"),
        "TIANJI_DROP_PARAMS": ("settings", "drop_params"),
        "TIANJI_JSON_LOGS": ("settings", "json_logs"),
        "TIANJI_SET_VERBOSE": ("settings", "set_verbose"),
        "TIANJI_SSL_VERIFY": ("settings", "ssl_verify"),
    }
)


def override(root: Node, env: Mapping[str, str]) -> None:
    """Sets the overrides found in `env`; an empty variable counts as not set."""
    for variable, (block, key) in OVERRIDES.items():
        if not env.get(variable):
            continue
        parent = root.fields.setdefault(block, Node({}, "environment", None, block))
        if parent.value is None:
            parent.value = {}
        # `Referenced`, so that a value such as "$x" is taken as it is and not resolved again.
        parent.fields[key] = Node(Referenced(env[variable]), "environment", None, variable)
