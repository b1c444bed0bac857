"""The composed service as its operator sees it: real containers, nothing but `docker` and `redis-cli`.

The stack is built and started once, under a project name of its own and without
a published port, and is taken away with its volume at the end.
"""

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.composed import ROOT, Neighbour, Stack, attempt, docker, eventually

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("one stack for all")]

SLOW = {"param1": "slow", "param2": 10, "pause_seconds": 0.5}
"""Long enough to be interrupted, and much longer than the stack's grace period."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, built from this checkout; skips where no engine answers."""
    command = compose_command()
    env_file: Path = tmp_path_factory.mktemp("compose") / "empty.env"
    env_file.touch()
    one = Stack(command, f"fullsend-test-{secrets.token_hex(4)}", env_file)
    try:
        one.compose("build", "executor")
        one.scale(1)
        yield one
    finally:
        one.remove()


def compose_command() -> tuple[str, ...]:
    """How compose is called here; skips where it can't be."""
    if shutil.which("docker") is None:
        pytest.skip("there is no `docker` command here")
    if attempt(["docker", "info"]).returncode != 0:
        pytest.skip("no Docker engine answers (`docker info` fails)")
    if attempt(["docker", "compose", "version"]).returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose") is None:
        pytest.skip("there is neither `docker compose` nor `docker-compose` here")
    return ("docker-compose",)


@pytest.fixture
def neighbour(stack: Stack) -> Iterator[Neighbour]:
    """Another service on the stack's Redis."""
    one = Neighbour(*stack.containers("redis"))
    yield one
    one.close()


def test_every_container_turns_healthy(stack: Stack) -> None:
    (executor,) = stack.scale(1)
    (redis,) = stack.containers("redis")

    def healthy(container: str) -> bool:
        return docker("inspect", "-f", "{{.State.Health.Status}}", container) == "healthy"

    eventually(lambda: healthy(executor) and healthy(redis), "health")
    said = docker("exec", executor, "python", "-m", "services.executor.monitoring.healthcheck")
    assert said.startswith(f"healthy: {executor}-")


def test_a_container_whose_service_does_not_run_is_not_healthy(stack: Stack) -> None:
    stack.scale(1)
    container = ["docker", "run", "--rm", "--network", f"{stack.project}_default", stack.image()]

    asked = attempt([*container, "python", "-m", "services.executor.monitoring.healthcheck"])

    assert asked.returncode == 1
    assert asked.stdout.startswith("unhealthy: no worker on ")
    assert asked.stdout.endswith("1 alive elsewhere\n")


def test_a_triggered_experiment_runs_and_is_recorded(stack: Stack, neighbour: Neighbour) -> None:
    (executor,) = stack.scale(1)
    stack.write("exp_once", {"param1": "once", "param2": 2})

    stack.trigger("exp_once")
    (result,) = neighbour.first(type="experiment_completed", experiment_id="exp_once")

    record = stack.record(result["run_id"])
    assert record["status"] == "completed"
    assert json.loads(record["result"])["count"] == 2
    assert host(record) == executor
    assert stack.redis("HGET", "experiments:exp_once", "state") == "run"


def test_what_a_run_kept_is_there_for_every_executor(stack: Stack, neighbour: Neighbour) -> None:
    executors = stack.scale(2)
    stack.write("exp_ring", {"n_agents": 400}, tool="ring_simulation")

    stack.trigger("exp_ring")
    (result,) = neighbour.first(type="experiment_completed", experiment_id="exp_ring")

    for executor in executors:
        listed = docker("exec", executor, "fullsend", "artifacts", "ls", result["run_id"], "--json")
        assert {one["name"]: one["stored"] for one in json.loads(listed)}["events.jsonl"]
        fetched = docker("exec", executor, "fullsend", "artifacts", "get", result["run_id"], "events.jsonl")
        assert json.loads(fetched.splitlines()[0])["kind"]
        checked = docker("exec", executor, "fullsend", "artifacts", "verify", result["run_id"])
        assert checked.endswith("no problems")


