"""What of a request is compared with others: its last turn, in the context that it needs.

The rules for several turns:

- System and developer messages must be equal, to the letter.
- A last turn that stands by itself (it names what it is about, and points to nothing said before) is compared alone:
  what was talked about before does not matter to it.
  Only what the user has asked for all answers ("from now on, answer in French") must then be equal, to the letter.
- A last turn that depends on what was said before is compared together with the assistant's last words, and only as a
  question. Everything said before must not contradict: no other numbers, names or codes on both sides, and the
  assistant's last turn must not say the contrary.
- A last turn that agrees, chooses or commands ("yes please", "the first one", "cancel it") is compared with nothing:
  its answer is an act.
- Requests with tools called, images, files or sound in them are compared with nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.cache.semantic.agreement import signature, volatile

#: Characters of a last turn that are compared; and of the assistant's words before it, counted from their end.
MAX_SAID: Final = 4000
MAX_ANSWERED: Final = 600

_LEADS: Final = re.compile(
    r"^\W*(?:ok(?:ay)?|so|and|but|or|yes|yeah|yep|yup|no|nope|then|also|plus|sure|right|sorry|great|cool|perfect|fine"
    r"|go (?:ahead|on)|please do|do it|what about|how about|why not"
    r"|und|aber|oder|also|ja|nein|dann|et|mais|ou|oui|non|alors|donc|y|pero|o|sí|si|entonces|e|ma|allora|mas|então|en"
    r"|maar|dus)\b[\s,.:;-]*",
    re.IGNORECASE,
)
_NEW_TOPIC: Final = re.compile(
    r"^\W*(?:by the way|btw|unrelated|different question|another question|separately|new question|on another note"
    r"|changing the subject)\b[\s,.:;-]*(?:but\b)?\s*",
    re.IGNORECASE,
)
_POINTS: Final = re.compile(
    r"\b(?:it|its|that|this|these|those|them|they|their|he|she|him|her|his|hers|one|ones|there|then|same|such|above"
    r"|previous|earlier|instead|again|else|both|either|neither|others?|another|former|latter|back"
    r"|es|ihn|ihm|ihr|sie|das|dies\w*|jene\w*|dort|davon|dazu|il|elle|cela|ça|ceux|celui|celle|là|lo|esto|eso|ese|esa"
    r"|ello|ella|questo|quello|isto|isso|ele|ela|dat|dit|deze|die)\b",
    re.IGNORECASE,
)
_POINTS_NOWHERE: Final = re.compile(
    r"\bis (?:it|there)\b|\bthere (?:is|are)\b|\bare there\b|\banother (?=\w)", re.IGNORECASE
)
#: What is asked for all answers that follow.
_STANDING: Final = re.compile(
    r"\bfrom now on\b|\bfor the rest\b|\b(?:always|never|only) \w+ (?:in|with|as|like)\b"
    r"|\b(?:pretend|role-?play|persona)\b"
    r"|\b(?:answer|reply|respond|write|speak|talk|explain)(?: to me)?(?: only)? (?:in|as|like|with|without)\b"
    r"|\bact (?:as|like)\b|\byou(?: are|['’]re)(?: now)? (?:a|an|my|the)\b|\bcall me\b"
    r"|\b(?:be|keep (?:it|your answers)) (?:brief|concise|short|terse|polite|formal)\b",
    re.IGNORECASE,
)
#: What somebody has for everyone, in a question that speaks of nobody else.
_OFFERED: Final = re.compile(
    r"\b(?:do|are) you (?:have|offer|do|sell|provide|accept|take|ship|deliver|charge|support|open|closed)\b",
    re.IGNORECASE,
)
_OF_ME: Final = re.compile(r"\b(?:i|me|my|mine|we|us|our)\b", re.IGNORECASE)
_ASKS: Final = re.compile(
    r"\?|？|^(?:what|whats|when|where|who|whom|whose|how|why|which|can|could"
    r"|do(?! (?:it|that|this|so)\b)|does|did|is|are|was|were|will|would"
    r"|should|may|must|has|have|had|am|was|wann|wo|wer|wie|warum|welche\w*|kann|quand|où|qui|comment|pourquoi|quel\w*|qué"
    r"|cuándo|dónde|quién|cómo|cuál|che|quando|dove|chi|come|perché|quale|wat|wanneer|waar|wie|hoe|waarom)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared. `context` must be equal; the rest is told apart by words and vectors."""

    #: The last turn of the user.
    said: str
    #: The assistant's turn before it, and everything before: of a last turn that depends on them, else empty.
    answered: str
    before: str
    context: str

    @property
    def text(self) -> str:
        """What is embedded."""
        return f"{self.answered[-MAX_ANSWERED:]}\n{self.said}" if self.answered else self.said

    @property
    def alone(self) -> bool:
        """Whether the last turn stands by itself."""
        return not self.before


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str


