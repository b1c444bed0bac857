"""Which files a run has left open, asked of kernels that count them and of those that don't."""

import os
import types
from collections.abc import Iterator
from typing import Any

import pytest

from services.executor.isolation.child import os_state
from services.executor.isolation.child.os_state import Descriptors


@pytest.fixture(params=["the kernel counts", "the kernel does not count"])
def descriptors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Descriptors]:
    """The open files of this process."""
    if request.param == "the kernel does not count":
        system: Any = types.SimpleNamespace(**vars(os))
        system.fstat = lambda descriptor: types.SimpleNamespace(st_size=0)
        monkeypatch.setattr(os_state, "os", system)
    made = Descriptors()
    yield made
    os.close(made._folder)


def test_nothing_was_left(descriptors: Descriptors) -> None:
    os.close(os.dup(0))

    assert descriptors.left_behind() == []


def test_one_that_is_not_the_lowest_free_one_is_found(descriptors: Descriptors) -> None:
    first, second = os.dup(0), os.dup(0)
    os.close(first)
    try:
        assert descriptors.left_behind() == [second]
    finally:
        os.close(second)


def test_one_of_a_high_number_is_found(descriptors: Descriptors) -> None:
    high = os.dup2(0, 900)
    try:
        assert descriptors.left_behind() == [high]
    finally:
        os.close(high)


def test_what_is_closed_that_was_open_before_is_nothing_left(descriptors: Descriptors) -> None:
    kept = os.dup(0)
    later = Descriptors()

    os.close(kept)

    assert later.left_behind() == []
    opened = os.dup(0)
    assert later.left_behind() == [opened]
    os.close(opened)
    os.close(later._folder)
