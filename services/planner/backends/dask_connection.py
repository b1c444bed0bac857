"""The connection to a Dask cluster: which of its workers run tools, and what their calls report."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError

from services.executor.tools.bundles import Bundle
from services.planner.backends.dask_worker import RESOURCE, cancel_call, code_of, versions
from services.planner.backends.remote import Answer
from shared.errors import PlanError

log = structlog.get_logger()

PRELOAD: Final = "services.cli.dask_preload"
CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 3.0
"""How long a cluster may have no worker for tools before the user is told."""
QUEUED: Final = 16
"""Calls that wait in Dask beside those that run, at least: workers need not wait for the next call, and a
cluster that scales by its queue sees that there is work."""

NOBODY = (
    "no worker of the Dask cluster at {address} runs tools{others}; the plan waits for one: start it with "
    "`dask worker {address} --preload " + PRELOAD + "`"
)
SOMEBODY = "a worker of the Dask cluster runs tools; the plan continues"
AWAY = "the Dask scheduler at {address} is unavailable; the plan waits for it"
BACK = "the Dask scheduler is available again; the plan continues"
UNLIKE = "worker {worker} has {name} {theirs}, and this command {ours}; results may differ"

Hear = Callable[[str, str, str], None]
"""Receives the token of a call, what has happened, and its text."""

GONE: Final = (OSError, CommClosedError, TimeoutError)
"""What a request raises when the scheduler can't be reached."""


class GivenUpError(Exception):
    """Dask has given a call up, by no fault of its own; it is sent again."""


async def answer_to(future: Future[Any]) -> Answer:
    """Return the result of a task.

    Raises:
        KilledWorker: the workers that ran it were lost.
        GivenUpError: the scheduler was lost.
    """
    try:
        return await future.result()  # type: ignore[no-any-return]
    except FutureCancelledError as exc:
        raise GivenUpError(str(exc)) from None


class Link:
    """One life of the connection to a scheduler, with what belongs to it.  A new one follows after a loss.

    Args:
        client: is connected.
        hear: receives what calls report.
    """

    def __init__(self, client: Client, hear: Hear) -> None:
        self.client = client
        self.topic = f"{RESOURCE}-{secrets.token_hex(8)}"
        self._hear = hear
        self._codes: dict[str, Future[Any]] = {}
        self._comm = client.scheduler_comm
        client.subscribe_topic(self.topic, self._heard)

    @property
    def is_up(self) -> bool:
        """Whether the connection has not been lost; Dask's client connects again, but then has lost all."""
        return self.client.status == "running" and self.client.scheduler_comm is self._comm

    def code(self, bundle: Bundle) -> Future[Any]:
        """Return the tool's code as a result in the cluster."""
        if bundle.reference not in self._codes:
            self._codes[bundle.reference] = self.client.submit(
                code_of,
                dict(sorted(bundle.files.items())),
                key=f"{RESOURCE}-code-{bundle.name}-{bundle.digest}",
                resources={RESOURCE: 1},
                priority=1,
                pure=False,
            )
        return self._codes[bundle.reference]

    def forget_code(self, bundle: Bundle) -> None:
        """Have the code sent again with the next call: Dask has lost it."""
        self._codes.pop(bundle.reference, None)

    async def cancel(self, key: str, worker: str) -> None:
        """End a call on a worker."""
        with contextlib.suppress(*GONE):
            await self.client.run(cancel_call, key, workers=[worker], on_error="ignore")

    async def permit(self, name: str) -> None:
        """Let the call begin that asks by this name."""
        with contextlib.suppress(*GONE):
            scheduler: Any = self.client.scheduler
            await scheduler.event_set(name=name)

    async def forget_permission(self, name: str) -> None:
        """Have the scheduler forget a permission."""
        with contextlib.suppress(*GONE):
            scheduler: Any = self.client.scheduler
            await scheduler.event_clear(name=name)

    async def give_up(self, future: Future[Any]) -> None:
        """Have Dask drop a task; what runs for it is ended."""
        with contextlib.suppress(*GONE):
            await future.cancel(force=True)

    async def close(self) -> None:
        """Disconnect; Dask gives up all calls that are left."""
        self._codes.clear()
        with contextlib.suppress(*GONE):
            await self.client.close(timeout=CONNECT_SECONDS)

    def _heard(self, event: tuple[float, Any]) -> None:
        token, what, text = event[1]
        self._hear(token, what, text)


