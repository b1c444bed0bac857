"""Formatting of values and tables."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from services.cli import output
from services.cli.output import Column
from services.operations.words import ago, duration, size

COLUMNS = [Column("ID"), Column("TOOL", drop=1), Column("SECONDS", right=True), Column("ERROR")]
ROWS = [
    ["exp_a_long_name", "example_tool", "1.5", "ValueError: this\nwent wrong in many words"],
    ["b", "", "2", ""],
]


def on_terminal(width: int) -> str:
    """The table on a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(
        output.rich_table(COLUMNS, ROWS, width)
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        ("", ""),
        (0.0314, "0.031 s"),
        ("4.21", "4.2 s"),
        (65, "1 min 05 s"),
        (3_599.6, "1 h 00 min"),
        (7_800, "2 h 10 min"),
    ],
)
def test_durations_have_units(seconds: float | str | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("iso", "words"),
    [
        ("2026-01-01T11:59:59+00:00", "just now"),
        ("2026-01-01T11:59:30+00:00", "30 s ago"),
        ("2026-01-01T11:30:00+00:00", "30 min ago"),
        ("2026-01-01T02:00:00+00:00", "10 h ago"),
        ("2025-12-22T12:00:00+00:00", "10 days ago"),
        ("yesterday", "yesterday"),
        ("2026-01-01T11:59:30", "2026-01-01T11:59:30"),
        (None, ""),
    ],
)
def test_times_in_the_past_are_relative(iso: str | None, words: str) -> None:
    assert ago(iso, lambda: datetime(2026, 1, 1, 12, tzinfo=UTC)) == words


@pytest.mark.parametrize(
    ("count_bytes", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (12_345_678, "12.3 MB"), (5e12, "5000.0 GB")],
)
def test_sizes_have_units(count_bytes: float, words: str) -> None:
    assert size(count_bytes) == words


def test_control_characters_are_replaced() -> None:
    assert output.one_line("a\x1b[2J\tb\nc\udcff\x07") == "a�[2J b c��"
    assert output.lines_of("a\n\tb\x1b") == ["a", "        b�"]


def test_a_message_keeps_the_blanks_of_what_it_quotes() -> None:
    assert output.message_line("  '# ///  script' \n\t is\x1b wrong  ") == "'# ///  script'  is� wrong"


def test_a_long_text_is_cut_with_an_ellipsis() -> None:
    assert output.shorten("one two three", 8) == "one two…"
    assert output.shorten("one two", 8) == "one two"


def test_without_a_terminal_a_table_is_padded_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(COLUMNS, ROWS, Console(file=io.StringIO(), width=20))

    assert capsys.readouterr().out.splitlines() == [
        "ID               TOOL          SECONDS  ERROR",
        "exp_a_long_name  example_tool  1.5      ValueError: this went wrong in many words",
        "b                -             2        -",
    ]


def test_on_a_wide_terminal_a_table_is_complete() -> None:
    shown = on_terminal(100)

    assert "example_tool" in shown
    assert "ValueError: this went wrong in many words" in shown


def test_on_a_narrow_terminal_a_table_drops_columns_and_cuts_the_last_one() -> None:
    shown = on_terminal(48)

    assert "exp_a_long_name" in shown
    assert "TOOL" not in shown
    assert "SECONDS" in shown
    assert "ValueError: t" in shown
    assert "many words" not in shown
    assert max(map(len, shown.splitlines())) <= 48


def test_an_empty_column_is_not_shown_on_a_terminal() -> None:
    table = output.rich_table(COLUMNS, [["a", "", "1", "x"]], 100)

    assert [column.header for column in table.columns] == ["ID", "SECONDS", "ERROR"]
