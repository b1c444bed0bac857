"""Every Redis key and channel: a function or a constant each, with the Redis type in its docstring.

The first part is the contract with neighbours, which may not change.  All other keys are under
`fullsend:executor:`, and only the executor writes them.
"""

from typing import Final

# -- the contract with the neighbours -------------------------------------------------

EXECUTE_NOW: Final = "fullsend:execute_now"
"""Channel: a request to run an experiment now."""

SCHEDULES_CHANGED: Final = "fullsend:schedules"
"""Channel: a schedule was written."""

METRICS: Final = "fullsend:metrics"
"""Channel: every metric event."""

RESULTS: Final = "fullsend:experiment_results"
"""Channel: a message for each run that has ended."""

EXPERIMENT_PATTERN: Final = "experiments:*"
SCHEDULE_PATTERN: Final = "schedules:*"


def experiment(experiment_id: str) -> str:
    """Hash or string: the definition of an experiment."""
    return f"experiments:{experiment_id}"


def schedule(experiment_id: str) -> str:
    """String or hash: the cron expression of an experiment."""
    return f"schedules:{experiment_id}"


def tool(name: str) -> str:
    """Hash: the description of a tool."""
    return f"tools:{name}"


def run(run_id: str) -> str:
    """Hash: the record of a run; `run_id` is `{experiment_id}:{timestamp}`."""
    return f"experiment_runs:{run_id}"


def metrics(experiment_id: str) -> str:
    """List: the metric events of an experiment, oldest first, capped."""
    return f"metrics:{experiment_id}"


# -- the executor's own ---------------------------------------------------------------


def queue(priority: str) -> str:
    """Stream: queued runs of one priority; the id of an entry becomes the timestamp of the run."""
    return f"fullsend:executor:queue:{priority}"


def bell() -> str:
    """List: one item while there may be orders that no worker has looked for; idle workers wait for it."""
    return "fullsend:executor:bell"


def bell_of(worker: str) -> str:
    """List: the same for one worker, when orders wait for a tool that it has."""
    return f"fullsend:executor:bell:{worker}"


def tools_of(worker: str) -> str:
    """Hash: by name the tools that a worker has, with the limit of each that it can begin; expires."""
    return f"fullsend:executor:tools:{worker}"


def cron_of(worker: str) -> str:
    """String: how a worker that runs cron notices schedules that are written in silence; expires."""
    return f"fullsend:executor:cron:{worker}"


def probe(name: str) -> str:
    """String and hash, below this: written to find out whether the server sends notifications; expire."""
    return f"fullsend:executor:probe:{name}"


def wanted() -> str:
    """Set: tools that orders wait for until a worker can begin them."""
    return "fullsend:executor:wanted"


def partials(run_id: str) -> str:
    """List: items that the attempts of a run have reported, and their size before them; expires."""
    return f"fullsend:executor:partials:{run_id}"


def registered() -> str:
    """Set: tools that executors have registered."""
    return "fullsend:executor:registered"


def compiled(experiment_id: str) -> str:
    """Hash: what an experiment's document says, for scripts, with the document's digest; expires.

    The number is that of the form, to be raised when documents are read or kept in another way.
    """
    return f"fullsend:executor:compiled:2:{experiment_id}"


def retries() -> str:
    """Sorted set: orders of next attempts, by when they are due (ms)."""
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
    """String: exists during a speedrun cycle, and expires at its end."""
    return "fullsend:executor:cycle"


def workers() -> str:
    """Sorted set: workers by when their last heartbeat expires (ms)."""
    return "fullsend:executor:workers"


def slots() -> str:
    """Hash: by name how many runs at once each worker takes."""
    return "fullsend:executor:slots"


def silence(worker: str) -> str:
    """String: exists after a heartbeat of this worker came too late; expires."""
    return f"fullsend:executor:silence:{worker}"


def listeners() -> str:
    """Sorted set: workers that listen for triggers, by when they count as gone (ms)."""
    return "fullsend:executor:listeners"


def holders(limit: str) -> str:
    """Set: ids of the runs that hold room under a concurrency limit."""
    return f"fullsend:executor:holders:{limit}"


def rate(limit: str) -> str:
    """String: when the next run under a rate limit is due (ms); expires then."""
    return f"fullsend:executor:rate:{limit}"


def blocked(limit: str) -> str:
    """List: orders that wait for room under a concurrency limit, oldest first."""
    return f"fullsend:executor:blocked:{limit}"


def nudges() -> str:
    """Sorted set: limits with blocked orders, by when one order is queued again in any case (ms)."""
    return "fullsend:executor:nudges"


def ears() -> str:
    """Set: the ears of all workers that have joined the order of triggers."""
    return "fullsend:executor:ears"


def ear(connection: str) -> str:
    """Channel: one connection subscribes to it; without a subscriber, the connection is gone."""
    return f"fullsend:executor:ear:{connection}"


def open_runs(experiment_id: str) -> str:
    """Sorted set: timestamps of an experiment's open runs, 1 while running, 0 while waiting."""
    return f"fullsend:executor:open:{experiment_id}"


def planner(experiment_id: str) -> str:
    """String: JSON, the planner that executes the plan whose runs have this experiment's id; expires."""
    return f"fullsend:executor:planner:{experiment_id}"


def admitted(marker: str) -> str:
    """Bitmap: bit n is set when the n-th trigger after the marker was admitted or refused; expires."""
    return f"fullsend:executor:admitted:{marker}"


def request(experiment_id: str, request_id: str) -> str:
    """String: the timestamp of the run that has a sender's `request_id`; expires."""
    return f"fullsend:executor:request:{len(experiment_id)}:{experiment_id}:{request_id}"


def logs(run_id: str) -> str:
    """Stream: the lines that a run printed, capped; expires."""
    return f"fullsend:executor:logs:{run_id}"


def checkpoints(run_id: str) -> str:
    """Hash: the results (JSON) of the steps of a run that a retry must not repeat, by step; expires."""
    return f"fullsend:executor:checkpoints:{run_id}"


def runs() -> str:
    """Sorted set: ids of runs that have begun or ended, by when they were queued (ms)."""
    return "fullsend:executor:runs"


def runs_of(experiment_id: str) -> str:
    """Sorted set: the same of one experiment."""
    return f"fullsend:executor:runs_of:{experiment_id}"


def runs_with(status: str) -> str:
    """Sorted set: the same of the runs that ended with this status."""
    return f"fullsend:executor:runs_{status}"


def runs_indexed() -> str:
    """String: exists when the records of an earlier version have joined these sets."""
    return "fullsend:executor:runs_indexed"


def artifacts(run_id: str) -> str:
    """Hash: the artifacts (JSON) of a run's attempts so far, by name; expires."""
    return f"fullsend:executor:artifacts:{run_id}"


def cached(digest: str) -> str:
    """String: JSON, the completed run that answers later runs with the same `run_digest`; expires."""
    return f"fullsend:executor:cached:{digest}"


def journal() -> str:
    """Stream: every metric event and result, capped."""
    return "fullsend:executor:journal"


def dataset() -> str:
    """String: a random text; a new one when Redis has lost its data."""
    return "fullsend:executor:dataset"


MARKERS: Final = "fullsend:executor:markers"
"""Channel: markers in the order of triggers."""

CANCEL: Final = "fullsend:executor:cancel"
"""Channel: the id of a run to cancel."""
