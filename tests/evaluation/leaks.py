"""Callables for `../shared/data/eval.py`, run from the project's root:

.venv/bin/python ../shared/data/eval.py secrets tests.evaluation.leaks:secrets
.venv/bin/python ../shared/data/eval.py pii tests.evaluation.leaks:pii
"""

from __future__ import annotations

from tianji_mw.guardrails import entities, leaks


def secrets(text: str) -> dict[str, object]:
    spans = leaks.find(text)
    return {"flagged": bool(spans), "spans": [list(span[:3]) for span in spans]}


def pii(text: str) -> dict[str, object]:
    spans = entities.find(text, frozenset(entities.KINDS))
    return {"flagged": bool(spans), "spans": [list(span[:3]) for span in spans]}
