"""The notes that the tool makes at each start: the run and the time.  They show runs that started twice."""

from collections import Counter
from pathlib import Path
from typing import ClassVar


class Notes:
    """The file to which all runs of one measurement add a line."""

    TOOL: ClassVar[str] = '''"""Notes the run and its start."""

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
        """The number of each started run, and its start in Unix nanoseconds."""
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [
            (int(number), int(at)) for number, _, at in (one.partition(" ") for one in whole.splitlines())
        ]

    def faults(self, numbers: range) -> dict[str, int]:
        """The number of these runs that did not start, and the number of surplus starts."""
        counts = Counter(number for number, _ in self.lines())
        return {
            "not_run": sum(number not in counts for number in numbers),
            "run_twice": sum(count - 1 for count in counts.values()),
        }
