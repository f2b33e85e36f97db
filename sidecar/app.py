"""From a config to the apps of one process: the stack with its probes on the main port, and the admin app."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic import BaseModel

from sidecar.default_config import default_config
from sidecar.health import Health
from sidecar.options import RunOptions
from sidecar.server import Apps, ServerConfig
from tianji_mw.compose import compose, limits_of, upstream_of
from tianji_mw.config import from_dict, load
from tianji_mw.errors import ConfigErrors, SetupError
from tianji_mw.redact import Secret, SecretFilter
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.config.managed import Resolving
    from tianji_mw.config.settings import Settings
    from tianji_mw.stack import Stack

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def settings_of(options: RunOptions, *, resolve: bool = True) -> Settings:
    """The config of this run, its secrets fetched unless `resolve` is False. Raises ConfigErrors."""
    resolving: Resolving = "skip" if not resolve else "defer" if options.allow_unresolved else "fail"
    if options.config is None:
        return from_dict(default_config(os.environ), strict=options.strict)
    return load(options.config, strict=options.strict, resolving=resolving)


def stack_of(settings: Settings, options: RunOptions) -> Stack:
    """The live stack: ending in the gateway, or in the app behind us."""
    if not options.app_upstream:
        return compose(settings)
    from sidecar.proxy import ReverseProxy

    try:
        proxy = ReverseProxy(options.app_upstream, upstream=upstream_of(settings), limits=limits_of(settings))
    except ValueError as error:
        raise SetupError(str(error)) from None
    return compose(settings, terminal=proxy)


def refuse_open(settings: Settings, options: RunOptions) -> None:
    """Raise SetupError when anybody on the network could use the providers' keys."""
    keyless = settings.general_settings.master_key is None and not settings.virtual_keys
    if keyless and options.host not in _LOOPBACK and not options.open:
        raise SetupError(
            f"refusing to listen on {options.host} without a key: set general_settings.master_key or virtual_keys, "
            "or pass --i-know-this-is-open"
        )
    if options.admin_port and options.admin_host not in _LOOPBACK and not options.open:
        raise SetupError(
            f"refusing to open the admin port on {options.admin_host}: it has no key of its own; keep it on 127.0.0.1, "
            "or pass --i-know-this-is-open"
        )


def apps_of(options: RunOptions, settings: Settings | None = None) -> Apps:
    """What one worker serves; called in every worker process. Without `settings` they are read here."""
    settings = settings or settings_of(options)
    for name, value in settings.environment.items():
        os.environ.setdefault(name, value.reveal())
    configure_logging(settings)
    runtime = Runtime()
    stack = stack_of(settings, options)
    admin = None
    if options.admin_port:
        from sidecar.admin import Admin

        admin = Admin(settings, stack.app, runtime).routes()

    def drain() -> None:
        runtime.draining = True

    main = _with_metrics(stack.app, runtime, settings)
    if not options.app_upstream:  # there, `/cache` and `/health` may be paths of the app's own
        main = _with_routing(_with_cache(main, stack.app, settings), stack.app, settings)
    return Apps(Health(main, runtime), admin, on_drain=drain)


def _with_cache(app: ASGIApp, stack: ASGIApp, settings: Settings) -> ASGIApp:
    """The stack with LiteLLM's `/cache/*` on the main port, where the config has a cache."""
    if not settings.settings.cache:
        return app
    from sidecar.cache_routes import CacheRoutes, cache_of
    from sidecar.master_key import KeyedRoutes

    cache = cache_of(stack)
    if cache is None:
        return app
    routes = CacheRoutes(cache, settings).main
    return KeyedRoutes(app, routes, settings.general_settings.master_key, admin="/-/cache")


def _with_routing(app: ASGIApp, stack: ASGIApp, settings: Settings) -> ASGIApp:
    """The stack with LiteLLM's `/health` and `/router/explain` on the main port."""
    from sidecar.master_key import KeyedRoutes
    from sidecar.routing_routes import RoutingRoutes, routing_of

    routing = routing_of(stack)
    if routing is None:
        return app
    routes = RoutingRoutes(routing).main
    return KeyedRoutes(app, routes, settings.general_settings.master_key, admin="/-/routing")


def _with_metrics(app: ASGIApp, runtime: Runtime, settings: Settings) -> ASGIApp:
    """The stack with `/metrics` on the main port, where the config has the callback for it."""
    keys = settings.settings
    if "prometheus" not in (*keys.callbacks, *keys.success_callback, *keys.failure_callback) and not any(
        entry.get("type") == "prometheus" for entry in keys.callback_configs
    ):
        return app
    from sidecar.metrics import MainMetrics

    open_ = keys.require_auth_for_metrics_endpoint is False
    return MainMetrics(app, runtime, None if open_ else settings.general_settings.master_key)


def share_metrics(options: RunOptions) -> None:
    """A folder in which the workers of this run put their metrics together; it goes with the process."""
    if options.workers < 2 or any(os.environ.get(name) for name in ("TIANJI_METRICS_DIR", "PROMETHEUS_MULTIPROC_DIR")):
        return
    folder = tempfile.mkdtemp(prefix="tianji-metrics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TIANJI_METRICS_DIR"] = folder


def server_config(settings: Settings, options: RunOptions) -> ServerConfig:
    """Ports and deadlines of this run."""
    general = settings.general_settings
    header = general.litellm_key_header_name
    return ServerConfig(
        host=options.host,
        port=options.port,
        admin_host=options.admin_host,
        admin_port=options.admin_port,
        workers=options.workers,
        header_timeout_s=general.header_timeout_s,
        max_header_bytes=general.max_header_bytes,
        max_headers=general.max_headers,
        max_connections=general.max_connections,
        drain_delay_s=general.drain_delay_s,
        grace_s=general.grace_s,
        flush_s=general.flush_s,
        identity_headers=(header.lower(),) if header else (),
        log_level="debug" if settings.settings.set_verbose else "info",
    )


class _JSONFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def configure_logging(settings: Settings) -> None:
    """One handler to stderr that masks every secret of the config; JSON lines with `json_logs`."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(_JSONFormatter() if settings.settings.json_logs else plain)
    handler.addFilter(SecretFilter([*secrets_in(settings), *settings.hosted.values()]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if settings.settings.set_verbose else logging.INFO)


def secrets_in(value: Any) -> Iterator[Secret]:
    """Every secret inside of settings, however deep."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secrets_in(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item)


def problems_of(error: SetupError) -> list[str]:
    """One line per problem, for people."""
    return [e.message for e in error.errors] if isinstance(error, ConfigErrors) else [error.message]
