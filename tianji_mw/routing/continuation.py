"""A stream that broke off in the middle goes on at another deployment: an option, off by default.

The text that was delivered becomes the beginning of the assistant's turn, and a model that continues such a turn
(`supports_assistant_prefill`) writes the rest. Only plain text can be continued: no tools, no JSON, no reasoning.
What was delivered is never sent twice, and the client sees one stream. The prompt is paid for twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tianji_mw.frames import FRAMES_KEY, Annotation, Frame

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.apis.base import JSON
    from tianji_mw.call import Call

#: Fields that make of an answer something else than text.
_NO_TEXT: Final = ("tools", "functions", "response_format", "logprobs", "audio", "prediction", "reasoning_effort")
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_BYTES_PER_TOKEN: Final = 4


def may_continue(call: Call) -> bool:
    """Whether this call's answer could be continued."""
    request = call.request
    if call.api.name != "chat_completions" or not call.stream or request.get("n") not in (None, 1):
        return False
    return not any(request.get(name) for name in _NO_TEXT)


class Delivery:
    """The client's `send`, over several attempts: keeps the text, and holds back the end of a stream that broke off."""

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self._text: list[str] = []
        self._ending: list[Message] = []
        self._id: JSON = None
        #: A later attempt writes: its head, its role and its ids are not the stream's.
        self._resumed = False
        #: It has not written yet.
        self._waits = False
        self._trim = False
        #: Nothing but text was delivered.
        self._plain = True

    @property
    def broken(self) -> bool:
        """Whether the stream stopped in the middle, and could be continued."""
        return bool(self._ending) and self._plain and bool(self._text) and not self._call.gone

    @property
    def text(self) -> str:
        """What was delivered."""
        return "".join(self._text)

    async def __call__(self, message: Message) -> None:
        note: Annotation | None = message.get(FRAMES_KEY)
        if self._waits:
            self._ending, self._waits = [], False
        if self._ending:
            self._ending.append(message)
        elif message["type"] == "http.response.start":
            if not self._resumed:
                await self._send(message)
        elif self._breaks(message, note):
            self._ending.append(message)
        elif note is not None and self._resumed:
            await self._join(message, note.frames)
        else:
            self._note(note.frames if note is not None else ())
            await self._send(message)

    def _breaks(self, message: Message, note: Annotation | None) -> bool:
        """Whether this message ends the stream without its end."""
        if note is not None and any(frame.kind == "error" for frame in note.frames):
            return True
        if message.get("more_body", False) or not self._call.attempts:
            return False
        # An attempt that lost a race is cancelled while the other one answers.
        error = self._call.attempts[-1].error
        return error is not None and not isinstance(error, asyncio.CancelledError)

    def _note(self, frames: list[Frame] | tuple[Frame, ...]) -> None:
        for frame in frames:
            if frame.kind == "text":
                self._text.append(frame.text)
            elif frame.kind in ("tool", "thinking"):
                self._plain = False
            if self._id is None and isinstance(frame.data, dict):
                self._id = frame.data.get("id")

    async def _join(self, message: Message, frames: list[Frame]) -> None:
        """Send frames of a later attempt as a part of the same stream."""
        kept: list[Frame] = []
        for frame in frames:
            data = frame.data
            if not isinstance(data, dict):
                kept.append(frame)
                continue
            if frame.kind == "other" and data.get("choices"):
                continue  # the role is known
            edited = {**data, "id": self._id} if self._id is not None else dict(data)
            if self._trim and frame.kind == "text":
                edited, self._trim = _trimmed(edited), False
            frame.edit(edited)
            kept.append(frame)
        self._note(kept)
        body = b"".join(frame.raw for frame in kept)
        for frame in kept:
            frame.dirty = False
        await self._send({**message, "body": body, FRAMES_KEY: Annotation(body, kept)})

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Inside, the request asks for the rest, and what comes is written by another attempt."""
        self._resumed = self._waits = True
        # A turn that is continued may not end in white space: providers cut it off, and write it again.
        self._trim = self.text[-1:].isspace()
        request = self._call.edit()
        asked = dict(request)
        request.update(continued(asked, self.text))
        try:
            yield
        finally:
            self._call.edit().update(asked)

    async def give_up(self) -> None:
        """Nobody continues: the stream ends as it broke off."""
        ending, self._ending = self._ending, []
        for message in ending:
            await self._send(message)


def continued(request: dict[str, JSON], text: str) -> dict[str, JSON]:
    """The request with what was delivered as the beginning of the answer."""
    turn = {"role": "assistant", "content": text}
    out = {**request, "messages": [*request["messages"], turn]}
    for name in _LIMITS:
        if type(limit := request.get(name)) is int:
            out[name] = max(1, limit - len(text.encode()) // _BYTES_PER_TOKEN)
    return out


def _trimmed(data: dict[str, JSON]) -> dict[str, JSON]:
    choice = data["choices"][0]
    content = choice["delta"].get("content")
    if not isinstance(content, str):
        return data  # text in another form, as a refusal
    content = content.lstrip()
    return {**data, "choices": [{**choice, "delta": {**choice["delta"], "content": content}}]}
