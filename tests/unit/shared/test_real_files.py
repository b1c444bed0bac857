"""The publishing service's real files are read in every way in which it publishes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.executor.scheduling.cron import Cron
from shared.messages import Experiment, State, place_of_state, read_experiment, read_experiment_file
from shared.schedules import read_schedule

FILES = sorted((Path(__file__).parents[2] / "fixtures" / "experiments").glob("*.yaml"))

EXPECTED = {
    "exp_20240115_github_stargazers": ("github_stargazer_scraper", "0 9 * * MON", "America/Los_Angeles"),
    "exp_20240120_product_hunt_makers": ("producthunt_maker_scraper", "0 10 * * WED", "America/New_York"),
    "exp_20240201_linkedin_series_a": ("funding_round_scraper", "0 8 * * TUE,THU", "America/New_York"),
    "exp_20260201_cto_competitor_stars": ("github_stargazer_scraper", "0 9 * * MON", "America/Los_Angeles"),
    "exp_20260201_cto_stargazer_email": ("github_cto_enricher", "0 9 * * MON", None),
}
DRAFTS = {name for name in EXPECTED if name < "exp_2025"}


def body(path: Path) -> dict[str, Any]:
    experiment: dict[str, Any] = yaml.safe_load(path.read_text())["experiment"]
    return experiment


def as_string(path: Path) -> Experiment:
    return read_experiment(path.stem, "string", json.dumps(body(path)))


def as_spec(path: Path) -> Experiment:
    fields = {"spec": path.read_text(), "created_at": "2026-02-01T09:00:00Z"}
    return read_experiment(path.stem, "hash", fields | _state(path))


def as_execution(path: Path) -> Experiment:
    fields = {"execution": json.dumps(body(path)["execution"]), "hypothesis": body(path)["hypothesis"]}
    return read_experiment(path.stem, "hash", fields | _state(path))


def as_flat(path: Path) -> Experiment:
    execution = body(path)["execution"]
    members = {name: one if isinstance(one, str) else json.dumps(one) for name, one in execution.items()}
    return read_experiment(path.stem, "hash", members | _state(path))


def as_file(path: Path) -> Experiment:
    return read_experiment_file(path.name, path.read_text())


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _state(path: Path) -> dict[str, str]:
    return {"state": body(path)["state"]} if "state" in body(path) else {}


WAYS = [as_string, as_spec, as_execution, as_flat, as_file]


def test_all_files_are_here() -> None:
    assert [path.stem for path in FILES] == sorted(EXPECTED)


@pytest.mark.parametrize("publish", WAYS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_file_is_read_in_every_way(path: Path, publish: Callable[[Path], Experiment]) -> None:
    experiment = publish(path)

    assert experiment.id == path.stem
    assert (experiment.tool, experiment.schedule, experiment.timezone) == EXPECTED[path.stem]
    assert experiment.state is (State.DRAFT if path.stem in DRAFTS else State.READY)
    assert experiment.params == body(path)["execution"]["params"]
    assert set(experiment.policy.model_dump().values()) == {None}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_document_keeps_all_but_its_state(path: Path) -> None:
    place = place_of_state(json.dumps(body(path)))

    assert place is not None
    assert json.loads("running".join(place[1:])) == {**body(path), "state": "running"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_text_behind_schedule_is_a_schedule_as_a_shell_publisher_cuts_it_out(path: Path) -> None:
    _, cron, zone = EXPECTED[path.stem]
    lines = {name.strip(): text for name, _, text in map(_split, path.read_text().splitlines())}

    schedule = read_schedule(
        path.stem, "hash", {"cron": lines["schedule"], "timezone": lines.get("timezone", "")}
    )

    assert Cron.parse(schedule.cron, schedule.timezone) == Cron.parse(cron, zone)
