"""The health and monitoring endpoints of a worker that works, waits, stops or hangs."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from services.executor.config import load
from services.executor.intake import Intake
from services.executor.monitoring.health_server import Answers, Worker, serving
from services.executor.service import Service
from services.executor.store import Begun, Order, Store
from shared import keys
from shared.errors import SettingsError
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.ports import free_port
from tests.service.conftest import NoTools, Work, assert_works, client_ids

HOST = "127.0.0.1"
PATIENT = """
    import time
    from pathlib import Path
    from shared import toolkit

    def patient(until: str):
        toolkit.progress(0)
        while not Path(until).exists():
            time.sleep(0.01)
"""

pytestmark = pytest.mark.usefixtures("echo")


@pytest.fixture
def port() -> int:
    """A port for the endpoints."""
    return free_port()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The address of a Redis that is down."""
    with socket.socket() as bound:  # not listening, so nobody answers and nobody else takes the port
        bound.bind((HOST, 0))
        yield f"redis://{HOST}:{bound.getsockname()[1]}/0"


@pytest.fixture
def go(tools: Tools, tmp_path: Path) -> Path:
    """The tool `patient` runs until this file exists."""
    tools("patient", PATIENT)
    return tmp_path / "go"


def request(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body; blocks."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


async def get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON body."""
    status, _, body = await asyncio.to_thread(request, port, path)
    return status, json.loads(body)


def a_worker(store: Store) -> Worker:
    """A worker that does nothing."""
    intake = Intake(store.queue, "me", 8, NoTools(), lambda running: asyncio.sleep(0))
    return Worker("me", store, intake, 8, None, asyncio.Event())


class Metrics:
    """`/metrics` of one worker."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def value(self, name: str, **labels: str) -> float | None:
        """The value of a series, None when there is none."""
        _, _, text = await asyncio.to_thread(request, self._port, "/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"fullsend_{name}" and sample.labels == labels:
                    return float(sample.value)
        return None

    async def comes_to(self, wanted: float, name: str, **labels: str) -> None:
        """Wait until a series has this value."""

        async def reached() -> bool:
            return await self.value(name, **labels) == wanted

        await eventually(reached, f"{name} {labels} of {wanted}")


Watch = Callable[..., contextlib.AbstractAsyncContextManager[Metrics]]


@pytest.fixture
def watch(serve: Serve, port: int) -> Watch:
    """`async with watch(...)` runs a service with endpoints."""

    @contextlib.asynccontextmanager
    async def watched(**chosen: Any) -> AsyncIterator[Metrics]:
        async with serve(health_port=port, **chosen):
            yield Metrics(port)

    return watched


# -- health and readiness -------------------------------------------------------------


async def test_a_worker_that_works_is_alive_and_ready(serve: Serve, port: int) -> None:
    async with serve(health_port=port) as service:
        health, readiness = await get(port, "/healthz"), await get(port, "/readyz")

    assert health == (200, {"alive": True, "worker": service.worker, "missing": {}})
    assert readiness == (200, {"ready": True, "worker": service.worker, "missing": {}})


async def test_a_worker_that_waits_for_redis_is_alive_and_says_so(
    nowhere: str, port: int, tmp_path: Path
) -> None:
    settings = load(redis_url=nowhere, tools_path=tmp_path, health_port=port)
    service, stop = Service(settings, nowhere, os.environ), asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    await eventually(lambda: _is_open(port), "the endpoints")

    health, (status, said) = await get(port, "/healthz"), await get(port, "/readyz")
    stop.set()
    await task

    assert health[0] == 200
    assert status == 503
    assert said["ready"] is False
    assert set(said["missing"]) == {"redis", "triggers"}
    assert "Redis can't be reached" in said["missing"]["redis"]


@contextlib.contextmanager
def silent(pid: int) -> Iterator[None]:
    """Stop a process while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_redis_that_does_not_answer_is_not_reported_as_a_blocked_loop(
    store: Store, neighbour: Neighbour
) -> None:
    worker = dataclasses.replace(a_worker(store), redis_seconds=0.2)
    async with serving(HOST, 0, Answers(worker, CollectorRegistry())) as port:
        with silent(int((await neighbour.redis.info("server"))["process_id"])):
            status, said = await get(port, "/readyz")
            health, _ = await get(port, "/healthz")
            scraped, _, text = await asyncio.to_thread(request, port, "/metrics")

    assert (status, said["missing"]) == (503, {"redis": "no answer within 0.2 s"})
    assert health == 200
    assert scraped == 200
    assert "fullsend_slots_total 8.0" in text
    assert "fullsend_queue_waiting" not in text


async def test_a_worker_that_drains_is_alive_and_not_ready(
    redis_url: str, port: int, tmp_path: Path, neighbour: Neighbour, go: Path
) -> None:
    settings = load(redis_url=redis_url, tools_path=tmp_path / "tools", health_port=port)
    service, stop = Service(settings, redis_url, os.environ), asyncio.Event()
    await neighbour.publish("exp_1", "patient", params={"until": str(go)})
    task = asyncio.create_task(service.run(stop))
    await eventually(lambda: _hears(neighbour), "the service")
    await neighbour.trigger({"experiment_id": "exp_1"})
    await neighbour.events("exp_1", "progress")
    stop.set()

    health, (status, said) = await get(port, "/healthz"), await get(port, "/readyz")
    go.touch()
    await task

    assert health[0] == 200
    assert (status, list(said["missing"])) == (503, ["draining"])
    assert not await _is_open(port)


async def test_a_blocked_loop_is_reported(store: Store) -> None:
    registry = CollectorRegistry()
    Counter("fullsend_counted", "A counter", registry=registry)
    async with serving(HOST, 0, Answers(a_worker(store), registry, loop_seconds=0.2)) as port:
        # From the loop's own thread, so that the loop is blocked until the answer is there.
        blocked = {path: request(port, path) for path in ("/healthz", "/readyz", "/metrics")}
        await eventually(lambda: _is_alive(port), "the loop")

    for path in ("/healthz", "/readyz"):
        status, _, body = blocked[path]
        assert (status, list(json.loads(body)["missing"])) == (503, ["loop"])
    assert blocked["/metrics"][0] == 200
    assert "fullsend_counted_total" in blocked["/metrics"][2]
    assert "fullsend_slots_busy" not in blocked["/metrics"][2]


async def test_a_mode_without_triggers_is_ready_without_listening(serve: Serve, port: int) -> None:
    async with serve(health_port=port, schedule_mode="cron"):
        status, _ = await get(port, "/readyz")

    assert status == 200


# -- http -----------------------------------------------------------------------------


async def test_head_is_answered_like_get_without_the_body(serve: Serve, port: int) -> None:
    async with serve(health_port=port):
        for path in ("/healthz", "/readyz", "/metrics", "/healthz?verbose=1"):
            status, kind, body = await asyncio.to_thread(request, port, path)
            head = await asyncio.to_thread(request, port, path, "HEAD")

            assert head == (status, kind, "")
            assert body


async def test_other_paths_are_not_found(serve: Serve, port: int) -> None:
    paths = ("/", "/health", "/metrics/", "/healthz/x", "/../healthz", "//")
    async with serve(health_port=port):
        answers = [await asyncio.to_thread(request, port, path) for path in paths]

    assert {status for status, _, _ in answers} == {404}


async def test_a_silent_client_does_not_block_others(serve: Serve, port: int) -> None:
    async with serve(health_port=port):
        with socket.create_connection((HOST, port)):
            status, _ = await get(port, "/healthz")

    assert status == 200


async def test_port_0_means_that_nobody_listens(work: Work, neighbour: Neighbour) -> None:
    async with work(health_port=0) as one:
        await one.said("triggers.listening")
        await assert_works(neighbour)
        assert not [line for line in one.lines if line["event"] == "endpoints.listening"]


async def test_a_port_that_is_taken_stops_the_start_with_one_line(work: Work) -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        async with work(health_port=number) as one:
            code = await one.ended()

    assert code == 1
    assert one.noise == [
        f"error: HEALTH_PORT={number}: can't listen on {HOST}: Address already in use; "
        "choose another port, or 0 for none\n"
    ]


async def test_the_processes_for_tools_are_counted_by_state(store: Store) -> None:
    states = {"idle": 2, "busy": 1, "starting": 0}
    worker = dataclasses.replace(a_worker(store), processes=lambda: states)
    async with serving(HOST, 0, Answers(worker, CollectorRegistry())) as chosen:
        series = Metrics(chosen)
        told = {state: await series.value("pool_processes", state=state) for state in states}

    assert told == states


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
async def test_a_foreign_host_is_reported_on_one_line(store: Store, host: str) -> None:
    with pytest.raises(SettingsError, match=f"HEALTH_PORT=0: can't listen on {host}: ") as refused:
        async with serving(host, 0, Answers(a_worker(store), CollectorRegistry())):
            pass

    assert "\n" not in str(refused.value)


# -- metrics --------------------------------------------------------------------------


async def test_metrics_are_what_prometheus_reads(watch: Watch, port: int, neighbour: Neighbour) -> None:
    async with watch():
        await assert_works(neighbour)
        _, kind, text = await asyncio.to_thread(request, port, "/metrics")

    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert families == {
        "fullsend_runs_started": "counter",
        "fullsend_runs_ended": "counter",
        "fullsend_attempts_retried": "counter",
        "fullsend_runs_recovered": "counter",
        "fullsend_runs_buried": "counter",
        "fullsend_outcomes_refused": "counter",
        "fullsend_redis_unavailable": "counter",
        "fullsend_run_duration_seconds": "histogram",
        "fullsend_queue_wait_seconds": "histogram",
        "fullsend_cron_lateness_seconds": "histogram",
        "fullsend_slots_busy": "gauge",
        "fullsend_slots_total": "gauge",
        "fullsend_pool_processes": "gauge",
        "fullsend_queue_waiting": "gauge",
        "fullsend_queue_held": "gauge",
        "fullsend_queue_delayed": "gauge",
        "fullsend_queue_oldest_seconds": "gauge",
    }


async def test_runs_are_counted_by_tool_and_outcome(watch: Watch, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_gone", "no_such_tool")
    async with watch() as metrics:
        await assert_works(neighbour)
        await neighbour.run("exp_gone")

        await metrics.comes_to(1, "runs_ended_total", tool="echo", status="completed")
        await metrics.comes_to(1, "runs_ended_total", tool="unknown", status="failed")
        assert await metrics.value("runs_started_total", tool="echo", trigger="trigger") == 1
        assert await metrics.value("run_duration_seconds_count", tool="echo", status="completed") == 1
        assert await metrics.value("queue_wait_seconds_count") == 2


async def test_attempts_that_are_tried_again_are_counted(
    watch: Watch, neighbour: Neighbour, tools: Tools
) -> None:
    tools("flaky", "def flaky():\n    raise ConnectionError('not now')\n")
    await neighbour.publish("exp_1", "flaky", max_attempts=3, backoff_min=0.01, backoff_max=0.01)
    async with watch() as metrics:
        await neighbour.run("exp_1")

        await metrics.comes_to(2, "attempts_retried_total", tool="flaky")
        await metrics.comes_to(1, "runs_ended_total", tool="flaky", status="failed")
        assert await metrics.value("runs_started_total", tool="flaky", trigger="trigger") == 1


async def test_slots_and_the_queue_are_counted(watch: Watch, neighbour: Neighbour, go: Path) -> None:
    await neighbour.publish("exp_1", "patient", params={"until": str(go)})
    async with watch(concurrency=1) as metrics:
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        queued = time.time()
        for _ in range(2):
            await neighbour.trigger({"experiment_id": "exp_1"})

        await metrics.comes_to(2, "queue_waiting")
        waited = await metrics.value("queue_oldest_seconds") or 0.0
        busy = await metrics.value("slots_busy"), await metrics.value("slots_total")
        held = await metrics.value("queue_held"), await metrics.value("queue_delayed")
        go.touch()
        await neighbour.results("exp_1", 3)
        await metrics.comes_to(0, "queue_waiting")
        left = await metrics.value("queue_oldest_seconds")

    assert busy == (1, 1)
    assert held == (1, 0)
    assert 0 < waited <= time.time() - queued + 1
    assert left == 0


async def test_a_due_time_of_cron_has_a_lateness(watch: Watch, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")
    await neighbour.redis.set("schedules:exp_1", "* * * * * *")
    async with watch(schedule_mode="cron") as metrics:
        await neighbour.result("exp_1")

        assert (await metrics.value("cron_lateness_seconds_count") or 0) >= 1
        assert (await metrics.value("runs_started_total", tool="echo", trigger="cron") or 0) >= 1


async def test_a_run_of_a_dead_worker_is_recovered_and_counted(
    watch: Watch, store: Store, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")
    await _held_by_the_dead(store, Order("exp_1", "trigger"))
    async with watch() as metrics:
        await neighbour.result("exp_1")

        await metrics.comes_to(1, "runs_recovered_total")
        await metrics.comes_to(1, "runs_ended_total", tool="echo", status="completed")
        assert await metrics.value("runs_buried_total") == 0


async def test_a_run_that_killed_too_often_is_buried_and_counted(
    watch: Watch, store: Store, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")
    await _held_by_the_dead(store, Order("exp_1", "trigger", losses=2))
    async with watch() as metrics:
        await neighbour.result("exp_1")

        await metrics.comes_to(1, "runs_buried_total")
        await metrics.comes_to(1, "runs_ended_total", tool="echo", status="lost")
        assert await metrics.value("runs_recovered_total") == 0


async def test_an_outcome_whose_run_was_taken_away_is_refused_and_counted(
    serve: Serve, port: int, store: Store, neighbour: Neighbour, go: Path
) -> None:
    await neighbour.publish("exp_1", "patient", params={"until": str(go)})
    async with serve(health_port=port) as service:
        metrics = Metrics(port)
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        [claim] = await store.queue.claims_of(service.worker)
        await store.queue.requeue(claim, claim.order)
        await neighbour.events("exp_1", "run_started", 2)
        go.touch()

        await metrics.comes_to(1, "outcomes_refused_total")
        await metrics.comes_to(1, "runs_ended_total", tool="patient", status="completed")


async def test_a_run_that_is_cancelled_while_it_waits_has_ended_too(
    watch: Watch, neighbour: Neighbour, go: Path, store: Store
) -> None:
    await neighbour.publish("exp_1", "patient", params={"until": str(go)})
    async with watch(concurrency=1) as metrics:
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        timestamp = await store.queue.enqueue(Order("exp_1", "trigger"))
        await neighbour.redis.publish(keys.CANCEL, json.dumps({"run_id": f"exp_1:{timestamp}"}))

        await metrics.comes_to(1, "runs_ended_total", tool="unknown", status="cancelled")
        go.touch()


async def test_a_redis_that_breaks_off_is_counted(watch: Watch, neighbour: Neighbour) -> None:
    async def waits_for_runs() -> bool:
        """And not only has asked what it held before, with the same command but not blocked by it."""
        return any("b" in one["flags"] for one in await neighbour.redis.client_list())

    async def is_counted() -> bool:
        return (await metrics.value("redis_unavailable_total") or 0) >= 1

    ours = await client_ids(neighbour.redis, "normal")
    async with watch() as metrics:
        await eventually(waits_for_runs, "the service to wait for runs")
        for one in await client_ids(neighbour.redis, "normal") - ours:
            await neighbour.redis.client_kill_filter(_id=one)
        await assert_works(neighbour)

        await eventually(is_counted, "the count")


async def _held_by_the_dead(store: Store, order: Order) -> None:
    """A run that a worker had begun before it died."""
    await store.queue.create_group()
    await store.queue.enqueue(order)
    tool = (await store.experiments.read(order.experiment_id)).readable().tool
    await store.workers.tell_tools("dead", {tool: ""}, 60)
    [claim] = (await store.queue.claim("dead", 1)).claims
    assert claim.begun is Begun.BEGUN
    await store.workers.heartbeat("dead", 0.01, listening=False)


async def _is_alive(port: int) -> bool:
    return (await get(port, "/healthz"))[0] == 200


async def _is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _hears(neighbour: Neighbour) -> bool:
    [(_, listening)] = await neighbour.redis.pubsub_numsub(keys.EXECUTE_NOW)
    return bool(listening)
