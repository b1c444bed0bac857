"""Aggregation: calls a tool's function over the artifacts of many runs, in isolation and without a rerun."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.executor.artifacts import CasReference, parse_reference
from services.executor.isolation.calls import Call, Capture, Event, NothingKept, Report
from services.executor.loader import Tool
from services.executor.metrics import ReportBounds
from services.executor.outcome import Outcome, Status, judge
from services.executor.results import AttemptResults
from services.planner.execution import ExecutionResult
from services.planner.runtime import MemoryCheckpoints, ToolRuntime
from shared.canonical_json import digest_of
from shared.errors import AggregationError, ArtifactError, NonFiniteLossError, ReplicateFailedError
from shared.messages import Policy
from shared.threads import in_thread

MAX_FLOAT = 1.7976931348623157e308

_LOSS = "result['loss'] is "
"""The beginning of the child's message about a loss that JSON can't hold."""


@dataclass(frozen=True, slots=True)
class AggregationTask:
    """A call of an aggregating function over runs.

    Attributes:
        tool: its name, or a bundle reference.
        entry_point: the function, called as `entry_point(replicates, target_data)`.  Each replicate has
            `run_id`, `parameters`, `seed`, `result` and `artifacts`, name -> reference, which
            `toolkit.read_artifact` and `toolkit.artifact_path` take.
        replicates: the results of the runs.
        target_data: what the function compares the runs with; JSON.
        on_failed: whether a failed run is an error (`fail`) or left out (`skip`).
        timeout_seconds: of the function; None for the limit of the tool or the settings.
    """

    tool: str
    entry_point: str
    replicates: Sequence[ExecutionResult]
    target_data: Any = None
    on_failed: Literal["fail", "skip"] = "fail"
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """The result of an aggregating function.

    Attributes:
        aggregation_id: the digest of code, function, target data and inputs, wherever these are stored.
        loss: a finite number.
        diagnostics: details of the loss; JSON.
        outputs: further results; JSON.
        artifacts: references of the artifacts that the function stored, by name.
        n_replicates: how many runs the function got.
        skipped: the ids of failed runs that were left out.
        tool_digests: the digests of the code of the runs; more than one if it changed in between.
    """

    aggregation_id: str
    loss: float
    diagnostics: Mapping[str, Any]
    outputs: Mapping[str, Any]
    artifacts: Mapping[str, str]
    n_replicates: int
    skipped: tuple[str, ...] = ()
    tool_digests: tuple[str, ...] = field(default=())


class Aggregator:
    """Calls aggregating functions.

    Args:
        runtime: calls the functions; opened and closed by the caller.
    """

    def __init__(self, runtime: ToolRuntime) -> None:
        self._runtime = runtime

    async def aggregate(self, task: AggregationTask, report: Report | None = None) -> AggregationResult:
        """Call the function over the runs, and return what it found.

        Args:
            task: which function, over which runs.
            report: receives what the function reports and prints while it runs, masked and bounded.

        Raises:
            ReplicateFailedError: a run has failed and `on_failed` is `fail`.
            NonFiniteLossError: the loss is not a finite number.
            AggregationError: a run is given twice, none is left, the function failed, or it returned
                something else.
            ArtifactError: an artifact is missing or corrupt; the message names it.
            ToolError: the tool can't be found or used.
        """
        used, skipped = _completed(task)
        timeout_seconds = task.timeout_seconds or self._runtime.defaults.timeout_seconds
        tool = await self._runtime.loader.load(task.tool, timeout_seconds)
        inputs = await in_thread(_inputs, used)
        given = {
            _handle(position, one, name): (one, reference)
            for position, one in enumerate(used)
            for name, reference in one.artifacts.items()
        }
        attempt_results = _AggregationEffects(
            AttemptResults(self._runtime.keeper, MemoryCheckpoints(), self._runtime.threads), given
        )
        outcome = await self._called(task, tool, inputs, attempt_results, report)
        if attempt_results.problem is not None:
            raise attempt_results.problem
        found = _answer(task, outcome)
        return AggregationResult(
            aggregation_id=_identity(task, tool, inputs),
            loss=_loss(task, found),
            diagnostics=_mapping(task, found, "diagnostics"),
            outputs=_mapping(task, found, "outputs"),
            artifacts={name: one["reference"] for name, one in outcome.artifacts.items()},
            n_replicates=len(used),
            skipped=skipped,
            tool_digests=tuple(dict.fromkeys(one.tool_digest for one in used if one.tool_digest)),
        )

    async def _called(
        self,
        task: AggregationTask,
        tool: Tool,
        inputs: Sequence["_Input"],
        attempt_results: "_AggregationEffects",
        report: Report | None,
    ) -> Outcome:
        chosen = Policy(timeout_seconds=task.timeout_seconds)
        options = self._runtime.defaults.options(chosen, tool.needs)
        attempt_results.kept.mask = options.mask
        call = Call(
            module=tool.module,
            run_id=f"aggregation:{task.entry_point}",
            experiment_id="",
            attempt=1,
            params={"replicates": [one.shown for one in inputs], "target_data": task.target_data},
            timeout_seconds=options.timeout_seconds,
            level=options.level,
            limits=options.limits,
            environ=options.environ,
            entry=task.entry_point,
        )
        bounds = None if report is None else ReportBounds(options.mask, report)

        def hear(event: Event) -> None:
            if report is not None and bounds is not None:
                report(bounds.bounded(event))

        answer = await self._runtime.pool.call(call, hear, effects=attempt_results)
        outcome = judge(answer, [], reported_failures=options.reported_failures).masked(options.mask)
        return await attempt_results.kept.complete(outcome, is_first=False)


@dataclass(frozen=True, slots=True)
class _Input:
    """One run as the function sees it, and its content by digests."""

    shown: Mapping[str, Any]
    content: Mapping[str, Any]


class _AggregationEffects(NothingKept):
    """Stores what the function stores, and gives it the artifacts of the runs, and no others."""

    def __init__(self, kept: AttemptResults, given: Mapping[str, tuple[ExecutionResult, str]]) -> None:
        self.kept = kept
        self.problem: ArtifactError | None = None
        self._given = given

    async def keep(self, capture: Capture) -> str:
        """Store an artifact of the aggregation itself."""
        return await self.kept.keep(capture)

    async def fetch(self, reference: str, path: Path) -> None:
        """Write an artifact of a run to `path`."""
        if reference not in self._given:
            await super().fetch(reference, path)
        try:
            await in_thread(_copy, *self._given[reference], path)
        except ArtifactError as exc:
            self.problem = exc
            raise


def _copy(result: ExecutionResult, reference: str, path: Path) -> None:
    with path.open("xb") as file, result.loader.open(reference) as chunks:
        for chunk in chunks:
            file.write(chunk)


def _completed(task: AggregationTask) -> tuple[list[ExecutionResult], tuple[str, ...]]:
    """Return the completed runs, and the ids of the others.  Raises as `Aggregator.aggregate` says."""
    _refuse_twins(task)
    failed = [one for one in task.replicates if one.status is not Status.COMPLETED]
    if failed and task.on_failed == "fail":
        first = failed[0]
        raise ReplicateFailedError(
            f"replicate {first.run_id} is {first.status}: {first.error or 'no error is known'}; "
            f"{len(failed)} of {len(task.replicates)} are not completed (on_failed='skip' leaves them out)"
        )
    used = [one for one in task.replicates if one.status is Status.COMPLETED]
    if not used:
        raise AggregationError(f"{task.entry_point}: none of {len(task.replicates)} replicates is completed")
    return used, tuple(one.run_id for one in failed)


def _refuse_twins(task: AggregationTask) -> None:
    """Refuse a run that is given twice; other runs may have its id, where a caller chose the ids."""
    known: dict[str, list[int]] = {}
    for position, one in enumerate(task.replicates):
        same_id = known.setdefault(one.run_id, [])
        twin = next((other for other in same_id if task.replicates[other] == one), None)
        if twin is not None:
            raise AggregationError(
                f"{task.entry_point}: the run {one.run_id} is given twice, as replicates {twin} and "
                f"{position}; give each run once"
            )
        same_id.append(position)


def _inputs(results: Sequence[ExecutionResult]) -> list[_Input]:
    return [_input(position, one) for position, one in enumerate(results)]


def _handle(position: int, result: ExecutionResult, name: str) -> str:
    """Return what the function calls an artifact; by position, because ids of runs may be equal."""
    return f"{position}:{result.run_id}/{name}"


def _input(position: int, result: ExecutionResult) -> _Input:
    """Return a run for the function, with handles for its artifacts that don't tell how they are stored."""
    value = json.loads(_text(result))
    seen = {"parameters": dict(result.parameters), "seed": result.seed, "result": value}
    handles = {name: _handle(position, result, name) for name in result.artifacts}
    digests = {name: _sha256(result, reference) for name, reference in result.artifacts.items()}
    return _Input({"run_id": result.run_id, **seen, "artifacts": handles}, {**seen, "artifacts": digests})