class _Unfit(Exception):
    """Why nothing can be compared."""


def question_of(api: str, request: Mapping[str, JSON]) -> Question | str:
    """The question of a request, or why it is compared with nothing."""
    try:
        turns = list(_merged(_turns(api, request)))
    except _Unfit as error:
        return str(error)
    system = [turn.text for turn in turns if turn.role == "system"]
    spoken = [turn for turn in turns if turn.role != "system"]
    if not spoken or spoken[-1].role != "user" or not spoken[-1].text.strip():
        return "no-question"
    said = spoken[-1].text.strip()
    if len(said) > MAX_SAID:
        return "long"
    if (reason := volatile(said)) is not None:
        return reason
    alone = len(spoken) == 1 or stands_alone(said)
    if not alone and not asks(said):
        return "act"
    standing = [turn.text for turn in spoken[:-1] if turn.role == "user" and _STANDING.search(turn.text)]
    context = hashlib.sha256(orjson.dumps([system, alone, standing])).hexdigest()[:32]
    if alone:
        return Question(said, "", "", context)
    before = "\n".join(turn.text for turn in spoken[:-1])
    return Question(said, spoken[-2].text.strip(), before, context)


def stands_alone(said: str) -> bool:
    """Whether a turn says by itself what it is about."""
    topic = _NEW_TOPIC.match(said)
    if topic is not None:
        said = said[topic.end() :]
    elif _LEADS.match(said):
        return False
    if _POINTS.search(_POINTS_NOWHERE.sub(" ", said)):
        return False
    told = signature(said)
    named = bool(told.names or told.numbers or told.codes)
    enough = 2 if named or (_OFFERED.search(said) and not _OF_ME.search(said)) else 4
    return len(told.content) >= enough


def asks(said: str) -> bool:
    """Whether a turn is a question, with or without its mark."""
    while (lead := _LEADS.match(said)) is not None and lead.end() < len(said):
        said = said[lead.end() :]
    if lead is not None:
        return "?" in said  # "do it" is no question, though it begins like one
    return _ASKS.search(said.strip()) is not None


# --- the turns of each API


def _turns(api: str, request: Mapping[str, JSON]) -> Iterator[_Turn]:
    for field in ("system", "instructions"):
        if request.get(field) is not None:
            yield _Turn("system", _text(request[field]))
    if api == "completions":
        yield _Turn("user", _text(request.get("prompt")))
        return
    listed = request.get("input" if api == "responses" else "messages")
    if isinstance(listed, str):
        yield _Turn("user", listed)
        return
    for message in listed if isinstance(listed, list) else ():
        if not isinstance(message, dict) or message.get("type", "message") != "message":
            raise _Unfit("tools")
        if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
            raise _Unfit("tools")
        role = message.get("role")
        if role in ("system", "developer"):
            yield _Turn("system", _text(message.get("content")))
        elif role in ("user", "assistant"):
            yield _Turn(role, _text(message.get("content")))
        else:
            raise _Unfit("tools")


def _text(content: JSON) -> str:
    """The text of a content that is text alone."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _Unfit("media")
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise _Unfit("media")
        kind = part.get("type")
        if kind in ("tool_use", "tool_result"):
            raise _Unfit("tools")
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise _Unfit("media")
        texts.append(part["text"])
    return "\n".join(texts)


def _merged(turns: Iterator[_Turn]) -> Iterator[_Turn]:
    """Turns that follow each other from the same side as one."""
    waiting: _Turn | None = None
    for turn in turns:
        if waiting is not None and waiting.role == turn.role != "system":
            waiting = _Turn(turn.role, f"{waiting.text}\n{turn.text}")
            continue
        if waiting is not None:
            yield waiting
        waiting = turn
    if waiting is not None:
        yield waiting
