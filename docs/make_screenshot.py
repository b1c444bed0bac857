"""Write docs/demo.svg: the most eventful frame of a real demo, and its summary.

    python docs/make_screenshot.py

Runs the whole demo, for about 20 seconds, in a temporary directory.
"""

import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console, RenderableType

from services.cli.demo.display import LiveDisplay
from services.cli.demo.run_demo import PROJECT, run_demo
from services.cli.demo.tracker import Phase

PICTURE = Path(__file__).with_name("demo.svg")
WIDTH, HEIGHT = 130, 24
FOREIGN_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)


class Camera(LiveDisplay):
    """Keeps the most eventful frame."""

    def __init__(self) -> None:
        super().__init__(_console())
        self._best: tuple[int, RenderableType] = (-1, "")

    def refresh(self) -> None:
        """Keep this frame if it is the best so far."""
        running = list(self.tracker.running.values())
        phases = [run.phase for run in running]
        ended = {run.phase for run in self.tracker.latest(9)}
        bars = sum(bool(run.total) and run.done / (run.total or 1) > 0.2 for run in running)
        score = len(running) + 2 * len({*phases, *ended}) + 2 * bars + (Phase.RETRYING in phases)
        if score > self._best[0]:
            self._best = (score, self.frame())

    def summarize(self) -> None:
        """Write the picture."""
        film = _console()
        film.print("$ fullsend demo")
        film.print(self._best[1])
        film.print(self.summary())
        # The picture uses the viewer's own fonts, so that nothing is fetched to show it.
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
