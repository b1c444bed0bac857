"""The end of a service in the side-by-side benchmark."""

import select
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.peers import processes

PATIENCE_SECONDS = 0.5
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
print("the child ended", flush=True)
"""


class Slowly(list[int]):
    """Process ids; between one and the next there is time for somebody to say something about the first."""

    heard: int

    def __iter__(self) -> Iterator[int]:
        for pid in super().__iter__():
            yield pid
            select.select([self.heard], [], [], PATIENCE_SECONDS)


def test_a_parent_that_is_killed_with_its_child_has_nothing_to_say_about_the_child() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        both = Slowly([child, parent.pid])
        both.heard = parent.stdout.fileno()

        processes.kill(both)

        assert parent.stdout.read() == b""
