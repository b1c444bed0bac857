"""The checks of `fullsend doctor`: each reads Redis, or asks a worker, and yields findings."""

import http.client
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from services.cli import output
from services.executor.config import Settings
from services.executor.isolation import cgroups
from services.executor.isolation.sandbox import Sandbox, Unavailable, detect, unprotected
from services.executor.outcome import Status
from services.executor.store import ServerFacts, Store
from services.executor.tools import bundles
from services.operations import words
from services.operations.registered_tools import all_registered
from services.operations.schedule_rows import NO_CRON, ScheduleRow, read_all_schedules
from shared import keys
from shared.connection import without_password
from shared.messages import Experiment, State


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `text` says what to do about a problem."""

    level: Level
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """Create a finding that needs no action."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """Create a finding about something that works, but perhaps not as intended."""
    return Finding(Level.WARNING, subject, text)


def problem(subject: str, text: str) -> Finding:
    """Create a finding about something that does not work."""
    return Finding(Level.PROBLEM, subject, text)


SLOW_MS = 50.0
LONG_WAIT_SECONDS = 60.0
RUNS_LOOKED_AT = 1_000
RUNS_NAMED = 5


async def findings(store: Store, settings: Settings, url: str) -> AsyncIterator[Finding]:
    """Yield the findings of all checks that read Redis, in the order in which problems are best solved.

    Args:
        store: the store to check.
        settings: for the tools folder of this machine.
        url: the server's URL, to be shown without its password.
    """
    facts = await store.server.look()
    for one in _server(facts, url):
        yield one
    for one in await _keys(store):
        yield one
    async for one in _listeners(store):
        yield one
    yield _sandbox(settings.sandbox)
    yield _processes()
    async for one in _workers(store):
        yield one
    yield await _runs(store)
    async for one in _tools(store, settings):
        yield one
    schedules = await read_all_schedules(store)
    async for one in _experiments(store, {one.experiment_id for one in schedules}):
        yield one
    for one in [*_schedules(schedules), *_noticing(await store.workers.cron())]:
        yield one


def _server(facts: ServerFacts, url: str) -> list[Finding]:
    text = (
        f"{facts.version} at {without_password(url)} answers in {facts.latency_ms:.2f} ms; "
        f"{words.size(facts.memory_bytes)} in use; persistence: {facts.persistence or 'none'}"
    )
    found = [ok("redis", text)]
    if facts.latency_ms > SLOW_MS:
        text = f"an answer takes {facts.latency_ms:.0f} ms; run the workers closer to the server"
        found.append(warning("redis", text))
    if facts.persistence is None:
        text = "nothing is written to disk, so a restart loses queued runs and records; set `appendonly yes`"
        found.append(warning("redis", text))
    if facts.eviction is not None:
        text = f"keys are deleted when memory is full ({facts.eviction}); set `maxmemory-policy noeviction`"
        found.append(problem("redis", text))
    return found


def _sandbox(level: Sandbox) -> Finding:
    """Tell what tools are kept from on this machine."""
    if level is Sandbox.OFF:
        text = "SANDBOX is off: tools can reach the memory and environment of other processes of their user"
        return warning("sandbox", text)
    missing = unprotected()
    if level is Sandbox.PROCESS:
        return warning("sandbox", missing) if missing else ok("sandbox", "tools reach no other processes")
    kind = detect()
    if isinstance(kind, Unavailable):
        return problem("sandbox", f"SANDBOX is {level}, but {kind.reason}, so no tool runs on this machine")
    return ok("sandbox", f"tools are confined to {level} by {type(kind).__name__}")


def _processes() -> Finding:
    """Tell how the limit `processes` is enforced on this machine."""
    if cgroups.home() is not None:
        return ok("processes", "the kernel enforces the limit `processes`, by control groups")
    text = "no control group can be made here, so the limit `processes` is not hard: it is only watched"
    return ok("processes", text)


async def _workers(store: Store) -> AsyncIterator[Finding]:
    alive, listening = await store.workers.alive(), await store.workers.listening()
    depth = await store.queue.depth()
    if alive:
        yield ok("workers", f"{len(alive)} alive: {', '.join(sorted(alive))}")
    else:
        yield problem("workers", "no worker is alive, so nothing runs; start one with `fullsend worker`")
    if alive and not listening:
        yield warning("workers", "no worker listens for triggers; start one with `trigger` in SCHEDULE_MODE")
    for name, seconds in (await store.workers.silent()).items():
        text = "other workers take over its runs" if alive else "its runs wait until another worker starts"
        yield warning("workers", f"{name} has been silent for {words.duration(seconds)}; {text}")
    yield ok("queue", f"{depth.waiting} waiting, {depth.held} running, {depth.delayed} delayed")
    waited_seconds = await store.queue.oldest_seconds()
    if waited_seconds > LONG_WAIT_SECONDS:
        text = f"the oldest order has waited for {words.duration(waited_seconds)}"
        yield warning("queue", f"{text}; start more workers or raise CONCURRENCY")


async def _listeners(store: Store) -> AsyncIterator[Finding]:
    """Find workers on another database of the server: a PUBLISH reaches all databases."""
    found = await store.server.other_listeners()
    if found.workers:
        named = ", ".join(map(str, found.databases))
        where = f"database {named}" if len(found.databases) == 1 else "other databases"
        text = f"{found.workers} further workers on {where} of this server hear the same messages"
        yield problem("channels", f"{text}, so each trigger runs there as well; set CHANNEL_PREFIX for one")


async def _keys(store: Store) -> list[Finding]:
    """Find keys of the executor that somebody has replaced with another type."""
    ids = [experiment_id async for experiment_id, _ in store.experiments.scan()]
    return [
        problem(one.key, f"is a Redis {one.found}; expected a {one.expected}; delete the key")
        for one in await store.server.wrong_types(ids)
    ]


async def _runs(store: Store) -> Finding:
    """Find runs that were given up because their workers died."""
    recent = await store.history.recent(None, RUNS_LOOKED_AT)
    lost = [one["run_id"] for one in recent if one.get("status") == Status.LOST]
    if not lost:
        return ok("runs", f"none of the last {len(recent)} runs was lost with its worker")
    named = ", ".join(lost[:RUNS_NAMED]) + (", ..." if len(lost) > RUNS_NAMED else "")
    text = f"{len(lost)} of the last {len(recent)} runs were lost with their workers: {named}"
    return warning("runs", f"{text}; see `fullsend show RUN_ID`")


async def _tools(store: Store, settings: Settings) -> AsyncIterator[Finding]:
    folder = settings.tools_path.resolve()
    if folder.is_dir():
        yield ok("tools", f"modules in {folder}: {len(list(folder.glob('*.py')))}")
    else:
        yield warning("tools", f"the tools folder {folder} does not exist; set TOOLS_PATH")
    registered = await all_registered(store)
    active = sum(one["status"] == "active" and one["state"] != "missing" for one in registered)
    yield ok("tools", f"{active} registered and active")
    for one in registered:
        if one["state"] == "missing":
            yield warning(keys.tool(one["name"]), "no live worker has this tool any more; its runs fail")
        elif one["status"] == "invalid":
            yield problem(keys.tool(one["name"]), one["error"].partition("\n")[0])


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
        found += [warning(key, text) async for text in _doubts(store, experiment, scheduled, known_tools)]
    text = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield ok("experiments", text or "none; `fullsend publish` stores some")
    for one in sorted(found, key=lambda finding: finding.subject):
        yield one


async def _doubts(
    store: Store, experiment: Experiment, scheduled: set[str], known_tools: set[str]
) -> AsyncIterator[str]:
    """Yield what may keep an experiment from running."""
    if experiment.state is State.RUNNING and await _is_stuck(store, experiment.id):
        yield "is `running`, but no run of it is open, so cron and speedrun skip it; set its state to `ready`"
    if experiment.schedule and experiment.id not in scheduled:
        yield (
            f"says `schedule: {experiment.schedule}`, but {keys.schedule(experiment.id)} does not exist, so "
            "cron does not run it; publish it again"
        )
    is_pinned = bundles.parse(experiment.tool) is not None
    if known_tools and not is_pinned and experiment.tool not in known_tools:
        yield f"its tool '{experiment.tool}' is not registered"


async def _is_stuck(store: Store, experiment_id: str) -> bool:
    """Whether an experiment is `running` without a run.  Reads it twice: a run may just have ended."""
    if await store.due_times.has_open_runs(experiment_id):
        return False
    experiment = (await store.experiments.read(experiment_id)).experiment
    return experiment is not None and experiment.state is State.RUNNING


def _schedules(schedules: list[ScheduleRow]) -> list[Finding]:
    active = sum(one.state == "active" for one in schedules)
    found = [ok("schedules", f"{active} active, {len(schedules) - active} off or invalid")]
    waiting = [one for one in schedules if one.unattended]
    if waiting:  # the one that is due next comes first
        due = f"the next due time is {waiting[0].next_local}, of {waiting[0].experiment_id}"
        found.append(warning("schedules", f"{due}; {NO_CRON}"))
    for one in schedules:
        if one.problem:
            level = Level.PROBLEM if one.broken else Level.WARNING
            found.append(Finding(level, keys.schedule(one.experiment_id), one.problem))
    return found


_NOTICING = {
    "notifications": "are noticed at once: the server sends keyspace notifications",
    "poll": "are noticed within ten seconds, as new keys are looked for; `notify-keyspace-events K$h` in the "
    "server's configuration has them noticed at once, and changed ones as well",
    "unknown": "will be noticed: the workers are finding out whether the server sends keyspace notifications",
}
"""By how workers notice schedules; see `schedule_watch.Noticing`."""


def _noticing(cron: Mapping[str, str]) -> list[Finding]:
    """Tell how schedules are noticed that are written without a message, for each way that a worker has."""
    by_way = {way: [name for name, one in cron.items() if one == way] for way in _NOTICING}
    return [
        ok("cron", f"{', '.join(sorted(names))}: schedules that nobody announces {_NOTICING[way]}")
        for way, names in by_way.items()
        if names
    ]


ANSWER_SECONDS = 5.0

Series = dict[str, float]
"""Values by name, summed over their labels."""

TROUBLE_COUNTERS = {
    "fullsend_runs_buried_total": "runs were given up because too many workers died during them",
    "fullsend_outcomes_refused_total": "outcomes were refused because the worker had counted as dead",
    "fullsend_redis_unavailable_total": "times Redis could not be reached",
}
"""Counters that are 0 in normal operation, and what a larger number means."""


def worker_findings(url: str) -> Iterator[Finding]:
    """Yield findings from `/healthz`, `/readyz` and `/metrics` of a worker.

    Args:
        url: `http://HOST:PORT`, with or without the scheme, or a port of this machine.
    """
    address = _address(url)
    shown = without_password(address)
    try:
        yield from _health(address, "healthz", "alive", "its event loop responds")
        yield from _health(address, "readyz", "ready", "it accepts runs")
        yield from _monitoring(_series(_get(address, "metrics")))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, http.client.HTTPException) as exc:
        yield problem(shown, f"does not answer like a worker: {output.one_line(str(exc))}")


def _address(url: str) -> str:
    if url.isdecimal():
        url = f"127.0.0.1:{url}"
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _health(address: str, path: str, fact: str, meaning: str) -> Iterator[Finding]:
    answer = json.loads(_get(address, path))
    subject = f"{answer['worker']} /{path}"
    if answer[fact] is True:
        yield ok(subject, f"{fact}: {meaning}")
    for name, reason in answer["missing"].items():
        yield problem(subject, f"not {fact}: {name}: {reason}")


def _monitoring(series: Series) -> Iterator[Finding]:
    busy, slots = series["fullsend_slots_busy"], series["fullsend_slots_total"]
    yield ok("/metrics", f"{busy:.0f} of {slots:.0f} slots are busy")
    for name, meaning in TROUBLE_COUNTERS.items():
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
        raise ValueError("the URL must be like http://HOST:PORT")
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", f"{parts.path}/{path}")
        body: bytes = connection.getresponse().read()
    finally:
        connection.close()
    return body.decode()
