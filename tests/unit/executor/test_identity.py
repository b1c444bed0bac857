"""Digests: the same for the same computation, wherever it is done, and another one for any other."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.identity import Identity, canonical_json, digest_of

ROOT = Path(__file__).parents[3]
TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
IDENTITIES = st.builds(
    Identity,
    tool_digest=TEXTS,
    entry_point=TEXTS,
    parameters=st.dictionaries(TEXTS, VALUES, max_size=4),
    seed=st.none() | st.integers(),
    environment_digest=TEXTS,
    inputs=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
PINNED = Identity(
    "ab" * 32, "run", {"n": 1, "rate": 0.1, "unicode": "ü\ud83d", "list": [True, None, -0.0]}, 7
)
PINNED_DIGEST = "718644e48ee36250e0cf54fb395a2667c339ed70d8286e4778b566e1b57035f1"


def shuffled(value: Any) -> Any:
    """The same value with every mapping in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


@given(IDENTITIES)
def test_the_order_of_members_makes_no_difference(one: Identity) -> None:
    other = replace(one, parameters=shuffled(one.parameters), inputs=shuffled(one.inputs))

    assert other.digest == one.digest


@given(IDENTITIES, IDENTITIES)
def test_any_member_makes_a_difference(one: Identity, other: Identity) -> None:
    for name, value in asdict(other).items():
        changed = replace(one, **{name: value})

        is_same = canonical_json(asdict(changed)) == canonical_json(asdict(one))
        assert (changed.digest == one.digest) == is_same


@given(VALUES)
def test_the_canonical_text_says_the_same_as_the_value(value: Any) -> None:
    text = canonical_json(value)

    assert canonical_json(json.loads(text)) == text
    assert json.loads(text) == value
    assert text.isascii()


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0, False), (1.0, True), (None, 0), ("1", 1), ([], {}), (0.1, 0.1 + 2e-17)],
)
def test_values_that_are_easily_taken_for_each_other_differ(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


def test_the_two_zeros_are_one() -> None:
    assert canonical_json([-0.0, 0.0]) == b"[0.0,0.0]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], {1: 2}])
def test_what_json_cant_hold_has_no_digest(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON can hold|no text"):
        digest_of(value)


def test_the_digest_of_a_known_run_is_pinned() -> None:
    assert PINNED.digest == PINNED_DIGEST


PROGRAM = """
import importlib.util, sys, locale
try:
    locale.setlocale(locale.LC_ALL, "")
except locale.Error:
    pass
spec = importlib.util.spec_from_file_location("identity", sys.argv[1])
module = sys.modules["identity"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
members = {"list": [True, None, -0.0], "unicode": "\\u00fc\\ud83d", "rate": 0.1, "n": 1}
print(module.Identity("ab" * 32, "run", members, 7).digest)
"""


VERSIONS = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
OTHERS = [path / "bin" / "python" for path in sorted(VERSIONS.glob("3.1*"))]
INTERPRETERS = [Path(sys.executable), *OTHERS]


@pytest.mark.parametrize("interpreter", INTERPRETERS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}, {"LC_ALL": "de_DE.UTF-8"}]
)
def test_the_digest_is_the_same_in_other_processes(interpreter: Path, variables: dict[str, str]) -> None:
    place = ROOT / "services" / "executor" / "identity.py"
    answer = subprocess.run(
        [interpreter, "-c", PROGRAM, place], env={**os.environ, **variables}, capture_output=True, text=True
    )

    assert answer.stdout.strip() == PINNED_DIGEST, answer.stderr
