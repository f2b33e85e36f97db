"""A Redis server whose every answer is the test's, for what a real one does not do on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.tcp import TcpServer

#: Bytes to send; None closes the connection without an answer.
Answer = Callable[[list[bytes]], bytes | None]


class FakeRedis(TcpServer):
    """Answers each command with `answer(command)`, and notes it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(self._serve)
        self.answer = answer
        self.commands: list[list[bytes]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            command = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                command.append((await reader.readexactly(size + 2))[:-2])
            self.commands.append(command)
            answer = self.answer(command)
            if answer is None:
                return
            writer.write(answer)

    def asked(self, name: str) -> int:
        """How many commands of this name came."""
        return sum(command[0].upper() == name.encode() for command in self.commands)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)


def slots(*ranges: tuple[int, int, int]) -> bytes:
    """An answer to CLUSTER SLOTS: first slot, last slot, port."""
    parts = [
        b"*3\r\n:%d\r\n:%d\r\n*3\r\n%s:%d\r\n%s" % (first, last, bulk(b"127.0.0.1"), port, bulk(b"id"))
        for first, last, port in ranges
    ]
    return b"*%d\r\n%s" % (len(parts), b"".join(parts))
