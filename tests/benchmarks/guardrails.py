"""CPU of the built-in guardrails, each alone and all together, on texts of 1 kB; run from the project's root:

.venv/bin/python -m tests.benchmarks.guardrails [../shared/data]

Texts: ordinary prompts, and rows of all development data (attacks, slurs, keys), which no user writes so densely.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.calls import a_call
from tianji_mw.guardrails.base import Guardrail, Said
from tianji_mw.guardrails.content_filter import ContentFilter
from tianji_mw.guardrails.pii import Pii
from tianji_mw.guardrails.prompt_injection import PromptInjection
from tianji_mw.guardrails.secret_leak import SecretLeak
from tianji_mw.runtime import Runtime

TEXTS: Final = 300
ROUNDS: Final = 5
ORDINARY: Final = {"banking77", "clinc150", "mt-bench", "self-instruct-user", "self-instruct-seed", "vicuna-bench"}


def texts(folder: Path, *, ordinary: bool) -> list[str]:
    """Texts of 1 kB, made of rows."""
    rows: list[str] = []
    for name in ("content_filter", "prompt_injection", "pii", "secrets"):
        for line in (folder / "dev" / f"{name}.jsonl").read_text("utf-8").rstrip("\n").split("\n"):
            row: dict[str, Any] = json.loads(line)
            if not ordinary or row["source"] in ORDINARY:
                rows.append(row["text"])
    rng = random.Random(5)
    made = []
    for _ in range(TEXTS):
        text = ""
        while len(text.encode()) < 1024:
            text += rng.choice(rows) + "\n"
        made.append(text.encode()[:1024].decode("utf-8", "ignore"))
    return made


async def cpu(checks: Sequence[Guardrail], text: str) -> float:
    """Milliseconds of this thread, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        call = a_call()
        start = time.thread_time_ns()
        for check in checks:
            await check.judge([Said(text)], "input", call)
        best = min(best, time.thread_time_ns() - start)
    return best / 1e6


async def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    async with Runtime() as runtime:
        both = ("pre_call", "post_call")
        checks: list[Guardrail] = [SecretLeak(mode=both), Pii(mode=both), ContentFilter(mode=both), PromptInjection()]
        for check in checks:
            await check.start(runtime)
        for kind in (True, False):
            made = texts(folder, ordinary=kind)
            print("ordinary prompts" if kind else "rows of all kinds")
            for chosen in [*([check] for check in checks), checks]:
                found = sorted([await cpu(chosen, text) for text in made])
                name = type(chosen[0]).__name__ if len(chosen) == 1 else "all together"
                print(
                    f"  {name:18} p50 {found[len(found) // 2]:.3f}  p99 {found[len(found) * 99 // 100]:.3f} ms per kB"
                )
        for check in checks:
            await check.aclose()


if __name__ == "__main__":
    asyncio.run(main())
