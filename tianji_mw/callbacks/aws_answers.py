"""What an answer, or an error, of AWS means for the records of a request: DynamoDB and SQS. No texts of AWS in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final

from tianji_mw.callbacks.s3_answers import LOGIN

#: The request itself is wrong, and will be wrong again.
_REFUSED: Final = frozenset(
    {
        "ValidationException", "SerializationException", "ItemCollectionSizeLimitExceededException",
        "InvalidMessageContents", "InvalidParameterValue", "BatchRequestTooLong", "EmptyBatchRequest",
        "BatchEntryIdsNotDistinct", "InvalidBatchEntryId", "TooManyEntriesInBatchRequest",
        "AWS.SimpleQueueService.BatchRequestTooLong",
    }
)  # fmt: skip


#: Parts of a write's time after which no request begins, and after which none is waited for.
_LAST_START: Final = 0.6
_LAST_END: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Which records, by their ids, failed for now and which for ever; the others were taken."""

    failed: Sequence[str] = ()
    refused: Sequence[str] = ()
    message: str = ""
    #: Who we are was refused; a secret manager may have another key.
    login: bool = False
    #: What AWS answered, where it did; never empty then.
    answer: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> Answer:
        """Several as one."""
        found = list(answers)
        return cls(
            failed=[key for one in found for key in one.failed],
            refused=[key for one in found for key in one.refused],
            message=next((one.message for one in found if one.message), ""),
            login=any(one.login for one in found),
        )


#: A request that is about to be made.
Ask = Callable[[], Awaitable[Answer]]


async def asked(pool: Executor | None, call: Callable[[], Any], keys: Sequence[str], *, mendable: str = "") -> Answer:
    """Call AWS in a thread, with the records of these ids; an error is an answer too.

    `mendable`: a word in the text of a refusal that means that the operator is at fault, and no record.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        return Answer(answer=await asyncio.get_running_loop().run_in_executor(pool, call))
    except ClientError as error:
        code = re.sub(r"[^\w.]", "", str(error.response.get("Error", {}).get("Code", "")))[:80] or "no code"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        told = f"{code} ({error.operation_name}, {status})"
        text = str(error.response.get("Error", {}).get("Message", "")).lower()
        if code in _REFUSED and not (mendable and mendable in text):
            return Answer(refused=keys, message=told)
        return Answer(failed=keys, message=told, login=code in LOGIN or "UnrecognizedClient" in code)
    except BotoCoreError as error:
        wrong = type(error).__name__ == "ParamValidationError"
        told = f"no answer of AWS ({type(error).__name__})"
        return Answer(refused=keys, message=told) if wrong else Answer(failed=keys, message=told)
    except (ResponseParserError, RuntimeError, OSError, ValueError) as error:
        return Answer(failed=keys, message=f"the request failed ({type(error).__name__})")


async def all_in_time(asks: Sequence[Ask], keys: Sequence[Sequence[str]], at_once: int, seconds: float) -> list[Answer]:
    """The answers to several requests. What does not begin, or is not over, in time has failed for now.

    So a slow AWS gets a part of a batch delivered, where a write that is cut off would begin anew, with all of it.
    """
    gate, clock = asyncio.Semaphore(at_once), asyncio.get_running_loop().time
    began = clock()

    async def one(ask: Ask, own: Sequence[str]) -> Answer:
        async with gate:
            left = seconds * _LAST_END - (clock() - began)
            if clock() - began < seconds * _LAST_START:
                try:
                    async with asyncio.timeout(left):
                        return await ask()
                except TimeoutError:
                    pass
            return Answer(failed=own, message="there was not enough time for all")

    return list(await asyncio.gather(*(one(ask, own) for ask, own in zip(asks, keys, strict=True))))
