"""The guardrail of the interop tests."""

from __future__ import annotations

from typing import ClassVar

from tianji_mw import ALLOW, Call, Guardrail, Verdict, block


class NoCodename(Guardrail):
    """Nobody says the word, neither side."""

    window: ClassVar[int] = 8

    async def check(self, text: str, call: Call) -> Verdict:
        return block("codename") if "bluebird" in text.lower() else ALLOW
