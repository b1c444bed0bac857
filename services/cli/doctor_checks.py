"""What `fullsend doctor` looks at: each check reads the store, or asks a worker, and says what it found."""

import http.client
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from services.cli import output
from services.cli.schedules import ScheduleRow, read_all_schedules
from services.cli.tools import all_registered
from services.executor.config import Settings
from services.executor.outcome import Status
from services.executor.store import Facts, Store
from shared import keys
from shared.connection import without_password
from shared.messages import State


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is as it should be, or not, and then what to do."""

    level: Level
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """Works, but perhaps not as it was meant."""
    return Finding(Level.WARNING, subject, text)


def problem(subject: str, text: str) -> Finding:
    """Something doesn't work."""
    return Finding(Level.PROBLEM, subject, text)


SLOW_MS = 50.0
LONG_WAIT_SECONDS = 60.0
RUNS_LOOKED_AT = 1_000
RUNS_NAMED = 5


async def findings(store: Store, settings: Settings, url: str) -> AsyncIterator[Finding]:
    """Everything, in the order in which it has to be mended."""
    facts = await store.server.look()
    for one in _server(facts, url):
        yield one
    for one in await _keys(store):
        yield one
    async for one in _workers(store):
        yield one
    yield await _runs(store)
    async for one in _tools(store, settings):
        yield one
    schedules = await read_all_schedules(store)
    async for one in _experiments(store, {one.experiment_id for one in schedules}):
        yield one
    for one in _schedules(schedules):
        yield one


def _server(facts: Facts, url: str) -> list[Finding]:
    told = (
        f"{facts.version} at {without_password(url)} answers in {facts.latency_ms:.2f} ms; "
        f"{output.size(facts.memory_bytes)} in use; persistence: {facts.persistence or 'none'}"
    )
    found = [ok("redis", told)]
    if facts.latency_ms > SLOW_MS:
        found.append(warning("redis", f"an answer takes {facts.latency_ms:.0f} ms; put workers closer to it"))
    if facts.persistence is None:
        text = "nothing is written to disk, so a restart loses queued runs and records; set `appendonly yes`"
        found.append(warning("redis", text))
    if facts.eviction is not None:
        text = f"drops keys when its memory is full ({facts.eviction}); set `maxmemory-policy noeviction`"
        found.append(problem("redis", text))
    return found


async def _workers(store: Store) -> AsyncIterator[Finding]:
    alive, listening = await store.workers.alive(), await store.workers.listening()
    depth = await store.queue.depth()
    if alive:
        yield ok("workers", f"{len(alive)} alive: {', '.join(sorted(alive))}")
    else:
        yield problem("workers", "none is alive, so nothing runs; start one with `fullsend worker`")
    if alive and not listening:
        yield warning("workers", "none listens for triggers; that takes `trigger` in SCHEDULE_MODE")
    for name, seconds in (await store.workers.silent()).items():
        told = "the others take its runs over" if alive else "its runs wait for a worker to take them over"
        yield warning("workers", f"{name} counts as dead since {output.duration(seconds)}; {told}")
    text = f"{depth.waiting} waiting, {depth.held} running, {depth.delayed} to be tried again later"
    yield ok("queue", text)
    waited_seconds = await store.queue.oldest_seconds()
    if waited_seconds > LONG_WAIT_SECONDS:
        text = f"an order has waited for {output.duration(waited_seconds)}"
        yield warning("queue", f"{text}; more workers, or a larger CONCURRENCY, would help")


async def _keys(store: Store) -> list[Finding]:
    """What somebody has made something else of, among the keys that are the executor's own."""
    ids = [experiment_id async for experiment_id, _ in store.experiments.scan()]
    return [
        problem(one.key, f"is a Redis {one.found}; expected a {one.expected}; delete it")
        for one in await store.server.misfits(ids)
    ]


async def _runs(store: Store) -> Finding:
    """Runs that workers died over too often, or that must not be repeated."""
    recent = await store.history.recent(None, RUNS_LOOKED_AT)
    lost = [one["run_id"] for one in recent if one.get("status") == Status.LOST]
    if not lost:
        return ok("runs", f"none of the last {len(recent)} was lost with its worker")
    named = ", ".join(lost[:RUNS_NAMED]) + (", ..." if len(lost) > RUNS_NAMED else "")
    text = f"{len(lost)} of the last {len(recent)} were lost with their workers: {named}"
    return warning("runs", f"{text}; `fullsend show RUN_ID` says what is known")


