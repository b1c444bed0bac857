"""One execution of a tool, the same for every backend: the call, its options and its result.

Executors compute no metrics: they return references to raw artifacts, relative to
`storage_base`.  When the store is moved, only the base changes, and everything that is computed
from the artifacts stays the same.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol, Self

from services.executor.artifacts import CasArtifactLoader, loader_for
from services.executor.isolation.calls import Report
from services.executor.outcome import Outcome, Status
from shared.documents import json_object, kind
from shared.errors import ContractError
from shared.messages import Policy


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of one execution.

    Attributes:
        run_id: its id, which the tool sees too.
        policy: time limit, isolation, limits, seed and the like; for members that are None, the
            tool's own values apply, then the executor's.
    """

    run_id: str
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why an execution failed.

    Attributes:
        type: the exception's class name.
        message: the exception's text.
        traceback: the tool's own frames, or `cas://...` if it is large; may be empty.
        retryable: whether another attempt makes sense.
        retry_after_seconds: the least pause before it, if the tool asks for one.
    """

    type: str
    message: str
    traceback: str = ""
    retryable: bool = False
    retry_after_seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """The result of one execution, failed or not.

    Attributes:
        run_id: of the call.
        status: of the run.
        storage_type: `local`, `memory`, `s3`, `gs` or `az`.
        storage_base: directory or URL that the references are relative to.
        artifacts: references by name: `data:`, `cas://` or a relative path; also those of a failed run.
        error: why it failed; None if it did not.
        execution_time_ms: from the look-up of the tool to the stored result; None if not known.
        result: what the tool returned, as JSON, or `cas://...` if that is large.
        parameters: as the tool got them.
        seed: of the run; None if it had none.
        tool_digest: of the code that ran; empty if the tool was not found.
        run_digest: of everything that the result may depend on; empty if the tool was not found.
        cached_from: the run whose cached result this is; None if the tool ran.
        lost_attempts: how often the call had begun on machines that were then lost, as far as is known.
        cpu_seconds: of the tool's process and its children; None if not known.
        peak_rss_bytes: the most memory that its process has had; None if not known.
    """

    run_id: str
    status: Status
    storage_type: str
    storage_base: str
    artifacts: Mapping[str, str] = field(default_factory=dict)
    error: ErrorInfo | None = None
    execution_time_ms: int | None = None
    result: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    tool_digest: str = ""
    run_digest: str = ""
    cached_from: str | None = None
    lost_attempts: int = 0
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None

    @property
    def loader(self) -> CasArtifactLoader:
        """A loader for the artifacts in their store."""
        return loader_for(self.storage_base, self.storage_type)

    def moved_to(self, storage_base: str) -> Self:
        """Return the same result for a store that was moved or copied to `storage_base`."""
        return replace(self, storage_base=storage_base)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a file or a message."""
        return {
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "status": self.status.value,
            "error": self.error and asdict(self.error),
        }

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Self:
        """Return the result in the members of `to_json`.  Raises `ContractError` if they can't be read."""
        place = f"the result of run {members.get('run_id', '?')}"
        try:
            error = members["error"]
            known = {**members, "error": None if error is None else ErrorInfo(**error)}
            return cls(**{**known, "status": _status(place, members["status"])})
        except (TypeError, KeyError) as exc:
            raise ContractError(f"{place} can't be read: {exc}") from None


@dataclass(frozen=True, slots=True)
class Execution:
    """One call of a tool.

    Attributes:
        tool: its name, or a bundle reference.
        parameters: keyword arguments.
        options: run id and policy.
    """

    tool: str
    parameters: Mapping[str, Any]
    options: RunOptions


class Executor(Protocol):
    """Executes tools somewhere."""

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """Call the tool once.  A failure of any kind is a result, not an exception.

        Args:
            call: the call.
            report: receives what the tool reports while it runs; a backend may pass on less, or later.
            cancel: when set, the call is ended and its result is `cancelled`.
        """


def error_of(outcome: Outcome) -> ErrorInfo | None:
    """Return the error of an outcome; None if there is none."""
    if outcome.error_type is None:
        return None
    traceback = outcome.shown.get("traceback", outcome.traceback or "")
    texts = outcome.error_type, outcome.error or "", traceback
    return ErrorInfo(*texts, outcome.retryable, outcome.retry_after_seconds)


def result_of_record(record: Mapping[str, str], storage_type: str, storage_base: str) -> ExecutionResult:
    """Return the result in a run's record in Redis.

    Args:
        record: the fields of `experiment_runs:{run_id}`.
        storage_type, storage_base: of the store that the executors use.

    Raises:
        ContractError: the record can't be read; the message names the field.
    """
    place = f"experiment_runs:{record.get('run_id', '?')}"
    described = json_object(f"{place} field 'artifacts'", record.get("artifacts", "{}"))
    error = None
    if record.get("error_type"):
        texts = record["error_type"], record.get("error", ""), record.get("traceback", "")
        after = record.get("retry_after_seconds")
        after_seconds = _number(place, "retry_after_seconds", after) if after else None
        error = ErrorInfo(*texts, record.get("retryable") == "true", after_seconds)
    seconds = record.get("duration_seconds") or None
    peak_bytes = _optional(place, record, "peak_rss_bytes")
    return ExecutionResult(
        run_id=record.get("run_id", ""),
        status=_status(place, record.get("status")),
        storage_type=storage_type,
        storage_base=storage_base,
        artifacts={name: _reference(place, name, one) for name, one in described.items()},
        error=error,
        execution_time_ms=None
        if seconds is None
        else round(_number(place, "duration_seconds", seconds) * 1_000),
        result=record.get("result"),
        parameters=json_object(f"{place} field 'params'", record.get("params", "{}")),
        seed=int(_number(place, "seed", record["seed"])) if record.get("seed") else None,
        tool_digest=record.get("tool_digest", ""),
        run_digest=record.get("run_digest", ""),
        cached_from=record.get("cached_from"),
        cpu_seconds=_optional(place, record, "cpu_seconds"),
        peak_rss_bytes=None if peak_bytes is None else int(peak_bytes),
    )


def _optional(place: str, record: Mapping[str, str], field: str) -> float | None:
    return _number(place, field, record[field]) if record.get(field) else None


def _number(place: str, field: str, text: str) -> float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ContractError(f"{place} field '{field}' is {text!r:.80}; expected a number") from None


def _status(place: str, text: str | None) -> Status:
    try:
        return Status(text)  # type: ignore[arg-type]
    except ValueError:
        known = ", ".join(Status)
        raise ContractError(f"{place} has the status {text!r}; expected one of {known}") from None


def _reference(place: str, name: str, described: Any) -> str:
    match described:
        case {"reference": str(reference)}:
            return reference
        case _:
            raise ContractError(f"{place} artifact '{name}' is {kind(described)} without a reference")
