"""The needs in a tool's PEP 723 block, which is read and not run."""

from typing import Any

import pytest

from services.executor.policy import ToolNeeds, needs_of
from shared.errors import ToolError

PLACE = "tool.py: [tool.fullsend]"
ALMOST = (
    "# /// script ", "# /// script\t", "#/// script", "# ///script", "# ///  script", "# /// Script",
    "# /// SCRIPT", "# /// scripts", "# /// script:", "# //// script", "# // script", "## /// script",
    "    # /// script", "\t# /// script",
)  # fmt: skip


def block(*lines: str) -> str:
    return "\n".join(["# /// script", *(f"# {line}".rstrip() for line in lines), "# ///", ""])


def needs(*lines: str) -> ToolNeeds:
    return needs_of(PLACE, block("[tool.fullsend]", *lines))


def refusal(text: str) -> str:
    with pytest.raises(ToolError) as refused:
        needs_of(PLACE, text)
    return str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "def tool(): ...\n", "# /// script\n# ///\n", "# /// other\n# x = 1\n# ///\n"]
)
def test_a_file_without_a_block_asks_for_nothing(text: str) -> None:
    assert needs_of(PLACE, text) == ToolNeeds()


def test_everything_that_can_be_asked_for_is_read() -> None:
    asked = needs(
        'environment = ["RESEND_API_KEY", "OTHER"]',
        'isolation = "fork"',
        "timeout_seconds = 2.5",
        "memory_mb = 512",
        "cpu_seconds = 60",
        "file_size_mb = 10",
        "open_files = 100",
        "processes = 4",
    )

    assert asked.model_dump(exclude_defaults=True) == {
        "environment": ("RESEND_API_KEY", "OTHER"),
        "isolation": "fork",
        "timeout_seconds": 2.5,
        "memory_mb": 512,
        "cpu_seconds": 60,
        "file_size_mb": 10,
        "open_files": 100,
        "processes": 4,
    }


def test_other_tables_are_ignored() -> None:
    text = block('requires-python = ">=3.11"', 'dependencies = ["httpx"]', "[tool.other]", "x = 1")

    assert needs_of(PLACE, text).environment == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "#!/usr/bin/env python3\n\n" + text + "\nimport os\n",
        lambda text: text.replace("[tool.fullsend]", "[tool.fullsend]\n#\n#  "),
        lambda text: text.rstrip("\n"),
    ],
)
def test_a_block_is_found_in_any_file(change: Any) -> None:
    assert needs_of(PLACE, change(block("[tool.fullsend]", "memory_mb = 5"))).memory_mb == 5


@pytest.mark.parametrize("comment", ["# a script", "# /// other", "#!/bin/script", "# see https://script"])
def test_other_comments_are_ignored(comment: str) -> None:
    assert needs_of(PLACE, f"{comment}\n# x = 1\n# ///\n") == ToolNeeds()


@pytest.mark.parametrize("opening", ALMOST)
def test_a_string_may_hold_what_is_almost_a_block(opening: str) -> None:
    assert needs_of(PLACE, f'X = """\n{opening}\n# x = 1\n"""\n') == ToolNeeds()


@pytest.mark.parametrize(
    "table", ["fulsend", "full-send", "Fullsend", "FULLSEND", "full_send", "fullsent", "'fullsend '"]
)
def test_a_table_that_is_almost_ours_is_refused_by_its_line(table: str) -> None:
    name = table.strip("'")

    assert refusal(block("dependencies = []", f"[tool.{table}]", 'sandbox = "files"')) == (
        f"{PLACE}: line 3: [tool.{name}] is not known; write [tool.fullsend]"
    )


