"""What runs in a Dask worker: the pool of warm isolated processes, opened in the worker's own event loop.

A worker has it from its start (`dask worker --preload services.cli.dask_preload`), and offers the
resource `fullsend`, one for each of its threads.  Calls ask for that resource, so that a worker without
the pool is left alone, and one that was restarted takes calls at once.
"""

import asyncio
import os
import platform
import secrets
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from distributed import Worker, WorkerPlugin, get_worker

from services.executor.artifacts import Keeper, open_blobs
from services.executor.isolation.calls import Event
from services.executor.tools.bundles import Bundle, Bundles, parse
from services.planner.backends.local import LocalBackend
from services.planner.backends.remote import (
    Answer,
    Files,
    RemoteCall,
    Room,
    answer_of,
    event_text,
    lost_result,
    store_for,
)
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.threads import in_thread

RESOURCE: Final = "fullsend"
ASKED: Final = "asked"
BEGUN: Final = "begun"
ENDED: Final = "ended"
REPORTED: Final = "reported"
PERMISSION_SECONDS: Final = 1.0
"""How long one request for a permission waits at the scheduler, which keeps it if nobody waits any more."""
_RELEASED: Final = frozenset({"cancelled", "forgotten", "released"})
"""The states of a task that nobody waits for any more."""


class ToolPlugin(WorkerPlugin):
    """The pool of one worker.

    Args:
        config: its defaults; everything but the environments of tools is kept below the worker's own
            directory, which Dask removes.
    """

    name = RESOURCE

    def __init__(self, config: RuntimeConfig) -> None:
        self._config = config
        self._cancelled: dict[str, asyncio.Event] = {}
        self._codes: dict[str, asyncio.Task[None]] = {}
        self._room = Room()

    async def setup(self, worker: Worker) -> None:
        """Open the pool."""
        self._worker = worker
        self._folder = Path(worker.local_directory) / RESOURCE
        (self._folder / "tools").mkdir(parents=True, exist_ok=True)
        config = replace(
            self._config,
            tools_path=self._folder / "tools",
            artifacts=str(self._folder / "code"),
            bundles_path=self._folder / "bundles",
        )
        self._bundles = Bundles(open_blobs(config.artifacts), config.bundles_path)
        slots = worker.state.nthreads
        self._backend = await LocalBackend(ToolRuntime(config, slots, os.environ), slots).__aenter__()

    async def teardown(self, worker: Worker) -> None:
        """Close the pool; its processes are ended."""
        await self._backend.__aexit__()

    def transition(self, key: Any, start: str, finish: str, **rest: Any) -> None:
        """End the call of a task that Dask has given up: its planner is gone, or another worker has it."""
        if finish in _RELEASED:
            self.cancel(str(key))

    def cancel(self, key: str) -> None:
        """End the call of a task, if it is under way here."""
        if key in self._cancelled:
            self._cancelled[key].set()

    async def perform(self, key: str, call: RemoteCall, code: Files) -> Answer:
        """Call a tool once.

        Args:
            key: of the task.
            call: the call.
            code: of the tool.
        """
        cancel = self._cancelled[key] = asyncio.Event()
        keeper = Keeper(store_for(call), call.inline_max_bytes)
        try:
            async with self._room.place(alone=call.is_alone):
                if not await self._may_begin(call, cancel):
                    return answer_of(lost_result(call), keeper.blobs)
                self._send(call, BEGUN, self._worker.address)
                await self._keep(call.tool, code)
                result = await self._backend.run(
                    call.execution,
                    report=lambda event: self._report(call, event),
                    cancel=cancel,
                    keeper=keeper,
                )
            if call.is_alone:  # the answer may yet be lost with this worker, by the fault of another call
                self._send(call, ENDED, self._worker.address)
            return answer_of(result, keeper.blobs)
        finally:
            del self._cancelled[key]

    async def _may_begin(self, call: RemoteCall, cancel: asyncio.Event) -> bool:
        """Whether the call may begin.  One that must not be repeated asks the planner, which permits it once.

        So the planner knows before the call begins, whatever is lost in between.
        """
        if call.execution.options.policy.on_worker_death != "fail":
            return True
        name = f"{RESOURCE}-{secrets.token_hex(16)}"
        self._send(call, ASKED, name)
        while not cancel.is_set():
            if await self._worker.scheduler.event_wait(name=name, timeout=PERMISSION_SECONDS):
                return True
        return False

    async def _keep(self, reference: str, code: Files) -> None:
        """Keep a tool's code, once in the life of the worker: that waits for a disk."""
        if reference not in self._codes:
            name, _ = parse(reference) or (reference, "")
            keeping = in_thread(self._bundles.keep, Bundle(name, code))
            self._codes[reference] = asyncio.ensure_future(keeping)
        try:
            await asyncio.shield(self._codes[reference])
        except Exception:
            self._codes.pop(reference, None)
            raise

    def _report(self, call: RemoteCall, event: Event) -> None:
        if text := event_text(event):
            self._send(call, REPORTED, text)

    def _send(self, call: RemoteCall, what: str, text: str) -> None:
        self._worker.log_event(call.topic, [call.token, what, text])


# -- called by the planner ------------------------------------------------------------


async def call_tool(key: str, content: bytes, code: Files) -> Answer:
    """Call a tool in the worker that runs this task; arguments as in `ToolPlugin.perform`."""
    return await _plugin(get_worker()).perform(key, RemoteCall.decode(content), code)


def code_of(files: Files) -> Files:
    """Return a tool's code; as a task of its own, each worker gets it once, and it is made again if lost."""
    return files


def cancel_call(key: str, dask_worker: Worker) -> None:
    """End a call on the worker."""
    _plugin(dask_worker).cancel(key)


def versions(dask_worker: Worker | None = None) -> dict[str, str]:
    """Return the versions that must agree between planner and worker, by name."""
    return {
        "fullsend-executor": version("fullsend-executor"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "distributed": version("distributed"),
    }


def _plugin(worker: Worker) -> ToolPlugin:
    plugin = worker.plugins[RESOURCE]
    assert isinstance(plugin, ToolPlugin), "calls ask for the resource that the plugin offers"
    return plugin
