"""A large text that its reader can't read is refused; nobody else reads it."""

import sys
from pathlib import Path

import pytest

from shared import yaml_reader
from shared.errors import ContractError

TEXTS = [
    *("12:30", "1:2:3", "0123", "-08", "099", "0123.5", "1_000", "0b1", "1e", "e5", "1.2.3", "="),
    *("NO", "no", "Yes", "on", "OFF", "y", "2024-01-15", "2024-01-15T10:30:00Z"),
]
SLEEPER = "import time; time.sleep(1000)"


def text_of(name: str) -> str:
    """A large text, which no other test has prepared."""
    return f"name: {name}\n" + "#" * yaml_reader.LARGE_CHARACTERS


def unread(*_: object) -> None:
    pytest.fail("the text was read in this process")


async def refusal_of(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(yaml_reader, "_read", unread)
    await yaml_reader.prepare(text)
    with pytest.raises(ContractError) as refused:
        yaml_reader.yaml_object("the text", text)
    return str(refused.value)


async def test_a_large_text_is_read_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of("prepared")
    monkeypatch.setattr(yaml_reader, "_read", unread)

    await yaml_reader.prepare(text)

    assert yaml_reader.yaml_object("the text", text) == {"name": "prepared"}


async def test_a_text_that_is_not_read_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_reader, "_PROGRAM", SLEEPER)
    monkeypatch.setattr(yaml_reader, "READING_SECONDS", 0.05)

    assert "it couldn't be read in 0.05 s" in await refusal_of(text_of("late"), monkeypatch)


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print('x')", "import sys; sys.stdin.close()"])
async def test_a_text_whose_reader_fails_is_refused(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_reader, "_PROGRAM", program)

    assert "its reader failed (it ended without an answer)" in await refusal_of(
        text_of(f"failed by {program}"), monkeypatch
    )


async def test_a_text_whose_reader_can_not_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))

    assert "its reader failed (" in await refusal_of(text_of("unstarted"), monkeypatch)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100_000.0),
        ("+1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0", 0),
        ("0x1f", 31),
        ("0o17", 15),
        ("true", True),
        ("~", None),
        ("", None),
        *((text, text) for text in TEXTS),
    ],
)
def test_a_plain_value_is_what_yaml_1_2_makes_of_it(written: str, value: object) -> None:
    found = yaml_reader.yaml_object("the text", f"value: {written}")["value"]

    assert (found, type(found)) == (value, type(value))


def test_a_key_is_the_text_that_is_written() -> None:
    text = "{no: 1, on: 2, true: 3, ~: 4, 0123: 5, 1.0: 6, 2024-01-15: 7, 'x y': 8}"

    found = yaml_reader.yaml_object("the text", text)

    assert list(found) == ["no", "on", "true", "~", "0123", "1.0", "2024-01-15", "x y"]


def test_a_merged_key_may_be_overridden() -> None:
    text = "a: &a {k: 1, m: 2}\nb: &b {<<: *a, k: 3}\nc: {<<: *b, k: 4}"

    found = yaml_reader.yaml_object("the text", text)

    assert (found["b"], found["c"]) == ({"k": 3, "m": 2}, {"k": 4, "m": 2})


def test_json_is_read_as_json() -> None:
    found = yaml_reader.yaml_object("the text", '{"face": "\\ud83d\\ude00", "path": "a\\/b", "small": 1e-3}')

    assert found == {"face": "\N{GRINNING FACE}", "path": "a/b", "small": 0.001}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "has 'a' twice, in lines 1 and 3; leave one out"),
        ("1: a\n'1': b", "has '1' twice, in lines 1 and 2; leave one out"),
        ("a: {b: {c: 1, c: 2}}", "has 'c' twice, in line 1; leave one out"),
        ('{"a": 1, "a": 2}', "has an object with two members 'a'; leave one out"),
        ("t: {{name}}", "has a mapping as a key in line 1; put a text that begins with a bracket"),
        ("a:\n  b: */5 * * * *  # often", 'line 2: .* begins with \\* .* such as "\\*/5 \\* \\* \\* \\*"$'),
        ("a: *5 * * * *", 'such as "\\*5 \\* \\* \\* \\*"$'),
        ("a: [*/5, 2]", "a text that begins with \\* has to be in quotes"),
        ("a: @daily", 'such as "@daily"$'),
        ("a: %d", 'such as "%d"$'),
        ("a: !important", 'such as "!important"$'),
        ("a: it is: so", "line 1: .* a text with a colon and a blank in it has to be in quotes$"),
        ('a: "C:\\path"', "line 1: .* write a backslash twice, or use single quotes$"),
        ("a:\n\tb: 1", "line 2: .* indent with blanks, not with tabs$"),
        ("a: 1\n---\nb: 1", "line 2: .* write one document only$"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_to_do(text: str, problem: str) -> None:
    with pytest.raises(ContractError, match=f"^the text (is not a YAML document: )?.*{problem}"):
        yaml_reader.yaml_object("the text", text)
