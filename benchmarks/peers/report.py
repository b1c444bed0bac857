"""Writes the figures as Markdown tables into `docs/benchmarks.md`, between two markers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import Spread, spread
from benchmarks.peers.mishaps import KINDS
from benchmarks.peers.promises import Promise, promises

Markers = tuple[str, str]
"""The lines before and after the generated part of a document."""

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
NOTHING = "–"  # noqa: RUF001 - an en dash

Raw = Mapping[str, Any]
"""All figures: `about`, `systems`, `rounds`, `hung`, `killed`, `cron`."""


def write(document: Path, text: str, markers: Markers = (BEGIN, END)) -> None:
    """Replace the text between the markers of a document.

    Raises:
        ValueError: the document does not have both markers, in this order.
    """
    begin, end = markers
    before, found, rest = document.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{document} needs a line {begin} and below it a line {end}")
    document.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def markdown(raw: Raw, plots: Sequence[str] = ()) -> str:
    """The whole report."""
    parts = [_about(raw["about"]), *(f"![{name}]({name})" for name in plots), _speed(raw), _service(raw)]
    if raw["hung"]:
        parts.append(_hung(raw))
    if raw["killed"] or raw["cron"]:
        parts.append(_mishaps(raw))
    if held_to := promises(raw):
        parts.append(_promises(held_to))
    parts.append(_settings(raw["systems"]))
    return "\n\n".join(parts)


def _about(about: Mapping[str, Any]) -> str:
    return (
        f"Measured {about['date']}, rounds: {about['rounds']}; {about['machine']}; "
        f"{about['server']}; Python {about['python']}. Medians, with the minimum and "
        "maximum of the rounds in brackets."
    )


# -- tables ---------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """A table.  `align` aligns all columns but the first; figures are aligned to the right."""
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(one)} |" for one in lines)


def _speed(raw: Raw) -> str:
    columns = {
        "jobs/s": ("jobs_per_second", _whole),
        "to start, p50 ms": ("to_start_p50_ms", _tenths),
        "p99": ("to_start_p99_ms", _tenths),
        "to result, p50 ms": ("to_result_p50_ms", _tenths),
        "p99 ": ("to_result_p99_ms", _tenths),
        "200 jobs of 50 ms, s": ("naps_seconds", _hundredths),
    }
    isolated = {name: str(one["isolated"]) for name, one in raw["systems"].items()}
    rows = _rows(raw["rounds"], columns)
    rows.sort(key=lambda row: -_median(raw, row[0], "jobs_per_second"))
    return table(["system", *columns, "isolated"], ([*row, isolated[row[0]]] for row in rows))


def _service(raw: Raw) -> str:
    columns = {
        "start to first result, s": ("first_result_seconds", _hundredths),
        "memory (PSS), MB": ("pss_bytes", lambda value: _tenths(value / 1e6)),
        "CPU time per job, ms": ("cpu_ms_per_job", _hundredths),
        "1 MB returned, ms": ("large_ms", _tenths),
    }
    return table(["system", *columns], _rows(raw["rounds"], columns))


Column = tuple[str, Callable[[float], str]]


def _rows(
    rounds: Mapping[str, Sequence[Mapping[str, Any]]], columns: Mapping[str, Column]
) -> list[list[str]]:
    return [
        [system, *(_cell(spread(found, name), show) for name, show in columns.values())]
        for system, found in rounds.items()
    ]


def _cell(found: Spread | None, show: Callable[[float], str]) -> str:
    if found is None:
        return NOTHING
    return f"{show(found.median)} ({show(found.least)}–{show(found.most)})"  # noqa: RUF001


def _median(raw: Raw, system: str, name: str) -> float:
    found = spread(raw["rounds"][system], name)
    return found.median if found else 0.0


def _hung(raw: Raw) -> str:
    head = [
        "a hanging job: slot free after, s",
        "loop in Python",
        "sleep in C",
        "loop in C that ignores signals",
    ]
    rows = [[system, *(_verdict(kinds.get(kind)) for kind in KINDS)] for system, kinds in raw["hung"].items()]
    return table(head, rows)


def _verdict(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NOTHING
    free = found["slot_free_seconds"]
    words = ["never" if free is None else f"{free:.1f}", "killed" if found["killed"] else "not killed"]
    return ", ".join([*words, *(["keeps using CPU"] if found["burning"] else [])])


def _mishaps(raw: Raw) -> str:
    head = [
        "system",
        "kill -9: executed again after, s",
        "cron, every second: late p50 / p99, ms",
        "every minute",
    ]
    systems = [name for name in raw["systems"] if name in raw["killed"] or name in raw["cron"]]
    rows = [
        [
            name,
            _again(raw["killed"].get(name)),
            *(_late(raw["cron"].get(name, {}), word) for word in ("second", "minute")),
        ]
        for name in systems
    ]
    return table(head, rows)


def _again(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NOTHING
    seconds = found["again_seconds"]
    return f"not within {found['waited_seconds']:.0f}" if seconds is None else f"{seconds:.1f}"


def _late(found: Mapping[str, Any], word: str) -> str:
    if f"{word}_p50_ms" not in found:
        return NOTHING
    missed, early = found[f"{word}_missed"], found[f"{word}_early"]
    words = [f"{found[f'{word}_p50_ms']:.1f} / {found[f'{word}_p99_ms']:.1f}"]
    return ", ".join(
        [*words, *([f"{missed} missed"] if missed else []), *([f"{early} early"] if early else [])]
    )


def _promises(held_to: Sequence[Promise]) -> str:
    rows = [[one.what, one.bound, f"{one.found:.2f}", "yes" if one.is_kept else "no"] for one in held_to]
    return table(["promise", "bound", "found", "kept"], rows)


def _settings(systems: Mapping[str, Mapping[str, str]]) -> str:
    rows = [[name, one["version"], one["settings"], one["source"]] for name, one in systems.items()]
    return table(["system", "versions", "settings", "source of the settings"], rows, "---")


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