class DaskConnection:
    """Keeps a link to the scheduler, and knows the workers that run tools.

    Args:
        address: of the scheduler.
        hear: receives what calls report.
        tell: receives a line for the user when there is no worker or no scheduler, and when that is over.
    """

    def __init__(self, address: str, hear: Hear, tell: Callable[[str], None] | None) -> None:
        self.address = address
        self.slots = 0
        self._hear = hear
        self._tell = tell
        self._link: Link | None = None
        self._is_linked = asyncio.Event()
        self._workers: dict[str, int] = {}
        self._foreign = 0
        self._compared: set[str] = set()
        self._idle_since: float | None = None
        self._is_nobody = False

    @property
    def capacity(self) -> int:
        """How many calls at once make sense now: those that run, and some that wait in Dask."""
        return self.slots + max(self.slots, QUEUED)

    @property
    def nobody(self) -> str:
        """What to say while no worker runs tools."""
        others = f" ({self._foreign} others are left alone)" if self._foreign else ""
        return NOBODY.format(address=self.address, others=others)

    async def open(self) -> None:
        """Connect.  Raises `PlanError` if no scheduler answers."""
        try:
            await self._connect()
        except (*GONE, ValueError) as exc:
            raise PlanError(
                f"no Dask scheduler answers at {self.address}: {exc or type(exc).__name__}; start one with "
                "`dask scheduler`, or give `--dask-scheduler local`"
            ) from None

    async def close(self) -> None:
        """Disconnect."""
        self._is_linked.clear()
        if self._link is not None:
            await self._link.close()
            self._link = None

    @property
    def current(self) -> Link | None:
        """The link to the scheduler; None while it is unavailable."""
        is_up = self._is_linked.is_set() and self._link is not None and self._link.is_up
        return self._link if is_up else None

    async def link(self) -> Link:
        """Return a link to the scheduler; wait while it is unavailable."""
        while (link := self.current) is None:
            self._is_linked.clear()
            await self._is_linked.wait()
        return link

    async def watch(self, seconds: float) -> None:
        """Look at the cluster every `seconds`, and connect again after a loss, until cancelled."""
        while True:
            try:
                if self._link is None or not self._link.is_up:
                    await self._reconnect()
                await self._look()
            except GONE as exc:
                log.warning("scheduler.unavailable", address=self.address, error=str(exc))
            await asyncio.sleep(seconds)

    # -- the scheduler -----------------------------------------------------------------

    async def _connect(self) -> None:
        client = Client(self.address, asynchronous=True, set_as_default=False, timeout=CONNECT_SECONDS)
        try:
            await client
        except BaseException:
            await client.close(timeout=0)
            raise
        self._link = Link(client, self._hear)
        try:
            await self._look()
        except GONE:
            await self.close()
            raise
        self._is_linked.set()

    async def _reconnect(self) -> None:
        self._is_linked.clear()
        self.slots = 0
        if self._link is not None:
            self._say(AWAY.format(address=self.address))
            await self._link.close()
            self._link = None
        await self._connect()
        self._say(BACK)

    # -- its workers -------------------------------------------------------------------

    async def _look(self) -> None:
        """Find the workers that run tools."""
        assert self._link is not None, "it is connected"
        scheduler: Any = self._link.client.scheduler
        identity = await scheduler.identity(n_workers=-1)
        workers: Mapping[str, Mapping[str, Any]] = identity["workers"]
        self._workers = {
            address: int(one["resources"][RESOURCE])
            for address, one in workers.items()
            if one["resources"].get(RESOURCE) and one["status"] == "running"
        }
        self.slots = sum(self._workers.values())
        self._foreign = len(workers) - len(self._workers)
        self._tell_of_workers()
        await self._compare(self._link)

    def _tell_of_workers(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._workers:
            self._idle_since = None
            if self._is_nobody:
                self._is_nobody = False
                self._say(SOMEBODY)
            return
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= SILENCE_SECONDS and not self._is_nobody:
            self._is_nobody = True
            self._say(self.nobody)

    async def _compare(self, link: Link) -> None:
        """Name the differences between versions there and here, once for each worker."""
        fresh = [address for address in self._workers if address not in self._compared]
        if not fresh:
            return
        self._compared.update(fresh)
        found = await link.client.run(versions, workers=fresh, on_error="return")
        for line in version_differences(versions(), found):
            self._say(line)

    def _say(self, line: str) -> None:
        log.warning("cluster.changed", address=self.address, slots=self.slots, note=line)
        if self._tell is not None:
            self._tell(line)


def version_differences(ours: Mapping[str, str], theirs: Mapping[str, Any]) -> list[str]:
    """Return a line for each version of a worker that differs from that of this process.

    Args:
        ours: versions by name.
        theirs: the same by worker; anything else of a worker that could not say them.
    """
    return [
        UNLIKE.format(worker=worker, name=name, theirs=found.get(name), ours=ours[name])
        for worker, found in theirs.items()
        for name in ours
        if isinstance(found, Mapping) and found.get(name) != ours[name]
    ]
