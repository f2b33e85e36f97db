"""What a client is told of the cache. `x-litellm-*` as LiteLLM has them; `age` is HTTP's (RFC 9111, section 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import CacheUse


def mark(call: Call, use: CacheUse) -> None:
    """Set the headers of the answer; what was set before for the same call is replaced."""
    headers = call.response_headers
    headers["x-cache"] = use.status.upper()
    detail: str = use.status
    if use.key:
        headers["x-litellm-cache-key"] = use.key
    if use.answered:
        headers["age"] = age = str(int(use.age_s))
        headers["x-cache-type"] = use.kind
        headers["x-litellm-response-cost"] = "0"
        detail += f"; {use.kind}; age={age}" + ("; shared" if use.shared else "")
    else:
        for name in ("age", "x-cache-type", "x-litellm-response-cost"):
            headers.pop(name, None)
        if use.reason:
            detail += f"; reason={use.reason}"
    if use.similarity is not None:
        headers["x-litellm-semantic-similarity"] = f"{use.similarity:.4f}"
    headers["x-tianji-cache"] = detail
