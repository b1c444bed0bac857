"""Artifacts: the bytes that runs leave, stored inline when small and by content address when large.

    blobs = open_blobs("/var/lib/fullsend/artifacts")    # or s3://bucket/prefix, gs://, az://, modal://, memory://
    keeper = Keeper(blobs)
    artifact = keeper.keep("plot.png", path)             # the record holds artifact.to_json()
    keeper.read(artifact)                                # the same bytes, or an ArtifactError

All functions are synchronous and may wait for a disk or a network; call them from a thread, not
from the event loop.  Objects hold no open files and no locks between calls, so that many threads
may share one.

A blob's address is the SHA-256 of its content.  Its place is `sha256/<first two digits>/<all 64
digits>` below the store's base, in every kind of store.  So references stay valid when a directory
is moved or copied into a bucket.
"""

from services.executor.artifacts.blobs import Blob, Blobs, Source, StorageType, StoredBlob
from services.executor.artifacts.garbage_collection import Collected, collect
from services.executor.artifacts.keeper import INLINE_MAX_BYTES, Artifact, Keeper
from services.executor.artifacts.loaders import (
    ArtifactLoader,
    CasArtifactLoader,
    LocalArtifactLoader,
    ModalVolumeArtifactLoader,
    ObjectStoreArtifactLoader,
    loader_for,
    open_blobs,
)
from services.executor.artifacts.local_blobs import LocalBlobs
from services.executor.artifacts.references import (
    CasReference,
    InlineReference,
    Reference,
    RelativeReference,
    addresses_in,
    parse_reference,
    within,
)

__all__ = [
    "INLINE_MAX_BYTES",
    "Artifact",
    "ArtifactLoader",
    "Blob",
    "Blobs",
    "CasArtifactLoader",
    "CasReference",
    "Collected",
    "InlineReference",
    "Keeper",
    "LocalArtifactLoader",
    "LocalBlobs",
    "ModalVolumeArtifactLoader",
    "ObjectStoreArtifactLoader",
    "Reference",
    "RelativeReference",
    "Source",
    "StorageType",
    "StoredBlob",
    "addresses_in",
    "collect",
    "loader_for",
    "open_blobs",
    "parse_reference",
    "within",
]
