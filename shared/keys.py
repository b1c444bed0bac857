"""Every Redis key and channel, one function or constant each, its type in the docstring.

The first part is the contract with the neighbours and can't be changed from
here; everything else lives under `fullsend:executor:` and is written by the
executor alone.
"""

from typing import Final

# -- the contract with the neighbours -------------------------------------------------

EXECUTE_NOW: Final = "fullsend:execute_now"
"""Channel: a request to run an experiment now."""

SCHEDULES_CHANGED: Final = "fullsend:schedules"
"""Channel: a schedule was written."""

METRICS: Final = "fullsend:metrics"
"""Channel: every metric event, as it happens."""

RESULTS: Final = "fullsend:experiment_results"
"""Channel: one message for each run that ended."""

EXPERIMENT_PATTERN: Final = "experiments:*"
SCHEDULE_PATTERN: Final = "schedules:*"


def experiment(experiment_id: str) -> str:
    """Hash or string: the definition of an experiment."""
    return f"experiments:{experiment_id}"


def schedule(experiment_id: str) -> str:
    """String or hash: the cron expression of an experiment."""
    return f"schedules:{experiment_id}"


def tool(name: str) -> str:
    """Hash: what is known about a tool."""
    return f"tools:{name}"


def run(run_id: str) -> str:
    """Hash: the record of a run; `run_id` is `{experiment_id}:{timestamp}`."""
    return f"experiment_runs:{run_id}"


def run_pattern(experiment_id: str) -> str:
    """Pattern: the records of one experiment's runs (and of experiments whose id extends it)."""
    return run(f"{escape(experiment_id)}:*")


def metrics(experiment_id: str) -> str:
    """List: the metric events of an experiment, oldest first, capped."""
    return f"metrics:{experiment_id}"


# -- the executor's own ---------------------------------------------------------------


def queue(priority: str) -> str:
    """Stream: queued runs of one priority; an entry's id becomes the run's timestamp."""
    return f"fullsend:executor:queue:{priority}"


def retries() -> str:
    """Sorted set: orders whose next attempt is due at the score (ms)."""
    return "fullsend:executor:retries"


def due_times() -> str:
    """Sorted set: experiment ids by their next due time of cron (ms)."""
    return "fullsend:executor:due_times"


def noted_schedules() -> str:
    """Hash: the schedule of each experiment from which its next due time was computed."""
    return "fullsend:executor:noted_schedules"


def turns() -> str:
    """Sorted set: experiment ids by when speedrun last gave them a turn (ms)."""
    return "fullsend:executor:turns"


def cycle() -> str:
    """String: present while a speedrun cycle is not over; expires with it."""
    return "fullsend:executor:cycle"


def workers() -> str:
    """Sorted set: worker names by when their last heartbeat expires (ms)."""
    return "fullsend:executor:workers"


def silence(worker: str) -> str:
    """String: present after a worker was silent for too long itself; expires."""
    return f"fullsend:executor:silence:{worker}"


def announced(call: str) -> str:
    """String: present after a call to announce something got through; expires."""
    return f"fullsend:executor:announced:{call}"


def listeners() -> str:
    """Sorted set: workers that identify triggers, by when they count as gone (ms)."""
    return "fullsend:executor:listeners"


def holders(limit: str) -> str:
    """Set: ids of the runs that take up a concurrency limit."""
    return f"fullsend:executor:holders:{limit}"


def rate(limit: str) -> str:
    """String: when the next run under a rate limit is due (ms); expires when that has passed."""
    return f"fullsend:executor:rate:{limit}"


def blocked(limit: str) -> str:
    """List: orders that wait for room under a concurrency limit, oldest first."""
    return f"fullsend:executor:blocked:{limit}"


def nudges() -> str:
    """Sorted set: limits with blocked orders, by when one is let try again in any case (ms)."""
    return "fullsend:executor:nudges"


def ears() -> str:
    """Set: channels of the connections on which workers have joined the order of triggers."""
    return "fullsend:executor:ears"


def ear(connection: str) -> str:
    """Channel: heard on one connection only, to tell whether it still is."""
    return f"fullsend:executor:ear:{connection}"


def open_runs(experiment_id: str) -> str:
    """Sorted set: timestamps of an experiment's open runs, 1 while running, 0 while waiting."""
    return f"fullsend:executor:open:{experiment_id}"


def planner(experiment_id: str) -> str:
    """String: JSON, the planner whose runs an experiment's are, while it executes their plan; expires."""
    return f"fullsend:executor:planner:{experiment_id}"


def admitted(marker: str) -> str:
    """String used as a bitmap: bit n is set when the n-th trigger since the marker was admitted."""
    return f"fullsend:executor:admitted:{marker}"


def request(experiment_id: str, request_id: str) -> str:
    """String: timestamp of the run that a sender's `request_id` became."""
    return f"fullsend:executor:request:{len(experiment_id)}:{experiment_id}:{request_id}"


def logs(run_id: str) -> str:
    """Stream: what a run's tool printed, capped."""
    return f"fullsend:executor:logs:{run_id}"


def effects(run_id: str) -> str:
    """Hash: steps of a run that a retry must not repeat, with what they came to."""
    return f"fullsend:executor:effects:{run_id}"


def artifacts(run_id: str) -> str:
    """Hash: what a run's attempts have kept so far, by name, as the record will list it."""
    return f"fullsend:executor:artifacts:{run_id}"


def cached(digest: str) -> str:
    """String: JSON, the completed run that others with the same `run_digest` may be answered with."""
    return f"fullsend:executor:cached:{digest}"


def journal() -> str:
    """Stream: every metric event and result, capped."""
    return "fullsend:executor:journal"


MARKERS: Final = "fullsend:executor:markers"
"""Channel: workers mark positions in the order of triggers here."""

CANCEL: Final = "fullsend:executor:cancel"
"""Channel: a run id to be cancelled."""

DOORBELL: Final = "fullsend:executor:doorbell"
"""Channel: something became due earlier than a sleeping worker knows."""


def escape(literal: str) -> str:
    """`literal` with Redis' glob characters escaped, for use inside a pattern."""
    return "".join("\\" + char if char in "\\*?[]^-" else char for char in literal)
