"""Verifies the blobs that runs refer to, for `fullsend artifacts verify`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from services.executor.artifacts import Artifact, Blobs, CasReference, Keeper, addresses_in
from services.executor.tools.bundles import MAX_BYTES, paths_in
from services.operations.run_records import ListedArtifact, artifacts_in
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError

TEXTS: Final = {
    "params": "a parameter",
    "result": "the result",
    "partial_results": "the partial results",
    "traceback": "the traceback",
}
"""Fields of a record that may hold references, and their names in messages."""


class Kind(StrEnum):
    """What is wrong with a blob."""

    MISSING = "missing"
    CORRUPT = "corrupt"
    WRONG_SIZE = "wrong size"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Problem:
    """A missing or damaged blob.

    Attributes:
        kind: what is wrong.
        run_id: a run that refers to the blob; empty if none does.
        what: the part of the run that refers to it.
        text: details.
        others: the number of further references to it.
    """

    kind: Kind
    run_id: str
    what: str
    text: str
    others: int = 0

    def __str__(self) -> str:
        whose = f"{self.run_id} " if self.run_id else ""
        more = f" (and {self.others:,} more)" if self.others else ""
        return f"{self.kind}: {whose}{self.what}{more}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON for other programs."""
        return {
            "problem": str(self.kind),
            "run_id": self.run_id or None,
            "what": self.what,
            "text": self.text,
            "others": self.others,
        }


@dataclass(slots=True)
class Checked:
    """How much was verified; `blobs` of `size_bytes` in all, and `inline` artifacts in records."""

    runs: int = 0
    inline: int = 0
    blobs: int = 0
    size_bytes: int = 0


Mention = tuple[str, str]
"""A run's id, and the part of the run that refers to a blob."""


class Verification:
    """Collects the references of runs, then reads each blob once, however many refer to it."""

    def __init__(self, blobs: Blobs) -> None:
        self.checked = Checked()
        self._blobs = blobs
        self._keeper = Keeper(blobs)
        self._runs: set[str] = set()
        self._mentions: dict[str, dict[int | None, list[Mention]]] = {}
        self._code: dict[str, list[Mention]] = {}
        self._found: list[Problem] = []

    def add(self, run_id: str, record: Mapping[str, str]) -> None:
        """Collect the references in a run's record, and verify its inline artifacts."""
        if run_id in self._runs:
            return
        self._runs.add(run_id)
        self.checked.runs += 1
        for field, what in TEXTS.items():
            for sha256 in addresses_in(record.get(field, "")):
                self._mention(sha256, None, (run_id, what))
        # Records without a run digest come from versions that did not store the code.
        if "run_digest" in record and record.get("tool_digest"):
            self._code.setdefault(record["tool_digest"], []).append((run_id, "the tool's code"))
        try:
            for one in artifacts_in(record):
                self._add_artifact(run_id, one)
        except ArtifactError as exc:
            self._found.append(Problem(Kind.UNREADABLE, run_id, "the artifacts", str(exc)))

    def _add_artifact(self, run_id: str, one: ListedArtifact) -> None:
        artifact, what = one.artifact, f"artifact {one.name!r}"
        if artifact is None:
            self._found.append(Problem(Kind.UNREADABLE, run_id, what, one.problem))
        elif isinstance(artifact.reference, CasReference):
            self._mention(artifact.sha256, artifact.size_bytes, (run_id, what))
        else:
            self.checked.inline += 1
            self._check_inline(run_id, what, artifact)

    def _check_inline(self, run_id: str, what: str, artifact: Artifact) -> None:
        try:
            self._keeper.verify(artifact)
        except ArtifactError as exc:
            self._found.append(Problem(_kind(exc), run_id, what, str(exc)))

    def _mention(self, sha256: str, size_bytes: int | None, mention: Mention) -> None:
        self._mentions.setdefault(sha256, {}).setdefault(size_bytes, []).append(mention)

    # -- reading ----------------------------------------------------------------------

    def problems(self, everything: bool) -> Iterator[Problem]:
        """Read the blobs, and yield each problem when it is found.

        Args:
            everything: whether to read also blobs that no run refers to.
        """
        yield from self._found
        yield from self._add_code()
        for sha256, mentions in sorted(self._mentions.items()):
            yield from self._read(sha256, mentions)
        if everything:
            for blob in self._blobs.all():
                if blob.sha256 not in self._mentions:
                    yield from self._read(blob.sha256, {None: [("", "unreferenced")]})

    def _add_code(self) -> Iterator[Problem]:
        """Collect the code of tools, of packages each file; yield what can't be read."""
        for digest, mentions in sorted(self._code.items()):
            try:
                for path, sha256 in self._paths(digest).items():
                    for run_id, what in mentions:
                        self._mention(sha256, None, (run_id, f"{what}, {path}"))
                for mention in mentions:
                    self._mention(digest, None, mention)
            except ArtifactError as exc:
                (run_id, what), *others = mentions
                yield Problem(_kind(exc), run_id, what, str(exc), len(others))

    def _paths(self, digest: str) -> dict[str, str]:
        if self._blobs.size(digest) > MAX_BYTES:
            return {}
        return paths_in(self._blobs.read(digest, MAX_BYTES))

    def _read(self, sha256: str, mentions: Mapping[int | None, list[Mention]]) -> Iterator[Problem]:
        self.checked.blobs += 1
        try:
            size_bytes = self._blobs.verify(sha256).size_bytes
        except ArtifactError as exc:
            (run_id, what), *others = [one for some in mentions.values() for one in some]
            yield Problem(_kind(exc), run_id, what, str(exc), len(others))
            return
        self.checked.size_bytes += size_bytes
        for expected_bytes, some in mentions.items():
            if expected_bytes not in (None, size_bytes):
                text = f"{self._blobs.place(sha256)} has {size_bytes} bytes, not {expected_bytes}"
                yield Problem(Kind.WRONG_SIZE, *some[0], text, len(some) - 1)


def _kind(exc: ArtifactError) -> Kind:
    match exc:
        case ArtifactNotFoundError():
            return Kind.MISSING
        case ArtifactCorruptError():
            return Kind.CORRUPT
        case _:
            return Kind.UNREADABLE
