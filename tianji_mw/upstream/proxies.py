"""The proxies of the environment: `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`. It sends nothing."""

from __future__ import annotations

import urllib.request
from typing import Final
from urllib.parse import urlsplit

from tianji_mw.errors import UpstreamUnreachable
from tianji_mw.upstream.base import fault

_PORTS: Final = {"http": 80, "https": 443}


class Proxies:
    """Read once, at the start: aiohttp's own `trust_env` asks a thread for proxies and for `~/.netrc` at every request,
    and a netrc entry would put its credentials in the place of ours.
    """

    def __init__(self, *, trust_env: bool = True) -> None:
        self._found = urllib.request.getproxies() if trust_env else {}
        self._of_scheme = {scheme: self._found.get(scheme) or self._found.get("all") for scheme in _PORTS}
        #: Without variables Windows and macOS are asked which hosts need no proxy.
        self._of_system = trust_env and not urllib.request.getproxies_environment()

    def __bool__(self) -> bool:
        return any(self._of_scheme.values())

    def of(self, url: str) -> str | None:
        """The proxy's address for this URL. Raises UpstreamUnreachable for a kind of proxy that is not supported."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            return None  # whoever sends it says what is wrong
        proxy = self._of_scheme.get(parts.scheme)
        if not proxy or not host or self._bypassed(f"{host}:{port or _PORTS[parts.scheme]}"):
            return None
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        if not proxy.startswith(("http://", "https://")):
            kind = proxy.partition(":")[0]
            raise fault(UpstreamUnreachable, url, f"is behind a {kind} proxy; only http and https ones are supported")
        if not _reachable(proxy):
            raise fault(UpstreamUnreachable, url, "is behind a proxy whose address is none")
        return proxy

    def _bypassed(self, host: str) -> bool:
        """Whether `no_proxy` names this host, or this host and port."""
        if self._of_system:
            return bool(urllib.request.proxy_bypass(host))
        return bool(urllib.request.proxy_bypass_environment(host, self._found))  # type: ignore[attr-defined]


def _reachable(proxy: str) -> bool:
    """Whether there is something in this address to connect to."""
    try:
        parts = urlsplit(proxy)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
