"""Writes the figures as text: for a terminal, and between two markers of a document."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.report import Markers, table
from benchmarks.scale.curve import Curve, Figures, medians, slopes

MARKERS: Markers = ("<!-- scale: begin -->", "<!-- scale: end -->")

Raw = Mapping[str, Any]
"""The figures of one curve: `about`, and `rounds` with the figures of each round by size."""


def points(curve: Curve, raw: Raw) -> dict[int, Figures]:
    """The medians of the rounds by size, the smallest first."""
    return {
        int(size): medians(found, curve.faults)
        for size, found in sorted(raw["rounds"].items(), key=lambda item: int(item[0]))
    }


def rows(curve: Curve, found: Mapping[int, Figures]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table: the cost and its slope come first."""
    head = [curve.unit, curve.cost.title, "slope", *(column.title for column in curve.columns)]
    steps = slopes(list(found), [one[curve.cost.figure] for one in found.values()])
    body = [
        [
            f"{size:,}",
            curve.cost.cell(figures),
            "" if step is None else f"{step:+.2f}",
            *(column.cell(figures) for column in curve.columns),
        ]
        for (size, figures), step in zip(found.items(), steps, strict=True)
    ]
    return head, body


def broken(curve: Curve, found: Mapping[int, Figures]) -> list[str]:
    """Every fault, in words."""
    return [
        f"{curve.name}: {size:,} {curve.unit}: {name} {figures[name]:g}"
        for size, figures in found.items()
        for name in curve.faults
        if figures[name]
    ]


def plain(curve: Curve, raw: Raw) -> str:
    """The table for a terminal."""
    head, body = rows(curve, points(curve, raw))
    lines = []
    for number, title in enumerate(head):
        cells = [row[number] for row in body]
        lines.append(f"{title:>44}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join([f"{curve.title}:", *lines, "", curve.reason, ""])


def markdown(
    curves: Sequence[Curve], raw: Mapping[str, Raw], pictures: Mapping[str, str] | None = None
) -> str:
    """The part of the document about each measured curve: conditions, table, reason and picture."""
    parts = []
    for curve in (one for one in curves if one.name in raw):
        parts += [f"### {curve.title}", _about(raw[curve.name])]
        parts.append(table(*rows(curve, points(curve, raw[curve.name]))))
        parts.append(curve.reason)
        if pictures and curve.name in pictures:
            parts.append(f"![{curve.title}]({pictures[curve.name]})")
    return "\n\n".join(parts)


def _about(raw: Raw) -> str:
    about = raw["about"]
    return (
        f"{about['date']}; {about['machine']}; {about['server']}; Python {about['python']}; "
        f"medians of {about['rounds']} rounds, {about['runs']:,} runs per burst."
    )
