"""`secret_leak`: keys, tokens and passwords do not go to the provider, nor to the client.

What it knows is in `leak_formats.py` and `leaks.py`. Nothing is asked of anybody: a key is judged by its form alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Guardrail, Verdict, block, mask
from tianji_mw.guardrails.leaks import find


class SecretLeak(Guardrail):
    """Masks or blocks secrets.

    >>> SecretLeak(action="block")
    """

    #: Nearly all keys are shorter. The longest formats (JWTs, 1Password's and Fly.io's tokens) are seen by their
    #: beginning, and a private key block without its end is never masked, but ends the call.
    window: ClassVar[int] = 512

    action: Literal["block", "mask"] = "mask"

    async def check(self, text: str, call: Call) -> Verdict:
        spans = find(text)
        if not spans:
            return ALLOW
        # On a stream, the rest of a private key would come when its beginning is out of sight.
        cut = spans[-1].label == "PRIVATE_KEY" and spans[-1].end == len(text) and not text.endswith("-----")
        if self.action == "block" or cut:
            kinds = list(dict.fromkeys(span.label for span in spans))
            return block(kinds[-1] if cut else kinds[0], kinds=[*kinds])
        return mask(*spans)
