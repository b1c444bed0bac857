"""What /proc shows of processes that end in this moment."""

import subprocess
import sys

FORKS = 800
RACE = f"""
import os, threading
from services.executor.isolation.common import process_tree

pids, found, is_over = [], set(), threading.Event()

def look():
    while not is_over.is_set():
        found.update(process_tree.parent_of(pid) for pid in pids[-4:])

lookers = [threading.Thread(target=look) for _ in range(2)]
for one in lookers:
    one.start()
for _ in range({FORKS}):
    pid = os.fork()
    if not pid:
        os._exit(0)
    pids.append(pid)
    os.waitpid(pid, 0)
is_over.set()
for one in lookers:
    one.join()
print(found - {{os.getpid()}})
"""


def test_a_process_that_is_being_reaped_is_gone_and_has_no_other_parent() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("{None}\n", "")
