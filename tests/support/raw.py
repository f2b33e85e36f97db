"""A raw upstream on loopback: sends the very bytes that a test asks for, packet by packet, and counts connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.loopback import Loopback

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(slots=True)
class Script:
    """What is sent for one request; `close` ends the connection after it, `later` comes a moment after that."""

    packets: Sequence[bytes]
    close: bool = False
    later: Sequence[bytes] = ()


@dataclass
class RawServer(Loopback):
    """`script` is asked with the request's path and its number on this server."""

    script: Callable[[str, int], Script]
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if found := _LENGTH.search(head):
                    await reader.readexactly(int(found[1]))
                path = head.split(b" ", 2)[1].decode()
                self.requests.append(path)
                script = self.script(path, len(self.requests))
                for packet in script.packets:
                    writer.write(packet)
                    await writer.drain()
                    await asyncio.sleep(0)
                for packet in script.later:
                    await asyncio.sleep(0.005)
                    writer.write(packet)
                    await writer.drain()
                if script.close:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has ended the connection
        finally:
            self.open -= 1
            writer.close()
