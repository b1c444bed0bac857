"""`fullsend aggregate`."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import connection, output
from services.cli.connection import places
from services.cli.output import AsJson, CommandError
from services.executor.artifacts import open_blobs
from services.executor.config import Settings
from services.executor.store import Store
from services.operations.run_records import no_such_run
from services.planner.aggregation import AggregationResult, AggregationTask, Aggregator
from services.planner.execution import ExecutionResult, result_of_record
from services.planner.runtime import ToolRuntime
from shared import log


class OnFailed(StrEnum):
    """What to do about a run that did not succeed."""

    FAIL = "fail"
    SKIP = "skip"


def aggregate(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name, or NAME@sha256:DIGEST.")],
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN_ID", help="The runs to aggregate.")],
    function: Annotated[str, typer.Option(metavar="NAME", help="The tool's function.")] = "aggregate",
    target: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help="The data that the function compares the runs with.")
    ] = "null",
    on_failed: Annotated[
        OnFailed, typer.Option(help="Whether a failed run is an error or is left out.")
    ] = OnFailed.FAIL,
    as_json: AsJson = False,
) -> None:
    """Call a tool's function with the results of runs.

    The runs are not run again. The function is called as `function(replicates, target_data)` in an
    isolated process. It returns an object with a finite number `loss` and, optionally, `diagnostics`
    and `outputs`.
    """
    log.configure(level="error")
    chosen = connection.settings()
    replicates = connection.with_store(lambda store: _read_results(store, run_ids, chosen), chosen)
    task = AggregationTask(tool, function, replicates, _target(target), on_failed.value)
    found = asyncio.run(_aggregate(chosen, task))
    if as_json:
        output.print_json(asdict(found))
    else:
        _show(found)


async def _read_results(store: Store, run_ids: Sequence[str], chosen: Settings) -> list[ExecutionResult]:
    blobs = open_blobs(chosen.artifacts)
    found = []
    for run_id in run_ids:
        record = await store.runs.record(run_id)
        if not record:
            raise no_such_run(run_id)
        found.append(result_of_record(record, blobs.storage_type, blobs.base))
    return found


def _target(text: str) -> Any:
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as exc:
        raise CommandError(f"--target: {text[1:]} can't be read: {exc.strerror}") from None
    except ValueError as exc:
        raise CommandError(f"--target: {text:.80} is not JSON: {exc}") from None


async def _aggregate(chosen: Settings, task: AggregationTask) -> AggregationResult:
    bench = ToolRuntime(places(chosen), 1, os.environ)
    await bench.open()
    try:
        return await Aggregator(bench).aggregate(task)
    finally:
        await bench.close()


def _show(found: AggregationResult) -> None:
    out = output.console()
    lines = {
        "loss": f"{found.loss:g}",
        "replicates": str(found.n_replicates),
        "skipped": ", ".join(found.skipped),
        "diagnostics": json.dumps(found.diagnostics, ensure_ascii=False) if found.diagnostics else "",
        "outputs": json.dumps(found.outputs, ensure_ascii=False) if found.outputs else "",
        "artifacts": ", ".join(found.artifacts),
        "id": found.aggregation_id,
        "note": _note(found.tool_digests),
    }
    for name, text in lines.items():
        if text:
            out.print(f"{name:<12}{text}")


def _note(digests: Sequence[str]) -> str:
    if len(digests) < 2:
        return ""
    versions = ", ".join(digest[:12] for digest in digests)
    return f"the runs used {len(digests)} versions of the code: {versions}"
