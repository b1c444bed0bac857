"""What is measured once: hanging jobs, a killed worker, schedules."""

import asyncio
import time
from pathlib import Path

from benchmarks.peers import processes
from benchmarks.peers.figures import due_since, lateness_ms, missed, percentile
from benchmarks.peers.inside.asked import DEADLINE_SECONDS
from benchmarks.peers.measures import COARSE_SECONDS, START_PATIENCE_SECONDS, Figures
from benchmarks.peers.stage import Stage, stage
from benchmarks.peers.system import Case, System

KINDS = ("spin", "sleep", "loop")
HANG_SECONDS = DEADLINE_SECONDS + 8
JUDGED_SECONDS = 2.0
"""This long after its deadline, the CPU time of a hanging job is measured for `WATCHED_SECONDS`."""
WATCHED_SECONDS = 2.0
BURNS_SHARE = 0.2
GRACE_SECONDS = 1.5
WORK_SECONDS = 5.0
INTO_WORK_SECONDS = 1.0
SCHEDULES = {"second": 1, "minute": 60}


# -- a job that hangs -----------------------------------------------------------------


async def hung(system: System, kind: str, server: Path) -> Figures:
    """A hanging job with a deadline of two seconds, on a service with one slot.

    `killed`: whether the job was ended before its own end, eight seconds after the deadline.
    `burning`: whether its process used CPU time after the deadline.
    `slot_free_seconds`: from the deadline until the next job began; None if that was after the job's own end.
    """
    async with stage(system, Case.SINGLE, server) as on:
        on.start()
        await on.say("ask", job="stamp", arguments={}, count=1, apart_seconds=0.0)
        arguments = {"path": str(on.notes), "kind": kind, "seconds": HANG_SECONDS}
        await on.say("fill", job="hang", arguments=arguments, count=1)
        begun = await on.noted("start", 1, START_PATIENCE_SECONDS)
        assert begun is not None, "the hanging job has to begin"
        await on.say("fill", job="stamp", arguments={}, count=1)
        burning = await _burns(on, begun)
        killed = await _killed(on, begun)
        drained = await on.say("drain", patience_seconds=GRACE_SECONDS, apart_seconds=COARSE_SECONDS)
    return {"killed": killed, "burning": burning, "slot_free_seconds": _freed(drained["results"][0], begun)}


async def _burns(on: Stage, begun: int) -> bool:
    [(pid, _)] = on.lines("start")[:1]

    def used() -> float:
        return processes.cpu_seconds(processes.descendants([pid]))

    await _until(begun, DEADLINE_SECONDS + JUDGED_SECONDS)
    before = used()
    await asyncio.sleep(WATCHED_SECONDS)
    return used() - before > BURNS_SHARE * WATCHED_SECONDS


async def _killed(on: Stage, begun: int) -> bool:
    """Whether the job did not reach its own end; known at once if its process is gone."""
    [(pid, _)] = on.lines("start")[:1]
    if pid not in on.tree():
        return True
    await _until(begun, HANG_SECONDS + GRACE_SECONDS)
    return not any(at - begun > (HANG_SECONDS - GRACE_SECONDS) * 1e9 for _, at in on.lines("end"))


def _freed(stamp: int | str | None, begun: int) -> float | None:
    if not isinstance(stamp, int):
        return None
    seconds = (stamp - begun) / 1e9
    return seconds - DEADLINE_SECONDS if seconds < HANG_SECONDS else None


async def _until(begun: int, seconds: float) -> None:
    await asyncio.sleep(max(0.0, begun / 1e9 + seconds - time.time()))


# -- a worker that is killed ----------------------------------------------------------


async def killed(system: System, server: Path, patience_seconds: float) -> Figures:
    """Seconds from SIGKILL of the whole service, one second into a job of five, until the job began again.

    The system has its default settings, and is started again at once.  None if the job did not begin again
    within `patience_seconds`.
    """
    async with stage(system, Case.DEFAULT, server) as on:
        on.start()
        await on.say("ask", job="stamp", arguments={}, count=1, apart_seconds=0.0)
        arguments = {"path": str(on.notes), "seconds": WORK_SECONDS}
        await on.say("fill", job="work", arguments=arguments, count=1)
        assert await on.noted("start", 1, START_PATIENCE_SECONDS) is not None, "it has to begin"
        await asyncio.sleep(INTO_WORK_SECONDS)
        await on.kill()
        killed_at = time.time_ns()
        on.start()
        again = await on.noted("start", 2, patience_seconds)
    waited = {"waited_seconds": patience_seconds}
    return {"again_seconds": None if again is None else (again - killed_at) / 1e9, **waited}


# -- schedules ------------------------------------------------------------------------


async def cron(system: System, server: Path, seconds: float) -> Figures:
    """How late the starts of two schedules, every second and every minute, are by the wall clock."""
    async with stage(system, Case.CRON, server) as on:
        begun = on.start()
        await asyncio.sleep(seconds)
        found = {
            word: due_since([at for _, at in on.lines(word)], period_seconds, begun)
            for word, period_seconds in SCHEDULES.items()
        }
    figures: Figures = {}
    for word, period_seconds in SCHEDULES.items():
        if found[word]:
            late = lateness_ms(found[word], period_seconds)
            figures |= {
                f"{word}_p50_ms": percentile(late, 50),
                f"{word}_p99_ms": percentile(late, 99),
                f"{word}_early": sum(one < 0 for one in late),
                f"{word}_missed": missed(found[word], period_seconds),
                f"{word}_due_times": len(late),
            }
    return figures
