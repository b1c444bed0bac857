"""A fork server is started ahead of time, for those who will ask for the same."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.executor.isolation import launch
from services.executor.isolation.launch import MARK, Launched
from services.executor.isolation.pool import Pool
from tests.isolation.bench import gone

PYTHON = Path(sys.executable)
ENVIRON = {"LANG": "C.UTF-8"}


@pytest.fixture
def ahead() -> Iterator[Launched]:
    """One that nobody has asked for yet."""
    launch.ahead(PYTHON, ENVIRON)
    [one] = launch._ahead
    yield one
    launch._ahead.clear()
    one.sock.close()
    one.process.wait()


def test_who_asks_for_the_same_gets_the_one_that_was_started_ahead(ahead: Launched) -> None:
    assert launch.launch(PYTHON, dict(ENVIRON)) is ahead


def test_it_is_given_to_one_only(ahead: Launched) -> None:
    launch.launch(PYTHON, ENVIRON)

    with pytest.raises(OSError, match="no-such"):
        launch.launch(PYTHON, ENVIRON, ["/no-such-program"])
    assert not launch._ahead


@pytest.mark.parametrize(
    ("python", "environ", "prefix"),
    [
        (Path("/no-such-python"), ENVIRON, ()),
        (PYTHON, {**ENVIRON, "TZ": "UTC"}, ["/no-such-program"]),
        (PYTHON, ENVIRON, ["/no-such-program"]),
    ],
)
def test_who_asks_for_another_gets_a_new_one(
    python: Path, environ: dict[str, str], prefix: list[str], ahead: Launched
) -> None:
    with pytest.raises(OSError, match="no-such"):
        launch.launch(python, environ, prefix)

    assert launch._ahead == [ahead]


async def test_a_pool_takes_it(ahead: Launched) -> None:
    pool = Pool(capacity=1, environ=ENVIRON)
    await pool.start()
    environ = Path(f"/proc/{ahead.process.pid}/environ").read_text()
    await pool.stop()

    assert f"{MARK}={ahead.mark}" in environ.split("\0")
    assert ahead.process.returncode == 0


async def test_one_that_nobody_asks_for_ends_without_a_word(
    ahead: Launched, capfd: pytest.CaptureFixture[str]
) -> None:
    ahead.sock.close()

    await gone(ahead.process.pid)
    assert capfd.readouterr().err == ""
