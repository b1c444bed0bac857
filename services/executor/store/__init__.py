"""The only code that sends commands to Redis: one typed method for each transition.

Each script in `lua/` is one transition, atomic and in one round trip.  Every script may be sent twice, since
a time-out does not tell whether it was executed: it checks a lease, or recognizes what it has done before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from redis.asyncio import Redis

from services.executor.store.checkpoints import CachedRuns, Checkpoints
from services.executor.store.claims import Claims, Retention, Taken
from services.executor.store.deployment import FOUND, Server, ServerFacts, Workers
from services.executor.store.due_times import Decision, DueTime, DueTimes, Fired, FoundDue, NotedSchedule
from services.executor.store.experiments import Experiments, Published
from services.executor.store.gc_roots import GcRoots, ReferencedDigests
from services.executor.store.history import ENDED, History, Journal, JournalEntry, StoredLogLine, moment
from services.executor.store.orders import NORMAL, Begun, Claim, Limit, Order, experiment_of, limit_of
from services.executor.store.pubsub import Subscriptions, TriggerOrder
from services.executor.store.queue import Depth, Position, Queue
from services.executor.store.runs import Finished, RunCancellation, Runs
from services.executor.store.scripts import Scripts, StoreOptions
from services.executor.store.submissions import RunProgress, Submissions
from shared.stored import Stored

__all__ = [
    "ENDED",
    "FOUND",
    "NORMAL",
    "Begun",
    "CachedRuns",
    "Checkpoints",
    "Claim",
    "Claims",
    "Decision",
    "Depth",
    "DueTime",
    "DueTimes",
    "Experiments",
    "Finished",
    "Fired",
    "FoundDue",
    "GcRoots",
    "History",
    "Journal",
    "JournalEntry",
    "Limit",
    "NotedSchedule",
    "Order",
    "Position",
    "Published",
    "Queue",
    "ReferencedDigests",
    "Retention",
    "RunCancellation",
    "RunProgress",
    "Runs",
    "Server",
    "ServerFacts",
    "Store",
    "StoreOptions",
    "Stored",
    "StoredLogLine",
    "Submissions",
    "Subscriptions",
    "Taken",
    "TriggerOrder",
    "Workers",
    "experiment_of",
    "limit_of",
    "moment",
]


@dataclass(frozen=True, slots=True)
class Store:
    """Everything the executor keeps in Redis, by noun."""

    queue: Queue
    runs: Runs
    experiments: Experiments
    due_times: DueTimes
    triggers: TriggerOrder
    workers: Workers
    subscriptions: Subscriptions
    journal: Journal
    history: History
    server: Server
    cached_runs: CachedRuns
    gc_roots: GcRoots
    submissions: Submissions

    @classmethod
    def on(
        cls,
        client: Redis,
        patient: Redis,
        retention: Retention,
        on_unavailable: Callable[[], None] = lambda: None,
        options: StoreOptions | None = None,
    ) -> Self:
        """A store on two clients: one for commands, one for blocking reads.

        Args:
            client, patient: the clients.
            retention: how much is kept.
            on_unavailable: is called when Redis is not there for a script.
            options: what the operator chose.
        """
        scripts = Scripts(client, on_unavailable, options)
        claims = Claims(scripts, retention)
        return cls(
            queue=Queue(scripts, patient, claims),
            runs=Runs(scripts, claims, retention),
            experiments=Experiments(scripts, claims),
            due_times=DueTimes(scripts, claims),
            triggers=TriggerOrder(scripts, retention.journal),
            workers=Workers(scripts),
            subscriptions=Subscriptions(scripts, patient),
            journal=Journal(scripts, patient, retention),
            history=History(scripts, patient, retention),
            server=Server(scripts),
            cached_runs=CachedRuns(scripts, retention.record_ms),
            gc_roots=GcRoots(scripts),
            submissions=Submissions(scripts),
        )
