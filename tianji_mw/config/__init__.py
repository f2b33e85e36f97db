"""The configuration of the suite: LiteLLM's YAML (and the Go port's) read into typed, immutable `Settings`.

Importing this package reads no file and does not load PyYAML; `load` does.
"""

from __future__ import annotations

from tianji_mw.config.blocks import (
    CredentialSettings,
    DefaultParams,
    Deployment,
    GuardrailSettings,
    ModelInfo,
    Params,
    VirtualKey,
)
from tianji_mw.config.loader import from_dict, load, loads
from tianji_mw.config.routing_keys import ModelAlias, RouterSettings
from tianji_mw.config.settings import BehaviourSettings, GeneralSettings, Notice, Settings
from tianji_mw.config.values import reveal

__all__ = [
    "BehaviourSettings",
    "CredentialSettings",
    "DefaultParams",
    "Deployment",
    "GeneralSettings",
    "GuardrailSettings",
    "ModelAlias",
    "ModelInfo",
    "Notice",
    "Params",
    "RouterSettings",
    "Settings",
    "VirtualKey",
    "from_dict",
    "load",
    "loads",
    "reveal",
]
