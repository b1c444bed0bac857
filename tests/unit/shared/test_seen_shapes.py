"""The page of keys and messages names a test for each shape that was seen; all of them exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "docs" / "redis.md"


def test_each_shape_has_its_test() -> None:
    named = re.findall(r"\| `([\w/]+\.py)::(\w+)` \|", PAGE.read_text())

    assert len(named) > 30
    for path, name in named:
        assert f"def {name}(" in (TESTS / path).read_text(), f"{path}::{name}"
