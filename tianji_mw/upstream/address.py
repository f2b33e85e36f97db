"""An upstream's URL, taken apart as it will be sent. Pure."""

from __future__ import annotations

import base64
import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from tianji_mw.errors import UpstreamUnreachable
from tianji_mw.upstream.base import fault

_CLEAN_URL: Final = re.compile(r"https?://[!-~]+")
#: What stays as it is in a target that has to be quoted: RFC 3986's reserved characters, and escapes.
_KEPT: Final = "!$%&'()*+,-./:;=?@_~[]"


class Origin(NamedTuple):
    """Where connections can be shared: `tls` says which scheme."""

    tls: bool
    host: str
    port: int


class Address(NamedTuple):
    """`host` is the Host header, `target` path and query, `auth` the Authorization header of a user in the URL."""

    origin: Origin
    host: str
    target: str
    auth: str = ""


def clean(url: str) -> bool:
    """Whether a URL goes out as it stands: what was judged is then what is sent."""
    return _CLEAN_URL.fullmatch(url) is not None


def address_of(url: str) -> Address:
    """The address of an http or https URL. Raises UpstreamUnreachable for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if parts.scheme not in ("http", "https") or not host or port == 0:
            raise ValueError(url)
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:
        raise fault(UpstreamUnreachable, url, "has an address that no request can be sent to") from None
    tls = parts.scheme == "https"
    usual = 443 if tls else 80
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    shown = f"[{host}]" if ":" in host else host
    auth = ""
    if parts.username is not None:
        user = b"%b:%b" % (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or ""))
        auth = f"Basic {base64.b64encode(user).decode('ascii')}"
    return Address(
        Origin(tls, host, port or usual),
        shown if port in (None, usual) else f"{shown}:{port}",
        target if clean(url) else quote(target, safe=_KEPT),
        auth,
    )
