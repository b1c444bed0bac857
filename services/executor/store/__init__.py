"""The only code that talks Redis commands: one typed method for each transition.

Each script in `lua/` is one transition: atomic, one round trip.  Every one of
them may be sent twice (a time-out does not tell whether it was done), so each
is fenced or finds its own trace.
"""

from dataclasses import dataclass
from typing import Self

from redis.asyncio import Redis

from services.executor.store.checkpoints import Cached, RunEffects
from services.executor.store.deliveries import Deliveries
from services.executor.store.due_times import Decision, DueTime, DueTimes, Fired, FoundDue, NotedSchedule
from services.executor.store.experiments import Experiments, Stored
from services.executor.store.gc_roots import References, Referred
from services.executor.store.history import Entry, History, Journal, Line, moment
from services.executor.store.orders import NORMAL, Claim, Order
from services.executor.store.pubsub import Subscriptions, Triggers
from services.executor.store.queue import Depth, Limit, Position, Queue
from services.executor.store.runs import Begun, Cancelled, Finished, Retention, Runs
from services.executor.store.scripts import Scripts
from services.executor.store.server import Facts, Server
from services.executor.store.submissions import Awaited, Standing
from services.executor.store.workers import Workers

__all__ = [
    "NORMAL",
    "Awaited",
    "Begun",
    "Cached",
    "Cancelled",
    "Claim",
    "Decision",
    "Deliveries",
    "Depth",
    "DueTime",
    "DueTimes",
    "Entry",
    "Experiments",
    "Facts",
    "Finished",
    "Fired",
    "FoundDue",
    "History",
    "Journal",
    "Limit",
    "Line",
    "NotedSchedule",
    "Order",
    "Position",
    "Queue",
    "References",
    "Referred",
    "Retention",
    "RunEffects",
    "Runs",
    "Server",
    "Standing",
    "Store",
    "Stored",
    "Subscriptions",
    "Triggers",
    "Workers",
    "moment",
]


@dataclass(frozen=True, slots=True)
class Store:
    """Everything the executor keeps in Redis, by noun."""

    queue: Queue
    runs: Runs
    experiments: Experiments
    due_times: DueTimes
    triggers: Triggers
    workers: Workers
    subscriptions: Subscriptions
    journal: Journal
    history: History
    server: Server
    cached: Cached
    references: References
    awaited: Awaited

    @classmethod
    def on(cls, client: Redis, patient: Redis, retention: Retention) -> Self:
        """A store on two clients: one for commands, one for blocking reads."""
        scripts = Scripts(client)
        experiments = Experiments(scripts)
        deliveries = Deliveries(scripts, retention.record_ms, retention.journal)
        return cls(
            queue=Queue(scripts, patient, deliveries),
            runs=Runs(scripts, experiments, retention),
            experiments=experiments,
            due_times=DueTimes(scripts, deliveries),
            triggers=Triggers(scripts, retention.journal),
            workers=Workers(scripts),
            subscriptions=Subscriptions(patient),
            journal=Journal(scripts, patient),
            history=History(scripts, patient),
            server=Server(scripts),
            cached=Cached(scripts, retention.record_ms),
            references=References(scripts),
            awaited=Awaited(scripts),
        )
