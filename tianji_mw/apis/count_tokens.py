"""Anthropic's token counting: `POST /v1/messages/count_tokens`, a Messages request answered by a number.

Source: Anthropic API reference, "Count tokens in a Message".
"""

from __future__ import annotations

from typing import ClassVar

from tianji_mw.apis.base import JSON, Api, Usage
from tianji_mw.apis.messages import Messages


class CountTokens(Messages):
    """The answer is `{"input_tokens": n}`. It counts and generates nothing: there is no usage and no stream."""

    name: ClassVar[str] = "count_tokens"
    paths: ClassVar[tuple[str, ...]] = ("*/v1/messages/count_tokens", "/messages/count_tokens")

    def usage(self, data: JSON) -> Usage | None:
        return None

    split = Api.split  # not that of messages: whoever has one of its own streams