def test_one_publish_is_one_run_with_three_executors(stack: Stack, neighbour: Neighbour) -> None:
    stack.scale(3)
    stack.write("exp_each", {"param1": "each", "param2": 1})
    stack.write("exp_last", {"param1": "last", "param2": 1})

    for _ in range(6):
        stack.trigger("exp_each")
    stack.trigger("exp_last")
    neighbour.first(6, type="experiment_completed", experiment_id="exp_each")
    neighbour.first(type="experiment_completed", experiment_id="exp_last")

    assert len(stack.records("exp_each")) == 6


def test_another_executor_finishes_the_run_of_a_killed_one(stack: Stack, neighbour: Neighbour) -> None:
    stack.scale(3)
    stack.write("exp_killed", SLOW)
    stack.trigger("exp_killed")
    (started,) = neighbour.first(event="run_started", experiment_id="exp_killed")
    first_host = host(stack.record(started["run_id"]))

    docker("kill", "--signal", "KILL", first_host)
    (result,) = neighbour.first(type="experiment_completed", experiment_id="exp_killed")

    record = stack.record(result["run_id"])
    assert result["run_id"] == started["run_id"]
    assert host(record) != first_host
    assert [each["error_type"] for each in json.loads(record["attempts"])] == ["WorkerDiedError"]


def test_a_stopped_executor_gives_its_run_back_and_exits_with_0(stack: Stack, neighbour: Neighbour) -> None:
    stack.scale(2)
    stack.write("exp_stopped", SLOW)
    stack.trigger("exp_stopped")
    (started,) = neighbour.first(event="run_started", experiment_id="exp_stopped")
    first_host = host(stack.record(started["run_id"]))

    docker("stop", first_host)
    (result,) = neighbour.first(type="experiment_completed", experiment_id="exp_stopped")

    record = stack.record(result["run_id"])
    assert exit_code(first_host) == "0"
    assert result["run_id"] == started["run_id"]
    assert host(record) != first_host
    assert record["attempt"] == "1"


def test_records_outlive_a_restart_of_redis_and_executors_come_back(stack: Stack) -> None:
    stack.scale(2)
    stack.write("exp_kept", {"param1": "kept", "param2": 1})
    stack.trigger("exp_kept")
    eventually(lambda: stack.redis("HGET", "experiments:exp_kept", "state") == "run", "the first run")

    docker("restart", *stack.containers("redis"))
    stack.await_listeners(2)
    stack.trigger("exp_kept")

    eventually(lambda: len(stack.records("exp_kept")) == 2, "the second run")


def test_the_service_is_nobody_in_particular_and_writes_only_to_tmp(stack: Stack) -> None:
    (executor,) = stack.scale(1)
    script = "id -u; for place in / /app /app/tools /app/config /usr/local/bin /tmp; do touch $place/x; done"

    tried = attempt(["docker", "exec", executor, "sh", "-c", script])

    assert tried.returncode == 0  # that of the last one, /tmp
    assert tried.stdout == "10001\n"
    assert len(tried.stderr.splitlines()) == 5


def test_as_process_1_it_stops_on_docker_stop_with_0(stack: Stack) -> None:
    container = docker("run", "-d", "--network", f"{stack.project}_default", stack.image())
    try:
        asked = ["docker", "exec", container, "python", "-m", "services.executor.monitoring.healthcheck"]
        eventually(lambda: attempt(asked).returncode == 0, "health")

        docker("stop", container)

        assert exit_code(container) == "0", attempt(["docker", "logs", container]).stderr
    finally:
        docker("rm", "--force", "--volumes", container)


def test_the_shipped_tools_are_there_when_nothing_is_mounted(stack: Stack) -> None:
    found = docker("run", "--rm", stack.image(), "ls", "/app/tools").split()

    assert found == sorted(path.name for path in (ROOT / "tools").glob("*.py"))


def test_the_fullsend_command_is_on_the_path(stack: Stack) -> None:
    (executor,) = stack.scale(1)

    said = docker("exec", executor, "fullsend", "doctor")

    assert executor in said


def host(record: dict[str, str]) -> str:
    """The container that a run's worker is in: a worker's name is `{host}-{process id}-{random}`."""
    return record["worker"].rsplit("-", 2)[0]


def exit_code(container: str) -> str:
    """What a container that has stopped came to."""
    return docker("inspect", "-f", "{{.State.ExitCode}}", container)
