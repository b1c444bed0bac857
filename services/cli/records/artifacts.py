"""`fullsend artifacts ls` and `fullsend artifacts get`."""

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from services.cli import connection, output
from services.cli.output import AsJson, Column, CommandError
from services.cli.records import artifacts_admin, artifacts_pull
from services.executor.artifacts import (
    Artifact,
    Blobs,
    CasReference,
    InlineReference,
    Keeper,
    StoredBlob,
    parse_reference,
)
from services.executor.store import Store
from services.operations import words
from services.operations.run_records import (
    ListedArtifact,
    artifacts_in,
    open_store,
    record_of,
    with_artifacts,
)
from shared.errors import ArtifactError

ARTIFACT_COLUMNS: Final = [
    Column("NAME"),
    Column("SIZE", right=True),
    Column("MEDIA TYPE", drop=2),
    Column("WHERE", drop=3),
    Column("REFERENCE", drop=1),
    Column("PROBLEM"),
]
BLOB_COLUMNS: Final = [Column("REFERENCE"), Column("SIZE", right=True), Column("STORED")]
SHORT_CHARACTERS: Final = 20
NAMES_SHOWN: Final = 20
STDOUT: Final = "-"
_INLINE: Final = re.compile(r"data:[^,]*,")

app = typer.Typer()


@app.callback(invoke_without_command=True)
def artifacts(context: typer.Context) -> None:
    """List, fetch, verify and delete artifacts of runs and plans.

    A run's record holds small artifacts. The artifact store, set by ARTIFACTS, holds large ones, large
    results and the code of tools.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


# -- ls -------------------------------------------------------------------------------


@app.command()
def ls(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN_ID", help="List the artifacts of this run.")
    ] = None,
    blobs: Annotated[bool, typer.Option("--blobs", help="List every blob in the artifact store.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the artifacts of a run, or describe the artifact store.

    Without RUN_ID, prints the store's place, its number of blobs and their total size.
    """
    if run_id is not None and blobs:
        raise CommandError("--blobs lists the whole artifact store; do not give a run")
    if run_id is not None:
        _list_run(run_id, as_json)
        return
    store = open_store(connection.settings().artifacts)
    found = sorted(store.all(), key=lambda one: one.sha256)
    if blobs:
        _list_blobs(found, as_json)
    else:
        _describe_store(store, found, as_json)


def _list_run(run_id: str, as_json: bool) -> None:
    found = _artifacts_of(run_id)
    out = output.console()
    if as_json:
        output.print_json([_described(one) for one in found])
    elif not found and out.is_terminal:
        out.print(f"{run_id} has no artifacts")
    else:
        output.table(ARTIFACT_COLUMNS, [_row(one, out) for one in found], out)


def _row(one: ListedArtifact, out: Console) -> list[output.Cell]:
    if one.artifact is None:
        return [one.name, "", "", "", "", output.styled("problem", one.problem)]
    return [
        one.name,
        words.size(one.artifact.size_bytes),
        one.artifact.media_type,
        "stored" if one.is_stored else "inline",
        _reference(one.artifact, whole=not out.is_terminal),
        "",
    ]


def _reference(artifact: Artifact, *, whole: bool) -> str:
    """Return the reference, cut unless `whole`; for an inline artifact only its scheme."""
    if isinstance(artifact.reference, InlineReference):
        return "data:"
    text = str(artifact.reference)
    return text if whole else output.shorten(text, SHORT_CHARACTERS)


def _described(one: ListedArtifact) -> dict[str, Any]:
    if one.artifact is None:
        return {"name": one.name, "problem": one.problem}
    return {"name": one.name, **one.artifact.to_json(), "stored": one.is_stored}


def _list_blobs(found: list[StoredBlob], as_json: bool) -> None:
    if as_json:
        output.print_json([artifacts_admin.blob_described(one) for one in found])
        return
    out = output.console()
    rows: list[list[output.Cell]] = [
        [
            f"cas://{one.sha256}",
            words.size(one.size_bytes),
            words.ago(one.modified_at.isoformat()) if out.is_terminal else one.modified_at.isoformat(),
        ]
        for one in found
    ]
    output.table(BLOB_COLUMNS, rows, out)


def _describe_store(store: Blobs, found: list[StoredBlob], as_json: bool) -> None:
    size_bytes = sum(one.size_bytes for one in found)
    if as_json:
        members = {"type": str(store.storage_type), "blobs": len(found), "bytes": size_bytes}
        output.print_json({"place": store.base, **members})
        return
    text = f"{store.base}: {artifacts_admin.counted(len(found), 'blob')}, {words.size(size_bytes)}"
    output.console().print(output.one_line(text))


