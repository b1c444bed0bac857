"""Write docs/demo.svg: the demo as it really went, its most eventful frame and its summary.

    python docs/make_screenshot.py

Runs the whole demo, about 20 seconds, in a directory of its own.
"""

import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console, RenderableType

from services.cli.demo.display import LiveScreen
from services.cli.demo.run_demo import PROJECT, run_demo
from services.cli.demo.tracker import Phase

PICTURE = Path(__file__).with_name("demo.svg")
WIDTH, HEIGHT = 130, 24
FOREIGN_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)


class Camera(LiveScreen):
    """Looks at every frame, and keeps the one in which most is going on."""

    def __init__(self) -> None:
        super().__init__(_console())
        self._best: tuple[int, RenderableType] = (-1, "")

    def refresh(self) -> None:
        """Compare the frame with the best one so far."""
        under_way = [run.phase for run in self._board.under_way.values()]
        ended = {run.phase for run in self._board.latest(9)}
        bars = sum(
            bool(run.total) and run.done / (run.total or 1) > 0.2 for run in self._board.under_way.values()
        )
        score = len(under_way) + 2 * len({*under_way, *ended}) + 2 * bars + (Phase.RETRYING in under_way)
        if score > self._best[0]:
            self._best = (score, self.frame())

    def sum_up(self) -> None:
        """Develop the picture."""
        film = _console()
        film.print("$ fullsend demo")
        film.print(self._best[1])
        film.print(self.summary())
        # Nothing is fetched from elsewhere to show it: the fonts of whoever looks will do.
        PICTURE.write_text(FOREIGN_FONT.sub("", film.export_svg(title="fullsend demo")), encoding="utf-8")


def _console() -> Console:
    return Console(
        record=True,
        file=io.StringIO(),
        width=WIDTH,
        height=HEIGHT,
        force_terminal=True,
        color_system="truecolor",
        markup=False,
        emoji=False,
        highlight=False,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fullsend-") as directory:
        for part in ("config", "tools"):
            shutil.copytree(PROJECT / part, Path(directory) / part)
        os.chdir(directory)
        run_demo(Camera())
