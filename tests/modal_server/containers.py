"""Containers: processes of Modal's own container runtime, started while inputs wait."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import grpclib.server
from grpclib.events import RecvRequest, listen
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_pb2 as pb

from tests.modal_server.function_calls import MAX_DEATHS, FunctionCalls, Input, Result, cancelled
from tests.modal_server.procedures import CONTAINER, Metadata, procedure

HEARTBEAT_SECONDS = 2.0
MAX_CONTAINERS = 4
"""More are started only if the others have inputs."""


class Container:
    """One container.

    Attributes:
        door: the port that only this container uses, since it doesn't say who it is.
        cancelled: ids of inputs that are to be cancelled.
    """

    def __init__(self, container_id: str, function_id: str) -> None:
        self.id = container_id
        self.function_id = function_id
        self.inputs: dict[str, Input] = {}
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.process: asyncio.subprocess.Process | None = None
        self.door: grpclib.server.Server | None = None

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


class Containers(FunctionCalls):
    """Runs containers.

    Args:
        folder: for their arguments and logs.

    Attributes:
        containers: those that run, by id.
        are_available: whether containers are started.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.containers: dict[str, Container] = {}
        self.are_available = True
        self._watchers: set[asyncio.Task[None]] = set()

    # -- processes -----------------------------------------------------------------------

    async def scale(self, function_id: str) -> None:
        """Start a container if inputs wait and there may be one more."""
        function = self.functions[function_id][1]
        running = [one for one in self.containers.values() if one.function_id == function_id]
        most = function.autoscaler_settings.max_containers or function.concurrency_limit or 2
        wanted = -(-self.waiting[function_id].qsize() // max(1, function.max_concurrent_inputs))
        idle = sum(not one.inputs for one in running)
        if self.are_available and wanted > idle and len(running) < most:
            await self._start(Container(self.new_id("ta"), function_id))

    async def _start(self, container: Container) -> None:
        app_id, function = self.functions[container.function_id]
        idle = [
            one
            for one in self.containers.values()
            if not one.inputs and one.function_id != container.function_id
        ]
        if idle and len(self.containers) >= MAX_CONTAINERS:
            idle[0].kill()
        self.containers[container.id] = container
        arguments = pb.ContainerArguments(
            task_id=container.id,
            function_id=container.function_id,
            app_id=app_id,
            function_def=function,
            app_layout=pb.AppLayout(
                function_ids={function.function_name: container.function_id},
                objects=self.parts_of(container.function_id),
            ),
        )
        file = self.folder / f"{container.id}.arguments"
        file.write_bytes(arguments.SerializeToString())
        url = await self._open_door(container)
        image = self.variables_of(function.image_id)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        environ = {
            **inherited,
            **image,
            **{name: one for secret in function.secret_ids for name, one in self.secrets[secret].items()},
            "MODAL_SERVER_URL": url,
            "MODAL_TASK_ID": container.id,
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(file),
            "MODAL_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
            "MODAL_CONFIG_PATH": str(self.folder / "none.toml"),
        }
        with (self.folder / f"{container.id}.log").open("wb") as log:
            container.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "modal._container_entrypoint",
                cwd=self.folder, env=environ, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        watcher = asyncio.create_task(self._watch(container, container.process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _open_door(self, container: Container) -> str:
        container.door = grpclib.server.Server([self], status_details_codec=custom_detail_codec)

        async def mark(event: RecvRequest) -> None:
            event.metadata[CONTAINER] = container.id

        listen(container.door, RecvRequest, mark)
        await container.door.start("127.0.0.1", 0)
        return url_of(container.door)

    async def _watch(self, container: Container, process: asyncio.subprocess.Process) -> None:
        """Decide what becomes of the inputs of a container that has ended."""
        status = await process.wait()
        if container.door is not None:
            container.door.close()
            await container.door.wait_closed()
        del self.containers[container.id]
        for one in list(container.inputs.values()):
            if one.call.is_cancelled:
                await self.finish(one, cancelled())
            elif one.is_late:
                seconds = self.functions[container.function_id][1].timeout_secs
                problem = f"Task's current input {one.id} hit its timeout of {seconds}s"
                await self.finish(one, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=problem))
            elif one.deaths < MAX_DEATHS:
                one.deaths += 1
                await self.enqueue(one)
            else:
                problem = f"container ended with {status}"
                await self.finish(
                    one, Result(status=Result.GENERIC_STATUS_INTERNAL_FAILURE, exception=problem)
                )
        await self.scale(container.function_id)

    async def end_input(self, one: Input, terminate: bool) -> None:
        container = self.containers[one.container]
        if terminate:
            container.kill()
        else:
            container.cancelled.put_nowait(one.id)

    def stop_app(self, app_id: str) -> None:
        for one in self.containers.values():
            if self.functions[one.function_id][0] == app_id:
                one.kill()

    async def stop_containers(self) -> None:
        """End all containers."""
        self.are_available = False
        for one in list(self.containers.values()):
            one.kill()
        await asyncio.gather(*self._watchers)

    # -- what containers call --------------------------------------------------------------

    def _caller(self, metadata: Metadata) -> Container:
        return self.containers[metadata[CONTAINER]]

    @procedure
    def ContainerHello(self, request: Any, metadata: Metadata) -> None:
        return None

    @procedure
    async def ContainerHeartbeat(self, request: Any, metadata: Metadata) -> pb.ContainerHeartbeatResponse:
        container = self._caller(metadata)
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                ids = [await container.cancelled.get()]
        except TimeoutError:
            return pb.ContainerHeartbeatResponse()
        while not container.cancelled.empty():
            ids.append(container.cancelled.get_nowait())
        return pb.ContainerHeartbeatResponse(cancel_input_event=pb.CancelInputEvent(input_ids=ids))

    @procedure
    async def FunctionGetInputs(self, request: Any, metadata: Metadata) -> pb.FunctionGetInputsResponse:
        container = self._caller(metadata)
        one = await self._next_input(container.function_id)
        if one is None:
            return pb.FunctionGetInputsResponse(inputs=[])
        one.container, one.started = container.id, time.time()
        container.inputs[one.id] = one
        seconds = self.functions[container.function_id][1].timeout_secs
        asyncio.get_running_loop().call_later(seconds, self._end_late, container, one, one.started)
        item = pb.FunctionGetInputsItem(input_id=one.id, input=one.item, function_call_id=one.call.id)
        return pb.FunctionGetInputsResponse(inputs=[item])

    async def _next_input(self, function_id: str) -> Input | None:
        try:
            async with asyncio.timeout(5):
                while True:
                    one = await self.waiting[function_id].get()
                    if one.output is None:
                        return one
        except TimeoutError:
            return None

    def _end_late(self, container: Container, one: Input, started: float) -> None:
        if one.id in container.inputs and one.started == started:
            one.is_late = True
            container.kill()

    @procedure
    async def FunctionPutOutputs(self, request: Any, metadata: Metadata) -> None:
        for output in request.outputs:
            one = self.inputs[output.input_id]
            for container in self.containers.values():
                container.inputs.pop(one.id, None)
            await self.finish(one, output.result, output.data_format)

    @procedure
    def FunctionGetDynamicConcurrency(
        self, request: Any, metadata: Metadata
    ) -> pb.FunctionGetDynamicConcurrencyResponse:
        return pb.FunctionGetDynamicConcurrencyResponse(concurrency=request.max_concurrency)

    @procedure
    def TaskResult(self, request: Any, metadata: Metadata) -> None:
        return None

    @procedure
    def ContainerStop(self, request: Any, metadata: Metadata) -> None:
        return None


def url_of(server: grpclib.server.Server) -> str:
    """Return the address of a server on this machine."""
    listening: Any = server._server
    return f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
