"""What a person sees: the banner at start, the live stack, the deployments, and the notices of the config."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sidecar.app import stack_of
from tianji_mw import redact
from tianji_mw.driver import inner_layers
from tianji_mw.gateway import Gateway

if TYPE_CHECKING:
    from sidecar.options import RunOptions
    from tianji_mw.config.settings import Settings
    from tianji_mw.stack import Stack


def banner(settings: Settings, options: RunOptions) -> str:
    """Address, models, live stack, and a curl line that works when pasted. Builds the stack, and so checks it."""
    stack = stack_of(settings, options)
    version = importlib.metadata.version("tianji-mw")
    base = f"http://{_display(options.host)}:{options.port}"
    names = ", ".join(_models(stack)) or "none; add model_list to the config"
    target = f"  app      {options.app_upstream}" if options.app_upstream else f"  models   {names}"
    admin = f"http://{_display(options.admin_host)}:{options.admin_port}/metrics" if options.admin_port else "off"
    key = "" if _keyless(settings) else '  -H "Authorization: Bearer $YOUR_KEY"'
    layers = " > ".join(name for _, name in stack.explain())
    lines = [
        f"tianji-sidecar {version}",
        f"  address  {base}/v1",
        target,
        f"  stack    {layers}",
        f"  admin    {admin}",
        f"  config   {options.config or 'embedded demo (no key, no network)'}",
        "",
        "Try it:",
        f"  {_curl(base, _first_model(stack), key)}",
        "",
    ]
    return "\n".join(lines)


def _curl(base: str, model: str, key: str) -> str:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl -s {base}/v1/chat/completions{key} -H 'content-type: application/json' -d {shlex.quote(body)}"


def _display(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host  # noqa: S104 - only shown


def _keyless(settings: Settings) -> bool:
    return settings.general_settings.master_key is None and not settings.virtual_keys


def _gateway(stack: Stack) -> Gateway | None:
    return next((layer for layer in inner_layers(stack.app) if isinstance(layer, Gateway)), None)


def _models(stack: Stack) -> list[str]:
    gateway = _gateway(stack)
    return gateway.deployments.names() if gateway else []


def _first_model(stack: Stack) -> str:
    return next((name for name in _models(stack) if "*" not in name), "gpt-4o")


def stack_lines(stack: Stack) -> Iterator[str]:
    """One line per layer."""
    for phase, name in stack.explain():
        yield f"  {phase:>4}  {name}"


def deployment_lines(stack: Stack) -> Iterator[str]:
    """One line per deployment: public name, provider, its own name, address."""
    gateway = _gateway(stack)
    if gateway is None:
        yield "  everything goes to the app behind the sidecar"
        return
    for deployment in gateway.deployments.all:
        provider = deployment.provider
        key = "key set" if provider.secrets else "no key"
        address = redact.url(provider.base)
        target = f"{provider.name}/{deployment.model}"
        yield f"  {deployment.model_name} -> {target}  {address}  ({key}, id {deployment.id[:12]})"


def notices(settings: Settings, workers: int = 1) -> list[str]:
    """One line per key that has no effect, and one where workers count apart what is meant for all."""
    lines = [f"notice: {notice}" for notice in settings.notices]
    if workers > 1 and not settings.router_settings.redis and (counted := _counted(settings)):
        lines.append(
            f"notice: {counted}: each of the {workers} workers counts for itself; set router_settings.redis_host to "
            "have one count for all"
        )
    return lines


def _counted(settings: Settings) -> str:
    """Keys of limits that processes count, as far as the config has them."""
    router = settings.router_settings
    params = [entry.params for entry in settings.model_list]
    found = {
        "provider_budget_config": bool(router.provider_budget_config),
        "tag_budget_config": bool(router.tag_budget_config),
        "max_budget": any(one.max_budget is not None for one in params),
        "rpm, tpm": any(one.rpm is not None or one.tpm is not None for one in params),
        "max_parallel_requests": any(one.max_parallel_requests is not None for one in params),
    }
    return ", ".join(name for name, there in found.items() if there)
