"""What the answers of Bedrock's guardrails mean, and how texts that are too large for them are cut. Pure, no I/O.

Nothing that is told of an answer holds a part of a text: only fields of a fixed list are, and no text of AWS.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from tianji_mw.apis.base import JSON
from tianji_mw.guardrails.base import GuardrailFailed, Verdict, block

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError

#: How the threads that ask Bedrock are called.
THREAD: Final = "tianji-bedrock"
#: Where the answer's own bytes stand in what botocore gives: it drops what it does not know, such as errors in a 200.
RAW: Final = "TianjiRaw"
#: Seconds after which a client may try again, where AWS names none.
_PAUSE_S: Final = 4.0
_TOO_LARGE: Final = ("text unit", "maximum input size", "too long", "too large", "exceeds the maximum")
_STALE: Final = frozenset({"ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException"})
_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,60}")
#: What may be told of a finding; its other fields hold parts of the text, or the operator's patterns.
_TOLD: Final = ("name", "type", "confidence", "filterStrength", "threshold", "score", "action", "detected")

Finding = Literal["invalid", "impossible", "satisfiable", "translationAmbiguous", "tooComplex", "noTranslations"]
#: A policy, its list, and what was found.
Item = tuple[str, str, Mapping[str, JSON]]


class Refused(GuardrailFailed):
    """AWS answered with an error; `kind` says what may help."""

    def __init__(self, message: str, kind: str, *, unreachable: bool = False, retry_after_s: float | None) -> None:
        super().__init__(message, unreachable=unreachable, retry_after_s=retry_after_s)
        self.kind = kind


def refusal(response: Mapping[str, Any]) -> Refused:
    meta, error = response.get("ResponseMetadata") or {}, response.get("Error") or {}
    status, code, text = meta.get("HTTPStatusCode"), str(error.get("Code")), str(error.get("Message")).lower()
    asked, kind, pause = str(meta.get("HTTPHeaders", {}).get("retry-after", "")), "", None
    if status == 429 or code.startswith(("Throttling", "TooManyRequests")):
        kind, pause = "busy", min(float(asked), 3600.0) if re.fullmatch(r"[0-9]{1,9}", asked) else _PAUSE_S
    if status == 413 or (status in (400, 402, 429) and any(words in text for words in _TOO_LARGE)):
        kind = "large"
    elif code in _STALE:
        kind = "login"
    shown = f" ({code})" if _CODE.fullmatch(code) else ""
    message = f"Bedrock answered with status {status}{shown}"
    return Refused(message, kind, unreachable=status in (502, 503, 504), retry_after_s=pause)


def failure(error: BotoCoreError) -> GuardrailFailed:
    """What it means that there was no answer. A certificate that is not valid is no silence."""
    from botocore import exceptions

    lost = isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError | exceptions.IncompleteReadError)
    lost = lost and not isinstance(error, exceptions.SSLError)
    return GuardrailFailed(f"Bedrock cannot be asked ({type(error).__name__})", unreachable=lost)


def decision(
    answer: Mapping[str, JSON], texts: list[str], findings: Iterable[str], about: Mapping[str, JSON]
) -> list[str] | Verdict:
    """The texts as they may go on, or the block of them all, which also tells `about`. Raises GuardrailFailed.

    `findings` are those of automated reasoning that block; AWS itself only reports them.
    """
    for told in (answer, answer.get("Output")):
        if isinstance(told, dict) and "Exception" in str(told.get("__type")):
            raise GuardrailFailed("Bedrock answered with status 200 and an exception")
    if not isinstance(action := answer.get("action"), str):
        raise GuardrailFailed("the answer of Bedrock names no action")
    items = list(_items(answer))
    wrong = sorted({key for _, _, item in items for key in item} & set(findings))
    if action != "GUARDRAIL_INTERVENED" and not wrong:
        return texts
    outputs = [_text_of(output) for output in answer.get("outputs") or ()]
    blocked = [found for found in items if found[2].get("action") not in (None, "NONE", "ANONYMIZED")]
    if blocked or wrong:
        told = " ".join(outputs) if blocked else ""
        return _block(about, ",".join(dict.fromkeys([*map(_label, blocked), *wrong])), blocked, told)
    if not any(item.get("action") == "ANONYMIZED" for _, _, item in items):
        return _block(about, "unexplained", [])
    if len(outputs) != len(texts) or outputs == texts:
        return _block(about, "anonymized", [])  # nobody knows which text has to be replaced by which
    return outputs


def _block(about: Mapping[str, JSON], category: str, items: Sequence[Item], told: str = "") -> Verdict:
    """Of what was found, without the parts of the text. `told` is the operator's own sentence for blocked texts."""
    policies: dict[str, list[JSON]] = {}
    for policy, _, item in items:
        kept = {key: item[key] for key in _TOLD if isinstance(item.get(key), str | int | float)}
        policies.setdefault(policy, []).append(kept)
    return block(
        category,
        error="Violated guardrail policy",
        bedrock_guardrail_response=told,
        assessments=[{"policy": policy, "matches": matches} for policy, matches in policies.items()],
        **about,
    )


def _items(answer: Mapping[str, JSON]) -> Iterator[Item]:
    """Everything that was found: the policy, its list, and the item."""
    for assessment in answer.get("assessments") or ():
        for policy, lists in (assessment or {}).items():
            for kind, items in lists.items() if isinstance(lists, dict) else ():
                if isinstance(items, list):
                    yield from ((policy, kind, item) for item in items if isinstance(item, dict))


def _label(found: Item) -> str:
    policy, kind, item = found
    name = item.get("name") if policy == "topicPolicy" else item.get("type") or item.get("name")
    return name if isinstance(name, str) and name else kind


def _text_of(output: JSON) -> str:
    if not isinstance(output, dict) or not isinstance(text := output.get("text"), str):
        raise GuardrailFailed("the answer of Bedrock holds an output without a text")
    return text


def cut(text: str, most: int) -> Iterator[str]:
    """`text` in pieces of at most `most` characters, cut behind blanks where there are any."""
    start = 0
    while len(text) - start > most:
        end = next((at for at in range(start + most, start, -1) if text[at - 1].isspace()), start + most)
        yield text[start:end]
        start = end
    yield text[start:]


def batches(parts: Sequence[tuple[int, str]], most: int) -> Iterator[list[tuple[int, str]]]:
    """As many parts together as `most` characters allow."""
    batch: list[tuple[int, str]] = []
    for part in parts:
        if batch and sum(len(piece) for _, piece in batch) + len(part[1]) > most:
            yield batch
            batch = []
        batch.append(part)
    yield batch


def quiet(record: logging.LogRecord) -> bool:
    """Keeps bodies, which botocore writes at DEBUG, out of the log; other users of it are not touched."""
    return record.levelno > logging.DEBUG or not (record.threadName or "").startswith(THREAD)


def keep(response_dict: Mapping[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Keeps the bytes of an answer, as a handler of botocore's `before-parse`.

    Raises IncompleteReadError for one that was cut off: botocore reads it as if it ended there.
    """
    from botocore.exceptions import IncompleteReadError

    if response_dict["status_code"] == 200:
        body, length = response_dict["body"], str(response_dict["headers"].get("content-length", ""))
        if length.isdecimal() and len(body) < int(length[:18]):
            raise IncompleteReadError(actual_bytes=len(body), expected_bytes=length[:18])
        customized_response_dict[RAW] = body
