"""What the tool notes when it starts: which run it is, and when.  So a run that started twice is seen."""

from collections import Counter
from pathlib import Path
from typing import ClassVar


class Notes:
    """The file that all runs of one measurement add a line to."""

    TOOL: ClassVar[str] = '''"""Notes which run it is and when it began."""

import time


def run(path, number, data=""):
    begun = time.time_ns()
    with open(path, "a") as file:
        file.write(f"{number} {begun}\\n")
'''

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[tuple[int, int]]:
        """The number of each run that started, and when, in unix nanoseconds."""
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [
            (int(number), int(at)) for number, _, at in (one.partition(" ") for one in whole.splitlines())
        ]

    def faults(self, numbers: range) -> dict[str, int]:
        """How many of the runs with these numbers did not start, and how many starts there were too many."""
        counts = Counter(number for number, _ in self.lines())
        return {
            "not_run": sum(number not in counts for number in numbers),
            "run_twice": sum(count - 1 for count in counts.values()),
        }
