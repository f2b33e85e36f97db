"""A hypercorn over TLS, as a process: `h2_server.py PORT CERT KEY ALPN,ALPN`. Answers with path and version."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    # All of it: hypercorn fails over data that comes for a stream that has been answered.
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"x-got", b"%d" % len(body)), (b"x-version", scope["http_version"].encode())]
    headers.append((b"x-port", b"%d" % scope["client"][1]))  # one for each connection
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"!", "more_body": False})


if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.certfile, config.keyfile = sys.argv[2:4]
    config.alpn_protocols = sys.argv[4].split(",")
    asyncio.run(serve(app, config))  # type: ignore[arg-type]
