"""The error tree.  A message says what is wrong, where, and what to do next.

The class names are part of the Redis contract: neighbours read them as
`error_type`, so none is renamed.
"""


class FullsendError(Exception):
    """Anything this project raises on purpose."""


class ContractError(FullsendError):
    """A neighbour wrote something that can't be read: names the key, the field and what was expected."""


class ExperimentNotFoundError(ContractError):
    """No key holds this experiment."""


class ExperimentArchivedError(FullsendError):
    """The experiment is archived, so none of its runs may start or go on."""


class ScheduleError(ContractError):
    """A cron expression or a time zone that means nothing; says which part and why."""


class SettingsError(FullsendError):
    """The service was configured wrongly; one line per mistake."""


class StoreError(FullsendError):
    """Redis answered what the executor can't work with; says what was asked and what came back."""


class StoreUnavailableError(StoreError):
    """Redis can't be reached, or refuses to do its work for now."""


class ToolError(FullsendError):
    """The tool breaks the tool contract, or was called in a way that can't work."""


class ToolNotFoundError(ToolError):
    """No such tool.  The publisher reads the name out of the quotes and has the tool built."""

    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__(f"Tool '{name}' not found" + (f": {reason}" if reason else ""))


class ToolParameterError(ToolError):
    """Parameters that don't fit the tool's signature; names each one."""


class ToolResultError(ToolError):
    """The tool returned what JSON can't hold, or more than a result may be."""


class ToolEnvironmentError(ToolError):
    """The environment that the tool's own dependencies need can't be made; has uv's own words."""


class SandboxUnavailableError(ToolError):
    """The tool is to be confined and nothing here can do it; says what is missing and what to do."""


class ToolTimeoutError(ToolError):
    """The attempt went over its time limit and its processes were ended."""


class ToolCrashedError(ToolError):
    """The tool's process ended before it answered; says how."""


class ToolRetryExhaustedError(ToolError):
    """Every allowed attempt met a transient error; carries the last one."""


class ArtifactError(FullsendError):
    """An artifact can't be kept, found or read; says which and where."""


class ArtifactNotFoundError(ArtifactError, FileNotFoundError):
    """There is no such artifact; names the full place that was looked at."""


class ArtifactCorruptError(ArtifactError):
    """What is stored is not what its address says; it is never handed out as a result."""


class PlanError(FullsendError):
    """A plan can't be read, made or executed; says what, where and what to do."""


class ExecutorException(PlanError):
    """A manifest that nothing can be executed of."""


class AggregationError(FullsendError):
    """Runs can't be aggregated; says over which run or function it failed."""


class ReplicateFailedError(AggregationError):
    """One of the runs to be aggregated had failed; names it."""


class NonFiniteLossError(AggregationError):
    """The aggregating function returned a loss that is no finite number."""


class ArtifactReferenceError(ArtifactError):
    """A reference that can't be read, or that leads out of its base."""
