"""How a secret is written in a config: `vault://llm/openai#api_key?version=3`.

A reference names a store, a path inside of it, and perhaps one field of a JSON secret. Nothing is resolved here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

#: Scheme -> the kind of store, by the name of its file. `secret://NAME/path` names one of `secret_managers`.
SCHEMES: Final[Mapping[str, str]] = {
    "aws-sm": "aws",
    "gcp-sm": "google",
    "azure-kv": "azure",
    "vault": "vault",
    "file": "file",
    "env": "env",
    "secret": "",
}
_OPTIONS: Final = frozenset({"version", "stage", "ttl", "encoding"})
_CONTROL: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_TTL: Final = re.compile(r"[0-9]{1,8}(?:\.[0-9]{1,3})?")
#: Seconds; a store is not asked more often than this for one secret.
MIN_TTL_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where one value lies.

    >>> parse("aws-sm://prod/llm#OPENAI?version=AWSPREVIOUS").field
    'OPENAI'
    """

    #: Kind of store; empty when `store` names it.
    kind: str = ""
    #: Name of one of the config's stores; empty for the only one of its kind.
    store: str = ""
    path: str
    #: Key inside of a JSON secret or a Vault data map; empty for the secret itself.
    field: str = ""
    #: A version as its store counts them; on AWS also a stage such as AWSPREVIOUS. Empty for the newest.
    version: str = ""
    #: Seconds; None for the store's.
    ttl_s: float | None = None
    #: Binary secrets as base64 text instead of UTF-8.
    base64: bool = False

    def __str__(self) -> str:
        scheme = next((s for s, kind in SCHEMES.items() if kind == self.kind and kind), "secret")
        place = f"{self.store}/{self.path}" if scheme == "secret" else self.path
        field = f"#{self.field}" if self.field else ""
        return f"{scheme}://{place}{field}{f'?version={self.version}' if self.version else ''}"


def is_reference(text: str) -> bool:
    """Whether this text is written as a reference to a store."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme in SCHEMES


def parse(text: str) -> Reference:
    """The reference in `text`; field and options may stand in either order. Raises ValueError saying what is wrong."""
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"a reference begins with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    path, field, options = _cut(rest)
    store = ""
    if scheme == "secret":
        store, slash, path = path.partition("/")
        if not store or not slash:
            raise ValueError("write secret://NAME/path, with a NAME of secret_managers")
    check_path(path)
    given = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := given.keys() - _OPTIONS:
        raise ValueError(f"the reference has an unknown option {min(unknown)[:40]!r}; there are {', '.join(_SHOWN)}")
    ttl = given.get("ttl", "")
    if ttl and (not _TTL.fullmatch(ttl) or float(ttl) < MIN_TTL_S):
        raise ValueError(f"ttl is a number of seconds, at least {MIN_TTL_S:g}")
    if given.get("encoding", "base64") != "base64":
        raise ValueError("encoding can only be base64")
    return Reference(
        kind=SCHEMES[scheme],
        store=store,
        path=path,
        field=field,
        version=given.get("version") or given.get("stage", ""),
        ttl_s=float(ttl) if ttl else None,
        base64="encoding" in given,
    )


_SHOWN: Final = tuple(sorted(_OPTIONS))


def _cut(rest: str) -> tuple[str, str, str]:
    """Path, field and options of `path#field?options` or `path?options#field`."""
    head, _, fragment = rest.partition("#")
    path, _, options = head.partition("?")
    field, _, more = fragment.partition("?")
    return path, field, "&".join(part for part in (options, more) if part)


def check_path(path: str) -> None:
    """Raise ValueError for a path that no store should be asked for."""
    if not path.strip("/"):
        raise ValueError("the reference names no secret")
    if _CONTROL.search(path):
        raise ValueError("the reference holds a control character")
    if ".." in path.split("/"):
        raise ValueError("the reference holds '..' between slashes")
