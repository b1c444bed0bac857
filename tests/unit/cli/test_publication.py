"""An experiment file is checked as a whole: each mistake is told with its line."""

from pathlib import Path

import pytest

from services.cli.output import Mistakes
from services.cli.publication import Publication, read_file, read_files


def written(folder: Path, text: str, name: str = "e.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes_of(folder: Path, text: str) -> list[str]:
    path = written(folder, text)
    with pytest.raises(Mistakes) as found:
        read_file(path)
    assert all(line.startswith(str(path)) for line in found.value.lines)
    return [line.removeprefix(str(path)).strip() for line in found.value.lines]


def of_execution(folder: Path, members: str) -> list[str]:
    return mistakes_of(folder, f"experiment:\n  id: e\n  execution:\n    tool: t\n    {members}\n")


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = mistakes_of(
        tmp_path,
        """\
experiment:
  state: redy
  params: {a: 1}
  execution:
    tool: ../x
    max_attemps: 3
    max_attempts: 0
    isolation: worm
    schedule: "0 25 * * *"
    timezone: Mars
    no: 5
    overlap: skip
    overlap: allow
    sandbox: "off"
""",
    )

    beginnings = [
        "has 'overlap' twice, in lines 12 and 13",
        "has the key no in line 11, which other readers of YAML take for true, false or null",
        "line 1: has no 'id'",
        "line 2: member 'state' is 'redy': expected draft",
        "line 5: member 'tool' is '../x': can't be a tool",
        "line 14: member 'sandbox' can't be set by an experiment",
        "line 9: Cron expression '0 25 * * *': the hour is '25'",
        "line 10: Time zone 'Mars'",
        "line 7: member 'max_attempts' is '0': expected a whole number >= 1",
        "line 8: member 'isolation' is 'worm': expected 'warm', 'fork' or 'spawn'",
        "line 3: member 'params' belongs in 'execution'",
        "line 6: member 'max_attemps' is not known: did you mean 'max_attempts'?",
    ]
    assert [line[: len(one)] for line, one in zip(sorted(found), sorted(beginnings), strict=True)] == sorted(
        beginnings
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("max_attemps", "max_attempts"), ("maxAttempts", "max_attempts"), ("max-attempts", "max_attempts")),
        *(
            ("Timeout_Seconds", "timeout_seconds"),
            ("timeout", "timeout_seconds"),
            ("retries", "max_attempts"),
        ),
        *(("cron", "schedule"), ("shedule", "schedule"), ("tz", "timezone"), ("time_zone", "timezone")),
        *(("parameters", "params"), ("args", "params"), ("Tool", "tool"), ("priorty", "priority")),
    ],
)
def test_a_member_that_is_almost_known_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    assert of_execution(tmp_path, f"{name}: 1") == [
        f"line 5: member '{name}' is not known: did you mean '{meant}'?"
    ]


@pytest.mark.parametrize("name", ["secondary_tool", "secondary_params", "limit", "output", "depends_on"])
def test_another_unknown_member_is_kept_and_told(tmp_path: Path, name: str) -> None:
    text = f"experiment: {{id: e, metrics: [], execution: {{tool: t, {name}: 1}}}}"
    found = read_file(written(tmp_path, text))

    assert (found.text, list(found.notes)) == (text, [f"no executor reads '{name}' in 'execution'"])


def test_a_member_of_the_experiment_that_is_almost_known_is_told(tmp_path: Path) -> None:
    found = read_file(written(tmp_path, "experiment: {id: e, time_zone: UTC, execution: {tool: t}}"))

    assert list(found.notes) == ["no executor reads 'time_zone'; did you mean 'timezone'?"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            "workflow_id: p\ntool: t\ncases: [{}]",
            "is a plan, not an experiment; execute it with `fullsend",
        ),
        ("experiment: [1]", "line 1: member 'experiment' is a list; expected an object"),
        ("experiment:\n  id: e\n  execution: t", "line 3: member 'execution' is a text; expected an object"),
        ("", "is empty; expected a YAML mapping"),
        ("- id: e", "is a list; expected a YAML mapping"),
        ("id: e\nexecution:\n  tool: 5", "line 3: member 'tool' is '5': can't be a tool"),
        (
            "id: e\nexecution:\n  tool: t\n  params: [1]",
            "line 4: member 'params' is a list",
        ),
        ("id: e\ntool: t\nschedule: {every: 5m}", "line 3: member 'schedule' member 'every' is '5m'"),
        ("id: 5\ntool: t", "line 1: member 'id' is '5': must be a non-empty text, in quotes if"),
        ("id: e\nexecution:", "line 2: member 'execution' is null; expected an object"),
    ],
)
def test_another_mistake_is_told_as_well(tmp_path: Path, text: str, mistake: str) -> None:
    assert [line[: len(mistake)] for line in mistakes_of(tmp_path, text)] == [mistake]


def test_members_of_a_flat_file_that_are_almost_known_are_refused(tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, "id: e\nhypothesis: h\ntool: t\nmax_attemps: 3\ncron: '@daily'")

    assert found == [
        "line 4: member 'max_attemps' is not known: did you mean 'max_attempts'?",
        "line 5: member 'cron' is not known: did you mean 'schedule'?",
    ]


def test_an_expression_and_a_zone_that_differ_are_told_with_the_other_mistakes(tmp_path: Path) -> None:
    found = of_execution(tmp_path, "schedule: CRON_TZ=Asia/Tokyo 0 9 * * *\n    timezone: UTC\n    cron: x")

    assert [line.split(":")[0] for line in found] == ["line 5", "line 7"]
    assert "and the time zone 'UTC' differ" in found[0]


def test_a_misspelt_execution_is_told(tmp_path: Path) -> None:
    assert mistakes_of(tmp_path, "id: e\nexcution:\n  tool: t") == [
        "has no 'tool', which names what is run; it holds 'id', 'excution'",
        "line 2: member 'excution' is not known: did you mean 'execution'?",
    ]


def test_each_file_tells_its_own_and_two_of_one_experiment_are_refused(tmp_path: Path) -> None:
    good = "experiment: {id: e, execution: {tool: t}}"
    paths = [written(tmp_path, good, "a.yaml"), written(tmp_path, good, "b.yaml"), tmp_path / "none.yaml"]

    with pytest.raises(Mistakes) as found:
        read_files(paths)

    assert found.value.lines == [
        f"{paths[2]} can't be read: No such file or directory",
        f"{paths[0]} and {paths[1]} both define experiment 'e'",
        "nothing was published",
    ]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("experiment: {id: e, execution: {tool: t}}", encoding="utf-8-sig")

    assert isinstance(read_file(path), Publication)
