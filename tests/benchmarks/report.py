"""The results: saved and read as JSON, merged over several runs, printed as a Markdown table of medians.

Results are samples by row and kind: `{"nginx": {"plain-16": [{"round": "0", "rps": 28000.0, ...}]}}`. Measures nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

Sample = dict[str, Any]
Results = dict[str, dict[str, list[Sample]]]
Cell = Callable[[Results, str], str]

CONNECTIONS: Final = (1, 16, 64, 256)
_LIBRARIES: Final = ("tianji-mw", "aiohttp", "httptools", "orjson", "uvicorn", "uvloop")
_TOOLS: Final = ("nginx", "wrk")


def machine() -> dict[str, Any]:
    """Where and with what the numbers were made; no host names, no paths."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "versions": {"python": platform.python_version()} | {x: _library(x) for x in _LIBRARIES} | _tools(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _library(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tools() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        try:
            done = subprocess.run([tool, "-v"], capture_output=True, text=True, check=False, timeout=10)
        except OSError:
            continue
        words = (done.stderr + done.stdout).replace("nginx version: ", "").split()
        found[tool] = words[1] if words[0] == tool else words[0].removeprefix(f"{tool}/")
    return found


def save(path: Path, meta: dict[str, Any], results: Results) -> None:
    """Write both as JSON."""
    path.write_text(json.dumps({"meta": meta, "results": results}, indent=1))


def merge(files: list[Path]) -> tuple[list[dict[str, Any]], Results]:
    """The samples of several files, as if they were the rounds of one run."""
    metas, merged = [], Results()
    for i, file in enumerate(files):
        saved = json.loads(file.read_text())
        metas.append(saved["meta"])
        for row, kinds in saved["results"].items():
            for kind, samples in kinds.items():
                into = merged.setdefault(row, {}).setdefault(kind, [])
                into += [{**sample, "round": f"{i}.{sample['round']}"} for sample in samples]
    return metas, merged


def bad(results: Results, row: str) -> int:
    """Bad answers of a row, over all samples."""
    return sum(sample.get("bad", 0) for samples in results[row].values() for sample in samples)


def table(metas: list[dict[str, Any]], results: Results) -> str:
    """Markdown: a line per measure, a column per row of the benchmark; then what it was measured with."""
    rows = list(results)
    lines = [["", *rows], ["---"] + ["---:"] * len(rows)]
    lines += [[label, *[cell(results, row) for row in rows]] for label, cell in _LINES]
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows) + 1)]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([*text, "", *[_footer(meta) for meta in metas]])


def _footer(meta: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items() if version)
    load = ", ".join(str(x) for x in meta["load_average"])
    how = f"{meta['rounds']} rounds of {meta['secs']} s, {meta['pinned']}"
    return f"{meta['date']}; {meta['cpu']}, {meta['cores']} cores; {how}; load average before {load}; {versions}."


def _values(results: Results, row: str, kind: str, key: str) -> dict[str, float]:
    samples = results.get(row, {}).get(kind, [])
    return {sample["round"]: sample[key] for sample in samples if sample.get(key) is not None}


def _mid(kind: str, key: str, form: str) -> Cell:
    def cell(results: Results, row: str) -> str:
        values = _values(results, row, kind, key).values()
        return form.format(median(values)) if values else "-"

    return cell


def _spread(kind: str, key: str, form: str) -> Cell:
    def cell(results: Results, row: str) -> str:
        values = _values(results, row, kind, key).values()
        if not values:
            return "-"
        return f"{form.format(median(values))} ({form.format(min(values))}..{form.format(max(values))})"

    return cell


def _added(kind: str, key: str) -> Cell:
    """The median over the rounds of what the row has more than `direct` in the same round."""

    def cell(results: Results, row: str) -> str:
        base, values = _values(results, "direct", kind, key), _values(results, row, kind, key)
        more = [value - base[r] for r, value in values.items() if r in base]
        return f"{median(more):+.3f}" if more and row != "direct" else "-"

    return cell


def _bad(results: Results, row: str) -> str:
    return str(bad(results, row))


_LINES: Final[list[tuple[str, Cell]]] = [
    *[(f"requests/s, c={c}", _mid(f"plain-{c}", "rps", "{:.0f}")) for c in CONNECTIONS],
    *[(f"CPU us/request, c={c} (min..max)", _spread(f"plain-{c}", "cpu_us", "{:.0f}")) for c in CONNECTIONS],
    ("p50, c=1, ms", _mid("plain-1", "p50_ms", "{:.3f}")),
    ("added p50, c=1, ms", _added("plain-1", "p50_ms")),
    ("p99, c=1, ms", _mid("plain-1", "p99_ms", "{:.3f}")),
    ("added p99, c=1, ms", _added("plain-1", "p99_ms")),
    ("p50 of a 50 ms answer, c=64, ms", _mid("d50", "p50_ms", "{:.1f}")),
    ("p99 of a 50 ms answer, c=64, ms", _mid("d50", "p99_ms", "{:.1f}")),
    ("added p50, 50 requests/s by the clock, ms", _added("steady", "p50_ms")),
    ("added p99, 50 requests/s by the clock, ms", _added("steady", "p99_ms")),
    ("stream chunks/s, bursts, c=16", _mid("burst", "cps", "{:.0f}")),
    ("CPU us/chunk, bursts, c=16 (min..max)", _spread("burst", "cpu_us", "{:.1f}")),
    ("CPU us/chunk, 10 ms pace, c=16 (min..max)", _spread("pace", "cpu_us", "{:.1f}")),
    ("time to first token, c=1, ms", _mid("ttft", "ttft_p50_ms", "{:.3f}")),
    ("added time to first token, c=1, ms", _added("ttft", "ttft_p50_ms")),
    ("RSS idle, MiB", _mid("memory", "idle_mib", "{:.0f}")),
    ("RSS after the first second of load, MiB", _mid("memory", "early_mib", "{:.0f}")),
    ("RSS after the run, MiB", _mid("memory", "after_mib", "{:.0f}")),
    ("requests served by then", _mid("memory", "requests", "{:.0f}")),
    ("cold start to liveliness, s", _mid("boot", "live_s", "{:.3f}")),
    ("cold start to a chat answer, s", _mid("boot", "chat_s", "{:.3f}")),
    ("bad answers", _bad),
]
