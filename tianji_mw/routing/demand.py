"""How much a request will ask of a deployment, before anybody has counted: an estimate, made once per call.

Prompts count four bytes of UTF-8 a token (English within about 15%, CJK a little too low); files and images a fixed
sum. Answers are expected to be as long as those the model gave lately, within the request's own limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from tianji_mw.apis.base import JSON

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Of an answer whose model has not answered yet.
FIRST_OUTPUT: Final = 256
_BYTES_PER_TOKEN: Final = 4
#: OpenAI counts 85 to 1,105 for an image in usual sizes.
_PER_FILE: Final = 765
_PER_MESSAGE: Final = 4
#: What follows the messages of a chat, and begins the answer; with this, OpenAI's 8 tokens of "hi" are 8.
_PER_CHAT: Final = 3
#: Parts of a request that become the prompt.
_SPOKEN: Final = ("messages", "input", "prompt", "system", "instructions", "tools", "query", "documents")
_LIMITS: Final = frozenset({"max_completion_tokens", "max_tokens", "max_output_tokens"})
#: Fields that hold a file: base64, or an address that is fetched elsewhere.
_FILES: Final = frozenset({"image_url", "input_audio", "file", "source", "inline_data", "file_data", "input_image"})


class Demand:
    """What one call asks for; `demand_of` makes it. The prompt is only counted when somebody wants to know."""

    # It stands in the call's notes, and so holds the request and not the call: a circle would be the collector's work.
    __slots__ = ("_input", "_request", "most_output")

    def __init__(self, call: Call) -> None:
        request = self._request = call.request
        self._input: int | None = None
        #: The request's own limit of the answer; None where it has none. Embeddings and the like write none.
        self.most_output: int | None = None if call.api.streams else 0
        for name in () if _LIMITS.isdisjoint(request) else _LIMITS:
            limit = request.get(name)
            if type(limit) is int and limit > 0 and (self.most_output is None or limit < self.most_output):
                self.most_output = limit

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt."""
        if self._input is None:
            request = self._request
            self._input = tokens_of([request[name] for name in _SPOKEN if name in request])
            if request.get("messages"):
                self._input += _PER_CHAT
        return self._input

    def output(self, usual: float) -> float:
        """Tokens of the answer where answers usually have `usual`."""
        return usual if self.most_output is None else min(usual, self.most_output)

    def total(self, usual: float) -> int:
        """Tokens of the whole call."""
        return self.input_tokens + round(self.output(usual))


def demand_of(call: Call) -> Demand:
    """The call's demand, made at the first question."""
    found = call.notes.get(Demand)
    if found is None:
        found = call.notes[Demand] = Demand(call)
    return cast(Demand, found)


def tokens_of(value: JSON) -> int:
    """Tokens of a part of a request."""
    size = files = messages = 0
    stack = [value]
    while stack:
        found = stack.pop()
        if isinstance(found, str):
            size += len(found) if found.isascii() else len(found.encode("utf-8", "replace"))
        elif isinstance(found, list):
            if found and type(found[0]) is int:
                size += _BYTES_PER_TOKEN * len(found)  # a prompt that is tokens already
            else:
                stack.extend(found)
        elif isinstance(found, dict):
            messages += "role" in found
            for name, inner in found.items():
                if name in _FILES:
                    files += 1
                elif name not in ("role", "type", "id"):
                    stack.append(inner)
    return -(-size // _BYTES_PER_TOKEN) + files * _PER_FILE + messages * _PER_MESSAGE
