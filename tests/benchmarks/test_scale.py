"""The benchmark of how cost grows: its arithmetic, its report, and each curve in small on real services."""

import asyncio
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.environments import ROOT
from benchmarks.scale import plots, report, schedules
from benchmarks.scale.__main__ import CURVES
from benchmarks.scale.curve import Amounts, Column, Curve, Figures, medians, slopes
from benchmarks.scale.notes import Notes

SIZES = {"schedules": [12], "queue": [40], "tools": [12], "executors": [1, 2], "params": [5_000]}
RUNS, ASKED = 24, 3


async def unmeasured(_size: int, _amounts: Amounts) -> Figures:
    """Nobody asks for it."""
    raise AssertionError


def a_curve(**others: Any) -> Curve:
    """One with a cost and another figure."""
    described: dict[str, Any] = {
        "name": "things",
        "title": "Things",
        "unit": "things",
        "sizes": (1, 100),
        "quick": (1,),
        "measure": unmeasured,
        "columns": (Column("speed", "speed", 1),),
        "cost": Column("us", "cost"),
        "faults": ("lost",),
        "reason": "The reason.",
    }
    return Curve(**(described | others))


def a_raw(*costs: float, lost: int = 0) -> dict[str, Any]:
    """Three rounds at sizes 100 and 1 that differ by what nobody should see."""
    about = {"date": "2026-11-20", "machine": "2 cores", "server": "Valkey", "python": "3.11"}
    rounds = {
        str(size): [{"cost": cost * factor, "speed": 1.0, "lost": lost} for factor in (1, 1, 50)]
        for size, cost in zip((100, 1), reversed(costs), strict=True)
    }
    return {"about": {**about, "rounds": 3, "runs": 10}, "rounds": rounds}


# -- arithmetic -----------------------------------------------------------------------


def test_a_slope_is_that_of_both_logarithms() -> None:
    found = slopes([1, 10, 100, 400], [5.0, 5.0, 50.0, 100.0])

    assert found[0] is None
    assert found[1:] == [pytest.approx(0.0), pytest.approx(1.0), pytest.approx(0.5)]


def test_there_is_no_slope_to_what_costs_nothing() -> None:
    assert slopes([1, 10], [0.0, 5.0]) == [None, None]


def test_one_fault_in_one_round_is_not_lost_in_a_median() -> None:
    found = medians([{"cost": 1.0, "lost": 0}, {"cost": 3.0, "lost": 1}, {"cost": 2.0, "lost": 0}], ["lost"])

    assert found == {"cost": 2.0, "lost": 1}


def test_notes_tell_what_did_not_start_and_what_started_twice(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.txt")
    notes.path.write_text("0 100\n2 101\n2 102\n3 10")

    assert notes.lines() == [(0, 100), (2, 101), (2, 102)]
    assert notes.faults(range(4)) == {"not_run": 2, "run_twice": 1}


def test_schedules_that_are_far_away_differ_and_are_none_of_these_days() -> None:
    found = schedules.far_away(5_000)

    assert len(set(found)) == 5_000
    assert all(one.endswith(" *") for one in found)


# -- the report -----------------------------------------------------------------------


def test_a_table_has_the_points_in_order_with_medians_and_slopes() -> None:
    text = report.markdown([a_curve()], {"things": a_raw(10.0, 1_000.0)})

    assert "| things | us | slope | speed |" in text
    assert "| 1 | 10 |  | 1.0 |\n| 100 | 1,000 | +1.00 | 1.0 |" in text
    assert "The reason." in text


def test_a_terminal_shows_the_same_figures() -> None:
    lines = report.plain(a_curve(), a_raw(10.0, 1_000.0)).splitlines()

    assert lines[1].split() == ["things", "1", "100"]
    assert lines[2].split() == ["us", "10", "1,000"]
    assert lines[3].split() == ["slope", "+1.00"]


def test_a_fault_is_told_with_its_place() -> None:
    curve = a_curve()

    assert report.broken(curve, report.points(curve, a_raw(1.0, 1.0))) == []
    assert report.broken(curve, report.points(curve, a_raw(1.0, 1.0, lost=1))) == [
        "things: 1 things: lost 3",
        "things: 100 things: lost 3",
    ]


def test_the_same_figures_make_the_same_pictures(tmp_path: Path) -> None:
    pictures = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        drawn = plots.draw([a_curve()], {"things": a_raw(10.0, 20.0)}, tmp_path / name)
        pictures.append((tmp_path / name / drawn["things"]).read_bytes())

    assert pictures[0] == pictures[1]
    assert b"<svg" in pictures[0]


def test_the_document_has_a_place_for_the_tables() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()

    assert 0 < text.find(report.MARKERS[0]) < text.find(report.MARKERS[1])


# -- the whole, in small --------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_the_quick_form_measures_every_curve_and_loses_nothing(tmp_path: Path) -> None:
    figures, document = tmp_path / "raw.json", tmp_path / "benchmarks.md"
    document.write_text("\n".join(("before", *report.MARKERS, "after")))
    sizes = [word for name, some in SIZES.items() for word in (f"--{name}", *map(str, some))]
    other = os.environ.get("FULLSEND_TEST_SERVER")

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.scale", "--quick", "--seconds", "1.5", *sizes),
        *("--runs", str(RUNS), "--asked", str(ASKED), "--raw", str(figures), "--document", str(document)),
        *(["--server", other] if other else []),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert process.returncode == 0, out.decode() + err.decode()
    raw = json.loads(figures.read_text())
    for curve in CURVES:
        assert_complete(curve, raw[curve.name]["rounds"])
        assert (tmp_path / f"scale-{curve.name}.svg").exists()
    assert_plausible({name: each["rounds"] for name, each in raw.items()})
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert text.count("### ") == len(CURVES)


def assert_complete(curve: Curve, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Every figure of the table is there, and no fault was found."""
    assert list(map(int, rounds)) == SIZES[curve.name]
    for found in (one for each in rounds.values() for one in each):
        names = {curve.cost.figure, *(column.figure for column in curve.columns)} - {"bytes_per_queued_run"}
        assert all(
            math.isfinite(found[name]) for name in names
        )  # a figure of CPU time can be 0 in so few runs
        assert [found[name] for name in curve.faults] == [0] * len(curve.faults)
        assert found["pss_mb"] > 1


def assert_plausible(rounds: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Facts that do not depend on the speed of the machine."""
    [cron], [queue] = rounds["schedules"]["12"], rounds["queue"]["40"]
    [one], [two] = rounds["executors"]["1"], rounds["executors"]["2"]
    [params] = rounds["params"]["5000"]
    assert cron["fired"] >= schedules.DUE
    assert queue["runs"] >= RUNS
    assert two["processes"] > one["processes"]
    assert params["bytes_per_record"] > 5_000
