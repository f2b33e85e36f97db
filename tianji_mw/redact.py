"""Keeps secrets out of everything that is shown: a type without a useful repr, and redaction of headers and URLs.

It does not look for secrets in free text; that is the `secret_leak` guardrail's work.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

MASK: Final = "********"

#: Headers whose value is a credential, lower case.
SECRET_HEADERS: Final = frozenset(
    {
        "authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key", "x-goog-api-key",
        "ocp-apim-subscription-key", "x-amz-security-token", "x-vault-token", "helicone-auth", "dd-api-key",
    }
)  # fmt: skip


class Secret:
    """A value that never shows itself: `repr`, `str`, `format`, JSON and pickles give a mask or fail.

    >>> key = Secret("sk-1")
    >>> f"{key}", key.reveal()
    ('********', 'sk-1')
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself; call it where the bytes leave the process and nowhere else."""
        return self._value

    def values(self) -> tuple[str, ...]:
        """What must not be shown because of this secret; more than one where it has changed."""
        return (self._value,)

    @property
    def ready(self) -> bool:
        """Whether there is a value; only a secret of a store can be without."""
        return True

    @property
    def changes(self) -> bool:
        """Whether the value may be another one tomorrow, as a secret manager's may."""
        return False

    async def renew(self) -> bool:
        """Ask for the value again, as an upstream refused it; whether it has changed."""
        return False

    def __repr__(self) -> str:
        return "Secret(********)"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(_bytes(self), _bytes(other))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret cannot be pickled or copied into another process")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A config field of this type takes a string; dumps give the mask."""
        from_str = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.json_or_python_schema(
            json_schema=from_str,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), from_str]),
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )


def _bytes(secret: Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogatepass")


def headers(pairs: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Header pairs with every credential masked, for logs and records."""
    return [
        (name, MASK if name in SECRET_HEADERS else value.decode("latin-1"))
        for name, value in ((k.decode("latin-1").lower(), v) for k, v in pairs)
    ]


def url(value: str) -> str:
    """A URL without user, password and query, for logs and error texts."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return "(an address that cannot be read)"
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    try:
        port = parts.port
    except ValueError:
        port = None
    return urlunsplit((parts.scheme, f"{host}:{port}" if port else host, parts.path, "", ""))


def text(value: str, secrets: Iterable[Secret]) -> str:
    """`value` with each of `secrets` replaced; providers echo keys in their error texts."""
    for secret in secrets:
        for raw in secret.values():
            if len(raw) >= 6 and raw in value:
                value = value.replace(raw, MASK)
    return value


_TRACEBACKS: Final = logging.Formatter()


class SecretFilter(logging.Filter):
    """Log filter that masks known secrets in the rendered message and the traceback of every record."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            rendered = record.getMessage()
        except (TypeError, ValueError):
            return True  # the handler reports the wrong arguments; a filter must not raise into the code that logs
        clean = text(rendered, self._secrets)
        if clean is not rendered:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            # Formatters take the text that is there already.
            record.exc_text = text(_TRACEBACKS.formatException(record.exc_info), self._secrets)
        return True
