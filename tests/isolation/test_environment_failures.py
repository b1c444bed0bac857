"""Builds that fail, hang or are cancelled, and builders that are killed."""

import asyncio
import contextlib
import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.executor.isolation.environment.environments import Environments
from services.executor.isolation.environment.requirements import Requirements
from shared.errors import ToolEnvironmentError
from tests.isolation.workshop import ROOT, Workshop, another_service, eventually, is_alive, version_of_pinned

ONE = Requirements(("pinned==1.0",))
MISSING = Requirements(("pinned==3.0",))


@pytest.fixture(name="workshop")
def _workshop(tmp_path: Path) -> Workshop:
    workshop = Workshop(tmp_path)
    workshop.wheel("pinned", "1.0")
    return workshop


async def failure_of(environments: Environments, requirements: Requirements) -> str:
    with pytest.raises(ToolEnvironmentError) as caught:
        await environments.ensure(requirements)
    return str(caught.value)


# -- failed builds --------------------------------------------------------------------


async def test_a_failed_build_has_the_message_of_uv_and_leaves_nothing(workshop: Workshop) -> None:
    message = await failure_of(workshop.environments(), MISSING)

    assert message.startswith("uv can't install the tool's dependencies: No solution found")
    assert "pinned==3.0" in message
    assert workshop.names() == [".lock"]


async def test_a_failed_build_is_repeated_only_after_a_while(workshop: Workshop) -> None:
    environments = workshop.environments(retry_seconds=10.0)
    first = await failure_of(environments, MISSING)
    workshop.wheel("pinned", "3.0")
    workshop.clock.now += 9.0
    second = await failure_of(environments, MISSING)
    builds_by_then = len(workshop.calls("pip"))
    workshop.clock.now += 1.1

    environment = await environments.ensure(MISSING)

    assert (first, builds_by_then) == (second, 1)
    assert await version_of_pinned(environment) == "3.0"


async def test_all_waiting_callers_get_the_failure(workshop: Workshop) -> None:
    environments = workshop.environments()

    messages = await asyncio.gather(*(failure_of(environments, MISSING) for _ in range(5)))

    assert len(set(messages)) == 1
    assert len(workshop.calls("pip")) == 1


async def test_a_long_message_keeps_its_beginning_and_its_end(workshop: Workshop) -> None:
    workshop.at_installation(
        "echo preliminaries >&2; echo 'error: the beginning' >&2; yes noise | head -c 3000000 >&2; "
        "echo 'the end' >&2; exit 3"
    )

    message = await failure_of(workshop.environments(), ONE)

    assert message.startswith("uv can't install the tool's dependencies: the beginning\nnoise")
    assert message.endswith("noise\nthe end")
    assert len(message) < 5_000


async def test_a_short_message_begins_where_the_error_does(workshop: Workshop) -> None:
    workshop.at_installation("echo preliminaries >&2; echo 'error: no' >&2; echo '  cause: why' >&2; exit 3")

    message = await failure_of(workshop.environments(), ONE)

    assert message == "uv can't install the tool's dependencies: no\n  cause: why"


async def test_a_failure_without_a_message_names_the_exit_status(workshop: Workshop) -> None:
    workshop.at_installation("exit 7")

    assert "status 7" in await failure_of(workshop.environments(), ONE)


async def test_a_missing_uv_is_named(workshop: Workshop) -> None:
    message = await failure_of(workshop.environments(uv=Path("/nonexistent/uv")), ONE)

    assert "/nonexistent/uv can't be started: No such file or directory" in message


async def test_a_missing_interpreter_is_named(workshop: Workshop) -> None:
    message = await failure_of(workshop.environments(python=Path("/nonexistent/python")), ONE)

    assert message.startswith("/nonexistent/python can't be used")


async def test_a_folder_that_can_not_be_written_is_a_failure_with_its_name(workshop: Workshop) -> None:
    workshop.folder.write_text("not a folder")

    message = await failure_of(workshop.environments(), ONE)

    assert message.startswith("the tool's environment can't be stored")
    assert str(workshop.folder) in message


async def test_no_message_shows_the_password_of_an_index(workshop: Workshop) -> None:
    workshop.environ |= {
        "UV_OFFLINE": "0",
        "UV_HTTP_RETRIES": "0",
        "UV_DEFAULT_INDEX": "http://operator:hunter2hunter2@127.0.0.1:9/simple",
    }
    workshop.at_installation("echo 'error: tried http://operator:hunter2hunter2@127.0.0.1' >&2; exit 1")

    message = await failure_of(workshop.environments(), MISSING)

    assert "tried http://****@127.0.0.1" in message
    assert "hunter2" not in message


async def test_uv_gets_only_the_variables_that_it_needs_to_reach_packages(workshop: Workshop) -> None:
    workshop.environ |= {"REDIS_URL": "redis://secret", "UV_SYSTEM_PYTHON": "1", "UV_PYTHON": "2.7"}

    await workshop.environments().ensure(ONE)

    seen = workshop.seen_environ()
    assert not {"REDIS_URL", "UV_SYSTEM_PYTHON", "UV_PYTHON"} & seen.keys()
    assert (seen["UV_FIND_LINKS"], seen["UV_PYTHON_DOWNLOADS"]) == (str(workshop.wheels), "never")