def _text(result: ExecutionResult) -> str:
    text = result.result or "null"
    return result.loader.load_text(text) if text.startswith("cas://") else text


def _sha256(result: ExecutionResult, reference: str) -> str:
    """Return the digest of the content, without reading it if the reference is an address by content."""
    parsed = parse_reference(reference)
    if isinstance(parsed, CasReference):
        return parsed.sha256
    return hashlib.sha256(result.loader.load_bytes(reference)).hexdigest()


def _identity(task: AggregationTask, tool: Tool, inputs: Sequence[_Input]) -> str:
    return digest_of(
        {
            "tool_digest": tool.module.digest,
            "environment_digest": tool.module.environment,
            "entry_point": task.entry_point,
            "target_data": task.target_data,
            "inputs": [one.content for one in inputs],
        }
    )


def _answer(task: AggregationTask, outcome: Outcome) -> Mapping[str, Any]:
    if outcome.error_type == "ToolResultError" and str(outcome.error).startswith(_LOSS):
        raise NonFiniteLossError(f"{task.tool}.{task.entry_point}: {outcome.error}")
    if outcome.status is not Status.COMPLETED:
        raise AggregationError(f"{task.tool}.{task.entry_point}: {outcome.error_type}: {outcome.error}")
    if not isinstance(outcome.result, Mapping):
        raise AggregationError(f"{task.tool}.{task.entry_point} returned no object with a 'loss'")
    return outcome.result


def _loss(task: AggregationTask, found: Mapping[str, Any]) -> float:
    loss = found.get("loss")
    if isinstance(loss, bool) or not isinstance(loss, int | float) or abs(loss) > MAX_FLOAT:
        raise NonFiniteLossError(
            f"{task.tool}.{task.entry_point} returned the loss {loss!r:.80}; a finite number is needed"
        )
    return float(loss)


def _mapping(task: AggregationTask, found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name, {})
    if not isinstance(value, Mapping):
        raise AggregationError(f"{task.tool}.{task.entry_point} returned a '{name}' that is not an object")
    return value
