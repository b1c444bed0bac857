"""The digests of identities: the same for the same computation, and different for any other."""

from dataclasses import asdict, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.executor.result_cache import Identity
from shared.canonical_json import canonical_json

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


def test_the_digest_of_a_known_run_is_pinned() -> None:
    assert PINNED.digest == PINNED_DIGEST


def test_an_identity_of_any_size_has_a_digest_of_its_own() -> None:
    one, other = (replace(PINNED, parameters={"text": letter * 20_000}) for letter in "ab")

    assert one.digest == replace(one).digest != other.digest
