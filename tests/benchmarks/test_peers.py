"""Figures, verdicts and tables of the side-by-side benchmark, and the benchmark itself in small."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import floor, plots, report
from benchmarks.peers.__main__ import merged
from benchmarks.peers.environments import ROOT
from benchmarks.peers.figures import (
    NS,
    Spread,
    due_since,
    lateness_ms,
    missed,
    percentile,
    rate,
    ratios,
    spread,
)
from benchmarks.peers.measures import latencies
from benchmarks.peers.promises import promises
from benchmarks.peers.system import PROJECT, Case
from benchmarks.peers.systems import BY_NAME, DEFAULT, FORK, OURS, SKELETON, SYSTEMS

ROUND = {
    "jobs_per_second": 1_000.0,
    "to_start_p50_ms": 1.0,
    "to_start_p99_ms": 2.0,
    "first_result_seconds": 0.1,
    "pss_bytes": 30e6,
    "cpu_ms_per_job": 1.0,
}


def raw(**once: Any) -> dict[str, Any]:
    """The figures of a run with two systems and two rounds."""
    about = {"date": "2026-11-20", "machine": "2 cores", "server": "Valkey", "python": "3.11", "rounds": 2}
    said = {"version": "1.0", "settings": "`-c 2`", "source": "its manual", "isolated": "no"}
    faster = ROUND | {"jobs_per_second": 2_000.0}
    return {
        "about": about,
        "systems": {"slow": said, "fast": said},
        "rounds": {"slow": [ROUND, ROUND], "fast": [ROUND, faster]},
        "hung": {},
        "killed": {},
        "cron": {},
        **once,
    }


# -- figures --------------------------------------------------------------------------


def test_a_percentile_is_one_of_the_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]

    assert [percentile(values, percent) for percent in (0, 20, 50, 99, 100)] == [1.0, 1.0, 3.0, 5.0, 5.0]


def test_a_rate_counts_the_steps_between_the_first_start_and_the_last() -> None:
    stamps = [3 * NS, NS, 2 * NS]

    assert rate(stamps) == pytest.approx(1.0)


def test_a_spread_leaves_out_the_rounds_that_found_nothing() -> None:
    rounds: list[dict[str, Any]] = [{"x": 3.0}, {}, {"x": None}, {"x": 1.0}, {"x": 2.0}]

    assert spread(rounds, "x") == Spread(2.0, 1.0, 3.0)
    assert spread(rounds, "y") is None


def test_a_start_just_before_a_slot_is_early_for_it_and_not_late_for_the_one_before() -> None:
    stamps = [10 * NS + 2_000_000, 12 * NS - 1_000_000]

    assert lateness_ms(stamps, 1) == [pytest.approx(2.0), pytest.approx(-1.0)]


def test_a_start_for_a_slot_before_the_service_came_does_not_count() -> None:
    begun = 90 * NS
    stamps = [91 * NS, 120 * NS + 7, 180 * NS - 5]

    assert due_since(stamps, 60, begun) == stamps[1:]


def test_slots_without_a_start_are_missed_also_when_the_next_is_early() -> None:
    stamps = [10 * NS + 5, 13 * NS - 1_000]

    assert missed(stamps, 1) == 2


def test_latencies_are_from_asking() -> None:
    asked = [(0, 1_000_000, 3_000_000)] * 4

    figures = latencies(asked)

    assert (figures["to_start_p50_ms"], figures["to_result_p99_ms"]) == (1.0, 3.0)


# -- verdicts -------------------------------------------------------------------------


def thresholds(folder: Path, text: str) -> Path:
    """A file of thresholds."""
    path = folder / "floor.toml"
    path.write_text(text)
    return path


def test_a_ratio_on_the_wrong_side_of_its_threshold_is_a_loss(tmp_path: Path) -> None:
    file = thresholds(tmp_path, '["us".at_least]\nspeed = 0.5\n["us".at_most]\nsize = 2\n')
    rounds = {"us": [{"speed": 40.0, "size": 3.0}], SKELETON: [{"speed": 100.0, "size": 2.0}]}

    speed, size = floor.judge(rounds, file)

    assert (speed.ratio, speed.is_kept) == (0.4, False)
    assert (size.ratio, size.is_kept) == (1.5, True)
    assert "lost" in str(speed)


def test_what_was_not_measured_is_a_loss(tmp_path: Path) -> None:
    file = thresholds(tmp_path, '["us".at_most]\nsize = 2\n')

    [verdict] = floor.judge({"us": [{}], SKELETON: [{"size": 1.0}]}, file)

    assert not verdict.is_kept


def test_ratios_are_taken_within_a_round() -> None:
    rounds = {"us": [{"x": 1.0}, {"x": 4.0}], "them": [{"x": 2.0}, {"x": 8.0}]}

    assert ratios(rounds, "x", "us", "them") == [0.5, 0.5]


def test_the_thresholds_name_systems_and_figures_that_there_are() -> None:
    known = ROUND | {"to_result_p50_ms": 1.0}

    verdicts = floor.judge({name: [known] for name in (OURS, FORK, SKELETON)})

    assert verdicts
    assert all(one.ratio == 1.0 for one in verdicts)


# -- the report -----------------------------------------------------------------------


def test_the_report_takes_the_place_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")

    report.write(document, "new")

    assert document.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"{report.END}\n{report.BEGIN}\n")

    with pytest.raises(ValueError, match="peers: begin"):
        report.write(document, "new")


def test_the_fastest_comes_first_with_its_median_and_the_rounds_around_it() -> None:
    text = report.markdown(raw())

    rows = [line for line in text.splitlines() if line.startswith(("| fast |", "| slow |"))]
    assert rows[0].startswith("| fast | 1,500 (1,000–2,000) | 1.0 (1.0–1.0)")  # noqa: RUF001
    assert rows[1].startswith("| slow | 1,000")


def test_mishaps_are_told_in_words() -> None:
    hung = {"fast": {"spin": {"killed": False, "burning": True, "slot_free_seconds": None}}}
    killed = {"fast": {"again_seconds": None, "waited_seconds": 420.0}, "slow": {"again_seconds": 3.21}}
    late = {"minute_p50_ms": 1.0, "minute_p99_ms": 4.0, "minute_missed": 2, "minute_early": 0}

    text = report.markdown(raw(hung=hung, killed=killed, cron={"fast": late}))

    assert "| fast | never, not killed, keeps using CPU | – | – |" in text  # noqa: RUF001
    assert "| fast | not within 420 | – | 1.0 / 4.0, 2 missed |" in text  # noqa: RUF001
    assert "| slow | 3.2 |" in text


def test_the_same_figures_make_the_same_pictures(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        plots.draw(raw()["rounds"], folder)

    names = sorted(one.name for one in first.iterdir())
    assert names == ["benchmarks-latency.svg", "benchmarks-throughput.svg"]
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]


def test_parts_that_were_measured_one_after_the_other_are_reported_as_one() -> None:
    other = raw(rounds={"slow": [{"naps_seconds": 0.4}], "late": [{"naps_seconds": 1.0}]}, cron={"slow": {}})

    whole = merged([raw(), other])

    assert whole["rounds"]["slow"] == [{**ROUND, "naps_seconds": 0.4}, ROUND]
    assert whole["rounds"]["late"] == [{"naps_seconds": 1.0}]
    assert whole["cron"] == {"slow": {}}


# -- where we stand -------------------------------------------------------------------


def test_we_are_held_against_the_peer_that_is_best_and_round_by_round() -> None:
    ours = [ROUND | {"jobs_per_second": 3_000.0}, ROUND | {"jobs_per_second": 6_000.0}]
    others = {
        "huey": [ROUND, ROUND | {"jobs_per_second": 2_000.0}],
        "rq": [ROUND | {"jobs_per_second": 10.0}] * 2,
    }

    found = {one.what: one for one in promises(raw(rounds={OURS: ours, **others}))}

    assert found["jobs/s, to the fastest peer"].found == 3.0
    assert found["jobs/s, to the fastest peer that kills hanging jobs"].found == 450.0
    assert found["idle, to start, p99 to p50"].found == 2.0
    assert "jobs/s of `fork`, to rq" not in found


def test_what_is_measured_once_is_held_to_its_bound_as_well() -> None:
    loop = {"killed": True, "burning": False, "slot_free_seconds": 0.4}
    late = {"second_p50_ms": 2.0, "second_p99_ms": 5.0, "second_early": 0, "second_missed": 1}

    found = promises(
        raw(rounds={}, hung={OURS: {"loop": loop}}, killed={OURS: {"again_seconds": 6.0}}, cron={OURS: late})
    )

    kept = {one.what: one.is_kept for one in found}
    assert kept == {
        "loop in C that ignores signals: slot free after, s": True,
        "kill -9: executed again after, s": False,
        "cron, every second: late, p50 ms": True,
        "cron, every second: late, p99 ms": False,
        "cron, every second: early or missed": False,
    }


# -- the systems ----------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda one: one.name)
def test_a_system_says_how_it_is_set_up_and_where_that_is_from(system: Any) -> None:
    assert system.settings
    assert system.source
    assert (system.venv == PROJECT) == (not system.packages)
    assert importlib.util.find_spec(f"benchmarks.peers.inside.{system.app}")
    for commands in system.commands.values():
        assert all(one.format(root="/root", url="redis://host").split() for one in commands)


def test_all_but_the_skeleton_and_two_of_ours_are_measured_in_every_case() -> None:
    partial = {one.name for one in SYSTEMS if set(one.commands) != set(Case)}

    assert partial == {SKELETON, DEFAULT}
    assert {OURS, FORK, SKELETON} <= set(BY_NAME)


# -- the whole, in small --------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_the_quick_form_measures_us_and_the_bare_loop_and_leaves_nothing_behind(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    small = [
        "--rounds",
        "1",
        "--jobs",
        "30",
        "--asked",
        "3",
        "--burst",
        "10",
        "--large",
        "1",
        "--raw",
        str(figures),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.peers", "--quick", *small),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert process.returncode in (0, 1), err.decode()  # so few jobs say nothing about speed
    assert "environment" not in err.decode(), "the quick form installs nothing"
    assert "in ratio to the bare skeleton" in out.decode()
    for found in json.loads(figures.read_text())["rounds"].values():
        assert found[0]["jobs_per_second"] > 0, err.decode()
        assert found[0]["pss_bytes"] > 1_000_000
        assert {"to_start_p50_ms", "to_result_p50_ms", "cpu_ms_per_job"} <= set(found[0])
