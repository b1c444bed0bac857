"""A large text that its reader can't read is refused; nobody else reads it."""

import sys
from pathlib import Path

import pytest

from shared import yaml_reader
from shared.errors import ContractError

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
