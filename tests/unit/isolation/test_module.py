"""What two modules must have in common to be served by the same process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation.calls import Module
from services.executor.isolation.sandbox import Sandbox

MODULE = Module("tool", Path("/tools/tool.py"), "digest")


def test_the_same_code_has_the_same_key() -> None:
    again = Module("tool", Path("/tools/tool.py"), "digest")

    assert (again.key, again) == (MODULE.key, MODULE)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"path": Path("/other/tool.py")},
        {"digest": "other"},
        {"python": Path("/other/python")},
        {"environment": "other"},
        {"sandbox": Sandbox.FILES},
    ],
)
def test_what_differs_in_anything_has_another_key(change: dict[str, Any]) -> None:
    other = replace(MODULE, **change)

    assert other.key != MODULE.key
    assert replace(other, **{name: getattr(MODULE, name) for name in change}).key == MODULE.key
