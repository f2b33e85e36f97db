"""Tables of the quality of the semantic cache on the development data: `make eval-cache`.

Pairs and conversations at the default, by category and source, with the cosine alone beside it; and streams at three
error budgets beside the best static threshold in hindsight. The data stands beside the project's folder, in
`../shared/data`; another place is the first argument.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.evaluation.cache import vector

BUDGETS: Final = (0.01, 0.02, 0.05)


def main() -> None:
    """Print everything."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    if not (folder / "eval.py").is_file():
        sys.exit(f"{folder / 'eval.py'} does not exist; give the folder of the development data as the first argument")
    for task in ("pairs", "conversations"):
        print_task(task, evaluated(folder, f"cache_{task}", f"tests.evaluation.cache:{task}"))
    rows = [json.loads(line) for line in (folder / "dev" / "cache_stream.jsonl").read_text("utf-8").splitlines()]
    print(f"\n{'streams':22}{'budget':>8}{'wrong/all':>11}{'right hits':>12}{'hindsight':>11}{'share':>8}")
    best = {
        source: hindsight([row for row in rows if row["source"] == source]) for source in {r["source"] for r in rows}
    }
    for budget in BUDGETS:
        found = evaluated(folder, "cache_stream", f"tests.evaluation.cache_stream:Stream{int(budget * 100)}")["result"]
        for source, figures in sorted(found.items()):
            hits = round(figures["hit_rate"] * figures["n"] * (1 - figures["error_of_hits"]))
            most = best[source][budget]
            share = f"{hits / most:8.0%}" if most else f"{'-':>8}"
            print(f"{source:22}{budget:8.0%}{figures['error_of_all']:11.2%}{hits:12}{most:11}{share}")


def evaluated(folder: Path, task: str, target: str) -> dict[str, Any]:
    """What the harness finds."""
    command = [sys.executable, str(folder / "eval.py"), task, target, "--no-latency"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def print_task(name: str, found: dict[str, Any]) -> None:
    """Duplicates that are served, and traps that are."""
    print(f"\n{name:32}{'rows':>6}{'duplicates':>12}{'traps':>8}")
    row("all", found["at_threshold"])
    for by in ("source", "category"):
        for key, figures in sorted(found[f"by_{by}"].items()):
            row(f"{by}: {key}", figures)


def row(name: str, figures: dict[str, Any]) -> None:
    """One line; a dash where there are none."""
    cells = [f"{value:.1%}" if value is not None else "-" for value in (figures["recall"], figures["fpr"])]
    print(f"{name[:31]:32}{figures['n']:>6}{cells[0]:>12}{cells[1]:>8}")


def hindsight(rows: list[dict[str, Any]]) -> dict[float, int]:
    """Right hits of the best static cosine that keeps each budget."""
    points, labels = np.stack([vector(row["text"]) for row in rows]), [row["label"] for row in rows]
    best = dict.fromkeys(BUDGETS, 0)
    for threshold in np.arange(0.55, 0.95, 0.03):
        kept, known, hits, wrong = np.empty_like(points), list[str](), 0, 0
        for point, label in zip(points, labels, strict=True):
            near = kept[: len(known)] @ point
            at = int(near.argmax()) if known else -1
            if at >= 0 and near[at] >= threshold:
                hits += 1
                wrong += known[at] != label
                continue
            kept[len(known)] = point
            known.append(label)
        for budget in BUDGETS:
            if wrong <= budget * len(rows):
                best[budget] = max(best[budget], hits - wrong)
    return best


if __name__ == "__main__":
    main()
