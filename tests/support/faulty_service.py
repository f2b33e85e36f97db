"""A service of guardrails, of any of the vendors, that fails in the way that a test asks for.

One server stands for all: what it is asked says which vendor is meant. A case has a mark in its text (`case-7`), by
which questions are counted; of a case whose mark ends with `-heals`, only the first question fails.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from typing import Final, Self

import orjson

from tests.support.loopback import Loopback
from tests.support.tcp import reset
from tianji_mw.testing import Received, _read_request

#: Every way to fail; `refused` is an address where nobody listens.
FAULTS: Final = (
    "hangs", "html", "half json", "wrong shape", "list", "429", "500", "503", "closes", "resets", "cuts the body",
    "no http", "refused",
)  # fmt: skip
#: Nobody answers, or a gateway answers for the service.
UNREACHABLE: Final = frozenset({"hangs", "503", "closes", "resets", "cuts the body", "no http", "refused"})
#: Seconds of silence; whoever waits has to leave before.
_SILENCE_S: Final = 30.0
#: The mark of a case.
MARK: Final = re.compile(rb"case-[0-9]+(?:-heals)?")
_CATEGORIES: Final = ("Hate", "SelfHarm", "Sexual", "Violence")


def good(request: Received) -> dict[str, object]:
    """What the vendor answers to harmless texts."""
    asked, path = request.json, request.path
    if path.endswith("/moderations"):
        return {"results": [{"flagged": False, "categories": {}, "category_scores": {}} for _ in asked["input"]]}
    if "text:analyze" in path:
        return {"blocklistsMatch": [], "categoriesAnalysis": [{"category": c, "severity": 0} for c in _CATEGORIES]}
    if "text:shieldPrompt" in path:
        return {"userPromptAnalysis": {"attackDetected": False}, "documentsAnalysis": []}
    if path.endswith("/v2/guard"):
        return {"flagged": False}
    if path.endswith("/apply"):
        return {"action": "NONE", "outputs": [], "assessments": [], "usage": {}}
    return {"action": "NONE"} if "litellm" in path else {"action": "allow"}


class FaultyService(Loopback):
    """`async with FaultyService("503") as service:` listens on a free port of loopback.

    The first `healthy` questions of a case are answered well; `faults` are those of single cases.
    """

    def __init__(self, fault: str, *, healthy: int = 0) -> None:
        assert fault in FAULTS
        self.fault = fault
        self.healthy = healthy
        self.faults: dict[str, str] = {}
        #: Questions, by the mark of the case.
        self.asked: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        if self.fault == "refused":  # bound and not listening: nobody else can take the port meanwhile
            self._socket = socket.socket()
            self._socket.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        else:
            await super().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.fault == "refused":
            self._socket.close()
        else:
            await super().__aexit__(*exc)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                if not await self._answer(request, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """False when the connection ends with it."""
        found = MARK.search(request.body)
        mark = found[0].decode() if found else ""
        self.asked[mark] += 1
        if self.asked[mark] <= self.healthy or (mark.endswith("-heals") and self.asked[mark] > 1):
            writer.write(_response(200, orjson.dumps(good(request))))
            await writer.drain()
            return True
        return await self._fail(self.faults.get(mark, self.fault), writer)

    async def _fail(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        whole = _response(200, b'{"action": "NONE", "flagged": false}')
        match fault:
            case "hangs":
                await asyncio.sleep(_SILENCE_S)
            case "closes":
                pass
            case "resets":
                reset(writer)
            case "cuts the body":
                writer.write(whole[:-9])
            case "no http":
                writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
            case _:
                writer.write(_BAD[fault])
        if fault not in _BAD:
            return False
        await writer.drain()
        return True


def _response(status: int, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


_PAGE: Final = b"<html><body>case of a proxy</body></html>"
_BAD: Final = {
    "html": _response(200, _PAGE, "text/html"),
    "half json": _response(200, b'{"action": "NONE", "flagged": fal'),
    "wrong shape": _response(200, b'{"action": 5, "results": {}, "flagged": "no", "userPromptAnalysis": []}'),
    "list": _response(200, b'[{"action": "NONE"}]'),
    "429": _response(429, b'{"message": "slow down"}', more="retry-after: 7\r\n"),
    "500": _response(500, b'{"message": "broken"}'),
    "503": _response(503, _PAGE, "text/html"),
}
