"""Triggers runs as another service does, and receives the result messages."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from benchmarks.peers.figures import percentile
from benchmarks.scale.curve import Figures
from benchmarks.scale.ground import EXPERIMENT, Ground, ScaleError
from shared import keys
from shared.connection import connect_blocking

ANSWER_SECONDS = 60.0


class Neighbour:
    """Publishes triggers and receives results.  Run numbers continue those that `on` has queued."""

    def __init__(self, on: Ground, heard: Any) -> None:
        self._on = on
        self._heard = heard
        self._published_ns: dict[int, int] = {}
        self.seconds: dict[int, float] = {}
        """The duration of each run by its number, as the executor reports it."""

    async def publish(self, experiment: int, size: int = 0) -> int:
        """Trigger one run; the message is padded to `size` bytes."""
        number = self._on.queued
        self._on.queued += 1
        text = _message(experiment, number, {})
        if size > len(text):
            padding = size - len(_message(experiment, number, {"data": ""}))
            text = _message(experiment, number, {"data": "x" * max(0, padding)})
        self._published_ns[number] = time.time_ns()
        if not await self._on.redis.publish(keys.EXECUTE_NOW, text):
            raise ScaleError("there is no subscriber")
        return number

    async def hear(self) -> None:
        """Wait for the next result.  Raises `ScaleError` if the run has failed."""
        said = await self._heard.get_message(ignore_subscribe_messages=True, timeout=ANSWER_SECONDS)
        if said is None:
            raise ScaleError(f"no result in {ANSWER_SECONDS:g} s")
        result = json.loads(said["data"])
        if result["type"] != "experiment_completed":
            raise ScaleError(f"a run failed: {result}")
        self.seconds[int(result["request_id"])] = result["duration"]

    async def ask(self, count: int, experiments: int = 1, size: int = 0) -> Figures:
        """Run `count` runs, one at a time; times from PUBLISH to the tool's first line, and durations."""
        numbers = []
        for turn in range(count):
            numbers.append(await self.publish(turn % experiments, size))
            await self.hear()
        started = dict(self._on.notes.lines())
        late = [(started[one] - self._published_ns[one]) / 1e6 for one in numbers]
        return {
            "to_start_p50_ms": percentile(late, 50),
            "run_p50_ms": percentile([self.seconds[one] * 1e3 for one in numbers], 50),
        }

    async def burst(self, count: int, at_once: int, size: int = 0) -> None:
        """Run `count` runs, at most `at_once` at the same time."""
        begun, until = len(self.seconds), len(self.seconds) + count
        published = begun
        while len(self.seconds) < until:
            while published < until and published - len(self.seconds) < at_once:
                await self.publish(0, size)
                published += 1
            await self.hear()


@contextlib.asynccontextmanager
async def neighbour(on: Ground) -> AsyncIterator[Neighbour]:
    """A neighbour that receives all results from now on."""
    async with connect_blocking(on.url) as patient, patient.pubsub() as heard:
        await heard.subscribe(keys.RESULTS)
        await heard.get_message(timeout=ANSWER_SECONDS)
        yield Neighbour(on, heard)


def _message(experiment: int, number: int, params: Mapping[str, str]) -> str:
    return json.dumps(
        {
            "experiment_id": f"{EXPERIMENT}{experiment}",
            "request_id": str(number),
            "params": {"number": number, **params},
        },
        separators=(",", ":"),
    )
