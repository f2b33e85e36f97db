"""A callable for `../shared/data/eval.py`, run from the project's root:

.venv/bin/python ../shared/data/eval.py content_filter 'tests.evaluation.harm:make()'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tianji_mw.guardrails.harm.judge import THRESHOLD, Harm
from tianji_mw.guardrails.scanner import Scanner
from tianji_mw.runtime import Runtime


def make() -> Callable[[str], dict[str, object]]:
    """The scorer with all its packs."""

    async def parts() -> tuple[Harm, Scanner]:
        async with Runtime() as runtime:
            scanner = await Scanner.of(runtime)
            harm = await Harm.of(runtime)
            runtime._exits.clear()  # the words stay
            return harm, scanner

    harm, scanner = asyncio.run(parts())

    def judged(text: str) -> dict[str, object]:
        scanned = scanner.scan(text)
        findings = harm.findings(scanned)
        flagged = [finding for finding in findings if finding.score >= THRESHOLD]
        return {
            "flagged": bool(flagged),
            "score": max((finding.score for finding in findings), default=0.0),
            "categories": [finding.category for finding in flagged],
            "severity": max((finding.severity for finding in findings), default=0),
            "spans": [[*scanned.span(*word), finding.category] for finding in flagged for word in finding.words],
        }

    return judged
