"""Serves the older text completions over a provider that speaks Chat Completions: the prompt becomes one user message.

A chat model answers a prompt, it does not continue it. So what only makes sense for continuing (`echo`, `suffix`,
`best_of`, several prompts, token ids) is refused. Thoughts and tool calls have no place in the answer.

Source: OpenAI API reference, "Completions" (legacy) and "Chat".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Bridge, Context, Event, StreamBridge, unsupported
from tianji_mw.bridges.shape import record, records, string, texts
from tianji_mw.errors import InvalidRequest, UnsupportedParams, UpstreamMalformed

#: Key of `Context.notes`: whether the client asked for a chunk with usage alone.
USAGE_CHUNK: Final = "completions_over_chat.usage_chunk"

_OWN: Final = frozenset({"prompt", "echo", "suffix", "best_of", "logprobs", "stream_options"})
_CONTINUING: Final = ("echo", "suffix", "best_of")
#: A completion ends for these reasons only; a chat's others mean that the model was done.
_REASONS: Final = ("stop", "length", "content_filter")


class CompletionsOverChat(Bridge):
    """Text completions for the client, Chat Completions for the upstream.

    >>> context = Context(call_id="1", model="m", created=0)
    >>> CompletionsOverChat().request({"model": "m", "prompt": ["Hello"]}, context)["messages"]
    [{'role': 'user', 'content': 'Hello'}]
    """

    def request(self, body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
        for name in _CONTINUING:
            # 1 is the default of `best_of` and asks for nothing.
            if body.get(name) and not (name == "best_of" and body[name] == 1):
                message = f"This provider has no text completions, and chat completions have no '{name}'."
                unsupported(name, context, UnsupportedParams(message, param=name))
        out = {key: value for key, value in body.items() if key not in _OWN and value is not None}
        out["messages"] = [{"role": "user", "content": _prompt(body.get("prompt"))}]
        if body.get("logprobs") is not None:
            # 0 asks for the chosen tokens alone.
            out |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        if body.get("stream"):
            out["stream_options"] = {"include_usage": True}
        context.notes[USAGE_CHUNK] = bool(record(body.get("stream_options")).get("include_usage"))
        return out

    def answer(self, body: JSON, context: Context) -> JSON:
        choices = records(record(body).get("choices"))
        if not choices or not all(isinstance(choice.get("message"), dict) for choice in choices):
            raise UpstreamMalformed("the provider's answer has no message")
        found = [_choice(choice, "message", 0) for choice in choices]
        for choice in found:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        out = {**_head(context), "choices": found}
        return out | {"usage": body["usage"]} if isinstance(body.get("usage"), dict) else out

    def stream(self, context: Context) -> StreamBridge:
        return _Stream(context)


class _Stream:
    """Chat chunks in, completion chunks out.

    A client that did not ask for usage must not meet a chunk without choices. So its last chunk waits for the usage,
    which comes after it, and carries it.
    """

    __slots__ = ("_done", "_head", "_held", "_lengths", "_reasons", "_separate", "_usage")

    def __init__(self, context: Context) -> None:
        self._head = _head(context)
        self._separate = bool(context.notes.get(USAGE_CHUNK))
        #: Length of each choice's text so far: the base of `text_offset`.
        self._lengths: dict[int, int] = {}
        self._held: list[JSON] = []
        self._usage: JSON = None
        self._reasons = False
        self._done = False

    @property
    def ended(self) -> bool:
        return self._reasons or self._done

    def feed(self, event: Event) -> list[Event]:
        data = event.data
        if self._done or not isinstance(data, dict):
            return []
        if data.get("error"):
            self._done = True
            return [Event({"error": data["error"]})]
        if isinstance(data.get("usage"), dict):
            self._usage = data["usage"]
        out = []
        for choice in records(data.get("choices")):
            index = _index(choice)
            made = _choice(choice, "delta", self._lengths.get(index, 0))
            self._lengths[index] = self._lengths.get(index, 0) + len(made["text"])
            if made["finish_reason"]:
                self._reasons = True
                self._held.append({**made, "text": "", "logprobs": None})
                made["finish_reason"] = None
            if made["text"]:
                out.append(Event({**self._head, "choices": [made]}))
        return out

    def finish(self) -> list[Event]:
        if self._done:
            return []
        self._done = True
        last = self._held or [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}]
        chunks: list[dict[str, JSON]] = [{**self._head, "choices": [choice]} for choice in last]
        if self._usage is not None:
            if self._separate:
                chunks.append({**self._head, "choices": []})
            chunks[-1]["usage"] = self._usage
        return [Event(chunk) for chunk in chunks]


def _prompt(prompt: JSON) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    many = isinstance(prompt, list) and all(isinstance(item, str) for item in prompt)
    what = "takes one prompt per request" if many else "takes the prompt as text, not as token ids"
    raise InvalidRequest(
        f"This provider has no text completions; served by chat completions, it {what}.", param="prompt"
    )


def _head(context: Context) -> dict[str, JSON]:
    head = {"id": f"cmpl-{context.call_id}", "object": "text_completion"}
    return {**head, "created": context.created, "model": context.model}


def _choice(choice: Mapping[str, JSON], field: str, offset: int) -> dict[str, JSON]:
    """A chat choice as a completion's; `field` is where its message stands."""
    message = record(choice.get(field))
    reason = string(choice.get("finish_reason"))
    return {
        "text": "".join(texts(message.get("content"))) or string(message.get("refusal")),
        "index": _index(choice),
        "logprobs": _logprobs(choice.get("logprobs"), offset),
        "finish_reason": reason if reason in _REASONS else "stop" if reason else None,
    }


def _index(choice: Mapping[str, JSON]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _logprobs(found: JSON, offset: int) -> dict[str, JSON] | None:
    """Chat lists one object per token; completions list one value per token in each of four lists."""
    items = records(record(found).get("content"))
    if not items:
        return None
    tokens = [string(item.get("token")) for item in items]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [records(item.get("top_logprobs")) for item in items]
    return {
        "tokens": tokens,
        "token_logprobs": [item.get("logprob") for item in items],
        "top_logprobs": [{string(top.get("token")): top.get("logprob") for top in several} for several in tops],
        "text_offset": offsets,
    }
