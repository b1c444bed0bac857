"""Notices schedules that are written without a message on `fullsend:schedules`.

The server tells of them by keyspace notifications, if it is configured to; a key is written to find that out.
Otherwise, the names of all keys are looked through in small portions, which shows schedules with new keys.
"""

import asyncio
import contextlib
import secrets
from enum import StrEnum

import structlog

from services.executor.scheduling.schedule_notes import NOTED_AT_ONCE, ScheduleNotes
from services.executor.scheduling.speedrun import PASS_SECONDS, POLL_SECONDS, POLLED_KEYS
from services.executor.store import Store
from shared import keys
from shared.backoff import Outage, until_available
from shared.errors import StoreError

log = structlog.get_logger()

PROBE_SECONDS = 10.0
HEARD_WITHIN_SECONDS = 1.0
TOLD_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 1.0
WRITTEN = ("set", "hset")


class Noticing(StrEnum):
    """How a worker notices schedules that are written without a message."""

    UNKNOWN = "unknown"
    NOTIFICATIONS = "notifications"
    POLL = "poll"


class ScheduleWatch:
    """Has the schedules noted that are written in silence.

    Args:
        store: where schedules are.
        notes: notes them.
        worker: the worker that this is told of, for `fullsend doctor`; "" tells nobody.
    """

    def __init__(self, store: Store, notes: ScheduleNotes, worker: str = "") -> None:
        self._store = store
        self._notes = notes
        self._worker = worker
        self._probe = keys.probe(secrets.token_hex(8))
        self._noticing = Noticing.UNKNOWN
        self._is_subscribed = False
        self._subscribed = asyncio.Event()
        self._polls = asyncio.Event()
        self._answers: set[str] = set()
        self._answered = asyncio.Event()
        self._written: dict[str, None] = {}
        self._some_written = asyncio.Event()

    @property
    def patterns(self) -> tuple[str, ...]:
        """The keys whose notifications are to be passed to `heard`."""
        return keys.SCHEDULE_PATTERN, f"{self._probe}:*"

    def subscribed(self, hears_keys: bool) -> None:
        """There is a new subscription; `hears_keys` is False if the server doesn't allow the patterns."""
        self._is_subscribed = hears_keys
        self._subscribed.set()

    def heard(self, key: str, event: str) -> None:
        """A notification says what has happened to a key."""
        if key.startswith(self._probe):
            if event in WRITTEN:  # a server may tell only of keys that expire
                self._answers.add(key)
                self._answered.set()
        else:
            self._note_soon(key.removeprefix(keys.schedule("")))

    async def run(self) -> None:
        """Notice schedules until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._find_out(), name="keyspace notifications")
            tasks.create_task(self._poll(), name="schedule names")
            tasks.create_task(self._note(), name="written schedules")

    # -- which way --------------------------------------------------------------------

    async def _find_out(self) -> None:
        """Find out again and again whether the server tells of keys: its configuration can change."""
        outage = Outage("notifications", LONGEST_PAUSE_SECONDS)
        await self._tell()
        await self._subscribed.wait()
        while True:
            self._subscribed.clear()
            try:
                noticing = Noticing.NOTIFICATIONS if await self._is_told() else Noticing.POLL
                outage.ended()
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                continue
            if noticing is not self._noticing:
                log.info("schedules.watched", by=noticing.value)
            self._noticing = noticing
            self._polls.clear() if noticing is Noticing.NOTIFICATIONS else self._polls.set()
            await self._tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._subscribed.wait()

    async def _is_told(self) -> bool:
        """Whether a notification comes for a string and for a hash that are written."""
        if not self._is_subscribed:
            return False
        self._answers.clear()
        written = await self._store.subscriptions.probe(self._probe)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARD_WITHIN_SECONDS):
                while not self._answers >= written:
                    self._answered.clear()
                    await self._answered.wait()
        return self._answers >= written

    async def _tell(self) -> None:
        if self._worker:
            told = self._noticing.value
            await until_available(
                "cron", lambda: self._store.workers.tell_cron(self._worker, told, TOLD_SECONDS)
            )

    # -- notice, note -----------------------------------------------------------------

    async def _poll(self) -> None:
        """Look through the names of all keys for new schedules, while nobody tells of them."""
        outage = Outage("cron", LONGEST_PAUSE_SECONDS)
        cursor = 0
        while True:
            await self._polls.wait()
            try:
                cursor, found = await self._store.experiments.names(keys.schedule(""), cursor, POLLED_KEYS)
                outage.ended()
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                continue
            if self._notes.is_read:
                for experiment_id in found:
                    if experiment_id not in self._notes.seen:
                        self._note_soon(experiment_id)
            await asyncio.sleep(POLL_SECONDS if cursor else PASS_SECONDS)

    def _note_soon(self, experiment_id: str) -> None:
        self._written[experiment_id] = None
        self._some_written.set()

    async def _note(self) -> None:
        while True:
            await self._some_written.wait()
            some = list(self._written)[:NOTED_AT_ONCE]
            for experiment_id in some:
                del self._written[experiment_id]
            if not self._written:
                self._some_written.clear()
            await until_available("schedule", lambda some=some: self._notes.note_these(some))  # type: ignore[misc]
