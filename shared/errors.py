"""The errors of the project.  A message says what is wrong, where, and what to do next.

The class names are part of the Redis contract: neighbours read them as `error_type`.
"""


class FullsendError(Exception):
    """The base class of all errors that this project raises."""


class ContractError(FullsendError):
    """A neighbour wrote something that can't be read: names the key, the field and what was expected."""


class ExperimentNotFoundError(ContractError):
    """No key holds this experiment."""


class RunNotFoundError(FullsendError):
    """There is no run of this id, or its record has expired."""


class NotTriggeredError(FullsendError):
    """A trigger became no run: says why, and what to do."""


class ExperimentArchivedError(FullsendError):
    """The experiment is archived; its runs must not start or continue."""


class ScheduleError(ContractError):
    """A cron expression or a time zone is wrong; names the part and the reason."""


class SettingsError(FullsendError):
    """The settings are wrong; one line per mistake."""


class StoreError(FullsendError):
    """Redis gave an answer that the executor can't use; has the command and the answer."""


class StoreUnavailableError(StoreError):
    """Redis can't be reached, or refuses commands for now."""


class UnknownDatabaseError(StoreError):
    """The server has no database of the number that REDIS_URL names."""


class ToolError(FullsendError):
    """A tool breaks the tool contract, or can't be called as asked."""


class ToolNotFoundError(ToolError):
    """There is no such tool.  Publishers read its name from the quotes, to have the tool built."""

    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__(f"Tool '{name}' not found" + (f": {reason}" if reason else ""))
        self.name = name


class ToolParameterError(ToolError):
    """Parameters do not fit the tool's signature; names each one."""


class ToolResultError(ToolError):
    """The tool returned a value that JSON can't hold, or a result that is too large."""


class ToolReportedError(ToolError):
    """The tool returned a result with `"success": false`; has its `error`."""


class ToolEnvironmentError(ToolError):
    """The environment with the tool's dependencies can't be built; has uv's output."""


class SandboxUnavailableError(ToolError):
    """The tool can't be confined on this machine; says what is missing and what to do."""


class ToolTimeoutError(ToolError):
    """The attempt exceeded its time limit and its processes were killed."""


class ToolCrashedError(ToolError):
    """The tool's process ended before it answered; says how it ended."""


class ToolRetryExhaustedError(ToolError):
    """All allowed attempts failed with transient errors; has the last one."""


class ArtifactError(FullsendError):
    """An artifact can't be stored, found or read; names it and its location."""


class ArtifactNotFoundError(ArtifactError, FileNotFoundError):
    """There is no such artifact; names its full location."""


class ArtifactCorruptError(ArtifactError):
    """The stored content does not match its address; it is never returned as a result."""


class PlanError(FullsendError):
    """A plan can't be read, made or executed; says what is wrong, where, and what to do."""


class ExecutorException(PlanError):
    """Nothing in a manifest can be executed."""


class AggregationError(FullsendError):
    """Runs can't be aggregated; names the run or the function that failed."""


class ReplicateFailedError(AggregationError):
    """One of the runs to aggregate has failed; names it."""


class NonFiniteLossError(AggregationError):
    """The aggregating function returned a loss that is not a finite number."""


class ArtifactReferenceError(ArtifactError):
    """A reference can't be read, or leads out of its base directory."""
