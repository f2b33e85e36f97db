"""Whose answers are meant by a team, a key or an organisation: the tenants of a cache, as its scope makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tianji_mw.cache.tenant import tenant_of_key
from tianji_mw.identity.base import Identity
from tianji_mw.identity.keys import digest

if TYPE_CHECKING:
    from tianji_mw.cache.rules import CacheRules
    from tianji_mw.config.settings import Settings

#: What names a tenant in a request.
FIELDS: Final = ("organization_id", "team_id", "key_alias", "key_hash", "key", "end_user")

Tenant = tuple[str, ...]


class BadPurge(Exception):
    """A purge that cannot be understood, or would take more than it says; the message says why."""


class Tenants:
    """The tenants of one cache, as far as the config knows their keys."""

    def __init__(self, rules: CacheRules, settings: Settings) -> None:
        self._rules = rules
        self._all = [
            Identity(
                key_hash=entry.key_sha256 or (digest(entry.key.reveal()) if entry.key and entry.key.ready else ""),
                alias=entry.alias or "",
                team=entry.team or "",
                metadata={"organization_id": entry.organization_id or entry.metadata.get("organization_id")},
            )
            for entry in settings.virtual_keys
        ]
        master = settings.general_settings.master_key
        if master is not None and master.ready:
            self._all.append(Identity(key_hash=digest(master.reveal()), alias="master", admin=True))

    def named(self, given: Mapping[str, str]) -> list[Tenant]:
        """The tenants that these fields name; an empty one where none is named, which is all. Raises BadPurge."""
        named = {name: given[name] for name in FIELDS if name in given}
        user = named.pop("end_user", "")
        if self._rules.scope == "end_user" and (user or named):
            if not user:
                raise BadPurge("answers are of end users (cache_scope: end_user): name the 'end_user' as well")
            if self._rules.keyless:
                return [("keyless", "end_user", user)]
            if not named:
                raise BadPurge("an end user is one of a key: name the 'key_alias' or the 'key_hash' as well")
            return [(*tenant, "end_user", user) for tenant in self._of(named)]
        if user:
            raise BadPurge("'end_user' tells answers apart only with cache_scope: end_user")
        return self._of(named) if named else [()]

    def _of(self, named: Mapping[str, str]) -> list[Tenant]:
        if self._rules.keyless or self._rules.tenant is not None:
            raise BadPurge("this cache knows no keys and teams: leave them away")
        scope = self._rules.scope
        meant = [who for who in self._all if all(_is(who, name, value) for name, value in named.items())]
        if not meant:
            return [self._unknown(named)]
        found = {tenant_of_key(who, scope) for who in meant}
        if any(tenant_of_key(who, scope) in found for who in self._all if who not in meant):
            raise BadPurge(f"others share these answers (cache_scope: {scope}): name all who do, such as their team")
        return sorted(found)

    def _unknown(self, named: Mapping[str, str]) -> Tenant:
        """A tenant whose keys are not in the config."""
        if len(named) > 1 or "key_alias" in named:
            raise BadPurge("no virtual key of the config is meant by that")
        (name, value), scope = next(iter(named.items())), self._rules.scope
        if scope == "global":
            raise BadPurge("all callers share their answers (cache_scope: global): leave this away")
        if name in ("key", "key_hash"):
            return ("key", digest(value) if name == "key" else value)
        if (name, scope) in (("team_id", "team"), ("team_id", "org")):
            return ("team", value)
        if (name, scope) == ("organization_id", "org"):
            return ("org", value)
        raise BadPurge(f"answers are not kept by that (cache_scope: {scope}), and no virtual key of the config has it")


def _is(who: Identity, name: str, value: str) -> bool:
    match name:
        case "organization_id":
            return who.metadata.get("organization_id") == value
        case "team_id":
            return who.team == value
        case "key_alias":
            return who.alias == value
        case _:
            return who.key_hash == (digest(value) if name == "key" else value)
