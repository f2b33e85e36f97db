"""Affinity: the deployment that served a session, a key or a prompt's beginning before serves it again.

LiteLLM's `optional_pre_call_checks`, in this order: the answer that a request continues, encrypted reasoning that it
brings back, its session, the beginning of its prompt, its API key. A pinned deployment that may not be used now is
passed over. Each caller has pins of its own: who knows another's session id moves nothing of theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tianji_mw.routing.answer import MOST_SEALS, Answer, seals_in
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.beginnings import LEAST_TOKENS, Beginnings, beginnings_of
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.pin_table import PinTable
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.routing.shared import Shared

#: Seconds for which providers keep a prompt they have read; and for which we know who can continue an answer.
_PROMPT_S: Final = 300.0
_ANSWER_S: Final = 86_400.0
#: A longer session id is remembered by its hash.
_LONGEST: Final = 256
#: Beginnings of one prompt that Redis is asked for.
_ASKED: Final = 16
_CONVERSATIONS: Final = frozenset({"chat_completions", "messages", "responses"})
_BY_ID: Final = "affinity by id"


#: Where pins of a call are looked up, under which keys, and the prompt that they are of. A plain tuple: made for each
#: call, a NamedTuple costs five times as much.
_Place = tuple[PinTable, Sequence[str], Beginnings | None]


class _Places:
    """`call.note(_Places)`: those of a call, in one group."""

    __slots__ = ("asked", "found", "group")

    def __init__(self) -> None:
        self.group: str | None = None
        self.found: list[_Place] = []
        #: Redis was asked.
        self.asked = False


class Pins:
    """`inflight`: calls that each deployment serves now; a cached prompt is not worth a long wait."""

    def __init__(
        self,
        rules: RoutingRules,
        runtime: Runtime,
        shared: Shared | None = None,
        inflight: Mapping[Deployment, int] | None = None,
    ) -> None:
        #: Whether there is anything to do.
        self.used = any((rules.affinity, *rules.affinity_of.values()))
        self.inflight: Mapping[Deployment, int] = {} if inflight is None else inflight
        self._rules = rules
        self._shared = shared.pins if shared is not None else None
        self._answers, self._sessions, self._prompts, self._keys = (
            PinTable(ttl_s, runtime, self._shared)
            for ttl_s in (_ANSWER_S, rules.affinity_ttl_s, _PROMPT_S, rules.affinity_ttl_s)
        )

    async def of(self, call: Call, group: str, candidates: Candidates) -> Deployment | None:
        """The candidate that the call is pinned to; None where it is to none of them."""
        places = self._places(call, group)
        if self._shared is not None and not places.asked:
            places.asked = True
            await self._ask(places.found, candidates)
        for place in places.found:
            pinned = self._pinned(place, candidates)
            if pinned is not None:
                return pinned
        return None

    def keep(self, call: Call, group: str, deployment: Deployment) -> None:
        """It has answered the call."""
        if call.gone:
            return
        repin = self._rules.affinity_repin
        for table, keys, prompt in self._places(call, group).found:
            if prompt is not None:
                if keys:
                    table.keep(keys[0], deployment.id, move=True)  # it has read all of it just now
                keys = [*{prompt.stable, prompt.head}.difference(("", *keys[:1]))]
            elif table is self._answers:
                continue  # the answer before this one stays where it was given
            for key in keys:
                table.keep(key, deployment.id, move=repin)
        if Answer not in call.notes:
            return
        answer = call.note(Answer)
        keys = [_key("a", _tenant(call), group, answer.id)] if answer.id else []
        keys += dict.fromkeys(_key("e", _tenant(call), group, seal) for seal in answer.seals)
        for key in keys:
            self._answers.keep(key, deployment.id, move=True)

    # --- keys

    def _places(self, call: Call, group: str) -> _Places:
        places = call.note(_Places)
        if places.group != group:
            places.group, places.found, places.asked = group, self._found(call, group), False
        return places

    def _found(self, call: Call, group: str) -> list[_Place]:
        checks = self._rules.affinity_of.get(group, self._rules.affinity)
        identity = call.identity
        owner = identity.key_hash if identity is not None else ""
        found: list[_Place] = []
        if "responses_api_deployment_check" in checks and call.api.name == "responses":
            call.note(Answer).wants_id = True
            answer = call.request.get("previous_response_id")
            if isinstance(answer, str) and answer:
                found.append((self._answers, (_key("a", _tenant(call), group, answer),), None))
        if "encrypted_content_affinity" in checks and call.api.name == "responses":
            call.note(Answer).wants_seals = True
            given = call.request.get("input")
            seals = [*seals_in(given if isinstance(given, list) else ())][-MOST_SEALS:]
            if seals:  # the last one first: it tells who read all before it
                found.append((self._answers, [_key("e", _tenant(call), group, seal) for seal in reversed(seals)], None))
        if "session_affinity" in checks and (session := session_of(call)):
            found.append((self._sessions, (_key("s", owner, group, session),), None))
        if "prompt_caching" in checks and _is_long(call):
            prompt = beginnings_of(call.request, _key("p", _tenant(call), group, ""))
            found.append((self._prompts, prompt.keys, prompt))
        if "deployment_affinity" in checks and owner:
            found.append((self._keys, (_key("k", owner, group, ""),), None))
        return found

    # --- looking them up

    async def _ask(self, places: list[_Place], candidates: Candidates) -> None:
        """Ask Redis for what it may know better than memory: all that goes before the first pin that memory has."""
        missing: list[tuple[PinTable, str]] = []
        for place in places:
            table, keys, prompt = place
            # The head of a prompt says nothing of this conversation: another process may have served it.
            head = prompt.head if prompt is not None else None
            if any(table.find(key) is not None for key in keys if key != head):
                if self._pinned(place, candidates) is not None:
                    break
                continue
            if prompt is not None:
                keys = [*keys[:_ASKED], *{prompt.stable, prompt.head}.difference(("", *keys[:_ASKED]))]
            missing += [(table, key) for key in keys]
        if missing and self._shared is not None:
            found = await self._shared.find([key for _, key in missing])
            for (table, key), deployment_id in zip(missing, found, strict=True):
                if deployment_id is not None:
                    table.copy(key, deployment_id)

    def _pinned(self, place: _Place, candidates: Candidates) -> Deployment | None:
        table, keys, prompt = place
        by_id: dict[str, Deployment] | None = candidates.memo.get(_BY_ID)
        if by_id is None:
            by_id = candidates.memo[_BY_ID] = {deployment.id: deployment for deployment in candidates}
        for key in keys:
            deployment = by_id.get(table.find(key) or "")
            if deployment is None:
                continue
            if prompt is not None and self._crowded(deployment, candidates, common=key == prompt.head):
                return None
            return deployment
        return None

    def _crowded(self, deployment: Deployment, candidates: Candidates, *, common: bool) -> bool:
        """Whether waiting there costs more than reading the prompt anew elsewhere.

        What many conversations begin with is soon cached everywhere: that is worth no queue at all.
        """
        inflight = self.inflight
        own = inflight.get(deployment, 0)
        if own <= (1 if common else 4):
            return False
        mean = sum(inflight.get(candidate, 0) for candidate in candidates) / len(candidates)
        return own > mean + 1 if common else own > 2 * mean + 4


def _is_long(call: Call) -> bool:
    """Whether providers would keep its prompt."""
    return call.api.name in _CONVERSATIONS and demand_of(call).input_tokens >= LEAST_TOKENS


def session_of(call: Call) -> str:
    """The id of the call's session; empty where it names none."""
    request = call.request
    for name in ("metadata", "litellm_metadata"):
        metadata = request.get(name)
        if isinstance(metadata, dict) and (found := metadata.get("session_id")) and isinstance(found, str | int):
            return str(found)
    found = request.get("litellm_session_id")
    if found and isinstance(found, str):
        return found
    return call.headers.get("x-litellm-session-id") or call.headers.get("x-tianji-session-id") or ""


def _tenant(call: Call) -> str:
    """Whose prompts and answers are the same: a team's, for its keys work on the same things."""
    identity = call.identity
    return (identity.team or identity.key_hash) if identity is not None else ""


def _key(kind: str, owner: str, group: str, value: str) -> str:
    if len(value) > _LONGEST:
        value = hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"{kind}\0{owner}\0{group}\0{value}"
