"""`python -m services.executor.scheduler --test` explains an expression, or what is wrong with it."""

import subprocess
import sys

import pytest

from services.executor.scheduler import main


def explain(*words: str) -> subprocess.CompletedProcess[str]:
    """The command, ended."""
    command = [sys.executable, "-m", "services.executor.scheduler", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_expression_is_put_into_words_with_its_next_runs() -> None:
    done = explain("--test", "0 9 * * MON")

    assert (done.returncode, done.stderr) == (0, "")
    assert "At 09:00 AM, only on Monday (UTC)" in done.stdout
    assert done.stdout.count("Mon ") == 5
    assert done.stdout.count("09:00:00+00:00") == 5


def test_the_time_zone_is_the_one_asked_for() -> None:
    done = explain("--test", "0 9 * * MON", "--timezone", "Asia/Kathmandu", "--count", "2")

    assert "(Asia/Kathmandu)" in done.stdout
    assert done.stdout.count("09:00:00+05:45") == 2
    assert done.stdout.count("03:15:00 UTC") == 2


def test_h_is_hashed_from_the_id_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    for experiment_id in ("exp_1", "exp_2"):
        assert main(["--test", "H * * * *", "--id", experiment_id, "--count", "1"]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Meaning"))

    assert first != second


def test_an_expression_that_is_probably_a_mistake_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--test", "0 0 9 * * *"]) == 0

    assert "Warning     it fires every second of some minutes" in capsys.readouterr().out


def test_a_bad_expression_is_one_line_and_exit_code_1() -> None:
    done = explain("--test", "every monday")

    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--test", "every monday"], "every monday"),
        (["--test", "61 9 * * *"], "minute is '61'"),
        (["--test", "0 9 * * MON", "--timezone", "Europe/Berlinn"], "did you mean Europe/Berlin"),
        (["--test", ""], "it is empty"),
        (["--test", "H 9 * * *"], "none is given"),
    ],
)
def test_what_is_wrong_is_named(capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    code = main(words)

    assert code == 1
    assert complaint in capsys.readouterr().err


def test_without_an_expression_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m services.executor.scheduler")
