"""The client APIs. `TEXT` are guarded in wrapped apps; `ALL` adds what only a gateway serves.

Each API is one stateless instance, shared by all calls. A new API is a file with one subclass and one entry here.
"""

from __future__ import annotations

from typing import Final

from tianji_mw.apis.base import Api
from tianji_mw.apis.chat_completions import ChatCompletions
from tianji_mw.apis.completions import Completions
from tianji_mw.apis.count_tokens import CountTokens
from tianji_mw.apis.embeddings import Embeddings
from tianji_mw.apis.messages import Messages
from tianji_mw.apis.models import Models
from tianji_mw.apis.moderations import Moderations
from tianji_mw.apis.passthrough import Passthrough
from tianji_mw.apis.rerank import Rerank
from tianji_mw.apis.responses import Responses
from tianji_mw.errors import PluginNotFound

#: What people and models write, and guards read.
TEXT: Final[tuple[Api, ...]] = (
    ChatCompletions(),
    Completions(),
    Embeddings(),
    Messages(),
    CountTokens(),
    Responses(),
    Moderations(),
    Rerank(),
)
#: Everything a gateway serves.
ALL: Final[tuple[Api, ...]] = (*TEXT, Models(), Passthrough())


def by_name(name: str) -> Api:
    """The API of this name. Raises PluginNotFound with the names that exist.

    >>> by_name("responses").paths[0]
    '*/v1/responses'
    """
    for api in ALL:
        if api.name == name:
            return api
    from difflib import get_close_matches  # only an operator's typing error needs it

    names = [api.name for api in ALL]
    close = get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(names)}."
    raise PluginNotFound(f"There is no API named {name!r}. {hint}")