async def _tools(store: Store, settings: Settings) -> AsyncIterator[Finding]:
    folder = settings.tools_path.resolve()
    if folder.is_dir():
        yield ok("tools", f"{folder} holds {len(list(folder.glob('*.py')))} modules")
    else:
        yield warning("tools", f"{folder} is not there; TOOLS_PATH names the folder of the tools")
    registered = await all_registered(store)
    yield ok("tools", f"{sum(one['status'] == 'active' for one in registered)} are registered and active")
    for one in registered:
        if one["status"] == "invalid":
            yield problem(keys.tool(one["name"]), output.one_line(one["error"].partition("\n")[0]))


async def _experiments(store: Store, scheduled: set[str]) -> AsyncIterator[Finding]:
    states: Counter[str] = Counter()
    known_tools = {one["name"] for one in await all_registered(store)}
    found: list[Finding] = []
    async for experiment_id, stored in store.experiments.scan():
        experiment, key = stored.experiment, keys.experiment(experiment_id)
        if experiment is None:
            found.append(problem(key, f"can't be read: {stored.error}"))
            continue
        states[experiment.state] += 1
        if experiment.state is State.RUNNING and await _is_stuck(store, experiment_id):
            text = "is `running`, but no run of it is open, so cron and speedrun leave it"
            found.append(warning(key, f"{text}; set its state to `ready`"))
        if experiment.schedule and experiment_id not in scheduled:
            text = f"says `schedule: {experiment.schedule}`, but there is no {keys.schedule(experiment_id)}"
            found.append(warning(key, f"{text}, so cron doesn't know of it; publish it again"))
        if known_tools and experiment.tool not in known_tools:
            found.append(warning(key, f"its tool '{experiment.tool}' is not registered"))
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield ok("experiments", told or "there are none; `fullsend publish` stores some")
    for one in sorted(found, key=lambda finding: finding.subject):
        yield one


async def _is_stuck(store: Store, experiment_id: str) -> bool:
    """Whether it is `running` without a run, also on a second look: one may just have ended."""
    if await store.due_times.has_open_runs(experiment_id):
        return False
    experiment = (await store.experiments.read(experiment_id)).experiment
    return experiment is not None and experiment.state is State.RUNNING


def _schedules(schedules: list[ScheduleRow]) -> list[Finding]:
    active = sum(one.state == "active" for one in schedules)
    found = [ok("schedules", f"{active} active, {len(schedules) - active} not")]
    for one in schedules:
        if one.problem:
            level = Level.PROBLEM if one.broken else Level.WARNING
            found.append(Finding(level, keys.schedule(one.experiment_id), one.problem))
    return found


ANSWER_SECONDS = 5.0

Series = dict[str, float]
"""Values by name; those that differ in labels only are added up."""

COUNTED = {
    "fullsend_runs_buried_total": "runs were buried, because workers had died over them",
    "fullsend_outcomes_refused_total": "outcomes came too late: the worker had been taken for dead",
    "fullsend_redis_unavailable_total": "times Redis was not there when it was asked",
}
"""What should be 0 in a life without trouble, and what it says when it is not."""


def said_by(url: str) -> Iterator[Finding]:
    """`/healthz`, `/readyz` and `/metrics` of the worker at `url`, as findings.

    Args:
        url: `http://HOST:PORT`, also without the scheme, or a port of this machine.
    """
    address = _address(url)
    shown = without_password(address)
    try:
        yield from _told(address, "healthz", "alive", "its event loop turns")
        yield from _told(address, "readyz", "ready", "it takes runs")
        yield from _measured(_series(_get(address, "metrics")))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, http.client.HTTPException) as exc:
        yield problem(shown, f"does not answer as a worker does: {output.one_line(str(exc))}")


def _address(url: str) -> str:
    if url.isdecimal():
        url = f"127.0.0.1:{url}"
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _told(address: str, path: str, fact: str, meaning: str) -> Iterator[Finding]:
    said = json.loads(_get(address, path))
    subject = f"{said['worker']} /{path}"
    if said[fact] is True:
        yield ok(subject, f"{fact}: {meaning}")
    for name, reason in said["missing"].items():
        yield problem(subject, f"not {fact}: {name}: {reason}")


def _measured(series: Series) -> Iterator[Finding]:
    busy, slots = series["fullsend_slots_busy"], series["fullsend_slots_total"]
    yield ok("/metrics", f"{busy:.0f} of {slots:.0f} slots are busy")
    for name, meaning in COUNTED.items():
        if series.get(name):
            yield warning("/metrics", f"{series[name]:.0f} {meaning}")


def _series(text: str) -> Series:
    series: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series[sample.name] = series.get(sample.name, 0.0) + float(sample.value)
    if "fullsend_slots_busy" not in series:
        raise ValueError("/metrics has no fullsend_slots_busy")
    return series


def _get(address: str, path: str) -> str:
    parts = urlsplit(address)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ValueError("expected http://HOST:PORT")
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", f"{parts.path}/{path}")
        body: bytes = connection.getresponse().read()
    finally:
        connection.close()
    return body.decode()
