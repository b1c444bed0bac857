"""What is measured once: jobs that hang, a worker that is killed, schedules."""

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
"""So long after the deadline it is looked whether it still burns, and for how long."""
WATCHED_SECONDS = 2.0
BURNS_SHARE = 0.2
GRACE_SECONDS = 1.5
WORK_SECONDS = 5.0
INTO_WORK_SECONDS = 1.0
SCHEDULES = {"second": 1, "minute": 60}


# -- a job that hangs -----------------------------------------------------------------


async def hung(system: System, kind: str, server: Path) -> Figures:
    """One job that does not come back, on a service that has room for one; its deadline is two seconds.

    `killed`: it did not come to its own end, eight seconds after the deadline.
    `burning`: its process used processor time after the deadline, as much as it got.
    `slot_free_seconds`: from the deadline until the next job began, None when that was not before the
    job's own end.
    """
    async with stage(system, Case.SINGLE, server) as on:
        on.start()
        await on.say("ask", job="stamp", arguments={}, count=1, apart_seconds=0.0)
        arguments = {"path": str(on.notes), "kind": kind, "seconds": HANG_SECONDS}
        await on.say("fill", job="hang", arguments=arguments, count=1)
        begun = await on.noted("start", 1, START_PATIENCE_SECONDS)
        assert begun is not None, "a job that hangs has to begin"
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
    """Whether it did not come to its own end; known at once when its process is gone."""
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
    """From SIGKILL of the whole service, a new one being started at once, until its job began again.

    A job of five seconds, one second into it; as the system comes.  None: not in the
    time that was waited.
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
    """How late the starts of a schedule for each second and of one for each minute are by the wall clock."""
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
