"""Whose answers a purge means: the tenants that a team, a key or an organisation stands for in each scope."""

from __future__ import annotations

import hashlib

import pytest

from sidecar.cache_tenants import BadPurge, Tenants
from tianji_mw.cache.rules import CacheRules
from tianji_mw.cache.tenant import CacheScope
from tianji_mw.config import loads

KEYS = """
general_settings: {master_key: sk-master}
virtual_keys:
  - {key: sk-a, alias: a, team: red}
  - {key: sk-b, alias: b, team: red, organization_id: acme}
  - {key: sk-c, alias: c, team: blue, organization_id: acme}
  - {key: sk-d, alias: d}
"""


def hashed(name: str) -> tuple[str, str]:
    return ("key", hashlib.sha256(f"sk-{name}".encode()).hexdigest())


def tenants(scope: CacheScope, keys: str = KEYS, *, keyless: bool = False) -> Tenants:
    return Tenants(CacheRules(scope=scope, keyless=keyless), loads(keys, env={}))


@pytest.mark.parametrize(
    ("scope", "given", "found"),
    [
        ("team", {}, [()]),
        ("team", {"model_group": "gpt"}, [()]),
        ("team", {"team_id": "red"}, [("team", "red")]),
        ("team", {"team_id": "elsewhere"}, [("team", "elsewhere")]),
        ("team", {"key_alias": "c"}, [("team", "blue")]),
        ("team", {"key_alias": "d"}, [hashed("d")]),
        ("team", {"key": "sk-master"}, [hashed("master")]),
        ("team", {"key_hash": hashed("d")[1]}, [hashed("d")]),
        ("team", {"key_hash": "0" * 64}, [("key", "0" * 64)]),
        ("org", {"organization_id": "acme"}, [("org", "acme")]),
        ("org", {"organization_id": "elsewhere"}, [("org", "elsewhere")]),
        ("org", {"key_alias": "a"}, [("team", "red")]),
        ("key", {"team_id": "red"}, sorted([hashed("a"), hashed("b")])),
        ("key", {"organization_id": "acme", "team_id": "blue"}, [hashed("c")]),
        ("end_user", {"key_alias": "a", "end_user": "u1"}, [(*hashed("a"), "end_user", "u1")]),
        ("end_user", {}, [()]),
    ],
)
def test_named(scope: CacheScope, given: dict[str, str], found: list[tuple[str, ...]]) -> None:
    assert tenants(scope).named(given) == found


@pytest.mark.parametrize(
    ("scope", "given", "told"),
    [
        ("team", {"key_alias": "a"}, "others share these answers (cache_scope: team)"),
        ("team", {"key_alias": "nobody"}, "no virtual key of the config is meant"),
        ("team", {"organization_id": "elsewhere"}, "cache_scope: team"),
        ("team", {"end_user": "u1"}, "only with cache_scope: end_user"),
        ("org", {"team_id": "blue", "key_alias": "c"}, "others share these answers (cache_scope: org)"),
        ("global", {"team_id": "red"}, "others share these answers (cache_scope: global)"),
        ("global", {"team_id": "elsewhere"}, "all callers share their answers"),
        ("end_user", {"key_alias": "a"}, "name the 'end_user' as well"),
        ("end_user", {"end_user": "u1"}, "name the 'key_alias'"),
    ],
)
def test_what_would_take_more_than_it_says_is_refused(scope: CacheScope, given: dict[str, str], told: str) -> None:
    with pytest.raises(BadPurge) as error:
        tenants(scope).named(given)
    assert told in str(error.value)


def test_without_keys() -> None:
    with pytest.raises(BadPurge, match="knows no keys"):
        tenants("team", "{}", keyless=True).named({"team_id": "red"})
    assert tenants("end_user", "{}", keyless=True).named({"end_user": "u"}) == [("keyless", "end_user", "u")]
