"""What redis-py's exceptions mean to an operator: a kind, and a sentence with the cure. No server text is shown."""

from __future__ import annotations

import re
import ssl
from typing import Final

from redis import exceptions as sdk

from tianji_mw.redis.errors import Kind, RedisFailed

_CODE: Final = re.compile(r"[A-Z]{2,20}\b")

#: By the first word of the answer.
_ANSWERS: Final[dict[str, tuple[Kind, str]]] = {
    "CLUSTERDOWN": ("unreachable", "its cluster does not serve this slot now"),
    "LOADING": ("unreachable", "it still loads its data"),
    "MASTERDOWN": ("unreachable", "it is a replica whose primary is gone"),
    "MISCONF": ("error", "it cannot save to disk and refuses writes; free its disk or unset `save`"),
    "NOAUTH": ("refused", "it wants a login; set password (and username), or REDIS_PASSWORD"),
    "NOPERM": ("refused", "the ACL user lacks a command, a key pattern or a channel; see ACL SETUSER"),
    "OOM": ("full", "its memory is full; set maxmemory-policy allkeys-lru, or raise maxmemory"),
    "READONLY": ("refused", "it is a replica; name the primary, or configure Sentinel or Cluster"),
    "WRONGPASS": ("refused", "the login is refused; check username and password"),
}


def code_of(error: BaseException) -> str:
    """First word of the server's answer, such as `WRONGPASS`; empty when this is no answer."""
    known = getattr(error, "status_code", None)
    found = _CODE.match(str(known or error))
    return found[0] if found else ""


def failure_of(error: BaseException, where: str) -> RedisFailed:
    """The failure for callers."""
    code, text = code_of(error), str(error)
    if code in _ANSWERS:
        kind, cure = _ANSWERS[code]
        return RedisFailed(f"Redis at {where}: {cure} ({code})", kind=kind, code=code, answer=text)
    if isinstance(error, sdk.AuthenticationError):
        return RedisFailed(
            f"Redis at {where}: the login is refused; check username and password", kind="refused", code="WRONGPASS"
        )
    if isinstance(error, sdk.ResponseError):
        code = code or "ERR"
        return RedisFailed(f"Redis at {where}: answered with an error ({code})", code=code, answer=text)
    return RedisFailed(f"Redis at {where}: {_broken(error)}", kind="unreachable")


def _broken(error: BaseException) -> str:
    if isinstance(error, sdk.InvalidResponse):
        return "its answer cannot be read; check that this is the port of Redis, and `ssl`"
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is not trusted; set ssl_ca_certs to its authority, or check the host name"
    if isinstance(cause, ssl.SSLError):
        return "the TLS handshake failed; check ssl, ssl_certfile and the port"
    if isinstance(cause, ConnectionRefusedError):
        return "the connection is refused; check host and port"
    if "max number of clients" in str(error):
        return "it has no connection left; raise its maxclients, or lower max_connections"
    return f"the connection failed ({type(cause or error).__name__})"
