"""The proxies of the environment: `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`. It sends nothing."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

from tianji_mw.errors import UpstreamUnreachable
from tianji_mw.upstream.base import fault


class Proxies:
    """Read once, at the start: aiohttp's own `trust_env` asks a thread for proxies and for `~/.netrc` at every request,
    and a netrc entry would put its credentials in the place of ours.
    """

    def __init__(self, *, trust_env: bool = True) -> None:
        found = urllib.request.getproxies() if trust_env else {}
        self._of_scheme = {scheme: found.get(scheme) or found.get("all") for scheme in ("http", "https")}

    def __bool__(self) -> bool:
        return any(self._of_scheme.values())

    def of(self, url: str) -> str | None:
        """The proxy's address for this URL. Raises UpstreamUnreachable for a kind of proxy that is not supported."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return None  # whoever sends it says what is wrong
        proxy = self._of_scheme.get(parts.scheme)
        if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
            return None
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        if not proxy.startswith(("http://", "https://")):
            kind = proxy.partition(":")[0]
            raise fault(UpstreamUnreachable, url, f"is behind a {kind} proxy; only http and https ones are supported")
        return proxy
