"""Tables of the quality of the built-in guardrails on the development data: `make eval-guardrails`.

By category, language, source and trap, at the thresholds that ship. The data stands beside the project's folder, in
`../shared/data`; another place is the first argument.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

#: A title, the task of the data, and the callable.
TASKS: Final = (
    ("content_filter", "content_filter", "tests.evaluation.harm:make()"),
    ("prompt_injection", "prompt_injection", "tests.evaluation.injection:make()"),
    ("secret_leak", "secrets", "tests.evaluation.leaks:secrets"),
    ("pii", "pii", "tests.evaluation.leaks:pii"),
    ("presidio in process, names and places alone", "pii", "tests.evaluation.presidio:names()"),
)


def main() -> None:
    """Print a table for each task."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    if not (folder / "eval.py").is_file():
        sys.exit(f"{folder / 'eval.py'} does not exist; give the folder of the development data as the first argument")
    for title, task, target in TASKS:
        command = [sys.executable, str(folder / "eval.py"), task, target]
        print_table(title, json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def print_table(title: str, found: dict[str, Any]) -> None:
    """Everything that is known of a task, a row each."""
    print(f"\n{title}\n{'':42}{'rows':>7}{'recall':>9}{'FPR':>9}")
    row("all", found["overall"])
    for by in ("category", "language", "source", "trap"):
        for name, figures in sorted(found.get(f"by_{by}", {}).items()):
            if name not in ("", "None"):
                row(f"{by}: {name}", figures)
    single = {"AUC": found.get("auc"), "severity, Spearman": found.get("severity_spearman")}
    for name, value in single.items():
        if value is not None:
            print(f"{name:42}{value:>16.3f}")
    cpu = found.get("latency_1kB", {}).get("cpu_ms")
    if cpu:
        print(f"{'CPU of 1 kB made of these rows, ms':42}{cpu['p50']:>7.2f} p50{cpu['p99']:>7.2f} p99")


def row(name: str, figures: dict[str, Any]) -> None:
    """One line; a dash where there is nothing to tell."""
    cells = (f"{value:.3f}" if isinstance(value, float) else "-" for value in (figures["recall"], figures["fpr"]))
    print(f"{name[:41]:42}{figures['n']:>7}" + "".join(f"{cell:>9}" for cell in cells))


if __name__ == "__main__":
    main()
