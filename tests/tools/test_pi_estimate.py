"""The tool that starts processes of its own, by hand and in the executor's processes."""

import hashlib

import pytest

from services.executor.isolation.calls import Call, Level, Metric, Module, Progress, Returned
from services.executor.isolation.pool import Pool
from services.executor.isolation.sandbox import Sandbox
from tests.tools.conftest import TOOLS, Load

FILE = TOOLS / "pi_estimate.py"


@pytest.mark.parametrize(("points", "sizes"), [(1, [1]), (3, [1, 1, 1]), (17, [3, 2, 2, 2, 2, 2, 2, 2])])
def test_the_batches_are_all_the_points(load: Load, points: int, sizes: list[int]) -> None:
    assert load("pi_estimate").batches(points) == sizes


@pytest.mark.parametrize("wrong", [{"points": 0}, {"processes": 0}])
def test_too_little_is_refused(load: Load, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="each must be at least 1"):
        load("pi_estimate").pi_estimate(**wrong)


@pytest.mark.parametrize("level", Level)
async def test_its_processes_find_it_and_the_toolkit_at_every_level(level: Level) -> None:
    module = Module(
        "pi_estimate", FILE, hashlib.sha256(FILE.read_bytes()).hexdigest(), sandbox=Sandbox.PROCESS
    )
    heard: list[object] = []
    pool = Pool(capacity=1)
    await pool.start()
    try:
        answers = [
            await pool.call(
                Call(module, "exp:1-0", "exp", 1, {"points": 8_000, "processes": many}, 60.0, level, seed=7),
                heard.append,
            )
            for many in (1, 2)
        ]
    finally:
        await pool.stop()

    assert isinstance(answers[0], Returned), answers
    assert isinstance(answers[1], Returned), answers
    assert answers[0].value == answers[1].value
    assert 3 < answers[0].value["pi"] < 3.3
    assert [one.done for one in heard if isinstance(one, Progress)][-1] == 8
    assert [one.value for one in heard if isinstance(one, Metric)] == [8_000, 8_000]
