"""A guardrail of your own, outside the package: one class, one method.

In YAML: `guardrail: examples.plugins.no_codename.NoCodename`.
"""

from tianji_mw import ALLOW, Call, Guardrail, Verdict, block


class NoCodename(Guardrail):
    """Keeps a project's name inside the house, in both directions."""

    codename: str = "bluebird"

    async def check(self, text: str, call: Call) -> Verdict:
        return block("codename") if self.codename in text.lower() else ALLOW
