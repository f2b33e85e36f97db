"""Asks guardrails, all of one side at once, and turns what they say into verdicts, records or the end of the call.

A check that raises, hangs or says something else than verdicts has failed; unless its entry lets such calls pass, the
content does not go on, and the client is told that it was a failure and no block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import cast

from tianji_mw.apis.tools import Tool
from tianji_mw.call import Call
from tianji_mw.errors import Blocked, GuardrailUnavailable, TianjiError
from tianji_mw.guardrails.base import ALLOW, GuardrailFailed, Said, Side, Span, Verdict
from tianji_mw.guardrails.entry import Entry
from tianji_mw.runs import Run

#: What is asked about: texts, or tools.
Asked = Sequence[Said] | Sequence[Tool]

log = logging.getLogger("tianji_mw.guardrails")


async def judge(
    entries: Sequence[Entry], said: Asked, side: Side, call: Call, fresh: int | None = None
) -> list[list[Span]]:
    """Pieces to be replaced in each text, in the order of the entries. `fresh`: how many characters are new in them.

    Raises Blocked, and GuardrailUnavailable for a check that failed. Where several would end the call, the first does.
    """
    if not entries or not said:
        return [[] for _ in said]
    if len(entries) == 1:
        answers: list[Sequence[Verdict] | BaseException] = [await _ask(entries[0], said, side, call, fresh)]
    else:
        asked = (_ask(entry, said, side, call, fresh) for entry in entries)
        answers = list(await asyncio.gather(*asked, return_exceptions=True))
    spans: list[list[Span]] = [[] for _ in said]
    for entry, verdicts in zip(entries, answers, strict=True):
        if isinstance(verdicts, BaseException):
            raise verdicts
        if entry.dry_run:
            continue
        for verdict, own in zip(verdicts, spans, strict=True):
            if verdict.blocked:
                raise _refusal(entry, verdict, side)
            own.extend(verdict.spans)
    return spans


async def _ask(entry: Entry, said: Asked, side: Side, call: Call, fresh: int | None) -> Sequence[Verdict]:
    places = None if isinstance(said[0], Tool) else entry.looks_at(cast("Sequence[Said]", said), side)
    if places is None:
        return await _ask_about(entry, said, side, call, fresh)
    verdicts = [ALLOW] * len(said)
    if places:
        answers = await _ask_about(entry, [cast("Said", said[at]) for at in places], side, call, None)
        for at, verdict in zip(places, answers, strict=True):
            verdicts[at] = verdict
    return verdicts


async def _ask_about(entry: Entry, said: Asked, side: Side, call: Call, fresh: int | None) -> Sequence[Verdict]:
    clock = call.runtime.clock
    run = entry.run(call, side)
    run.asked += 1
    characters = 0
    for one in said:
        characters += len(one.text)
    run.characters += characters
    began = clock()
    run.began = run.began or began
    try:
        verdicts = await _attempts(entry, said, side, call)
    except GuardrailFailed as failure:
        return _failed(entry, failure, run, call, len(said))
    except TianjiError:
        run.status = "guardrail_intervened"
        if entry.dry_run:
            return [ALLOW] * len(said)
        raise
    finally:
        run.duration_ns += clock() - began
    run.scanned += characters if fresh is None else fresh
    if run.status == "not_run":
        run.status = "success"
    for verdict in verdicts:
        if verdict.blocked or verdict.spans:
            _found(run, verdict)
    return verdicts


def _found(run: Run, verdict: Verdict) -> None:
    if run.status == "success":
        run.status = "guardrail_intervened"
    if verdict.category not in run.category.split(","):
        run.category = f"{run.category},{verdict.category}" if run.category else verdict.category
    for span in verdict.spans:
        run.masked[span.label] = run.masked.get(span.label, 0) + 1


async def _attempts(entry: Entry, said: Asked, side: Side, call: Call) -> Sequence[Verdict]:
    runtime, breaker = call.runtime, entry.breaker
    for attempt in range(entry.retries + 1):
        if breaker.open and not breaker.allows(runtime.clock()):
            failure = GuardrailFailed("it could not be reached lately, and is left alone for a while", unreachable=True)
            break
        try:
            with runtime.alarms.within(entry.check.timeout_s):
                verdicts = await _question(entry, said, side, call)
            _answered(entry, call)
            return _checked(verdicts, len(said))
        except TimeoutError:
            failure = GuardrailFailed(f"no verdict within {entry.check.timeout_s:g} s", unreachable=True)
        except GuardrailFailed as error:
            failure = error
        except TianjiError:
            raise
        except Exception as error:
            # Plugin failsafe. Only the kind of fault is told: its text may quote what was checked.
            log.debug("the guardrail %s failed", entry.name, exc_info=True)
            failure = GuardrailFailed(type(error).__name__)
        if failure.unreachable:
            breaker.failed(runtime.clock())
            if breaker.open:
                runtime.report(f"guardrail {entry.name}", "it cannot be reached")
        else:
            _answered(entry, call)
        if attempt < entry.retries:
            runtime.count("guardrail_retries", entry.name)
    raise failure


def _question(entry: Entry, said: Asked, side: Side, call: Call) -> Awaitable[Sequence[Verdict]]:
    if isinstance(said[0], Tool):
        return entry.check.judge_tools(cast("Sequence[Tool]", said), side, call)
    return entry.check.judge(cast("Sequence[Said]", said), side, call)


def _answered(entry: Entry, call: Call) -> None:
    """It can be reached, whatever it says."""
    if entry.breaker.open:
        call.runtime.report(f"guardrail {entry.name}", "")
    entry.breaker.succeeded()


def _checked(verdicts: object, count: int) -> Sequence[Verdict]:
    if not isinstance(verdicts, list | tuple) or len(verdicts) != count:
        raise GuardrailFailed("it gave another number of verdicts than it was asked for")
    if not all(isinstance(verdict, Verdict) for verdict in verdicts):
        raise GuardrailFailed("it gave something else than verdicts")
    return verdicts


def _failed(entry: Entry, failure: GuardrailFailed, run: Run, call: Call, count: int) -> Sequence[Verdict]:
    run.status = "guardrail_failed_to_respond"
    run.failed += 1
    call.runtime.count("guardrail_failures", entry.name)
    passes = entry.lets_pass(unreachable=failure.unreachable)
    what = "the content passes unchecked" if passes else "the content is not let through"
    log.error("call %s: the guardrail %s failed (%s); %s", call.id, entry.name, failure.message, what)
    if passes:
        return [ALLOW] * count
    headers = {} if failure.retry_after_s is None else {"retry-after": f"{failure.retry_after_s:.0f}"}
    raise GuardrailUnavailable(
        f"The guardrail '{entry.name}' failed, so the content was not let through.",
        headers=headers,
        fields={"guardrail_name": entry.name},
    )


def _refusal(entry: Entry, verdict: Verdict, side: Side) -> Blocked:
    where = "request" if side == "input" else "answer"
    mode = "pre_call" if side == "input" else "post_call"
    message = f"The {where} was blocked by the guardrail '{entry.name}' ({verdict.category})."
    return Blocked(
        entry.told(message, verdict.category),
        fields={**verdict.detail, "guardrail_name": entry.name, "guardrail_mode": mode, "category": verdict.category},
    )
