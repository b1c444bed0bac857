"""`fullsend diff`."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.executor.artifacts import Artifact, InlineReference, Keeper, LocalBlobs
from tests.acceptance.commands import Done, Shell
from tests.conftest import Neighbour, Serve, Tools

A, B = "exp:1700000000000-0", "exp:1700000001000-0"
COMPUTE = """
    from shared import toolkit

    def compute(n: int):
        toolkit.artifact("numbers.txt", str(n).encode())
        toolkit.artifact("always.txt", b"the same")
        return {"rows": [{"x": 1}, {"x": n}], "label": "fine"}
"""
IDENTITY = {
    "tool": "compute", "tool_digest": "1" * 64, "entry_point": "compute", "run_digest": "d" * 64,
    "params": '{"n": 1, "of": {"size": [1, 2]}}',
}  # fmt: skip
END = {"status": "completed", "result": '{"x": 1}', "duration_seconds": "1.0", "attempt": "1"}


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    """The artifact store of the service under test."""
    return LocalBlobs(tmp_path / "artifacts")


@pytest.fixture
def shell(tmp_path: Path, redis_url: str) -> Shell:
    """The directory in which the commands run."""
    return Shell(tmp_path, {"REDIS_URL": redis_url, "ARTIFACTS": str(tmp_path / "artifacts")})


async def two(neighbour: Neighbour, **changed: str | None) -> None:
    """Write two equal records, the second with these fields changed; None removes a field."""
    record = IDENTITY | END
    other = {name: value for name, value in (record | changed).items() if value is not None}
    await neighbour.redis.hset(f"experiment_runs:{A}", mapping=record)
    await neighbour.redis.hset(f"experiment_runs:{B}", mapping=other)


async def compared(shell: Shell, *arguments: str) -> tuple[Done, Any]:
    """Run the command without and with --json."""
    done = await shell.fullsend("diff", A, B, *arguments)
    as_json = await shell.fullsend("diff", A, B, "--json")
    assert done.code == as_json.code
    return done, json.loads(as_json.out)


# -- with a worker --------------------------------------------------------------------


async def test_differences_between_real_runs_are_printed(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("compute", COMPUTE)
    await neighbour.publish("exp", "compute", params={"n": 1})
    async with serve():
        one = (await neighbour.run("exp"))["run_id"]
        again = (await neighbour.run("exp"))["run_id"]
        other = (await neighbour.run("exp", params={"n": 2}))["run_id"]
        tools("compute", COMPUTE + "        # changed\n")
        recoded = (await neighbour.run("exp"))["run_id"]

    same = await shell.fullsend("diff", one, again)
    differs = await shell.fullsend("diff", one, other)
    code = await shell.fullsend("diff", one, recoded, "--code")

    assert same.code == 0
    assert same.lines[-1] == "no difference"
    assert "the same computation" in same.out
    assert differs.code == 1
    for line in ("parameters.n: 1 -> 2", "rows[1].x: 1 -> 2"):
        assert f"  {line}" in differs.lines
    assert "  differs: numbers.txt, 1 bytes 6b86b273ff34 -> 1 bytes d4735e3a265e" in differs.lines
    assert "always.txt" not in differs.out
    assert code.code == 1
    heads = [line for line in code.lines if line.startswith(("---", "+++"))]
    assert heads == ["--- A/compute.py", "+++ B/compute.py"]
    assert "+    # changed" in code.lines


# -- what counts ----------------------------------------------------------------------


async def test_a_run_does_not_differ_from_itself(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour)

    done = await shell.fullsend("diff", A, A)

    assert done.code == 0


@pytest.mark.parametrize(
    ("field", "value", "path", "values"),
    [
        ("params", '{"n": 2, "of": {"size": [1, 2]}}', "parameters.n", (1, 2)),
        ("params", '{"n": 1, "of": {"size": [1, 3]}}', "parameters.of.size[1]", (2, 3)),
        ("params", '{"n": 1.0, "of": {"size": [1, 2]}}', "parameters.n", (1, 1.0)),
        ("tool_digest", "2" * 64, "tool_digest", ("1" * 64, "2" * 64)),
        ("entry_point", "run", "entry_point", ("compute", "run")),
        ("run_digest", "e" * 64, "run_digest", ("d" * 64, "e" * 64)),
    ],
)
async def test_each_member_of_the_identity_counts(
    shell: Shell, neighbour: Neighbour, field: str, value: str, path: str, values: tuple[Any, Any]
) -> None:
    await two(neighbour, **{field: value})

    done, told = await compared(shell)

    assert done.code == 1
    assert told["identity"] == [{"path": path, "a": values[0], "b": values[1]}]
    assert path in done.out


@pytest.mark.parametrize(("field", "shown"), [("seed", '"7"'), ("environment_digest", "7")])
async def test_a_field_of_only_one_run_is_absent_in_the_other(
    shell: Shell, neighbour: Neighbour, field: str, shown: str
) -> None:
    await two(neighbour, **{field: "7"})

    done, told = await compared(shell)

    assert told["identity"] == [{"path": field, "b": "7"}]
    assert f"  {field}: (absent) -> {shown}" in done.lines


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"status": "failed", "result": None, "error": "no", "error_type": "ValueError"}, "status"),
        ({"error": "other"}, "error"),
        ({"error_type": "OtherError"}, "error_type"),
    ],
)
async def test_status_and_error_count(
    shell: Shell, neighbour: Neighbour, changed: dict[str, str | None], expected: str
) -> None:
    await two(neighbour, **changed)

    done, told = await compared(shell)

    assert done.code == 1
    assert expected in [one["path"] for one in told["end"]]


async def test_time_and_attempts_are_printed_but_do_not_count(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour, duration_seconds="2.5", attempt="3")

    done, told = await compared(shell)

    assert done.code == 0
    assert done.lines[1] == f"B  {B}  completed after 2.5 s (2.5 times as long), 3 attempts"
    assert (told["duration_ratio"], told["attempts"]) == (2.5, [1, 3])


async def test_a_tool_named_with_its_digest_is_the_same_tool(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour, tool=f"compute@sha256:{'1' * 64}")

    assert (await shell.fullsend("diff", A, B)).code == 0


# -- results --------------------------------------------------------------------------


async def test_the_number_of_differences_shown_is_limited(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour, result=json.dumps({f"x{number}": 0 for number in range(100)}))

    done, told = await compared(shell, "--lines", "3")

    assert done.lines[done.lines.index("Result") + 4] == "  and 98 more"
    assert len(told["result"]["differences"]) == 101


async def test_a_stored_result_is_compared_value_by_value(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    reference = "cas://" + blobs.put(b'{"x": 2}').sha256
    await two(neighbour, result=reference)

    _, told = await compared(shell)

    assert told["result"] == {"same": False, "differences": [{"path": "x", "a": 1, "b": 2}]}


@pytest.mark.parametrize("content", [b'{"x": 1}', b'{"x":1}'])
async def test_a_stored_result_may_equal_an_inline_one(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, content: bytes
) -> None:
    await two(neighbour, result=f"cas://{blobs.put(content).sha256}")

    assert (await shell.fullsend("diff", A, B)).code == 0


async def test_results_that_cant_be_loaded_are_compared_by_digest(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour, result=f"cas://{'9' * 64}")

    done, told = await compared(shell)

    assert done.code == 1
    assert "no such blob" in told["result"]["reason"]
    assert f"-> {'9' * 12}" in done.out
    assert "not compared: " in done.out


async def test_an_equal_stored_result_is_not_loaded(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour)
    for run_id in (A, B):
        await neighbour.redis.hset(f"experiment_runs:{run_id}", "result", f"cas://{'9' * 64}")

    assert (await shell.fullsend("diff", A, B)).code == 0


# -- artifacts ------------------------------------------------------------------------


async def test_artifacts_are_compared_by_content_wherever_they_are_stored(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    stored, inline = Keeper(blobs, inline_max_bytes=0), Keeper(blobs)
    await two(neighbour)
    await _list(neighbour, A, inline.keep("same", b"1"), inline.keep("other", b"1"), inline.keep("a", b""))
    await _list(neighbour, B, stored.keep("same", b"1"), inline.keep("other", b"22"), inline.keep("b", b""))

    done, told = await compared(shell)

    assert told["artifacts"] == {"a": "only in A", "b": "only in B", "other": "differs", "same": "same"}
    assert "  only in A: a, 0 bytes e3b0c44298fc" in done.lines
    assert "same" not in done.out.partition("Artifacts")[2]


async def _list(neighbour: Neighbour, run_id: str, *artifacts: Artifact) -> None:
    described = json.dumps({one.name: one.to_json() for one in artifacts})
    await neighbour.redis.hset(f"experiment_runs:{run_id}", "artifacts", described)


async def test_an_unreadable_artifact_entry_differs(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour)
    for run_id in (A, B):
        bad = json.dumps({"a": {"reference": str(InlineReference.of(b"", "a/b"))}})
        await neighbour.redis.hset(f"experiment_runs:{run_id}", "artifacts", bad)

    done, told = await compared(shell)

    assert told["artifacts"] == {"a": "differs"}
    assert "'size_bytes' is missing" in done.out


# -- code -----------------------------------------------------------------------------


async def test_the_files_of_packages_are_compared(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    one = _package(blobs, {"__init__.py": b"same\n", "a.py": b"x = 1\n", "gone.py": b"y\n", "b": b"\0"})
    other = _package(blobs, {"__init__.py": b"same\n", "a.py": b"x = 2\n", "b": b"\0\0"})
    await two(neighbour, tool_digest=other)
    await neighbour.redis.hset(f"experiment_runs:{A}", "tool_digest", one)

    done = await shell.fullsend("diff", A, B, "--code")

    shown = done.lines[done.lines.index("--- A/a.py") :]
    assert shown == [
        "--- A/a.py", "+++ B/a.py", "@@ -1 +1 @@", "-x = 1", "+x = 2",
        "Binary files A/b and B/b differ",
        "--- A/gone.py", "+++ B/gone.py", "@@ -1 +0,0 @@", "-y",
    ]  # fmt: skip
    assert "same\n" not in done.out


def _package(blobs: LocalBlobs, files: dict[str, bytes]) -> str:
    lines = "".join(f"{blobs.put(content).sha256}  {path}\n" for path, content in sorted(files.items()))
    return blobs.put(lines.encode()).sha256


async def test_code_that_was_not_stored_is_compared_by_its_digest(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour, tool_digest="2" * 64)

    done = await shell.fullsend("diff", A, B, "--code")

    assert done.code == 1
    assert "  tool_digest: 111111111111 -> 222222222222" in done.lines
    assert "the code can't be compared: Tool 'compute@sha256:" in done.lines[-1]


async def test_with_json_the_diff_of_the_code_goes_to_stderr(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    one, other = blobs.put(b"x = 1\n").sha256, blobs.put(b"x = 2\n").sha256
    await two(neighbour, tool_digest=other)
    await neighbour.redis.hset(f"experiment_runs:{A}", "tool_digest", one)

    done = await shell.fullsend("diff", A, B, "--json", "--code")

    assert json.loads(done.out)["same"] is False
    assert "+x = 2" in done.err


# -- trouble --------------------------------------------------------------------------


async def test_errors_have_an_exit_code_of_their_own(shell: Shell, neighbour: Neighbour) -> None:
    await two(neighbour)

    missing = await shell.fullsend("diff", A, "exp:3-0")
    away = await shell.with_variables(REDIS_URL="redis://127.0.0.1:1/0").fullsend("diff", A, B)
    unreadable = await neighbour.redis.hset(f"experiment_runs:{B}", "artifacts", "[1]")
    rubbish = await shell.fullsend("diff", A, B)
    misused = await shell.fullsend("diff", A)

    assert unreadable == 1
    assert [done.code for done in (missing, away, rubbish, misused)] == [2, 2, 2, 2]
    assert "there is no run 'exp:3-0'" in missing.error
    assert "Redis can't be reached" in away.error
    assert "artifacts are not an object" in rubbish.error


async def test_the_help_explains_the_exit_codes(shell: Shell) -> None:
    done = await shell.fullsend("diff", "--help")

    assert "0 if the runs are the same, 1 if they differ and 2" in " ".join(done.out.split())
