"""Draws figures as SVG elements for HTML pages; equal values make equal bytes on all machines."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "fullsend",
    "svg.fonttype": "none",
    "font.size": 9,
    "image.cmap": "viridis",
    "text.parse_math": False,  # names may contain a dollar sign
}
NO_METADATA: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@contextmanager
def drawing(*, grid: bool = False) -> Iterator[None]:
    """Make figures that are drawn inside the block look the same on all machines.

    Args:
        grid: whether axes have a grid.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # ignores the user's matplotlibrc
        mpl.rcParams.update({**SETTINGS, "axes.grid": grid})
        # The browser draws the glyphs that the font lacks here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def svg_element(figure: Figure) -> str:
    """Return a figure as an `<svg>` element."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=NO_METADATA)
    text = file.getvalue().decode()
    # Without the XML declaration, which doesn't belong into HTML, and the ids that all figures share.
    return re.sub(r'<g id="\w+_\d+">', "<g>", text[text.index("<svg") :])