@pytest.mark.parametrize("lines", [("[tool]", 'sandbox = "files"'), ("", 'tool.sandbox = "files"')])
def test_our_members_in_the_table_above_ours_are_refused_by_their_line(lines: tuple[str, str]) -> None:
    assert refusal(block(*lines)) == (
        f"{PLACE}: line 3: 'sandbox' is a member of [tool], which has no such member; "
        "put it below [tool.fullsend]"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "import os\n# /// script\n# x = 1\n\nimport re\n",
            "the script block that begins in line 2 is not closed: line 4 is not a comment; "
            "end the block with a line '# ///'",
        ),
        (
            "# /// script\n# x = 1",
            "the script block that begins in line 1 is not closed: line 3 is not a comment; "
            "end the block with a line '# ///'",
        ),
        (
            "# /// script\n# x = 1\n#y = 1\n# ///\n",
            "line 3, '#y = 1', is in a script block and has no space after '#'; insert one",
        ),
        (
            "# /// script\n# x = 1\n#\ty = 1\n# ///\n",
            "line 3, '#\\ty = 1', is in a script block and has no space after '#'; insert one",
        ),
        (
            "# /// script\n# x = 1\n#///\n",
            "line 3, '#///', is in a script block and has no space after '#'; insert one",
        ),
        (
            "# /// script\r\n# x = 1\r\n# /// \r\n",
            "line 3, '# /// ', doesn't close the script block; write exactly '# ///'",
        ),
        *(
            (
                f"import os\n{opening}\n# x = 1\n# ///\n",
                f"line 2, {opening!r}, doesn't begin a script block; write exactly '# /// script'",
            )
            for opening in ALMOST
        ),
    ],
)
def test_what_is_almost_a_block_is_refused_by_its_line(text: str, expected: str) -> None:
    assert refusal(text) == f"{PLACE}: {expected}"


@pytest.mark.parametrize(
    "text",
    [
        "# /// script\n# [tool.fullsend]\n# memory_mb = 5\n# ///\n#y = 1\n",
        "# /// script\n# [tool.fullsend]\n#\n# memory_mb = 5\n# ///\n\n#///\n# ///\n",
    ],
)
def test_comments_after_a_block_are_no_part_of_it(text: str) -> None:
    assert needs_of(PLACE, text) == ToolNeeds(memory_mb=5)


def test_two_blocks_are_refused() -> None:
    assert refusal(block("x = 1") + "\n" + block("y = 1")) == (
        f"{PLACE}: the file has 2 `# /// script` blocks; PEP 723 allows one"
    )


@pytest.mark.parametrize("line", ["x =", "[tool.fullsend", "memory_mb = 5\n# memory_mb = 6", "= 3"])
def test_a_block_that_is_not_toml_is_refused(line: str) -> None:
    assert refusal(block("[tool.fullsend]", line)).startswith(f"{PLACE}: ")
    assert "(at " in refusal(block("[tool.fullsend]", line))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("memory = 5", "member 'memory' is '5': expected one of environment, isolation, "),
        ("memory_mb = 0", "member 'memory_mb' is '0': expected a whole number >= 1"),
        ("memory_mb = 'x'", "member 'memory_mb' is 'x': expected a whole number"),
        ("timeout_seconds = inf", "member 'timeout_seconds' is 'inf': expected a finite number"),
        ("timeout_seconds = nan", "member 'timeout_seconds' is 'nan': expected a finite number"),
        ("isolation = 'docker'", "member 'isolation' is 'docker': expected 'warm', 'fork' or 'spawn'"),
        ("environment = 'A'", "member 'environment' is 'A': expected a list"),
        ("environment = [1]", "member 'environment.0' is '1': expected a text"),
    ],
)
def test_a_bad_value_is_named(line: str, expected: str) -> None:
    assert refusal(block("[tool.fullsend]", line)).startswith(f"{PLACE} {expected}")


@pytest.mark.parametrize(
    "lines",
    [("tool = 5",), ("tool = ['a']",), ("[tool]", "fullsend = 5"), ("[[tool.fullsend]]", "memory_mb = 5")],
)
def test_another_value_than_a_table_is_refused(lines: tuple[str, ...]) -> None:
    assert refusal(block(*lines)).startswith(f"{PLACE} is a")
    assert refusal(block(*lines)).endswith("; expected a table")


@pytest.mark.timeout(20)
def test_a_hostile_file_is_read_quickly() -> None:
    assert "line 1 is not closed" in refusal("# /// script\n" + "#\n" * 200_000)
    assert "line 1 is not closed" in refusal("# /// script\n" * 100_000)
    assert needs_of(PLACE, "# ///" + " " * 1_000_000 + "x\n") == ToolNeeds()
    assert needs_of(PLACE, "# /// script\n# ///\n\n" * 100_000) == ToolNeeds()
