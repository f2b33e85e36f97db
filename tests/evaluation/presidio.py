"""Callables for `../shared/data/eval.py`, run from the project's root; in process, with what is installed:

.venv/bin/python ../shared/data/eval.py pii 'tests.evaluation.presidio:names()'
.venv/bin/python ../shared/data/eval.py pii 'tests.evaluation.presidio:everything()'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tianji_mw.guardrails.presidio_findings import Question, runs
from tianji_mw.guardrails.presidio_local import Local, build

Found = dict[str, object]


def names() -> Callable[[str], Found]:
    """Names and places alone: what takes a model."""
    return _made(("PERSON", "LOCATION", "NRP"))


def everything() -> Callable[[str], Found]:
    """All that the engine knows, as without `pii_entities_config`."""
    return _made(())


def _made(entities: Sequence[str]) -> Callable[[str], Found]:
    local = Local(build({"en": ""}), (), 1)
    question = Question("en", tuple(entities), (), (), "")

    def judged(text: str) -> Found:
        found = runs(asyncio.run(local.analyze(text, question)))
        return {"flagged": bool(found), "spans": [[one.start, one.end, one.entity] for one in found]}

    return judged
