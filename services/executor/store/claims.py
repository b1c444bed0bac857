"""What a script handed out to a worker: runs that have begun, and the few that couldn't."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from services.executor.store.compiled import KEPT_SECONDS, compiled, read_compiled
from services.executor.store.orders import PRIORITIES, Begun, Claim, Order
from services.executor.store.scripts import Fields, Script, Scripts, asking, flat
from shared import keys
from shared.documents import iso, json_text
from shared.errors import ContractError, StoreError
from shared.messages import experiment_failed
from shared.stored import (
    NOTHING_STORED,
    Stored,
    prepare_stored,
    read_stored,
    takes_long,
)

log = structlog.get_logger()

GROUP = "executors"
QUEUES = tuple(keys.queue(priority) for priority in PRIORITIES)
COMPILED_IN_A_ROW = 10
"""How often experiments are compiled for one call, if another service keeps writing them."""

LET_GO = {"waiting": "run.waiting", "cancelled": "run.let_go", "under way": "order.duplicate"}
"""The lines of the log about runs that don't begin, by reason: see `let_go` in `lua/claims.lua`."""

CLAIM_ARGUMENTS = ("worker", "room", "started_at", "started", "metrics_cap", "journal_cap", "metrics_ms")
"""What scripts that hand orders out take, in this order: see `lua/claims.lua`."""

