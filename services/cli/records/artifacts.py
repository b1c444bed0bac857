"""`fullsend artifacts`: what runs kept, to look at and to take away."""

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
from services.cli.output import Column, CommandError
from services.cli.records import artifacts_admin
from services.cli.records.record import Listed, artifacts_in, open_store, with_artifacts
from services.cli.runs import AsJson, record_of
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
NAMES_TOLD: Final = 20
STDOUT: Final = "-"
_INLINE: Final = re.compile(r"data:[^,]*,")

app = typer.Typer()


@app.callback(invoke_without_command=True)
def artifacts(context: typer.Context) -> None:
    """List, fetch, check and clear away what runs have kept.

    Small artifacts are in a run's record, large ones in the store that ARTIFACTS names.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


# -- ls -------------------------------------------------------------------------------


@app.command()
def ls(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN_ID", help="The run whose artifacts are listed.")
    ] = None,
    blobs: Annotated[bool, typer.Option("--blobs", help="List everything that is in the store.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the artifacts of a run; without one, say what the store holds."""
    if run_id is not None and blobs:
        raise CommandError("--blobs lists the whole store; leave out the run")
    if run_id is not None:
        _list_run(run_id, as_json)
        return
    store = open_store(connection.settings().artifacts)
    found = sorted(store.all(), key=lambda one: one.sha256)
    if blobs:
        _list_blobs(found, as_json)
    else:
        _tell_store(store, found, as_json)


def _list_run(run_id: str, as_json: bool) -> None:
    found = _artifacts_of(run_id)
    out = output.console()
    if as_json:
        output.print_json([_described(one) for one in found])
    elif not found and out.is_terminal:
        out.print(f"{run_id} has no artifacts")
    else:
        output.table(ARTIFACT_COLUMNS, [_row(one, out) for one in found], out)


def _row(one: Listed, out: Console) -> list[output.Cell]:
    if one.artifact is None:
        return [one.name, "", "", "", "", output.styled("problem", one.problem)]
    return [
        one.name,
        output.size(one.artifact.size_bytes),
        one.artifact.media_type,
        "stored" if one.is_stored else "inline",
        _reference(one.artifact, whole=not out.is_terminal),
        "",
    ]


def _reference(artifact: Artifact, *, whole: bool) -> str:
    """A reference that fits into a line; never the content itself."""
    if isinstance(artifact.reference, InlineReference):
        return "data:"
    text = str(artifact.reference)
    return text if whole else output.short(text, SHORT_CHARACTERS)


def _described(one: Listed) -> dict[str, Any]:
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
            output.size(one.size_bytes),
            output.ago(one.modified_at.isoformat()) if out.is_terminal else one.modified_at.isoformat(),
        ]
        for one in found
    ]
    output.table(BLOB_COLUMNS, rows, out)


def _tell_store(store: Blobs, found: list[StoredBlob], as_json: bool) -> None:
    size_bytes = sum(one.size_bytes for one in found)
    if as_json:
        members = {"type": str(store.storage_type), "blobs": len(found), "bytes": size_bytes}
        output.print_json({"place": store.base, **members})
        return
    text = f"{store.base}: {artifacts_admin.counted(len(found), 'blob')}, {output.size(size_bytes)}"
    output.console().print(output.one_line(text))


# -- get ------------------------------------------------------------------------------


@app.command()
def get(
    source: Annotated[
        str, typer.Argument(metavar="RUN_ID|REFERENCE", help="A run, or a reference: cas://..., data:...")
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Of the artifact, as `ls` lists it.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="A file, a directory, or - for stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Fetch an artifact, verified on the way.

    Without -o it goes to stdout; where that is a terminal, to a file in this directory that is called
    like the last part of the artifact's name. What is corrupt leaves no file and is an error.
    """
    with _saying(source):
        keeper = Keeper(open_store(connection.settings().artifacts))
        artifact = _referred(source, keeper.blobs) if name is None else _named(source, name)
        if to == STDOUT or (to is None and not sys.stdout.isatty()):
            _print(keeper, artifact)
            return
        path = _target(artifact.name, to, force)
        keeper.copy_to(artifact, path)
    told = f"{path}: {output.size(artifact.size_bytes)}, SHA-256 {artifact.sha256}"
    print(output.one_line(told), file=sys.stderr)


@contextmanager
def _saying(source: str) -> Iterator[None]:
    """Errors about the content say whose it is."""
    try:
        yield
    except ArtifactError as exc:
        whose = "" if _is_reference(source) else f"{source}: "
        raise CommandError(f"{whose}{exc}") from exc


def _is_reference(source: str) -> bool:
    """Whether it is one, and not the id of an experiment's run that is called like one."""
    return source.startswith("cas://") or _INLINE.match(source) is not None


def _named(run_id: str, name: str) -> Artifact:
    if _is_reference(run_id):
        raise CommandError("a reference says it all; leave out the name, or give the run's id instead")
    found = {one.name: one for one in _artifacts_of(run_id)}
    if name not in found:
        raise CommandError(f"{run_id} has no artifact {name!r}; {_told(list(found))}")
    artifact = found[name].artifact
    if artifact is None:
        raise ArtifactError(found[name].problem)
    return artifact


def _told(names: list[str]) -> str:
    if not names:
        return "it has none"
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return f"it has {', '.join(map(repr, names[:NAMES_TOLD]))}{more}"


def _artifacts_of(run_id: str) -> list[Listed]:
    async def act(store: Store) -> dict[str, str]:
        return await with_artifacts(store, run_id, await record_of(store, run_id))

    return artifacts_in(connection.with_store(act))


def _referred(source: str, blobs: Blobs) -> Artifact:
    """The artifact that a reference leads to, called by its digest."""
    if not _is_reference(source):
        names = [one.name for one in _artifacts_of(source)]
        raise CommandError(f"which artifact of {source}? {_told(names)}")
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
    """The file to write.  Raises CommandError when it is there, or can't be one."""
    path = Path(_file_name(name)) if to is None else Path(to)
    if to is not None and path.is_dir():
        path /= _file_name(name)
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return path
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise CommandError(f"{path} is not a regular file; redirect `-o -` to write into it")
    if not force:
        raise CommandError(f"{path} is there already; --force replaces it, -o FILE writes elsewhere")
    return path


def _file_name(name: str) -> str:
    """The last part of an artifact's name, which anybody may have chosen: no path, and nothing hidden."""
    last = re.split(r"[/\\]", name)[-1]
    if not last or last.startswith(".") or not last.isprintable():
        raise CommandError(f"{name!r} is no name for a file here; choose one with -o FILE")
    return last


app.command()(artifacts_admin.verify)
app.command()(artifacts_admin.gc)
