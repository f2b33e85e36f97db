"""An LLM gateway as a suite of composable ASGI middlewares.

Names are resolved at first use (PEP 562): `import tianji_mw` loads no SDK, and nothing of what you do not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tianji_mw.cache.base import CacheStore
    from tianji_mw.cache.middleware import Cache
    from tianji_mw.cache.rules import CacheRules
    from tianji_mw.call import Call, Limits, current_call
    from tianji_mw.callbacks.base import Callback
    from tianji_mw.callbacks.middleware import Callbacks
    from tianji_mw.driver import LLMMiddleware
    from tianji_mw.errors import TianjiError
    from tianji_mw.gateway import Gateway
    from tianji_mw.guardrails.base import ALLOW, Guardrail, Verdict, block
    from tianji_mw.guardrails.middleware import Guardrails
    from tianji_mw.identity.base import Identifier, Identity
    from tianji_mw.identity.keys import Keys
    from tianji_mw.identity.middleware import Authentication
    from tianji_mw.providers.base import Provider
    from tianji_mw.records import NotDelivered, Record
    from tianji_mw.redact import Secret
    from tianji_mw.routing.base import Candidates, Deployment, Picker
    from tianji_mw.routing.middleware import Routing
    from tianji_mw.routing.rules import RoutingRules
    from tianji_mw.routing.table import Deployments
    from tianji_mw.runtime import Runtime
    from tianji_mw.secrets.base import SecretStore, SecretValue
    from tianji_mw.secrets.middleware import Secrets
    from tianji_mw.stack import Stack

_HOMES: Final = {
    "ALLOW": "guardrails.base",
    "Authentication": "identity.middleware",
    "Cache": "cache.middleware",
    "CacheRules": "cache.rules",
    "CacheStore": "cache.base",
    "Call": "call",
    "Callback": "callbacks.base",
    "Callbacks": "callbacks.middleware",
    "Candidates": "routing.base",
    "Deployment": "routing.base",
    "Deployments": "routing.table",
    "Gateway": "gateway",
    "Guardrail": "guardrails.base",
    "Guardrails": "guardrails.middleware",
    "Identifier": "identity.base",
    "Identity": "identity.base",
    "Keys": "identity.keys",
    "LLMMiddleware": "driver",
    "Limits": "call",
    "NotDelivered": "records",
    "Picker": "routing.base",
    "Provider": "providers.base",
    "Record": "records",
    "Routing": "routing.middleware",
    "RoutingRules": "routing.rules",
    "Runtime": "runtime",
    "Secret": "redact",
    "SecretStore": "secrets.base",
    "SecretValue": "secrets.base",
    "Secrets": "secrets.middleware",
    "Stack": "stack",
    "TianjiError": "errors",
    "Verdict": "guardrails.base",
    "block": "guardrails.base",
    "current_call": "call",
}

__all__ = [
    "ALLOW",
    "Authentication",
    "Cache",
    "CacheRules",
    "CacheStore",
    "Call",
    "Callback",
    "Callbacks",
    "Candidates",
    "Deployment",
    "Deployments",
    "Gateway",
    "Guardrail",
    "Guardrails",
    "Identifier",
    "Identity",
    "Keys",
    "LLMMiddleware",
    "Limits",
    "NotDelivered",
    "Picker",
    "Provider",
    "Record",
    "Routing",
    "RoutingRules",
    "Runtime",
    "Secret",
    "SecretStore",
    "SecretValue",
    "Secrets",
    "Stack",
    "TianjiError",
    "Verdict",
    "block",
    "current_call",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
