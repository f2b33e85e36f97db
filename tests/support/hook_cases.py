"""What the tests of alerts over HTTP share."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st

from tests.support.records import undelivered
from tianji_mw.callbacks.base import Callback, NotDelivered, Record
from tianji_mw.callbacks.ms_teams import MSTeams
from tianji_mw.callbacks.slack import Slack
from tianji_mw.callbacks.webhook import Webhook
from tianji_mw.testing import FakeLLM, Received

#: Parts of an address that no error may show.
PATH = "/services/T00SECRET/B00SECRET/xxSECRETxx"


SECRET = "shared-signing-secret"


Start = Callable[..., Awaitable[Any]]


def texts(hook: FakeLLM) -> list[str]:
    return [request.json["text"] for request in hook.requests]


async def failure(callback: Callback, *batch: Record) -> NotDelivered:
    failed = await undelivered(callback, batch)
    assert "SECRET" not in f"{failed.message} {failed!r} {failed.__cause__!r}"
    assert "It is down" not in failed.message
    return failed


def each(url: str, **fields: Any) -> list[Callback]:
    return [
        Slack(webhook_url=url, **fields), MSTeams(webhook_url=url, **fields), Webhook(url=url, secret=SECRET, **fields),
    ]  # fmt: skip


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50) | st.lists(
    st.sampled_from(["<!channel>", "<@U1>", "<https://evil.io|bank>", "&lt;", "`", "\n", "@everyone", "[a](b)", "a"]),
    max_size=6,
).map("".join)  # fmt: skip


def genuine(request: Received, secret: str = SECRET) -> bool:
    """How a receiver checks a request."""
    signed = request.headers["x-tianji-timestamp"].encode() + b"." + request.body
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"sha256={expected}", request.headers["x-tianji-signature"])
