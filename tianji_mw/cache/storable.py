"""Which requests may be cached at all, and which answers may be given again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import orjson

from tianji_mw.apis.assemble import assemble
from tianji_mw.apis.base import JSON, Api
from tianji_mw.frames import Form

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: LiteLLM's names of what may be cached, and the APIs behind them; each has a form without the leading `a`, too.
CALL_TYPES: Final[Mapping[str, str]] = {
    "acompletion": "chat_completions",
    "atext_completion": "completions",
    "aembedding": "embeddings",
    "arerank": "rerank",
    "aresponses": "responses",
    "aanthropic_messages": "messages",
}
APIS: Final = frozenset(CALL_TYPES.values())
#: A request with one of these tokens limits the answer's length itself.
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
#: What makes an answer depend on more than the request: on a conversation that the provider keeps.
_STATEFUL: Final = ("previous_response_id", "conversation", "background")
_REMOTE: Final = ("image_url", "file_url", "url", "video_url", "audio_url")


def unfit(call: Call, *, remote_media: bool) -> str:
    """Why a request cannot be cached; empty when it can."""
    request = call.request
    for name in _STATEFUL:
        if request.get(name):
            return name
    if not remote_media and points_elsewhere(request):
        return "remote-media"
    return ""


def points_elsewhere(request: Mapping[str, JSON]) -> bool:
    """Whether a message shows media by an address: what is there may change, and the key would not."""
    for field in ("messages", "input"):
        messages = request.get(field)
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict) and _remote(part):
                    return True
    return False


def _remote(part: Mapping[str, JSON]) -> bool:
    for holder in (part, part.get("source")):
        if not isinstance(holder, dict):
            continue
        for field in _REMOTE:
            value = holder.get(field)
            if isinstance(value, dict):
                value = value.get("url")
            if isinstance(value, str) and value[:8].lower().startswith(("http://", "https://")):
                return True
    return False


def whole(api: Api, body: bytes, form: Form) -> JSON:
    """The answer in these bytes as one object; None where there is none."""
    if form == "sse":
        return assemble(api.name, body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def worth_keeping(api: Api, request: Mapping[str, JSON], answer: JSON) -> bool:
    """Whether the answer is one that the next one may be given: complete, and saying something.

    One that ended at the limit of tokens counts as complete where the request set that limit, as it is in the key.
    """
    ending = api.ending(answer)
    if ending == "unfinished" or (ending == "limit" and not any(request.get(name) for name in _LIMITS)):
        return False
    return not api.streams or api.see_whole(answer).kind not in ("other", "error")