async def test_exclude_newer_is_passed_to_uv(workshop: Workshop) -> None:
    message = await failure_of(
        workshop.environments(), Requirements(("pinned",), exclude_newer="the other day")
    )

    assert "the other day" in message


# -- without the network --------------------------------------------------------------


@contextlib.contextmanager
def index(workshop: Workshop) -> Iterator[str]:
    """A package index on this machine, until the end of the block."""
    page = workshop.directory / "site" / "simple" / "pinned"
    page.mkdir(parents=True)
    wheel = workshop.wheels / "pinned-1.0-py3-none-any.whl"
    os.link(wheel, page / wheel.name)
    (page / "index.html").write_text(f'<html><body><a href="{wheel.name}">{wheel.name}</a></body></html>')
    handler = functools.partial(QuietHandler, directory=str(workshop.directory / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple"
        finally:
            server.shutdown()
            thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


async def test_uvs_cache_is_enough_if_the_index_can_not_be_reached(workshop: Workshop) -> None:
    del workshop.environ["UV_FIND_LINKS"]
    workshop.environ |= {"UV_OFFLINE": "0", "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5"}
    with index(workshop) as url:
        workshop.environ["UV_DEFAULT_INDEX"] = url
        await workshop.environments().ensure(ONE)

    environment = await workshop.environments().ensure(Requirements(("pinned",), requires_python=">=3.9"))

    assert await version_of_pinned(environment) == "1.0"


async def test_without_index_and_cache_the_message_says_what_could_not_be_reached(workshop: Workshop) -> None:
    del workshop.environ["UV_FIND_LINKS"]
    workshop.environ |= {"UV_OFFLINE": "0", "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5"}
    with index(workshop) as url:
        workshop.environ["UV_DEFAULT_INDEX"] = url

    message = await failure_of(workshop.environments(), ONE)

    assert url in message
    assert "Connection refused" in message


# -- builds that are given up ---------------------------------------------------------


async def test_a_caller_that_stops_waiting_does_not_end_the_build(workshop: Workshop) -> None:
    environments = workshop.environments()
    workshop.close_gate()
    impatient, patient = (asyncio.create_task(environments.ensure(ONE)) for _ in range(2))
    await workshop.installing()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    workshop.open_gate()

    environment = await patient

    assert environment.python.exists()
    assert len(workshop.calls("pip")) == 1


async def test_the_last_caller_that_stops_waiting_ends_the_build_and_its_tree(workshop: Workshop) -> None:
    environments = workshop.environments()
    waiting = [asyncio.create_task(environments.ensure(ONE)) for _ in range(2)]
    with workshop.hanging():
        pids = await workshop.hung()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    assert all(task.cancelled() for task in waiting)
    assert not any(is_alive(pid) for pid in pids)
    assert workshop.names() == [".lock"]
    assert (await environments.ensure(ONE)).python.exists()


async def test_a_call_during_the_end_of_a_build_starts_a_new_one(workshop: Workshop) -> None:
    environments = workshop.environments()
    gives_up = asyncio.create_task(environments.ensure(ONE))
    with workshop.hanging():
        await workshop.hung()
        gives_up.cancel()
        await asyncio.sleep(0)
    comes_late = asyncio.create_task(environments.ensure(ONE))
    await asyncio.wait([gives_up, comes_late])

    assert gives_up.cancelled()
    assert comes_late.result().python.exists()


async def test_a_build_that_takes_too_long_is_ended_with_its_whole_tree(workshop: Workshop) -> None:
    environments = workshop.environments(timeout_seconds=1.0)
    with workshop.hanging():
        message = await failure_of(environments, ONE)
        pids = await workshop.hung()

    assert message == "building the tool's environment took more than 1 s and was ended"
    assert not any(is_alive(pid) for pid in pids)
    assert workshop.names() == [".lock"]


async def test_processes_left_by_an_installation_are_ended(workshop: Workshop) -> None:
    pid_file = workshop.directory / "daemon"
    workshop.at_installation(f"setsid sleep 1000 & echo $! > {pid_file}\n")

    await workshop.environments().ensure(ONE)

    assert not is_alive(int(pid_file.read_text()))


async def test_a_killed_builder_leaves_no_process_and_the_next_one_builds(workshop: Workshop) -> None:
    with workshop.hanging():
        builder = await asyncio.create_subprocess_exec(*another_service(workshop, ONE), cwd=ROOT)
        pids = await workshop.hung()
        builder.kill()
        await builder.wait()
        await eventually(lambda: not any(is_alive(pid) for pid in pids))
    left_over = workshop.folders()

    environment = await workshop.environments().ensure(ONE)

    assert len(left_over) == 1
    assert workshop.folders() == [environment.python.parents[1]]
    assert environment.python.exists()
