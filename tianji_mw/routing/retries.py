"""Whether to try again within a group, and after what time. The counts are the config's, the time the upstream's.

A group may only spend a share of its calls on retries once nothing succeeds any more: without that limit, retries
multiply the load of an upstream that is down by three.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tianji_mw.routing.base import Deployment
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.wishes import asked_retries

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Waits without a word of the upstream: 0.5 s, doubled, at most 8 s, as OpenAI's SDKs do.
_FIRST_S: Final = 0.5
_LONGEST_S: Final = 8.0
_DOUBLINGS: Final = 10
#: Added at random, so that callers who failed together do not come back together.
_JITTER_S: Final = 0.75
#: Retries that a group may make at once after a quiet time.
_SAVED: Final = 100.0


class RetryBudget:
    """A group's account: each call that succeeds pays one in, one that fails a share; each retry takes one out."""

    __slots__ = ("_left", "_share")

    def __init__(self, share: float) -> None:
        self._share, self._left = share, _SAVED

    def succeeded(self) -> None:
        self._left = min(_SAVED, self._left + 1.0)

    def failed(self) -> None:
        self._left = min(_SAVED, self._left + self._share)

    def spend(self) -> bool:
        """Whether one more retry is left, which is spent then."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def retries_of(call: Call, rules: RoutingRules, deployment: Deployment, group: str, failure: Failure) -> int:
    """How many retries this failure may have: the request's word, the deployment's, the policy's, the router's."""
    asked = asked_retries(call)
    if asked is not None:
        return asked
    if deployment.num_retries is not None:
        return deployment.num_retries
    for policy in (rules.retry_policy_of.get(group), rules.retry_policy):
        if policy is not None and (found := policy.get(failure.kind)) is not None:
            return found
    return rules.num_retries


def has_policy(rules: RoutingRules, group: str, failure: Failure) -> bool:
    """Whether a retry policy speaks of this kind of error; it goes before the rule which errors are worth a retry."""
    return failure.kind in rules.retry_policy_of.get(group, ()) or failure.kind in rules.retry_policy


def wait_s(call: Call, rules: RoutingRules, failure: Failure, retry: int, *, others: bool) -> float:
    """Seconds before the retry; infinity where it would be too long. `others`: somebody else is there to ask."""
    if others:
        return 0.0
    jitter = call.runtime.rng.random() * _JITTER_S
    if failure.wait_s is not None and failure.wait_s > 0:
        if failure.wait_s > rules.longest_wait_s:
            return math.inf
        return max(failure.wait_s + jitter, rules.retry_after_s)
    return max(min(_FIRST_S * 2.0 ** min(retry, _DOUBLINGS), _LONGEST_S) + jitter, rules.retry_after_s)
