"""What a cache's settings mean for one call: whether it may be answered from it, and under which key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tianji_mw.apis.base import JSON
from tianji_mw.cache.controls import Controls, controls_of
from tianji_mw.cache.key import KeyMaker, body_of
from tianji_mw.cache.storable import APIS, unfit
from tianji_mw.cache.tenant import CacheScope, tenant_of

if TYPE_CHECKING:
    from tianji_mw.call import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """The settings of a cache that stores have nothing to do with. Times are in seconds."""

    ttl_s: float = 3600.0
    #: So long after its end an answer may still be given while a new one is fetched.
    stale_while_revalidate_s: float = 0.0
    #: So long after its end an answer may still be given where a new one cannot be had.
    stale_if_error_s: float = 0.0
    #: False: only calls that ask for it use the cache.
    default_on: bool = True
    scope: CacheScope = "team"
    #: There are no keys here: all calls are of one tenant.
    keyless: bool = False
    #: Who a call's tenant is, where an app of one's own knows it; in the place of `scope`.
    tenant: Callable[[Call], str | None] | None = None
    namespace: str = "tianji"
    #: Names of the APIs whose answers are kept.
    apis: frozenset[str] = APIS
    #: Answers about media at an address are kept, although what is there may change.
    remote_media: bool = False
    #: Bytes of an answer that may be kept.
    max_item_bytes: int = 8 << 20
    #: Models that count as one: each name, and the group's.
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class Plan:
    """How one call uses the cache."""

    key: str
    controls: Controls
    tenant: tuple[str, ...]
    #: The request as far as it decides the answer.
    body: dict[str, JSON]
    #: Of a call whose answer consists of items: a key for each.
    items: Sequence[str] = ()
    #: It fetches a new answer for an entry that is stale.
    refresh: bool = False


class Planner:
    """Makes the plans of one cache."""

    __slots__ = ("keys", "rules")

    def __init__(self, rules: CacheRules) -> None:
        self.rules = rules
        self.keys = KeyMaker(rules.namespace, rules.groups)

    def tenant(self, call: Call) -> tuple[str, ...] | None:
        """The tenant of a call; None where nobody knows it."""
        rules = self.rules
        if rules.tenant is None:
            return tenant_of(call, rules.scope, keyless=rules.keyless)
        named = rules.tenant(call)
        return ("app", named) if named else None

    def plan(self, call: Call) -> Plan | str:
        """The plan, or why the cache is not used. Raises InvalidRequest, PermissionDenied."""
        controls = controls_of(call, default_on=self.rules.default_on)
        if not controls.used:
            return "not-asked" if not self.rules.default_on else "asked-not-to"
        tenant = self.tenant(call)
        if tenant is None:
            return "no-tenant"
        if reason := unfit(call, remote_media=self.rules.remote_media):
            return reason
        api, model = call.api.name, call.model
        items = call.request.get("input") if api == "embeddings" else None
        body = body_of(api, call.request, frozenset({"input"}) if items is not None else frozenset())

        def key(body: JSON) -> str:
            return self.keys.make(api, model, tenant, controls.namespace, call.vary, body)

        if items is None:
            return Plan(key=key(body), controls=controls, tenant=tenant, body=body)
        listed = items_of(items)
        keys = [key({**body, "input": item}) for item in listed]
        whole = keys[0] if len(keys) == 1 else key({**body, "inputs": listed})
        return Plan(key=whole, controls=controls, tenant=tenant, body=body, items=keys)


def items_of(given: JSON) -> list[JSON]:
    """What an embedding is asked of, one by one: a text, texts, token ids, or lists of them."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return given
    return [given]
