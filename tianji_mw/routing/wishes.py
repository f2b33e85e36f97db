"""What a request may say about its own routing: fields of its body and LiteLLM's headers.

Most requests say nothing: that is one look at their fields and one at their headers. None of it can set an address, a
key or a tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Switches by which a client tries its fallbacks out: the status and code of the failure that they ask for.
MOCKED: Final[dict[str, tuple[int, str | None]]] = {
    "mock_testing_fallbacks": (500, None),
    "mock_testing_context_fallbacks": (400, "context_length_exceeded"),
    "mock_testing_content_policy_fallbacks": (400, "content_policy_violation"),
    "mock_testing_rate_limit_error": (429, "rate_limit_exceeded"),
}
#: Fields by which it names other model groups.
FALLBACKS: Final = frozenset({"fallbacks", "context_window_fallbacks", "content_policy_fallbacks"})
#: Asks for the errors that led to a fallback, in a header of the answer.
TELL_ERRORS: Final = "include_fallback_errors"
_FIELDS: Final = frozenset({"num_retries", "disable_fallbacks", TELL_ERRORS, *FALLBACKS, *MOCKED})
_HEADERS: Final = frozenset({b"x-litellm-num-retries", b"x-tianji-num-retries"})


class Wishes:
    """On the notes of a call that says something."""


def speaks(call: Call) -> bool:
    """Whether the request says anything about its routing."""
    return not (_FIELDS.isdisjoint(call.request) and call.headers.isdisjoint(_HEADERS))
