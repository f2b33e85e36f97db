"""What guardrails did, in the words of the record. No text that was judged is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tianji_mw.runs import Run, Runs

if TYPE_CHECKING:
    from tianji_mw.call import Call


#: The worst one is the call's.
_ORDER: Final = ("not_run", "success", "guardrail_failed_to_respond", "guardrail_intervened")


def guardrail_information(call: Call, offset: float) -> tuple[str, list[dict[str, Any]] | None]:
    """LiteLLM's `guardrail_status` of the call, and one object for each guardrail and side; None where none ran.

    `offset`: seconds since 1970 at the clock's zero.
    """
    runs = call.notes.get(Runs)
    if not isinstance(runs, Runs) or not runs:
        return "not_run", None
    worst = max((run.status for run in runs.values()), key=_ORDER.index)
    return worst, [_information(run, offset) for run in runs.values()]


def _information(run: Run, offset: float) -> dict[str, Any]:
    seconds = run.duration_ns / 1e9
    start = offset + run.began / 1e9
    return {
        "guardrail_name": run.guardrail,
        "guardrail_provider": run.provider,
        "guardrail_mode": run.mode[0] if len(run.mode) == 1 else list(run.mode),
        "guardrail_status": run.status,
        "start_time": start,
        "end_time": start + seconds,
        "duration": seconds,
        "masked_entity_count": run.masked or None,
        "violation_categories": run.category.split(",") if run.category else None,
        "guardrail_action": "DRY_RUN" if run.dry_run else None,
        "side": run.side,
        "asked": run.asked,
        "failed": run.failed,
        "scanned_characters": run.scanned,
        "delivered_characters": run.delivered,
        "unscanned_reason": run.unscanned or None,
    }
