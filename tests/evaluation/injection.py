"""A callable for `../shared/data/eval.py`, run from the project's root:

.venv/bin/python ../shared/data/eval.py prompt_injection 'tests.evaluation.injection:make()'
"""

from __future__ import annotations

from collections.abc import Callable

from tianji_mw.guardrails.injection.detector import THRESHOLD, Detector
from tianji_mw.guardrails.scanner import Scanner


def make(*, document: bool = False) -> Callable[[str], dict[str, object]]:
    """The detector with its frozen model and threshold; texts are judged as a user's, or as a document's."""
    detector, scanner = Detector(), Scanner()
    scanner.add(detector, detector.lexicon.words)

    def judged(text: str) -> dict[str, object]:
        found = detector.find(text, scanner, document=document)
        return {"flagged": found.score > THRESHOLD, "score": found.score, "categories": [detector.category(found)]}

    return judged


def documents() -> Callable[[str], dict[str, object]]:
    """Texts are judged as a document's."""
    return make(document=True)
