"""Plain ASGI apps for tests, with an answer of their own instead of a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson


class SSEApp:
    """A plain ASGI app that answers with these parts; it reads its request first, as frameworks do."""

    def __init__(
        self, parts: Sequence[bytes], *, content_type: str = "text/event-stream", status: int = 200, headers: Any = ()
    ) -> None:
        self.parts = list(parts)
        self.requests: list[bytes] = []
        self.scopes: list[Any] = []
        self.head = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type.encode()), *headers],
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(body)
        await send({**self.head, "headers": list(self.head["headers"])})
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_app(answer: Any, **options: Any) -> SSEApp:
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    length = [(b"content-length", b"%d" % len(body))]
    return SSEApp([body], content_type="application/json", headers=length, **options)
