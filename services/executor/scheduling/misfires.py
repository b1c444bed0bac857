"""What becomes of a due time, and of those before it that were missed.  Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.executor.scheduling.cron import Cron
from services.executor.store import NORMAL, Decision, DueTime, Order
from shared.documents import iso
from shared.messages import RECURRING, Policy, State


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Which due times are run, and the due time at which the schedule goes on (all UTC ms).

    `overlap` is what the runs do while another run is open.  `serial` runs wait for each other.
    """

    run_ms: Sequence[int]
    next_ms: int | None
    overlap: str = "skip"
    serial: bool = False


@dataclass(frozen=True, slots=True)
class Misfires:
    """Decides about due times.

    Args:
        at_once: how many missed due times are queued at once; the others follow.
        on_time_ms: a due time that is found later than this was missed.
    """

    at_once: int = 1_000
    on_time_ms: int = 1_000

    def decide(self, found: DueTime, cron: Cron | None, now_ms: int) -> Decision:
        """Decide by what is written now; without a `cron`, the schedule has no due times any more.

        Before the due time, it is decided as it will be then.
        """
        digest = found.digest if now_ms < found.due_ms else ""
        if cron is None:
            return Decision(found.experiment_id, found.due_ms, None, (), "", digest)
        experiment = found.stored.experiment
        policy = experiment.policy if experiment else Policy()
        catch_up = self.catch_up(cron, found.due_ms, max(now_ms, found.due_ms), policy)
        state = experiment.state if experiment else None
        # An experiment that can't be read is run, to be reported.  One that is running is left alone
        # unless a run of ours is open: then `overlap` decides.
        is_run = state is None or state in RECURRING or (state is State.RUNNING and found.has_open_runs)
        orders = [
            Order(
                found.experiment_id,
                "cron",
                scheduled_for=iso(one_ms / 1_000),
                serial=catch_up.serial,
                priority=policy.priority or NORMAL,
            )
            for one_ms in (catch_up.run_ms if is_run else ())
        ]
        return Decision(found.experiment_id, found.due_ms, catch_up.next_ms, orders, catch_up.overlap, digest)

    def catch_up(self, cron: Cron, due_ms: int, now_ms: int, policy: Policy) -> CatchUp:
        """Which of the due times from `due_ms` to `now_ms` become runs.

        Those older than `grace_seconds` are dropped.  Of the rest, `catch_up` takes the `latest`
        (default), `all`, or only one that is on time (`none`).  Where all are wanted, no missed one is
        skipped because the one before it is open: they run one after the other.
        """
        run_ms, next_ms = self._chosen(cron, due_ms, now_ms, policy)
        overlap = policy.overlap or "skip"
        if overlap != "skip" or policy.catch_up != "all":
            return CatchUp(run_ms, next_ms, overlap, overlap == "queue")
        are_late = bool(run_ms) and now_ms - run_ms[0] > self.on_time_ms
        # Those on time are serial as well: one may still be open when the next ones are missed.
        return CatchUp(run_ms, next_ms, "queue" if are_late else "skip", True)

    def _chosen(
        self, cron: Cron, due_ms: int, now_ms: int, policy: Policy
    ) -> tuple[Sequence[int], int | None]:
        """The due times to run, and the one at which to go on."""
        oldest_ms = max(due_ms, now_ms - self._grace_ms(policy, now_ms))
        missed = [due_ms] if due_ms == oldest_ms else []
        missed += cron.due_times_between(max(due_ms, oldest_ms - 1), now_ms, self.at_once)
        following = cron.next_after(now_ms)
        if policy.catch_up == "all":
            is_portion = len(missed) >= self.at_once
            return missed, cron.next_after(missed[-1]) if is_portion else following
        if len(missed) >= self.at_once:
            latest = cron.previous_at_or_before(now_ms)
            missed = [due_ms if latest is None else latest]
        return missed[-1:], following

    def _grace_ms(self, policy: Policy, now_ms: int) -> int:
        """How late a due time may be found and still be run."""
        grace_ms = now_ms if policy.grace_seconds is None else math.floor(policy.grace_seconds * 1_000)
        return min(self.on_time_ms, grace_ms) if policy.catch_up == "none" else grace_ms
