"""An artifact in a record, valid or not."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.artifacts import Artifact, CasReference, InlineReference, RelativeReference
from shared.errors import ArtifactError, ArtifactReferenceError

SHA256 = hashlib.sha256(b"hello").hexdigest()
GOOD = {"reference": f"cas://{SHA256}", "size_bytes": 5, "sha256": SHA256, "media_type": "text/plain"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(GOOD)), inner),
)


@pytest.mark.parametrize(
    "reference",
    [CasReference(SHA256), InlineReference.of(b"hello", "text/plain"), RelativeReference("out/hello.txt")],
)
def test_an_artifact_comes_back_from_its_record(reference: Any) -> None:
    artifact = Artifact("hello", reference, 5, SHA256, "text/plain")

    members = json.loads(json.dumps(artifact.to_json()))

    assert Artifact.from_json("hello", members) == artifact
    assert set(members) == {"reference", "size_bytes", "sha256", "media_type"}


def test_members_of_a_later_version_are_ignored() -> None:
    artifact = Artifact.from_json("hello", GOOD | {"colour": "red"})

    assert artifact.reference == CasReference(SHA256)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reference": None}, "'reference' is null, not str"),
        ({"reference": "/etc/passwd"}, "'/etc/passwd' is not a path below a base"),
        ({"reference": "cas://" + "0" * 64}, "contradict each other"),
        ({"size_bytes": "5"}, "'size_bytes' is str, not int"),
        ({"size_bytes": True}, "'size_bytes' is bool, not int"),
        ({"size_bytes": -1}, "-1 bytes"),
        ({"sha256": "abc"}, "'abc' is not a SHA-256"),
        ({"media_type": "text/html\r\nx"}, "is not a media type"),
    ],
)
def test_a_bad_member_is_named_with_its_artifact(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Artifact.from_json("plot", GOOD | change)

    assert str(caught.value).startswith("artifact 'plot': ")
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_missing_member_is_named(missing: str) -> None:
    members = {name: value for name, value in GOOD.items() if name != missing}

    with pytest.raises(ArtifactError, match=f"artifact 'plot': '{missing}' is missing"):
        Artifact.from_json("plot", members)


def test_a_bad_reference_keeps_its_own_class() -> None:
    with pytest.raises(ArtifactReferenceError):
        Artifact.from_json("plot", GOOD | {"reference": "../secret"})


@settings(deadline=None, derandomize=True, max_examples=200)
@given(JSON)
def test_any_members_are_an_artifact_or_an_artifact_error(members: Any) -> None:
    try:
        artifact = Artifact.from_json("any", members)
    except ArtifactError:
        return

    assert artifact.to_json().items() <= members.items()
