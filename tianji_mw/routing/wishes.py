"""What a request may say about its own routing: fields of its body and LiteLLM's headers.

Most requests say nothing: that is one look at their fields and one at their headers. None of it can set an address, a
key or a tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tianji_mw.errors import InvalidRequest

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
_FIELDS: Final = frozenset({"num_retries", "disable_fallbacks", "priority", TELL_ERRORS, *FALLBACKS, *MOCKED})
_RETRIES: Final = frozenset({b"x-litellm-num-retries", b"x-tianji-num-retries"})
_PRIORITY: Final = frozenset({b"x-litellm-priority", b"x-tianji-priority"})
_HEADERS: Final = _RETRIES | _PRIORITY
#: A client may not ask for more.
MOST_RETRIES: Final = 10
LAST: Final = 255


class Wishes:
    """On the notes of a call that says something."""


def speaks(call: Call) -> bool:
    """Whether the request says anything about its routing."""
    return not (_FIELDS.isdisjoint(call.request) and call.headers.isdisjoint(_HEADERS))


def asked_retries(call: Call) -> int | None:
    """The request's own `num_retries`. Raises InvalidRequest."""
    return _asked(call, "num_retries", _RETRIES, MOST_RETRIES)


def asked_priority(call: Call) -> int | None:
    """The request's own `priority`; the lowest number goes first. Raises InvalidRequest."""
    return _asked(call, "priority", _PRIORITY, LAST)


def _asked(call: Call, name: str, headers: frozenset[bytes], most: int) -> int | None:
    """A number in a field of the request, else in one of these headers."""
    value = call.request.get(name)
    if value is None:
        if call.headers.isdisjoint(headers):
            return None
        text = next((found for header in sorted(headers) if (found := call.headers.get(header.decode()))), "")
        value = int(text) if text.isdecimal() and len(text) < 4 else text
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidRequest(f"'{name}' must be a whole number from 0 to {most}.", param=name)
    return value
