"""Whether the process that executes a plan still lives."""

import dataclasses
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from services.planner.plan.session import HEARTBEAT_TIMEOUT, Owner

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ME = Owner.myself()


def test_this_process_is_alive() -> None:
    assert (ME.is_here, ME.is_gone, ME.is_alive(NOW - 2 * HEARTBEAT_TIMEOUT, NOW)) == (True, False, True)


def test_a_later_process_of_the_same_number_is_another() -> None:
    earlier = dataclasses.replace(ME, started="1")

    assert (earlier.is_here, earlier.is_gone, earlier.is_alive(NOW, NOW)) == (True, True, False)


def test_a_process_that_ended_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        number = process.pid
    ended = dataclasses.replace(ME, pid=number)

    assert (ended.is_gone, ended.is_alive(NOW, NOW)) == (True, False)


def test_a_process_on_another_host_is_never_known_to_be_gone() -> None:
    name, boot, space = ME.host.split("/")
    others = [
        Owner(f"other/{boot}/{space}", ME.pid, "1"),
        Owner(f"{name}/other/{space}", ME.pid, "1"),  # another machine of the same name
        Owner(f"{name}/{boot}/other", ME.pid, "1"),  # a container
    ]

    assert [one.is_gone for one in others] == [False] * 3
    assert [one.is_alive(NOW, NOW) for one in others] == [True] * 3
    assert [one.is_alive(NOW, NOW + HEARTBEAT_TIMEOUT + timedelta(seconds=1)) for one in others] == [
        False
    ] * 3
    assert str(others[0]) == f"process {ME.pid} on other"
