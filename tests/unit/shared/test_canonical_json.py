"""Digests of values: the same for the same value on any machine, and different for different values."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.canonical_json import canonical_json, digest_of

ROOT = Path(__file__).parents[3]
TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
KNOWN = {"n": 1, "rate": 0.1, "unicode": "ü\ud83d", "list": [True, None, -0.0]}
KNOWN_DIGEST = "72395d85227e093231e61c00c91e28b98e1b20b7e287155b2e521f7f9681fbe5"


@given(VALUES)
def test_the_canonical_text_reads_as_the_value(value: Any) -> None:
    text = canonical_json(value)

    assert canonical_json(json.loads(text)) == text
    assert json.loads(text) == value
    assert text.isascii()


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0, False), (1.0, True), (None, 0), ("1", 1), ([], {}), (0.1, 0.1 + 2e-17)],
)
def test_similar_values_differ(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


def test_both_zeros_have_one_text() -> None:
    assert canonical_json([-0.0, 0.0]) == b"[0.0,0.0]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], {1: 2}])
def test_a_value_that_json_cant_hold_has_no_digest(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON can hold|not a text"):
        digest_of(value)


def test_the_digest_of_a_known_value_is_pinned() -> None:
    assert digest_of(KNOWN) == KNOWN_DIGEST


PROGRAM = """
import importlib.util, sys, locale
try:
    locale.setlocale(locale.LC_ALL, "")
except locale.Error:
    pass
spec = importlib.util.spec_from_file_location("canonical_json", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.digest_of({"list": [True, None, -0.0], "unicode": "\\u00fc\\ud83d", "rate": 0.1, "n": 1}))
"""

VERSIONS = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
OTHERS = [path / "bin" / "python" for path in sorted(VERSIONS.glob("3.1*"))]
INTERPRETERS = [Path(sys.executable), *OTHERS]


@pytest.mark.parametrize("interpreter", INTERPRETERS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}, {"LC_ALL": "de_DE.UTF-8"}]
)
def test_the_digest_is_the_same_in_other_processes(interpreter: Path, variables: dict[str, str]) -> None:
    place = ROOT / "shared" / "canonical_json.py"
    answer = subprocess.run(
        [interpreter, "-c", PROGRAM, place], env={**os.environ, **variables}, capture_output=True, text=True
    )

    assert answer.stdout.strip() == KNOWN_DIGEST, answer.stderr
