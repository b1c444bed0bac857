"""Plans that can't be created: the message, and that no file is left."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from services.planner.documents import manifest_of, read_manifest
from services.planner.models import RunManifest
from services.planner.plan import Plan
from shared.errors import PlanError

HALF = "\ud83d"
MEMBERS: dict[str, Any] = {"workflow_id": "w", "tool": "t", "cases": [{}]}


def manifest(**members: Any) -> RunManifest:
    return RunManifest.model_validate({**MEMBERS, **members})


@pytest.mark.parametrize("beneath", [".", "p", "p/q"])
def test_a_plan_cant_be_created_below_a_file(tmp_path: Path, beneath: str) -> None:
    (tmp_path / "file").write_text("mine")
    directory = tmp_path / "file" / beneath

    with pytest.raises(PlanError) as caught:
        Plan.create(manifest(), directory)

    assert str(caught.value) == (
        f"{directory} can't be created: {tmp_path / 'file'} is not a directory; choose another `--directory`"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_cant_be_written_is_named() -> None:
    with pytest.raises(PlanError, match=r"^/proc/nowhere/p can't be created: .*; choose another"):
        Plan.create(manifest(), Path("/proc/nowhere/p"))


def test_the_name_of_a_directory_may_be_anything(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b"p\xff")

    plan = Plan.create(manifest(), directory)

    assert Plan.open(directory).manifest == plan.manifest


@pytest.mark.parametrize(
    ("members", "member"),
    [
        ({"cases": [{"parameters": {"a": {"b": ["x", f"y{HALF}"]}}}]}, "'cases[0].parameters.a.b[1]' has"),
        ({"cases": [{"parameters": {f"a{HALF}": 1}}]}, "'cases[0].parameters[\"a\\ud83d\"]' has"),
        ({"sweep": {"dimensions": {"a": [HALF]}}}, "'sweep.dimensions.a[0]' has"),
        ({"workflow_id": HALF}, "'workflow_id' has"),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_its_place(
    tmp_path: Path, members: dict[str, Any], member: str
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**MEMBERS, **members}))

    with pytest.raises(PlanError) as caught:
        read_manifest(file)

    message = str(caught.value)
    assert message.startswith(f"{file} member {member} '\\ud83d'")
    assert message.endswith(", half a character, which UTF-8 can't hold; write the whole character")


def test_a_whole_character_written_as_two_halves_is_one(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**MEMBERS, "cases": [{"parameters": {"a": "\U0001f600"}}]}))

    plan = Plan.create(read_manifest(file), tmp_path / "p")

    assert Plan.open(tmp_path / "p").manifest.cases[0].parameters == {"a": "\U0001f600"}
    assert plan.results()[0].case.parameters == {"a": "\U0001f600"}


@pytest.mark.parametrize("members", [{"metadata": {"a": HALF}}, {"cases": [{"parameters": {"a": HALF}}]}])
def test_a_manifest_from_python_with_half_a_character_is_refused(
    tmp_path: Path, members: dict[str, Any]
) -> None:
    with pytest.raises(PlanError, match="can't"):
        Plan.create(manifest(**members), tmp_path / "p")

    assert list(tmp_path.iterdir()) == []


def test_manifests_from_the_command_line_are_checked_too() -> None:
    with pytest.raises(PlanError, match=r"the sweep member 'workflow_id' has '\\udcff'"):
        manifest_of("the sweep", {**MEMBERS, "workflow_id": os.fsdecode(b"\xff")})
