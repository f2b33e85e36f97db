"""From config blocks to stores: kinds by the names that LiteLLM and others give them, fields, and the environment.

It takes plain mappings and reports places inside of them; files and lines are the config's business.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tianji_mw import plugins
from tianji_mw.errors import PluginNotFound
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import SecretStore, StoreMisconfigured
from tianji_mw.secrets.last_good import LastGood
from tianji_mw.secrets.resolver import MAX_STALE_S

#: Names of the kinds elsewhere -> the file of the store.
KINDS: Final[Mapping[str, str]] = {
    "aws_secret_manager": "aws",
    "aws_secrets_manager": "aws",
    "google_secret_manager": "google",
    "gcp": "google",
    "gcp_secret_manager": "google",
    "azure_key_vault": "azure",
    "hashicorp_vault": "vault",
    "openbao": "vault",
    "kubernetes": "file",
}
#: Systems that LiteLLM knows, and this suite does not.
NOT_IMPLEMENTED: Final = frozenset({"aws_kms", "google_kms", "cyberark", "cyberark_conjur", "custom"})
_TTL_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "vault": ("HCP_VAULT_REFRESH_INTERVAL", "SECRET_MANAGER_REFRESH_INTERVAL"),
    "google": ("GOOGLE_SECRET_MANAGER_REFRESH_INTERVAL", "SECRET_MANAGER_REFRESH_INTERVAL"),
    "aws": ("SECRET_MANAGER_REFRESH_INTERVAL",),
    "azure": ("SECRET_MANAGER_REFRESH_INTERVAL",),
}


class WrongSetting(StoreMisconfigured):
    """A setting of a store is wrong; `field` is its name as it was written, empty for the store as a whole."""

    def __init__(self, message: str, field: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


def store_of(kind: str, name: str, settings: Mapping[str, Any], env: Mapping[str, str]) -> SecretStore:
    """The store of this kind. Fields that are left out come from the environment. Raises WrongSetting."""
    if kind in NOT_IMPLEMENTED:
        raise WrongSetting(f"the secret manager '{kind}' is not implemented", hint=f"there are: {_kinds()}")
    file = KINDS.get(kind, kind)
    try:
        cls = plugins.find("secrets", file, SecretStore)
    except PluginNotFound as error:
        near = difflib.get_close_matches(kind, [*KINDS, *KINDS.values()], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {_kinds()}"
        known = ":" not in kind and "." not in kind
        raise WrongSetting(f"no secret manager '{kind}'" if known else error.message, hint=hint) from None
    fields: dict[str, Any] = {"name": name}
    written: dict[str, str] = {}
    for key, value in settings.items():
        field = cls.aliases.get(key, key)
        if field in written:
            raise WrongSetting(f"says the same as {written[field]!r}; keep one of them", key)
        fields[field], written[field] = value, key
    _from_environment(cls, file, fields, env)
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        raise _explained(error, cls, kind, written) from None


def open_kind(kind: str) -> SecretStore:
    """The store that a reference such as `aws-sm://` means when none of this kind is configured."""
    return store_of(kind, kind, {}, os.environ)


class _Cache(BaseModel):
    """`general_settings.secret_cache`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: How much older than its time to live a value may be used while its store is down, in seconds.
    max_stale_s: float = Field(default=MAX_STALE_S, gt=0, allow_inf_nan=False)
    #: Where the last good values are kept, encrypted; empty for nowhere.
    file: Path | None = None
    passphrase: Secret | None = None


def cache_options(settings: object) -> dict[str, Any]:
    """Arguments of the `Resolver` from the config's `secret_cache`. Raises WrongSetting."""
    try:
        read = _Cache.model_validate(settings)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        hint = f"there are: {', '.join(_Cache.model_fields)}" if found["type"] == "extra_forbidden" else ""
        raise WrongSetting(found["msg"], str(found["loc"][0]) if found["loc"] else "", hint) from None
    if (read.file is None) != (read.passphrase is None):
        missing = "passphrase" if read.passphrase is None else "file"
        raise WrongSetting(f"'{missing}' is missing: the file of last good values is encrypted with the passphrase")
    if read.passphrase is not None and len(read.passphrase.reveal()) < 16:
        raise WrongSetting("at least 16 characters are needed", "passphrase")
    options: dict[str, Any] = {"max_stale_s": read.max_stale_s}
    if read.file is not None and read.passphrase is not None:
        if not read.file.parent.is_dir():
            raise WrongSetting(f"the directory {read.file.parent} is not there", "file")
        options["last_good"] = LastGood(read.file, read.passphrase)
    return options


def _kinds() -> str:
    return ", ".join(sorted(set(KINDS) | {"env", "file", "package.module:Class"}))


def _from_environment(cls: type[SecretStore], file: str, fields: dict[str, Any], env: Mapping[str, str]) -> None:
    own_login = not cls.login_fields.isdisjoint(fields)
    for field, variables in {**cls.env_fields, "cache_ttl": _TTL_VARIABLES.get(file, ())}.items():
        if own_login and field in cls.login_fields:
            continue
        found = next((env[name] for name in variables if env.get(name)), "")
        if found and field not in fields:
            fields[field] = found


def _explained(error: ValidationError, cls: type[SecretStore], kind: str, written: Mapping[str, str]) -> WrongSetting:
    found = error.errors(include_url=False, include_input=False)[0]
    field = str(found["loc"][0]) if found["loc"] else ""
    key = written.get(field, field)
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [*cls.model_fields, *cls.aliases], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(cls.model_fields))}"
        return WrongSetting(f"the secret manager '{kind}' has no such setting", key, hint)
    return WrongSetting(found["msg"].removeprefix("Value error, "), key)
