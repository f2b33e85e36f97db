"""`tianji-sidecar doctor`: looks at the machine, the config and the providers, and probes an HTTP server's strictness.

It sends no LLM request and no key: providers are only connected to.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import ssl
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from sidecar.app import problems_of, settings_of, stack_of
from sidecar.banner import notices
from sidecar.doctor_cache import examine_cache
from sidecar.doctor_callbacks import examine_callbacks
from sidecar.edge_table import probe
from tianji_mw.driver import inner_layers
from tianji_mw.errors import SetupError
from tianji_mw.gateway import Gateway
from tianji_mw.secrets.base import SecretError

if TYPE_CHECKING:
    from sidecar.options import RunOptions
    from tianji_mw.routing.base import Deployment
    from tianji_mw.secrets.resolver import Resolver

_CONNECT_S: Final = 3.0
_MIN_FILES: Final = 4096
#: A login that ends within this time, and a secret that expires within these days, deserve a note.
_SOON_S: Final = 60.0
_SOON_DAYS: Final = 14.0

Finding = tuple[bool | None, str]
_MARKS: Final = {True: "ok  ", False: "FAIL", None: "note"}


def examine(options: RunOptions, url: str) -> tuple[list[str], bool]:
    """One line per finding, and whether none of them is a failure."""
    findings = [*_machine(), *_config(options)]
    if url:
        findings += list(probe(url))
    lines = [f"{_MARKS[state]}  {text}" for state, text in findings]
    return lines, all(state is not False for state, _ in findings)


def _machine() -> Iterator[Finding]:
    yield True, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in ("uvicorn", "uvloop", "httptools", "aiohttp"):
        try:
            yield True, f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            needed = package != "uvloop"
            yield (False if needed else None), f"{package} is not installed: pip install 'tianji-mw[sidecar]'"
    if sys.platform != "win32":
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        enough = files >= _MIN_FILES
        yield (
            (True if enough else None),
            f"open files: {files}" + ("" if enough else f"; raise it to {_MIN_FILES} (ulimit -n)"),
        )


def _config(options: RunOptions) -> Iterator[Finding]:
    try:
        settings = settings_of(options, resolve=False)
        stack = stack_of(settings, options)
    except SetupError as error:
        for problem in problems_of(error):
            yield False, f"config: {problem}"
        return
    yield True, f"config: {options.config or 'embedded demo'}, {len(settings.model_list)} deployments"
    for line in notices(settings):
        yield None, line
    keyless = settings.general_settings.master_key is None and not settings.virtual_keys
    yield (
        (None, "no master_key and no virtual_keys: whoever reaches the port may call")
        if keyless
        else (True, "keys are checked")
    )
    if settings.resolver is not None:
        yield from asyncio.run(_secrets(settings.resolver))
    yield from examine_callbacks(stack)
    yield from examine_cache(stack)
    gateway = next((layer for layer in inner_layers(stack.app) if isinstance(layer, Gateway)), None)
    if gateway is not None:
        yield from asyncio.run(_providers(gateway.deployments.all))
    else:
        yield from asyncio.run(_reach({options.app_upstream: "the app behind the sidecar"}))


async def _secrets(resolver: Resolver) -> list[Finding]:
    """Health of each store, and every secret of the config; then the stores are closed."""
    found: list[Finding] = []
    in_use = {entry.store.name for entry in resolver.entries}
    for name, state in (await resolver.health()).items():
        if isinstance(state, SecretError):
            found.append((False, f"secrets: {state.message}"))
        elif name in in_use or name != "env":
            ends = "" if state is None else f", the login ends in {state:.0f} s"
            found.append((True if state is None or state > _SOON_S else None, f"secrets: {name} answers{ends}"))
    await resolver.refresh()
    for entry in resolver.entries:
        if entry.error is not None:
            found.append((False, f"secrets: {entry.error.message}"))
        elif entry.value is not None and entry.value.expires is not None:
            days = (entry.value.expires - time.time()) / 86_400
            found.append((True if days > _SOON_DAYS else None, f"secrets: {entry.where} expires in {days:.1f} days"))
    await resolver.aclose()
    return found


async def _providers(deployments: tuple[Deployment, ...]) -> list[Finding]:
    places: dict[str, str] = {}
    for deployment in deployments:
        parts = urlsplit(deployment.provider.base)
        if parts.scheme in ("http", "https"):
            places.setdefault(f"{parts.scheme}://{parts.netloc}", deployment.model_name)
    return await _reach(places)


async def _reach(places: dict[str, str]) -> list[Finding]:
    return list(await asyncio.gather(*(_connect(origin, who) for origin, who in places.items())))


async def _connect(origin: str, who: str) -> Finding:
    """Whether the address takes a connection, with a valid certificate where it is https."""
    parts = urlsplit(origin)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(_CONNECT_S):
            context = ssl.create_default_context() if secure else None
            _, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
            writer.close()
    except TimeoutError:
        return False, f"{origin} ({who}): no connection within {_CONNECT_S:g} s"
    except (OSError, ssl.SSLError) as error:
        return False, f"{origin} ({who}): {type(error).__name__}: {error}"
    return True, f"{origin} ({who}): reachable"