# -- get ------------------------------------------------------------------------------


@app.command()
def get(
    source: Annotated[
        str, typer.Argument(metavar="RUN_ID|REFERENCE", help="A run's id, or cas://..., or data:...")
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The artifact's name, as `ls` lists it.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file, a directory, or - for stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Fetch and verify an artifact.

    Without -o, it is written to stdout. If stdout is a terminal, it is written to a file in this
    directory, named like the last part of the artifact's name. A corrupt artifact is an error and leaves
    no file.
    """
    with _error_context(source):
        keeper = Keeper(open_store(connection.settings().artifacts))
        artifact = _by_reference(source, keeper.blobs) if name is None else _by_name(source, name)
        if to == STDOUT or (to is None and not sys.stdout.isatty()):
            _print(keeper, artifact)
            return
        path = _target(artifact.name, to, force)
        keeper.copy_to(artifact, path)
    text = f"{path}: {words.size(artifact.size_bytes)}, SHA-256 {artifact.sha256}"
    output.say(output.one_line(text), file=sys.stderr)


@contextmanager
def _error_context(source: str) -> Iterator[None]:
    """Prefix errors about an artifact with its run."""
    try:
        yield
    except ArtifactError as exc:
        prefix = "" if _is_reference(source) else f"{source}: "
        raise CommandError(f"{prefix}{exc}") from exc


def _is_reference(source: str) -> bool:
    """Whether `source` is a reference; the id of an experiment may begin with `data:` too."""
    return source.startswith("cas://") or _INLINE.match(source) is not None


def _by_name(run_id: str, name: str) -> Artifact:
    if _is_reference(run_id):
        raise CommandError("a reference takes no name; leave out NAME, or give a run's id")
    found = {one.name: one for one in _artifacts_of(run_id)}
    if name not in found:
        raise CommandError(f"{run_id} has no artifact {name!r}; {_names(list(found))}")
    artifact = found[name].artifact
    if artifact is None:
        raise ArtifactError(found[name].problem)
    return artifact


def _names(names: list[str]) -> str:
    if not names:
        return "it has no artifacts"
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"it has {', '.join(map(repr, names[:NAMES_SHOWN]))}{more}"


def _artifacts_of(run_id: str) -> list[ListedArtifact]:
    async def act(store: Store) -> dict[str, str]:
        return await with_artifacts(store, run_id, await record_of(store, run_id))

    return artifacts_in(connection.with_store(act))


def _by_reference(source: str, blobs: Blobs) -> Artifact:
    """Return the artifact of a reference; its name is its digest."""
    if not _is_reference(source):
        names = [one.name for one in _artifacts_of(source)]
        raise CommandError(f"give the NAME of an artifact of {source}; {_names(names)}")
    reference = parse_reference(source)
    if isinstance(reference, InlineReference):
        content = reference.decode()
        sha256, size_bytes = hashlib.sha256(content).hexdigest(), len(content)
        return Artifact(sha256, reference, size_bytes, sha256, reference.media_type)
    assert isinstance(reference, CasReference), "the scheme says so"
    size_bytes = blobs.size(reference.sha256)
    return Artifact(reference.sha256, reference, size_bytes, reference.sha256, "application/octet-stream")


def _print(keeper: Keeper, artifact: Artifact) -> None:
    with keeper.open(artifact) as chunks:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _target(name: str, to: str | None, force: bool) -> Path:
    """Return the file to write.

    Raises:
        CommandError: it exists, or is not a regular file.
    """
    path = Path(_file_name(name)) if to is None else Path(to)
    if to is not None and path.is_dir():
        path /= _file_name(name)
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return path
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise CommandError(f"{path} is not a regular file; to write into it, redirect `-o -`")
    if not force:
        raise CommandError(f"{path} exists; use --force to replace it, or -o FILE to write elsewhere")
    return path


def _file_name(name: str) -> str:
    """Return the last part of an artifact's name as a file name.

    Raises:
        CommandError: it would be a path or a hidden file; tools choose these names.
    """
    last = re.split(r"[/\\]", name)[-1]
    if not last or last.startswith(".") or not last.isprintable():
        raise CommandError(f"{name!r} is not usable as a file name; choose one with -o FILE")
    return last


app.command("pull")(artifacts_pull.pull_plan)
app.command()(artifacts_admin.verify)
app.command()(artifacts_admin.gc)