CLAIM = Script("claim", keys=("queues[]",), args=(*CLAIM_ARGUMENTS, "held[]", "missing[]", "failed[]"))
_PUT_AWAY = Script(
    "put_away",
    keys=("queue", "journal", "record", "open_runs"),
    args=(
        "entry",
        "result",
        "journal_cap",
        "timestamp",
        "run",
        "experiment_id",
        "state",
        "kept_ms",
        "fields[]",
    ),
)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept for those who ask later.

    `record_ms` counts from the end of a run, for metrics from the last one, and for entries of the journal.
    """

    record_ms: int
    metrics: int
    journal: int
    log_lines: int
    journal_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Taken:
    """What a worker took.

    `wanted` are tools that orders wait for and that it can't begin.  `is_whole` is False when it
    may hold more than `claims`, which it finds by asking for what it holds.
    """

    claims: Sequence[Claim] = ()
    wanted: Sequence[str] = ()
    is_whole: bool = True


NOTHING_TAKEN = Taken()


class Claims:
    """Claims orders, and reads what other scripts hand out."""

    def __init__(self, scripts: Scripts, retention: Retention) -> None:
        self._scripts = scripts
        self._keep = retention

    def arguments(self, worker: str, room: int) -> list[str | int]:
        """`CLAIM_ARGUMENTS`, for a worker that has `room` for so many runs, beginning now."""
        now = time.time()
        keep = self._keep
        return [worker, room, iso(now), f"{now:.6f}", keep.metrics, keep.journal, keep.record_ms]

    async def take(
        self,
        worker: str,
        room: int,
        queues: Sequence[str] = QUEUES,
        *,
        held: Sequence[tuple[str, str]] = (),
        missing: Sequence[str] = (),
        failed: Sequence[str] = (),
    ) -> Taken:
        """Take up to `room` orders, without waiting for any, and begin their runs.

        Args:
            worker: who takes them.
            room: how many it has slots for.
            queues: the preferred one first.
            held: queues and entries that it holds already.
            missing: tools that it has looked for and doesn't have.
            failed: tools that it can't prepare.

        Raises:
            StoreError: what was taken in an answer that is lost, the worker holds without knowing.
        """
        return await self.read(worker, await self._ask(worker, room, queues, held, missing, failed))

    async def _ask(
        self,
        worker: str,
        room: int,
        queues: Sequence[str],
        held: Sequence[tuple[str, str]],
        missing: Sequence[str] = (),
        failed: Sequence[str] = (),
    ) -> Any:
        entries = [part for one in held for part in one]
        arguments = [*self.arguments(worker, room), entries, missing, failed]
        # An answer that hands out orders must not be lost unseen.
        return await self._scripts.call(CLAIM, list(queues), arguments, asks_again=False)

    async def read(self, worker: str, answer: Any) -> Taken:
        """What a script has handed out to `worker`: see `handed_out` in `lua/claims.lua`."""
        claims: list[Claim] = []
        wanted: set[str] = set()
        for _ in range(COMPILED_IN_A_ROW):
            given, experiments, documents, missing, let_go = answer
            for run_id, reason in let_go:
                log.info(LET_GO[reason], run_id=run_id)
            wanted.update(missing)
            stored = {one[0]: read_compiled(*one) for one in experiments}
            for name, kind, content, _ in documents:
                await prepare_stored(kind, content)
                stored[name] = read_stored(name, kind, content)
            uncompiled = [(queue, entry) for what, queue, entry, *_ in given if what == "uncompiled"]
            try:
                for one in given:
                    if one[0] != "uncompiled":
                        claims += await self._claim(worker, stored, *one)
                if not uncompiled:
                    return Taken(claims, tuple(wanted))
                await self.compile(documents)
                answer = await self._ask(worker, len(uncompiled), (), uncompiled)
            except StoreError as exc:
                log.warning("claims.unfinished", error=str(exc), hint="the worker looks at what it holds")
                break
        return Taken(claims, tuple(wanted), is_whole=False)

    async def compile(self, documents: Sequence[tuple[str, str, Any, str]]) -> None:
        """Keep what documents say for scripts: each an experiment's id, a type, a content and a digest."""
        if not documents:
            return
        fields: dict[str, dict[str, str]] = {}
        for experiment_id, kind, content, digest in documents:
            await prepare_stored(kind, content)
            fields[keys.compiled(experiment_id)] = compiled(experiment_id, kind, content, digest)
        async with asking("compile"), self._scripts.client.pipeline(transaction=True) as pipe:
            for key, mapping in fields.items():
                pipe.delete(key)
                pipe.hset(key, mapping=mapping)
                pipe.expire(key, KEPT_SECONDS)
            await pipe.execute()

    async def held_by(self, worker: str) -> list[Claim]:
        """The orders that `worker` holds, whether they have begun or not."""
        try:
            async with asking("held_by"):
                answer = await self._scripts.client.xreadgroup(
                    GROUP, worker, dict.fromkeys(QUEUES, "0"), count=1_000
                )
        except StoreError as exc:
            if "NOGROUP" not in str(exc):
                raise
            return []
        claims: list[Claim] = []
        for queue, entries in answer or ():
            for entry, fields in entries:  # an entry that was deleted while it was held has no fields
                text = (fields or {}).get("order", "")
                claims += await self._claim(worker, {}, Begun.BEGUN, queue, entry, text, "")
        return claims

    async def _claim(
        self,
        worker: str,
        stored: Mapping[str, Stored],
        what: str,
        queue: str,
        entry: str,
        text: str,
        error: str,
    ) -> list[Claim]:
        """The claim; none when nobody can read the order, which is put away then."""
        try:
            order = Order.decode(text, entry)
        except ContractError as exc:
            log.warning("order.unreadable", entry=entry, error=str(exc))
            await self._put_away(queue, entry, Order.run_named_in(text, entry), exc)
            return []
        experiment = stored.get(order.experiment_id, NOTHING_STORED)
        return [Claim(queue, entry, worker, order, Begun(what), experiment, error, self._scripts.dataset)]

    async def _put_away(self, queue: str, entry: str, run: Order | None, exc: ContractError) -> None:
        """End the run that the order names; without one, there are only the message and the entry."""
        run_id = run.run_id if run else ""
        experiment_id = run.experiment_id if run else ""
        arguments = [
            entry,
            json_text(_refusal(run, exc)),
            self._keep.journal,
            run.timestamp or "" if run else "",
            run_id,
            experiment_id,
        ]
        rest = [self._keep.record_ms, flat(_ended(run, exc) if run else {})]
        script_keys = [queue, keys.journal(), keys.run(run_id), keys.open_runs(experiment_id)]
        await self.compiling(
            lambda may_move: self._scripts.call(
                _PUT_AWAY, script_keys, [*arguments, "failed" if may_move else "", *rest]
            )
        )

    async def compiling(
        self, call: Callable[[bool], Awaitable[Any]], on_wait: Callable[[], None] = lambda: None
    ) -> Any:
        """The answer of a script that may ask to have an experiment compiled first.

        Args:
            call: calls the script; given False, such that it needs no experiment.
            on_wait: is called before a large experiment is read, which takes long.
        """
        for number in range(COMPILED_IN_A_ROW):
            answer = await call(number < COMPILED_IN_A_ROW - 1)
            if not (isinstance(answer, list) and answer and answer[0] == "uncompiled"):
                break
            if takes_long(*answer[1][1:3]):
                on_wait()
            await self.compile([answer[1]])
        return answer


def _refusal(run: Order | None, exc: ContractError) -> dict[str, Any]:
    """The message on the result channel, like any other about what can't become a run."""
    experiment_id, run_id = (run.experiment_id, run.run_id) if run else (None, None)
    return experiment_failed(experiment_id, run_id, str(exc), type(exc).__name__)


def _ended(run: Order, exc: ContractError) -> Fields:
    now = iso(time.time())
    return {
        "run_id": run.run_id,
        "experiment_id": run.experiment_id,
        "status": "failed",
        "finished_at": now,
        "timestamp": now,
        "error": str(exc),
        "error_type": type(exc).__name__,
    }
