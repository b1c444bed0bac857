"""Compares the ratios of the executor's figures to the bare skeleton's with thresholds from a file."""

import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.figures import Rounds, ratios
from benchmarks.peers.systems import SKELETON

FILE = Path(__file__).with_name("floor.toml")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold, and the measured ratio; None if it was not measured."""

    system: str
    figure: str
    side: str
    limit: float
    ratio: float | None

    @property
    def is_kept(self) -> bool:
        """Whether the ratio is on the right side of the threshold."""
        if self.ratio is None:
            return False
        return self.ratio >= self.limit if self.side == "at_least" else self.ratio <= self.limit

    def __str__(self) -> str:
        """A line of text."""
        found = "not measured" if self.ratio is None else f"{self.ratio:.2f}"
        mark = "" if self.is_kept else "   <-- lost"
        side = self.side.replace("_", " ")
        return f"{self.system + ': ' + self.figure:>44}  {found:>12}  ({side} {self.limit:g}){mark}"


def judge(rounds: Rounds, file: Path = FILE) -> list[Verdict]:
    """Compare every threshold in the file with the median of the rounds' ratios.

    Raises:
        ValueError: the file has a key other than `at_least` and `at_most`.
    """
    return [
        Verdict(system, figure, side, limit, _median(rounds, figure, system))
        for system, side, figure, limit in _thresholds(file)
    ]


def _thresholds(file: Path) -> Iterator[tuple[str, str, str, float]]:
    for system, sides in tomllib.loads(file.read_text()).items():
        for side, limits in sides.items():
            if side not in ("at_least", "at_most"):
                raise ValueError(f"{file}: {side!r} is neither at_least nor at_most")
            for figure, limit in limits.items():
                yield system, side, figure, float(limit)


def _median(rounds: Rounds, figure: str, system: str) -> float | None:
    found = ratios(rounds, figure, system, SKELETON)
    return statistics.median(found) if found else None
