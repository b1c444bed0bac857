"""Which files a run has left open, on kernels that count open files and on those that don't."""

import os
from collections.abc import Iterator

import pytest

from services.executor.isolation.child.os_state import OpenFiles


@pytest.fixture(params=[True, False])
def files(request: pytest.FixtureRequest) -> Iterator[OpenFiles]:
    """The open files of this process."""
    made = OpenFiles(kernel_counts=request.param)
    yield made
    made.close()


def test_nothing_was_left(files: OpenFiles) -> None:
    os.close(os.dup(0))

    assert files.left_behind() == []


def test_a_descriptor_that_is_not_the_lowest_free_one_is_found(files: OpenFiles) -> None:
    first, second = os.dup(0), os.dup(0)
    os.close(first)
    try:
        assert files.left_behind() == [second]
    finally:
        os.close(second)


def test_a_descriptor_with_a_high_number_is_found(files: OpenFiles) -> None:
    high = os.dup2(0, 900)
    try:
        assert files.left_behind() == [high]
    finally:
        os.close(high)


def test_a_descriptor_that_was_open_before_may_be_closed(files: OpenFiles) -> None:
    kept = os.dup(0)
    later = OpenFiles()

    os.close(kept)

    assert later.left_behind() == []
    opened = os.dup(0)
    assert later.left_behind() == [opened]
    os.close(opened)
    later.close()
