"""Criteria: the grammar, the meaning, and that any other text is refused."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.criteria import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    Comparison,
    Condition,
    Criterion,
    CriterionError,
    Joined,
    Not,
    criterion,
)
from shared.errors import PlanError

NAMES = st.sampled_from(["n", "loss", "failure_rate", "diagnostics.total", "result.a.b2", "_x", "ands"])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COMPARISONS = st.builds(Comparison, NAMES, st.sampled_from(["<", "<=", ">", ">="]), NUMBERS) | st.builds(
    Comparison, NAMES, st.sampled_from(["==", "!="]), NUMBERS | st.text()
)


CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    COMPARISONS,
    lambda inner: (
        inner.map(Not)
        | st.builds(
            Joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)
        )
    ),
    max_leaves=10,
)
WORDS = ["a", "loss", "<", "<=", "==", "!", "=", "(", ")", "and", "or", "not", "after", "5", "5%", "-.5e3"]
WRITTEN = st.lists(st.sampled_from([*WORDS, '"x"', "'", "\\"])).map(" ".join)


def holds(text: str, completions: int = 1_000, **values: Any) -> bool | None:
    return criterion(text).judge(values, completions).holds


@given(st.text() | WRITTEN)
def test_any_text_is_parsed_or_refused_with_a_criterion_error(text: str) -> None:
    try:
        found = criterion(text)
    except CriterionError:
        return

    assert criterion(str(found)) == found


@given(st.builds(Criterion, CONDITIONS, st.integers(0, 999_999_999)))
def test_a_printed_criterion_parses_to_the_same_criterion(one: Criterion) -> None:
    text = str(one)

    assert criterion(text) == one


@given(CONDITIONS, st.dictionaries(st.sampled_from(["n", "loss", "_x"]), st.none() | NUMBERS | st.text()))
def test_judging_never_fails_and_says_why_it_leaves_something_open(
    condition: Condition, values: dict[str, Any]
) -> None:
    verdict = Criterion(condition).judge(values, 0)

    assert (verdict.holds is None) == bool(verdict.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss < 2", True),
        ("loss > 2", False),
        ("loss <= 1.5 and loss >= 1.5 and loss == 1.5", True),
        ("loss != 1.5", False),
        ("rate < 5%", True),
        ("rate > 4.5 %", False),
        ("diagnostics.total == 7", True),
        ("kind == 'x' and kind != \"y\"", True),
        (r'''quote == "a\"b\\"''', True),
        ("done == 1 and not done == 0", True),
        ("loss > 9 and loss > 9 or loss < 9", True),
        ("loss > 9 and (loss > 9 or loss < 9)", False),
        ("not loss > 9 and loss < 9", True),
        ("not (loss > 9 or loss < 9)", False),
        ("not not loss < 9", True),
        ("loss > -1e-3 and loss < +.5e1", True),
    ],
)
def test_criteria_mean_what_they_say(text: str, expected: bool) -> None:
    values: dict[str, Any] = {
        "loss": 1.5,
        "rate": 0.04,
        "kind": "x",
        "done": True,
        "quote": 'a"b\\',
        "diagnostics": {"total": 7},
    }

    assert holds(text, **values) is expected


def test_a_criterion_counts_from_its_number_of_completions_on() -> None:
    verdicts = [holds("rate < 0.02 after 100", completions, rate=0.0) for completions in (99, 100, 101)]

    assert verdicts == [None, True, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gone < 1", None),
        ("not gone < 1", None),
        ("gone < 1 and a == 1", None),
        ("gone < 1 and a == 2", False),
        ("gone < 1 or a == 1", True),
        ("gone < 1 or a == 2", None),
        ("a.b < 1", None),
        ("a == 'x'", None),
        ("t < 1", None),
        ("nan < 1", None),
        ("nothing < 1", None),
    ],
)
def test_an_unknown_value_leaves_a_criterion_open_unless_the_rest_decides(
    text: str, expected: bool | None
) -> None:
    assert holds(text, a=1, t="x", nan=math.nan, nothing=None) is expected


def test_each_unknown_name_is_noted_once() -> None:
    verdict = criterion("gone < 1 or not gone > 2 or t < 1").judge({"t": "x"}, 1)

    assert verdict.notes == ("there is no gone yet", "t is a text and can't be compared with a number")


@pytest.mark.parametrize(
    ("text", "character", "expected"),
    [
        ("", 1, "a name, 'not' or '('"),
        ("and < 3", 1, "a name, 'not' or '('"),
        ("3 < a", 1, "a name, 'not' or '('"),
        ("loss", 5, "one of < <= > >= == !="),
        ("loss = 3", 6, "a name, a number, a text in closed quotes, or one of"),
        ("loss << 3", 7, "a number"),
        ("loss < 'x'", 8, "a number"),
        ("loss == x", 9, "a number or a text in quotes (1 is true, 0 is false)"),
        ("loss == 'x", 9, "a text in closed quotes"),
        ("loss == 1e999", 9, "a number that is not too large"),
        ("(loss < 1", 10, "'and', 'or' or ')'"),
        ("loss < 1 loss", 10, "'and', 'or', 'after' or the end"),
        ("loss < 1 after", 15, "how many completions"),
        ("loss < 1 after 0", 16, "how many completions, a whole number from 1"),
        ("loss < 1 after 1.5", 16, "how many completions"),
        ("loss < 1 after 5 and n > 1", 18, "the end"),
        ("__import__('os') == 1", 11, "one of < <= > >= == !="),
        ("(" * (MAX_DEPTH + 1), MAX_DEPTH + 1, f"at most {MAX_DEPTH} levels"),
        ("not " * 10 + "(" * MAX_DEPTH, 81, f"at most {MAX_DEPTH} levels"),
        ("n < 1 or " * MAX_CHARACTERS, 1, "at most 10,000 characters"),
    ],
)
def test_an_error_points_at_the_place_and_says_what_was_expected(
    text: str, character: int, expected: str
) -> None:
    with pytest.raises(CriterionError) as caught:
        criterion(text)
    first, quoted, caret = str(caught.value).split("\n")

    assert first.startswith(f"the criterion can't be read at character {character}: expected ")
    assert expected in first
    assert quoted.strip() in text
    assert caret == " " * (2 + min(character - 1, 60)) + "^"


def test_invisible_characters_are_escaped_and_the_caret_points_at_them() -> None:
    with pytest.raises(CriterionError, match=r"\n  loss\\n< \\x00\n          \^$"):
        criterion("loss\n< \x00")


def test_the_error_is_a_plans_and_one_that_pydantic_takes() -> None:
    assert issubclass(CriterionError, PlanError)
    assert issubclass(CriterionError, ValueError)


def test_the_examples_in_the_documentation_are_criteria() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")
    found = re.search(r"### Criteria.*?```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    examples = found[1].splitlines()

    assert len(examples) == 4
    assert all(criterion(one).judge({}, 1_000).notes for one in examples)
