"""Serves the Responses API over a provider that speaks Chat Completions.

Stateless: nothing is stored, so fields that need an earlier response are refused by name. Hosted tools do not exist
here; custom tools travel as functions of one string. The three halves live beside this file: `_request`, `_input` and
`_stream`. A plain answer goes through the same machine as a stream, so both give the same response object.

Source: OpenAI API reference, "Responses" and "Chat".
"""

from __future__ import annotations

from collections.abc import Mapping

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Bridge, Context, Event, StreamBridge
from tianji_mw.bridges.responses_over_chat_request import chat_request
from tianji_mw.bridges.responses_over_chat_stream import ResponsesStream
from tianji_mw.bridges.shape import record, records
from tianji_mw.errors import UpstreamMalformed


class ResponsesOverChat(Bridge):
    """Responses for the client, Chat Completions for the upstream.

    >>> context = Context(call_id="1", model="m", created=0)
    >>> ResponsesOverChat().request({"model": "m", "input": "Hello"}, context)["messages"]
    [{'role': 'user', 'content': 'Hello'}]
    """

    def request(self, body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
        return chat_request(body, context)

    def answer(self, body: JSON, context: Context) -> JSON:
        choices = records(record(body).get("choices"))
        if not choices or not isinstance(choices[0].get("message"), dict):
            raise UpstreamMalformed("the provider's answer has no message")
        choice = {key: value for key, value in choices[0].items() if key != "message"}
        chunk = {"choices": [{**choice, "delta": choices[0]["message"]}], "usage": body.get("usage")}
        stream = ResponsesStream(context)
        stream.feed(Event(chunk))
        return stream.finish()[-1].data["response"]

    def stream(self, context: Context) -> StreamBridge:
        return ResponsesStream(context)
