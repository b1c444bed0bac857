"""`fullsend artifacts verify` and `fullsend artifacts gc`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from services.cli import connection, output
from services.cli.output import CommandError
from services.cli.records.record import open_store, with_artifacts
from services.cli.records.verify import Checked, Inspection
from services.cli.runs import AsJson, record_of
from services.executor.artifacts import Blobs, Collected, StoredBlob, collect
from services.executor.store import Referred, Store
from services.executor.tools.bundles import MAX_BYTES, paths_in
from shared.connection import without_password
from shared.errors import ArtifactCorruptError, ArtifactNotFoundError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])|0")


def counted(count: int, what: str) -> str:
    """So many of something: `1 blob`, `2,000 blobs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def blob_described(one: StoredBlob) -> dict[str, Any]:
    """A blob for another program."""
    stored_at = one.modified_at.isoformat()
    return {"reference": f"cas://{one.sha256}", "size_bytes": one.size_bytes, "stored_at": stored_at}


# -- verify ---------------------------------------------------------------------------


def verify(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN_ID", help="Runs, as `fullsend runs` lists them.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All runs that have a record, and all that is in the store.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Read everything that runs refer to, and say what is missing or isn't what it was.

    That is artifacts, results, partial results, tracebacks and parameters by reference, and the tools'
    code. The exit code is 1 when anything is wrong.
    """
    if bool(run_ids) == everything:
        raise CommandError("name the runs to verify, or say --all")
    chosen = connection.settings()
    inspection = Inspection(open_store(chosen.artifacts))

    async def act(store: Store) -> None:
        for run_id in run_ids or ():
            record = await record_of(store, run_id)
            inspection.take(run_id, await with_artifacts(store, run_id, record))
        if everything:
            async for run_id, record in store.references.records():
                inspection.take(run_id, await with_artifacts(store, run_id, record))

    connection.with_store(act, chosen)
    return _told(inspection, everything, as_json)


def _told(inspection: Inspection, everything: bool, as_json: bool) -> int:
    problems = []
    for problem in inspection.problems(everything):
        problems.append(problem)
        if not as_json:
            print(output.one_line(str(problem)), flush=True)
    checked = inspection.checked
    if as_json:
        members = {"runs": checked.runs, "inline": checked.inline, "blobs": checked.blobs}
        described = [problem.to_json() for problem in problems]
        output.print_json({**members, "bytes": checked.size_bytes, "problems": described})
    else:
        print(_closing(checked, len(problems)))
    return 1 if problems else 0


def _closing(checked: Checked, problems: int) -> str:
    read = (
        f"{counted(checked.runs, 'run')}, {counted(checked.blobs, 'blob')} of "
        f"{output.size(checked.size_bytes)} and {counted(checked.inline, 'inline artifact')} read"
    )
    return f"{read}: {counted(problems, 'problem') if problems else 'all sound'}"


# -- gc -------------------------------------------------------------------------------


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; list what would be deleted.")
    ] = False,
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="Leave alone what was stored less than that ago: 30m, 12h, 1d."),
    ] = "1d",
    force: Annotated[
        bool, typer.Option("--force", help="Also when nothing in Redis refers to anything in the store.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete from the store what nothing refers to any more.

    Kept is what Redis mentions: records, runs under way or waiting, experiments, the cache, and the code
    of tools. A store belongs to ONE Redis (and one of its databases): what the records of another one, or
    files elsewhere, refer to is not known here, and is deleted.

    A run stores before its record says so, and may be held up in between while Redis is away. So what was
    stored less than AGE ago is left alone, whoever refers to it: a day, unless --older-than says
    otherwise. If not all of Redis can be read, nothing is deleted.
    """
    age_seconds = _seconds(older_than)
    chosen = connection.settings()
    blobs = open_store(chosen.artifacts)
    started = datetime.now(UTC)

    def referenced() -> frozenset[str]:
        found = connection.with_store(_referred, chosen)
        marked = found.addresses | found.code | _files_of(found.code, blobs)
        if not force and not any(map(blobs.exists, marked)):
            _refuse_strangers(blobs, connection.address(chosen), started - timedelta(seconds=age_seconds))
        return marked

    collected = collect(blobs, referenced, older_than_seconds=age_seconds, dry_run=dry_run)
    if as_json:
        output.print_json(_described(blobs, collected, dry_run))
        return
    if dry_run:
        for one in sorted(collected.deleted, key=lambda blob: blob.modified_at):
            print(f"cas://{one.sha256}  {output.size(one.size_bytes)}  stored {_age(one, started)}")
    print(output.one_line(_summary(blobs, collected, older_than, dry_run)))


async def _referred(store: Store) -> Referred:
    return await store.references.all()


def _files_of(code: frozenset[str], blobs: Blobs) -> frozenset[str]:
    """The files of those tools that are packages."""
    found: set[str] = set()
    for digest in code:
        try:
            if blobs.size(digest) <= MAX_BYTES:
                found.update(paths_in(blobs.read(digest, MAX_BYTES)).values())
        except (ArtifactNotFoundError, ArtifactCorruptError):
            continue  # nobody can find these files again by it; whoever stores it again, stores them too
    return frozenset(found)


def _refuse_strangers(blobs: Blobs, url: str, cutoff: datetime) -> None:
    """Raises CommandError when all that is old enough would go."""
    if any(one.modified_at <= cutoff for one in blobs.all()):
        raise CommandError(
            f"nothing in Redis ({without_password(url)}) refers to anything in {blobs.base}: does the store "
            "belong to another one? Nothing was deleted; --force deletes all the same"
        )


def _seconds(age: str) -> float:
    found = _AGE.fullmatch(age)
    if found is None:
        raise CommandError(f"--older-than {age!r} is no age; 90s, 30m, 12h, 1d or 0 is expected")
    return float(found[1]) * _UNITS[found[2]] if found[1] else 0.0


def _age(one: StoredBlob, now: datetime) -> str:
    return output.ago(one.modified_at.isoformat(), lambda: now)


def _summary(blobs: Blobs, collected: Collected, older_than: str, dry_run: bool) -> str:
    deleted = counted(len(collected.deleted), "blob")
    return (
        f"{blobs.base}: {deleted} {'would be ' if dry_run else ''}deleted, "
        f"{output.size(collected.freed_bytes)} {'would be ' if dry_run else ''}freed; "
        f"{collected.kept:,} kept, {collected.young:,} younger than {older_than} left alone"
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
