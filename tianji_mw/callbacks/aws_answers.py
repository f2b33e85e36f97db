"""What an answer, or an error, of AWS means for the records of a request: DynamoDB and SQS. No texts of AWS in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Which records, by their ids, failed for now and which for ever; the others were taken."""

    failed: Sequence[str] = ()
    refused: Sequence[str] = ()
    message: str = ""
    #: Who we are was refused; a secret manager may have another key.
    login: bool = False
    #: What AWS answered, where it did.
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


async def asked(pool: Executor | None, call: Callable[[], Any], keys: Sequence[str]) -> Answer:
    """Call AWS in a thread, with the records of these ids; an error is an answer too."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        return Answer(answer=await asyncio.get_running_loop().run_in_executor(pool, call))
    except ClientError as error:
        code = re.sub(r"[^\w.]", "", str(error.response.get("Error", {}).get("Code", "")))[:80] or "no code"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        told = f"{code} ({error.operation_name}, {status})"
        if code in _REFUSED:
            return Answer(refused=keys, message=told)
        return Answer(failed=keys, message=told, login=code in LOGIN or "UnrecognizedClient" in code)
    except BotoCoreError as error:
        wrong = type(error).__name__ == "ParamValidationError"
        told = f"no answer of AWS ({type(error).__name__})"
        return Answer(refused=keys, message=told) if wrong else Answer(failed=keys, message=told)
    except (ResponseParserError, RuntimeError, OSError, ValueError) as error:
        return Answer(failed=keys, message=f"the request failed ({type(error).__name__})")
