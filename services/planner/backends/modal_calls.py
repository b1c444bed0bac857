"""One call on Modal: what its container says of it, and how its result and its contents are fetched."""

import asyncio
import contextlib
import secrets
from typing import Final

import modal
import structlog
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from services.executor.artifacts import Blobs
from services.executor.isolation.calls import Report
from services.executor.outcome import Status
from services.planner.backends.modal_connection import FAULTS, UNREACHABLE, first_line
from services.planner.backends.modal_container import ABANDONED, BEGUN, ENDED
from services.planner.backends.remote import event_of
from services.planner.execution import Execution
from shared.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    FullsendError,
    ToolTimeoutError,
)

log = structlog.get_logger()

POLLS_AT_ONCE: Final = 32
CANCEL_SECONDS: Final = 10.0
FETCH_SECONDS: Final = 120.0
"""How long it is tried to read from the volume while Modal can't be reached."""
MAX_LOSSES: Final = 3
"""How many containers a call may lose: Modal itself would run it again without end."""

CULPRIT = "the container was lost each of the {} times that it ran the tool, also when it ran nothing else"
TOO_LATE = "Modal has ended the call at the time-out of its function"
NO_CONTACT = "the containers lost contact with the plan"


class WorkerDiedError(FullsendError):
    """The containers that ran the call were lost, and it is not run again."""


class ContainerUnavailableError(FullsendError):
    """Modal has no container for the call."""


class CallCancelledError(Exception):
    """The call was cancelled."""


class GivenUpError(Exception):
    """The call has no result by no fault of its own; it is sent again."""


class PendingCall:
    """A call without a result yet.

    Attributes:
        token: of the call of the function that is under way for it.
        permit: names the only permit to begin of a call that must not be repeated.
        begins: how often the tool has begun.
        losses: how many containers were lost that ran it.
        is_running: whether a container runs it, as far as is known.
        is_alone: whether it runs without others beside it.
        is_ended: set when a container says that it has ended.
        is_lost: set when it is to be sent again, or no more, because its container was lost.
        is_unavailable: set when it has waited too long for a container.
    """

    def __init__(self, call: Execution, report: Report | None, cancel: asyncio.Event | None) -> None:
        self.call = call
        self.cancel = cancel or asyncio.Event()
        self.permit = secrets.token_hex(16) if call.options.policy.on_worker_death == "fail" else ""
        self.begins = self.losses = 0
        self.is_alone = False
        self.is_unavailable = asyncio.Event()
        self._report = report
        self.start()

    def lost_attempts(self, status: Status) -> int:
        """How many attempts ended with their container, if the call ends with this status."""
        return max(self.losses, self.begins > 0) if status is Status.LOST else self.losses

    def start(self) -> None:
        """Begin another call of the function for it."""
        self.token = secrets.token_hex(16)
        self.is_running = False
        self.is_ended, self.is_lost = asyncio.Event(), asyncio.Event()

    def hear(self, what: str, text: str) -> None:
        """Take note of what its container says."""
        if what == BEGUN:
            self.begins += 1
            self.losses += self.is_running
            if self.is_running and (not self.is_alone or self.losses >= MAX_LOSSES):
                self.is_lost.set()
            self.is_running = True
        elif what == ENDED:
            self.is_running = False
            self.is_ended.set()
        elif self._report is not None:
            try:
                self._report(event_of(text))
            except Exception:  # whoever listens must not cost the call its result
                log.exception("report.failed", run_id=self.call.options.run_id)

    def lose(self) -> None:
        """Take note that its container was lost.  Raises `WorkerDiedError` if it is not sent again."""
        if self.losses >= MAX_LOSSES:
            raise WorkerDiedError(CULPRIT.format(self.losses))
        self.is_alone = True  # all calls of a container are lost with it; one of them may be the cause


async def result_from(
    called: "modal.FunctionCall[bytes]", one: PendingCall, polls: asyncio.Semaphore, poll_seconds: float
) -> bytes:
    """Ask Modal for a result, when a container says that there is one, and now and then.

    Each request is short, so that thousands of calls may wait on one connection.

    Raises:
        ToolTimeoutError: Modal has ended the call at the time-out of the function.
        GivenUpError: Modal has given the call up.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll_seconds):
                await one.is_ended.wait()
        try:
            async with polls:
                answer = await called.get.aio(timeout=poll_seconds if one.is_ended.is_set() else 0)
        except TimeoutError:
            one.is_ended.clear()  # said before, but then the container was lost
            continue
        except UNREACHABLE as exc:
            log.warning("modal.unavailable", error=first_line(exc))
            await asyncio.sleep(poll_seconds)
            continue
        except modal.exception.FunctionTimeoutError:
            raise ToolTimeoutError(TOO_LATE) from None
        except Exception as exc:  # whatever the function has raised in its container
            raise GivenUpError(first_line(exc)) from None
        if answer == ABANDONED:
            one.losses += 1
            raise GivenUpError(NO_CONTACT)
        return answer


async def end(called: "modal.FunctionCall[bytes]", result: asyncio.Task[bytes]) -> None:
    """Have Modal end a call, and wait for that: a request for a result must not be cancelled."""
    with contextlib.suppress(*FAULTS):
        await called.cancel.aio()
    await asyncio.wait([result], timeout=CANCEL_SECONDS)
    result.cancel()


async def drop(spawning: "asyncio.Task[modal.FunctionCall[bytes]]") -> None:
    """Have Modal end a call that is just being sent."""
    await asyncio.wait([spawning], timeout=CANCEL_SECONDS)
    if spawning.done() and spawning.exception() is None:
        with contextlib.suppress(*FAULTS):
            await spawning.result().cancel.aio()
    spawning.cancel()


def fetch(sha256: str, source: Blobs, target: Blobs) -> None:
    """Copy a content from the volume, verified by its digest; wait while Modal can't be reached.

    Raises:
        ArtifactError: it can't be read for long, is corrupt, or can't be stored.
    """
    content = _RETRYING(source.read, sha256)
    target.put(content, expected_sha256=sha256)


def _may_pass(fault: BaseException) -> bool:
    """Whether what is read from a volume may be readable later: nothing is wrong with it."""
    return isinstance(fault, ArtifactError) and not isinstance(
        fault, ArtifactCorruptError | ArtifactNotFoundError
    )


_RETRYING: Final = Retrying(
    retry=retry_if_exception(_may_pass),
    stop=stop_after_delay(FETCH_SECONDS),
    wait=wait_exponential(max=10),
    reraise=True,
)
