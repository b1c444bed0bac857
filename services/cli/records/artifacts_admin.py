"""`fullsend artifacts verify` and `fullsend artifacts gc`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from services.cli import connection, output
from services.cli.output import AsJson, CommandError
from services.cli.records.verify import Checked, Verification
from services.executor.artifacts import Blobs, Collected, StoredBlob, collect
from services.executor.store import ReferencedDigests, Store
from services.executor.tools.bundles import MAX_BYTES, paths_in
from services.operations import words
from services.operations.run_records import open_store, record_of, with_artifacts
from shared.connection import without_password
from shared.errors import ArtifactCorruptError, ArtifactNotFoundError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])|0")


def counted(count: int, what: str) -> str:
    """Format a count with its noun: `1 blob`, `2,000 blobs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def blob_described(one: StoredBlob) -> dict[str, Any]:
    """Return a blob as JSON for other programs."""
    stored_at = one.modified_at.isoformat()
    return {"reference": f"cas://{one.sha256}", "size_bytes": one.size_bytes, "stored_at": stored_at}


# -- verify ---------------------------------------------------------------------------


def verify(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN_ID", help="Run ids, as `fullsend runs` lists them.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Verify all runs with a record, and every blob in the store.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Verify that nothing that runs refer to is missing or corrupt.

    Reads artifacts, results, partial results, tracebacks, references in parameters, and the code of
    tools. The exit code is 1 if there is a problem.
    """
    if bool(run_ids) == everything:
        raise CommandError("give the runs to verify, or --all")
    chosen = connection.settings()
    verification = Verification(open_store(chosen.artifacts))

    async def act(store: Store) -> None:
        for run_id in run_ids or ():
            record = await record_of(store, run_id)
            verification.add(run_id, await with_artifacts(store, run_id, record))
        if everything:
            async for run_id, record in store.gc_roots.records():
                verification.add(run_id, await with_artifacts(store, run_id, record))

    connection.with_store(act, chosen)
    return _report(verification, everything, as_json)


def _report(verification: Verification, everything: bool, as_json: bool) -> int:
    """Print the problems as they are found, then a summary; return the exit code."""
    problems = []
    for problem in verification.problems(everything):
        problems.append(problem)
        if not as_json:
            output.say(output.one_line(str(problem)))
    checked = verification.checked
    if as_json:
        members = {"runs": checked.runs, "inline": checked.inline, "blobs": checked.blobs}
        described = [problem.to_json() for problem in problems]
        output.print_json({**members, "bytes": checked.size_bytes, "problems": described})
    else:
        output.say(_verify_summary(checked, len(problems)))
    return 1 if problems else 0


def _verify_summary(checked: Checked, problems: int) -> str:
    return (
        f"verified {counted(checked.runs, 'run')}, {counted(checked.blobs, 'blob')} of "
        f"{words.size(checked.size_bytes)} and {counted(checked.inline, 'inline artifact')}: "
        f"{counted(problems, 'problem') if problems else 'no problems'}"
    )


# -- gc -------------------------------------------------------------------------------


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; list what would be deleted.")
    ] = False,
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="Delete only blobs older than this: 30m, 12h, 1d."),
    ] = "1d",
    force: Annotated[
        bool, typer.Option("--force", help="Delete even if Redis refers to nothing in the store.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete unreferenced blobs from the artifact store.

    A blob is kept if Redis refers to it: in records, running or queued runs, experiments, the result
    cache, or the code of tools. A store belongs to ONE Redis, and to one database of it. References in
    another Redis or in files elsewhere are not known, so their blobs are deleted.

    A run stores a blob before its record refers to it, and Redis may be away in between. For that reason,
    blobs younger than AGE are kept. If any part of Redis can't be read, nothing is deleted.
    """
    age_seconds = _parse_age(older_than)
    chosen = connection.settings()
    blobs = open_store(chosen.artifacts)
    started = datetime.now(UTC)

    def referenced() -> frozenset[str]:
        found = connection.with_store(_references, chosen)
        addresses = found.addresses | found.code | _package_files(found.code, blobs)
        if not force and not any(map(blobs.exists, addresses)):
            _refuse_foreign(blobs, connection.address(chosen), started - timedelta(seconds=age_seconds))
        return addresses

    collected = collect(blobs, referenced, older_than_seconds=age_seconds, dry_run=dry_run)
    if as_json:
        output.print_json(_described(blobs, collected, dry_run))
        return
    if dry_run:
        for one in sorted(collected.deleted, key=lambda blob: blob.modified_at):
            output.say(f"cas://{one.sha256}  {words.size(one.size_bytes)}  stored {_age(one, started)}")
    output.say(output.one_line(_gc_summary(blobs, collected, older_than, dry_run)))


async def _references(store: Store) -> ReferencedDigests:
    return await store.gc_roots.all()


def _package_files(code: frozenset[str], blobs: Blobs) -> frozenset[str]:
    """Return the addresses of the files of all tools that are packages."""
    found: set[str] = set()
    for digest in code:
        try:
            if blobs.size(digest) <= MAX_BYTES:
                found.update(paths_in(blobs.read(digest, MAX_BYTES)).values())
        except (ArtifactNotFoundError, ArtifactCorruptError):
            continue  # a broken list leads to no file; storing the tool again stores its files again
    return frozenset(found)


def _refuse_foreign(blobs: Blobs, url: str, cutoff: datetime) -> None:
    """Raise CommandError if everything stored before `cutoff` would be deleted."""
    if any(one.modified_at <= cutoff for one in blobs.all()):
        raise CommandError(
            f"nothing in Redis ({without_password(url)}) refers to {blobs.base}; the store may belong to "
            "another Redis. Nothing was deleted; use --force to delete anyway"
        )


def _parse_age(age: str) -> float:
    """Return an age such as `30m` in seconds."""
    found = _AGE.fullmatch(age)
    if found is None:
        raise CommandError(f"--older-than {age!r} is not an age; expected one like 90s, 30m, 12h, 1d or 0")
    return float(found[1]) * _UNITS[found[2]] if found[1] else 0.0


def _age(one: StoredBlob, now: datetime) -> str:
    return words.ago(one.modified_at.isoformat(), lambda: now)


def _gc_summary(blobs: Blobs, collected: Collected, older_than: str, dry_run: bool) -> str:
    deleted = counted(len(collected.deleted), "blob")
    return (
        f"{blobs.base}: {deleted} {'would be ' if dry_run else ''}deleted, "
        f"{words.size(collected.freed_bytes)} {'would be ' if dry_run else ''}freed; "
        f"{collected.kept:,} referenced, {collected.young:,} younger than {older_than}"
    )


def _described(blobs: Blobs, collected: Collected, dry_run: bool) -> dict[str, Any]:
    return {
        "place": blobs.base,
        "dry_run": dry_run,
        "deleted": [blob_described(one) for one in collected.deleted],
        "freed_bytes": collected.freed_bytes,
        "kept": collected.kept,
        "young": collected.young,
    }
