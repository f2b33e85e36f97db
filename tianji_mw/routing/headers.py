"""What an answer says of its routing: LiteLLM's `x-litellm-*` headers. The fixed ones are made once, as bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tianji_mw import redact
from tianji_mw.routing.base import Deployment

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.routing.failure import Failure

RawHeader = tuple[bytes, bytes]

_RETRIES: Final = b"x-litellm-attempted-retries"
_FALLBACKS: Final = b"x-litellm-attempted-fallbacks"
_MOST: Final = b"x-litellm-max-retries"
_NONE: Final = ((_RETRIES, b"0"), (_FALLBACKS, b"0"))
#: What no header may hold (RFC 9110, section 5.5): servers refuse the whole answer for it.
_CONTROLS: Final = dict.fromkeys([*range(32), 127])
_REMEMBERED: Final = 10_000
_LONGEST_ERROR: Final = 300
#: Names of LiteLLM's exceptions, where they are not the kind and "Error".
_TYPES: Final = {"Timeout": "Timeout", "ContextWindow": "ContextWindowExceededError"}


class Told:
    """Headers by deployment and group."""

    __slots__ = ("_fixed",)

    def __init__(self) -> None:
        self._fixed: dict[tuple[Deployment, str], list[RawHeader]] = {}

    def answer(
        self, call: Call, deployment: Deployment, tried: Sequence[str], retries: int, most: int | None
    ) -> list[RawHeader]:
        """Those of an answer that this deployment gave as the last of these groups."""
        fixed = self._fixed.get((deployment, tried[-1]))
        if fixed is None:
            if len(self._fixed) >= _REMEMBERED:
                self._fixed.clear()  # names behind a `*` are the clients'
            fixed = self._fixed[deployment, tried[-1]] = _fixed(deployment, tried[-1])
        timings, now = call.timings, call.runtime.clock()
        upstream = timings.first_upstream_byte - timings.sent_upstream if timings.first_upstream_byte else 0
        counted = _NONE if not retries and len(tried) == 1 else _counted(tried, retries, most)
        return [
            *fixed,
            *counted,
            (b"x-litellm-call-id", call.id.encode("latin-1", "replace")),
            (b"x-litellm-response-duration-ms", b"%.3f" % ((now - timings.received) / 1e6)),
            (b"x-litellm-overhead-duration-ms", b"%.3f" % ((now - timings.received - upstream) / 1e6)),
        ]


def of_fallbacks(failures: Sequence[Failure]) -> RawHeader:
    """The errors that led to the group that answers, for a client that asks for them: what it would have been told."""
    told = [
        {
            "message": str(failure.error or failure.reason)[:_LONGEST_ERROR],
            "type": _TYPES.get(failure.kind, f"{failure.kind}Error"),
            "param": None,
            "code": str(failure.status),
        }
        for failure in failures
    ]
    return b"x-litellm-fallback-errors", json.dumps(told).encode("ascii")


def of_failure(tried: Sequence[str], retries: int, most: int | None) -> dict[str, str]:
    """Those of an error after all attempts."""
    group = [(b"x-litellm-model-group", _clean(tried[-1]))]
    return {k.decode(): v.decode("latin-1") for k, v in [*group, *_counted(tried, retries, most)]}


def _fixed(deployment: Deployment, group: str) -> list[RawHeader]:
    provider = deployment.provider
    name = provider.name if "*" in deployment.model else f"{provider.name}/{deployment.model}"
    found = {
        b"x-litellm-model-id": deployment.id,
        b"x-litellm-model-name": name,
        b"x-litellm-model-api-base": redact.url(provider.base).partition("?")[0],
        b"x-litellm-model-group": group,
        b"x-litellm-model-region": deployment.region,
    }
    return [(header, _clean(value)) for header, value in found.items() if value]


def _counted(tried: Sequence[str], retries: int, most: int | None) -> list[RawHeader]:
    found = [(_RETRIES, b"%d" % retries), (_FALLBACKS, b"%d" % (len(tried) - 1))]
    return found if most is None else [*found, (_MOST, b"%d" % most)]


def _clean(text: str) -> bytes:
    return text.translate(_CONTROLS).strip().encode("latin-1", "replace").strip()
