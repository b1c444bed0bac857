"""The files of metrics: their content, self-contained pages, and always the same bytes."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from services.executor.artifacts import LocalArtifactLoader
from services.planner.metrics import MetricsBundle, MetricsComputer
from tests.planner.metrics.rings import EXPELLED, NAMES, ROUND, compute, mint

ROOT = Path(__file__).parents[3]
RECOMPUTE = """
import sys
from pathlib import Path
from services.executor.artifacts import LocalArtifactLoader
from services.planner.metrics import MetricsComputer
computer = MetricsComputer(LocalArtifactLoader(Path(sys.argv[1])))
assert "matplotlib" not in sys.modules and "jinja2" not in sys.modules
computer.write_outputs(computer.compute({"events.jsonl": "run/events.jsonl"}), Path(sys.argv[2]))
"""


def write(bundle: MetricsBundle, directory: Path) -> dict[str, Path]:
    return MetricsComputer(LocalArtifactLoader(directory)).write_outputs(bundle, directory)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def bundle(tmp_path: Path) -> MetricsBundle:
    return compute(tmp_path, EXPELLED)


@pytest.fixture
def paths(bundle: MetricsBundle, tmp_path: Path) -> dict[str, Path]:
    return write(bundle, tmp_path / "made" / "out")


def test_the_paths_of_all_files_are_returned(paths: dict[str, Path], tmp_path: Path) -> None:
    assert paths == {name: tmp_path / "made" / "out" / name for name in NAMES}
    assert all(path.is_file() for path in paths.values())


def test_a_day_is_a_row_with_empty_cells_for_undefined_values(paths: dict[str, Path]) -> None:
    first, _, quiet = rows(paths["metrics.csv"])

    assert first == {
        "day": "1",
        "s_cents": "160",
        "mbar_cents": "100",
        "m_cents": "80",
        "g_cents": "20",
        "alpha": "0.375",
        "phi": "0.375",
        "delta": "0.625",
        "mpeak_cents": "70",
        "gross_cents": "130",
        "v": "1.8571428571428572",
        "hhi_debtors": "1.0",
        "hhi_plus": "0.52",
        "debtors": "1",
        "creditors": "2",
    }
    assert quiet["alpha"] == quiet["phi"] == quiet["v"] == quiet["hhi_debtors"] == ""


def test_json_has_the_same_days_and_the_totals(paths: dict[str, Path]) -> None:
    document = json.loads(paths["metrics.json"].read_text())

    assert document["totals"]["phi"] == 0.5
    assert document["totals"]["s_cents"] == 200
    assert [day["phi"] for day in document["days"]] == [0.375, 1.0, None]


def test_shares_and_steps_are_tables_of_their_own(paths: dict[str, Path]) -> None:
    assert rows(paths["debtor_shares.csv"])[0] == {
        "day": "1",
        "agent": "A",
        "shortfall_cents": "100",
        "ds": "1.0",
    }
    assert rows(paths["intraday.csv"])[1] == {
        "day": "1",
        "step": "2",
        "payer": "B",
        "payee": "C",
        "amount_cents": "60",
        "in_use_cents": "70",
    }


def test_no_events_give_files_with_headers_only(tmp_path: Path) -> None:
    paths = write(compute(tmp_path, []), tmp_path / "out")

    assert rows(paths["metrics.csv"]) == []
    assert json.loads(paths["metrics.json"].read_text())["days"] == []
    assert "</html>" in paths["metrics.html"].read_text()


class Page(HTMLParser):
    """What a page loads from elsewhere; fails where an element is closed that isn't the last one open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        assert tag not in {"script", "link", "iframe", "img", "object"}
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_is_well_formed_and_needs_nothing_else(paths: dict[str, Path]) -> None:
    text = paths["metrics.html"].read_text()
    page = Page(text)

    assert page.open == []
    assert all(address.startswith("#") for address in page.addresses)
    assert set(re.findall(r"\w+://[^\s\"'<>]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in text
    assert text.count("<svg") == 1
    assert {"1.60", "0.375", "1.857"} <= set(page.cells)


def test_names_of_agents_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    events = [mint(evil, 5), {**ROUND[1], "debtor": evil}]
    text = write(compute(tmp_path, events), tmp_path)["metrics.html"].read_text()

    assert "&lt;script&gt;" in text
    assert "<script" not in text


def test_writing_twice_makes_the_same_bytes(bundle: MetricsBundle, tmp_path: Path) -> None:
    write(bundle, tmp_path / "once")
    write(bundle, tmp_path / "twice")

    assert digests(tmp_path / "once") == digests(tmp_path / "twice")


def test_other_processes_with_other_hashes_locales_zones_and_settings_make_the_same_bytes(
    bundle: MetricsBundle, tmp_path: Path
) -> None:
    write(bundle, tmp_path / "here")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7\naxes.facecolor: red\nsvg.fonttype: path\n")
    settings: list[dict[str, str]] = [
        {"PYTHONHASHSEED": "1", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"},
        {"PYTHONHASHSEED": "3", "LC_ALL": "de_DE.UTF-8", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")},
    ]
    made = [recompute(tmp_path, f"there-{i}", one) for i, one in enumerate(settings)]

    assert made == [digests(tmp_path / "here")] * 3


def recompute(tmp_path: Path, name: str, environment: dict[str, str]) -> dict[str, str]:
    """The digests of what another process makes of the same events."""
    arguments = [sys.executable, "-c", RECOMPUTE, str(tmp_path), str(tmp_path / name)]
    subprocess.run(arguments, env=os.environ | environment, cwd=ROOT, check=True)
    return digests(tmp_path / name)


def test_moved_artifacts_make_the_same_bytes(bundle: MetricsBundle, tmp_path: Path) -> None:
    write(bundle, tmp_path / "before")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere" / "run")
    moved = MetricsComputer(LocalArtifactLoader(tmp_path / "elsewhere"))
    moved.write_outputs(moved.compute({"events.jsonl": "run/events.jsonl"}), tmp_path / "after")

    assert digests(tmp_path / "before") == digests(tmp_path / "after")


def test_plots_leave_the_settings_of_the_process_as_they_were(bundle: MetricsBundle, tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 31.0}):
        before: dict[Any, Any] = dict(mpl.rcParams)
        write(bundle, tmp_path / "out")

        assert dict(mpl.rcParams) == before
