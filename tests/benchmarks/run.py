"""The project's benchmark: direct, nginx and the sidecar against one mock upstream, interleaved round by round.

    python tests/benchmarks/run.py [--quick] [--rows direct,nginx] [--show FILE ...]

The table goes to stdout, progress to stderr, all samples to `out/last.json`. Only bad answers fail it, never speed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import load
import report
import servers
from rows import OUT, ROWS, Row, default_sidecar
from servers import BenchError, Server

LIMIT_S: Final = 3600
_STREAMS: Final = 16
_STEADY_RATE: Final = 50


def main() -> int:
    """Run or show; the exit code."""
    args = arguments()
    if args.show:
        print(report.table(*report.merge(args.show)))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _interrupted)
    signal.alarm(args.limit)
    try:
        return run(args, chosen(args.rows))
    except BenchError as exc:
        print(exc, file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        servers.stop_all()


def arguments() -> argparse.Namespace:
    """The command line."""
    names = ",".join(row.name for row in ROWS)
    p = argparse.ArgumentParser(description="Side by side: the mock itself, nginx, the sidecar.")
    p.add_argument("--rows", default=names, help=f"default: {names}")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--secs", type=int, default=3, help="of each measurement")
    p.add_argument("--soak", type=int, default=50_000, help="requests served before memory is read again")
    p.add_argument("--quick", action="store_true", help="1 round of 1 s, soak of 2,000: does it work at all")
    p.add_argument("--sidecar", default=default_sidecar(), help="the sidecar's program, to compare two builds")
    p.add_argument("--out", type=Path, default=OUT / "last.json")
    p.add_argument("--limit", type=int, default=LIMIT_S, help="give up after so many seconds")
    p.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="print saved runs together; run nothing")
    args = p.parse_args()
    if args.quick:
        args.rounds, args.secs, args.soak = 1, 1, min(args.soak, 2_000)
    if min(args.rounds, args.secs, args.limit) < 1:
        p.error("--rounds, --secs and --limit start at 1")
    return args


def chosen(names: str) -> list[Row]:
    """The rows of a comma-separated list."""
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise BenchError(f"Unknown row {', '.join(unknown)}; there are {', '.join(known)}.")
    return [known[name] for name in names.split(",")]


def run(args: argparse.Namespace, rows: list[Row]) -> int:
    """Measure, save, print; 1 when an answer was bad."""
    servers.require(rows, args.sidecar)
    OUT.mkdir(exist_ok=True)
    meta = {**report.machine(), "rounds": args.rounds, "secs": args.secs, "soak": args.soak}
    prefix, meta["pinned"] = servers.pin()
    results = measure(args, rows, prefix, meta)
    report.save(args.out, meta, results)
    print(report.table([meta], results))
    wrong = [row for row in results if report.bad(results, row)]
    if wrong:
        print(f"Bad answers from {', '.join(wrong)}: do not use these figures.", file=sys.stderr)
    return 1 if wrong else 0


def measure(args: argparse.Namespace, rows: list[Row], prefix: list[str], meta: dict[str, Any]) -> report.Results:
    """All samples: starts, rounds, memory. Saved after each round too, so that an interrupted run is not lost."""
    mock_port = servers.start_mock()
    results: report.Results = {row.name: {} for row in rows}
    started = [boot(row, mock_port, args, prefix, results[row.name]) for row in rows]
    for number in range(args.rounds):
        for server in started if number % 2 == 0 else started[::-1]:  # so that no row always follows the same one
            for kind, sample in one_round(server, args.secs):
                results[server.row.name].setdefault(kind, []).append({"round": str(number), **sample})
        meta.setdefault("load_average_rounds", []).append(round(os.getloadavg()[0], 2))
        report.save(args.out, meta, results)
        progress(f"round {number + 1} of {args.rounds}, load average {os.getloadavg()[0]:.1f}")
    for server in started:
        if server.process:
            memory = results[server.row.name]["memory"][0]
            memory["bad"] = load.soak(server, args.soak)
            memory |= {"after_mib": server.rss_mib(), "requests": server.requests}
            progress(f"{server.row.name}: {server.requests} requests served")
    return results


def boot(
    row: Row, mock_port: int, args: argparse.Namespace, prefix: list[str], result: dict[str, list[report.Sample]]
) -> Server:
    """Start a row once for each round, and leave the last one running: checked, warm, its idle memory read."""
    server = servers.start(row, mock_port, args.sidecar, prefix)
    for number in range(args.rounds if row.command else 0):
        if number:
            server.stop()
            server = servers.start(row, mock_port, args.sidecar, prefix)
        boot = {"round": str(number), "live_s": server.live_s, "chat_s": server.chat_s}
        result.setdefault("boot", []).append(boot)
    time.sleep(1)
    if server.process:
        result["memory"] = [{"round": "0", "idle_mib": server.rss_mib()}]
    load.verify(server)
    load.plain(server, 16, 1)
    if server.process:
        result["memory"][0]["early_mib"] = server.rss_mib()
    progress(f"{row.name}: started, answers are right")
    return server


def one_round(server: Server, secs: int) -> list[tuple[str, report.Sample]]:
    """Every measurement of one server once."""
    samples = [(f"plain-{c}", load.plain(server, c, secs)) for c in report.CONNECTIONS]
    samples.append(("d50", load.plain(server, 64, secs, "mock-d50")))
    samples.append(("burst", load.streams(server, _STREAMS, secs)))
    samples.append(("pace", load.streams(server, _STREAMS, secs, "mock-pace")))
    samples.append(("steady", load.steady(server, _STEADY_RATE, max(5, secs))))
    samples.append(("ttft", load.streams(server, 1, secs, "mock-ttft")))
    return samples


def progress(text: str) -> None:
    """Not into the table."""
    print(f"# {text}", file=sys.stderr, flush=True)


def _interrupted(number: int, _frame: object) -> None:
    if number == signal.SIGALRM:
        raise BenchError("Stopped: the run took longer than --limit.")
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
