"""The embedded default: a mock model that needs no key and no network, and real providers whose key is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Environment variable of a key -> the wildcard route it opens.
_PROVIDERS: Final = (("OPENAI_API_KEY", "openai"), ("ANTHROPIC_API_KEY", "anthropic"))


def default_config(env: Mapping[str, str]) -> dict[str, Any]:
    """A config as a user would write it."""
    models: list[dict[str, Any]] = [
        {"model_name": "demo", "params": {"model": "mock/echo"}},
        {"model_name": "demo-slow", "params": {"model": "mock/echo", "latency_s": 0.2, "chunk_latency_s": 0.05}},
    ]
    models += [
        {"model_name": f"{name}/*", "params": {"model": f"{name}/*", "api_key": f"os.environ/{variable}"}}
        for variable, name in _PROVIDERS
        if env.get(variable)
    ]
    return {"model_list": models}
