"""The types of single values: what is a secret, text that came from a reference, numbers and switches.

Which names mean a secret is decided here and nowhere else. It does not look for secrets inside free text.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from tianji_mw import redact
from tianji_mw.redact import MASK, SECRET_HEADERS, Secret

# "max_tokens" must not match and "x-api-key" must: the last word of the name decides.
_SECRET_NAME: Final = re.compile(
    r"(?:^|[_.-])(?:key|credentials?|authorization|auth|dsn|cookie|connection_string|webhook_url)$"
    r"|(?:api|access|private|account)key$|(?:token|secret|password|passwd|passphrase)$"
)
_OPEN_NAMES: Final = frozenset(
    {
        "public_key", "cache_key", "partition_key", "sort_key", "primary_key", "foreign_key", "input_key", "output_key",
        "stop_token", "eos_token", "bos_token", "pad_token",
    }
)  # fmt: skip
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ON: Final = frozenset({"true", "1", "yes", "on"})
_OFF: Final = frozenset({"false", "0", "no", "off"})


class Referenced(str):
    """Text that came from a reference: usable as any text, but its `repr` is masked because it may be a secret."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"


class Managed(Referenced):
    """Text that came from a secret manager. Where a secret is wanted, `live` takes its place and follows rotations."""

    __slots__ = ("live",)

    def __new__(cls, text: str, live: Secret) -> Managed:
        made = super().__new__(cls, text)
        made.live = live
        return made

    live: Secret


def secret_of(value: str) -> Secret:
    """The secret that this text is."""
    return value.live if isinstance(value, Managed) else Secret(str(value))


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds a credential."""
    lowered = name.lower()
    return lowered in SECRET_HEADERS or (lowered not in _OPEN_NAMES and bool(_SECRET_NAME.search(lowered)))


def protect(value: Any, name: str = "") -> Any:
    """A free-form value in which the text of every credential, by the name of its key, is a `Secret`."""
    if isinstance(value, dict):
        return {key: protect(child, str(key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [protect(child, name) for child in value]
    return secret_of(value) if isinstance(value, str) and is_secret_name(name) else value


def conceal(value: Any, name: str = "") -> Any:
    """The printable form of a free-form value: credentials and referenced text masked."""
    if isinstance(value, dict):
        return {key: conceal(child, str(key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [conceal(child, name) for child in value]
    if isinstance(value, Secret | Referenced) or (isinstance(value, str) and is_secret_name(name)):
        return MASK
    return value


def reveal(value: Any) -> Any:
    """A free-form value with every `Secret` opened; call it where the bytes leave the process and nowhere else."""
    if isinstance(value, dict):
        return {key: reveal(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [reveal(child) for child in value]
    return value.reveal() if isinstance(value, Secret) else value


def wrong(message: str) -> PydanticCustomError:
    """An error whose text reaches the operator unchanged."""
    return PydanticCustomError("tianji", "{message}", {"message": message})


def as_switch(value: Any) -> Any:
    """`"true"`, `"1"`, `1` and so on as a boolean; anything else unchanged."""
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _ON else False if word in _OFF else value
    return bool(value) if type(value) is int and value in (0, 1) else value


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise wrong("expected a number, got true/false")
    return value


def _live(value: Any) -> Any:
    return value.live if isinstance(value, Managed) else value


def _secret(value: Secret) -> Secret:
    if not value.ready:
        return value
    text = value.reveal()
    if not text.strip():
        raise wrong("the secret is empty")
    if _CONTROL.search(text) or text != text.strip():
        raise wrong("the secret holds a line break, a control character or spaces around it")
    return value


def _header(value: str | Secret) -> str | Secret:
    if isinstance(value, Secret) and not value.ready:
        return value
    if _CONTROL.search(value.reveal() if isinstance(value, Secret) else value):
        raise wrong("the header holds a line break or a control character")
    return value


def _referenced_header(value: Any) -> Any:
    # Before pydantic's own validation, which makes plain text of it.
    return secret_of(value) if isinstance(value, Referenced) else value


def _headers(value: dict[str, str | Secret]) -> dict[str, str | Secret]:
    for name in value:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise wrong("the name of a header holds a character that is not allowed")
    return {name: Secret(str(v)) if isinstance(v, str) and is_secret_name(name) else v for name, v in value.items()}


def _name(value: str) -> str:
    if not value.strip():
        raise wrong("must not be empty")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or _CONTROL.search(value) or " " in value:
        raise wrong("expected an address such as https://api.example.com/v1")
    return value


#: A credential: never empty, never with a stray newline, shown as a mask.
Credential: TypeAlias = Annotated[Secret, BeforeValidator(_live), AfterValidator(_secret)]
#: Text that must say something.
Name: TypeAlias = Annotated[str, AfterValidator(_name)]
#: An address; user, password and query are not shown.
Url: TypeAlias = Annotated[str, AfterValidator(_url), PlainSerializer(redact.url, return_type=str)]
#: A boolean, also from "true", "1" and the like.
Switch: TypeAlias = Annotated[bool, BeforeValidator(as_switch)]
#: A number from 0, also as text.
Amount: TypeAlias = Annotated[float, BeforeValidator(_no_switch), Field(ge=0, allow_inf_nan=False)]
#: A size in MiB above 0.
Megabytes: TypeAlias = Annotated[float, BeforeValidator(_no_switch), Field(gt=0, le=1 << 20, allow_inf_nan=False)]
#: A time in seconds above 0.
Seconds: TypeAlias = Annotated[float, BeforeValidator(_no_switch), Field(gt=0, allow_inf_nan=False)]
#: Any whole number, one from 0, one from 1.
Integer: TypeAlias = Annotated[int, BeforeValidator(_no_switch)]
Whole: TypeAlias = Annotated[int, BeforeValidator(_no_switch), Field(ge=0)]
Count: TypeAlias = Annotated[int, BeforeValidator(_no_switch), Field(ge=1)]
#: HTTP header fields; a value that is a credential or came from a reference is a `Secret`.
Headers: TypeAlias = Annotated[
    dict[str, Annotated[str | Secret, BeforeValidator(_referenced_header), AfterValidator(_header)]],
    AfterValidator(_headers),
]
#: Free-form keys of a provider or plugin; credentials in it are `Secret`.
FreeForm: TypeAlias = Annotated[
    dict[str, Any], AfterValidator(protect), PlainSerializer(conceal, return_type=dict[str, Any])
]
#: Free-form entries by name, such as extra providers.
FreeForms: TypeAlias = Annotated[
    dict[str, dict[str, Any]], AfterValidator(protect), PlainSerializer(conceal, return_type=dict[str, Any])
]
#: Free-form keys that are sent as JSON and therefore stay plain; only what is printed is masked.
JsonForm: TypeAlias = Annotated[dict[str, Any], PlainSerializer(conceal, return_type=dict[str, Any])]
