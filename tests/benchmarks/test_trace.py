"""The count of the files that one run passes."""

import re
import subprocess
import sys

from benchmarks.peers.environments import ROOT


def test_the_files_of_a_run_are_listed_in_order_and_counted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trace"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    *listed, last = done.stdout.splitlines()
    places, paths = zip(*(line.split()[-2:] for line in listed), strict=True)
    assert paths.index("services/executor/triggers.py") < 5 < paths.index("services/executor/runner.py")
    assert paths[-1] == "services/executor/store/lua/finish.lua"
    counts = [places.count(place) for place in ("service", "child", "lua")]
    assert all(counts)
    assert [int(number) for number in re.findall(r"\d+", last)] == [len(listed), *counts]
