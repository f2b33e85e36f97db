"""Makes redis-py connections that know nothing of retries and time limits: `node.py` has those."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from redis import exceptions as sdk
from redis.asyncio import Connection
from redis.credentials import CredentialProvider

from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.redis.settings import Address, RedisSettings

Connect = Callable[[Address], Connection]


async def connector(settings: RedisSettings, *, sentinel: bool = False) -> Connect:
    """Makes connections to the servers of these settings, or to their Sentinels; none is opened yet.

    Raises SetupError for TLS files that cannot be read.
    """
    username, password = settings.username, settings.password
    if sentinel:
        username, password = settings.sentinel_username, settings.sentinel_password
    options: dict[str, Any] = {
        # Whoever asks limits the time of the whole operation. RESP2 needs no greeting: fewer round trips to connect.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "protocol": 2,
        "driver_info": None,
        "credential_provider": _Login(username, password) if username or password else None,
        "db": 0 if sentinel else settings.db,
    }
    # Reading the system's certificates takes tens of milliseconds: once, and not in the event loop.
    tls = await asyncio.to_thread(_tls, settings) if settings.ssl else None

    def connect(address: Address) -> Connection:
        host, port = address
        if tls is not None:
            return _Tls(tls, host=host, port=port, **options)
        return Connection(host=host, port=port, **options)

    return connect


async def answer_of(connection: Connection) -> Any:
    """The next answer; an error answer is returned and not raised. Raises redis-py's other errors, and only those."""
    try:
        return await connection.read_response(disable_decoding=True)
    except sdk.ResponseError as error:
        return error
    except ValueError as error:  # a length or a redirection that cannot be read
        raise sdk.InvalidResponse("this is not the protocol of Redis") from error


class _Login(CredentialProvider):
    """Reveals the password for every login anew."""

    def __init__(self, username: str, password: Secret | None) -> None:
        self._username, self._password = username, password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._password.reveal() if self._password else ""
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class _Tls(Connection):
    """redis-py's own class makes a context for each connection; this one is shared."""

    def __init__(self, tls: ssl.SSLContext, **options: Any) -> None:
        self._context = tls
        super().__init__(**options)

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._context}


def _tls(settings: RedisSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca_certs or None)
        if settings.ssl_certfile:
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile or None)
    except OSError as error:
        raise SetupError(
            f"Redis at {settings.where}: the TLS files cannot be read ({type(error).__name__}); check ssl_ca_certs, "
            "ssl_certfile and ssl_keyfile."
        ) from None
    context.check_hostname = settings.ssl_check_hostname and settings.ssl_cert_reqs != "none"
    context.verify_mode = {
        "required": ssl.CERT_REQUIRED,
        "optional": ssl.CERT_OPTIONAL,
        "none": ssl.CERT_NONE,
    }[settings.ssl_cert_reqs]
    return context
