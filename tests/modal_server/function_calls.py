"""Calls of functions: their inputs, the queue of each function, their outputs."""

import asyncio
import contextlib
import time
from collections import defaultdict
from typing import Any

from modal_proto import api_pb2 as pb

from tests.modal_server.deployed_apps import DeployedApps
from tests.modal_server.procedures import Metadata, not_found, procedure

Result = pb.GenericResult
MAX_DEATHS = 20
"""How often an input is queued again after its container was lost; Modal has no limit for deployed apps."""


class Input:
    """One input of a call.

    Attributes:
        container: the id of the container that has it.
        deaths: how often its container was lost.
        is_late: whether its container is ended because of its time limit.
    """

    def __init__(self, call: "Call", item: Any) -> None:
        self.call = call
        self.index: int = item.idx
        self.item: pb.FunctionInput = item.input
        self.id = f"in-{call.id}-{item.idx}"
        self.container = ""
        self.deaths = 0
        self.is_late = False
        self.started = 0.0
        self.output: pb.FunctionGetOutputsItem | None = None


class Call:
    """One call of a function."""

    def __init__(self, call_id: str, function_id: str) -> None:
        self.id = call_id
        self.function_id = function_id
        self.inputs: dict[str, Input] = {}
        self.outputs: list[pb.FunctionGetOutputsItem] = []
        self.changed = asyncio.Condition()
        self.is_cancelled = False


class FunctionCalls(DeployedApps):
    """Queues inputs, and keeps outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self.waiting: dict[str, asyncio.Queue[Input]] = defaultdict(asyncio.Queue)

    async def scale(self, function_id: str) -> None:
        """Start a container if one is needed."""
        raise NotImplementedError

    async def end_input(self, one: Input, terminate: bool) -> None:
        """End an input that a container has."""
        raise NotImplementedError

    async def enqueue(self, one: Input) -> None:
        """Queue an input for the containers of its function."""
        one.container = ""
        self.waiting[one.call.function_id].put_nowait(one)
        await self.scale(one.call.function_id)

    async def finish(self, one: Input, result: Result, data_format: Any = pb.DATA_FORMAT_PICKLE) -> None:
        """Keep the output of an input, the first one."""
        if one.output is not None:
            return
        one.output = pb.FunctionGetOutputsItem(
            result=result,
            idx=one.index,
            input_id=one.id,
            data_format=data_format,
            task_id=one.container,
            input_started_at=one.started,
            output_created_at=time.time(),
        )
        async with one.call.changed:
            one.call.outputs.append(one.output)
            one.call.changed.notify_all()

    # -- what clients call ---------------------------------------------------------------

    @procedure
    async def FunctionMap(self, request: Any, metadata: Metadata) -> pb.FunctionMapResponse:
        call = Call(self.new_id("fc"), request.function_id)
        self.calls[call.id] = call
        items = [await self._add(call, item) for item in request.pipelined_inputs]
        return pb.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=items,
            sync_client_retries_enabled=False,
            max_inputs_outstanding=1000,
        )

    @procedure
    async def FunctionPutInputs(self, request: Any, metadata: Metadata) -> pb.FunctionPutInputsResponse:
        call = self._call(request.function_call_id)
        return pb.FunctionPutInputsResponse(inputs=[await self._add(call, item) for item in request.inputs])

    async def _add(self, call: Call, item: Any) -> pb.FunctionPutInputsResponseItem:
        one = Input(call, item)
        call.inputs[one.id] = self.inputs[one.id] = one
        await self.enqueue(one)
        return pb.FunctionPutInputsResponseItem(idx=one.index, input_id=one.id, input_jwt=one.id)

    @procedure
    async def FunctionGetOutputs(self, request: Any, metadata: Metadata) -> pb.FunctionGetOutputsResponse:
        call = self._call(request.function_call_id)
        after = int((request.last_entry_id or "0").partition("-")[0])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, request.timeout)), call.changed:
                await call.changed.wait_for(lambda: len(call.outputs) > after)
        found = call.outputs[after : after + (request.max_values or 1000)]
        return pb.FunctionGetOutputsResponse(
            outputs=found,
            last_entry_id=f"{after + len(found)}-0",
            num_unfinished_inputs=len(call.inputs) - len(call.outputs),
        )

    @procedure
    async def FunctionCallCancel(self, request: Any, metadata: Metadata) -> None:
        call = self._call(request.function_call_id)
        call.is_cancelled = True
        for one in call.inputs.values():
            if one.output is None and one.container:
                await self.end_input(one, request.terminate_containers)
            else:
                await self.finish(one, cancelled())

    @procedure
    def FunctionGetTimeRangeStats(
        self, request: Any, metadata: Metadata
    ) -> pb.FunctionGetTimeRangeStatsResponse:
        app_id = self.functions[request.function_id][0]
        mine = [one for one in self.inputs.values() if self.functions[one.call.function_id][0] == app_id]
        ended = [one.output.result.status for one in mine if one.output is not None]
        return pb.FunctionGetTimeRangeStatsResponse(
            since=request.since,
            until=request.until,
            input_success_count=ended.count(Result.GENERIC_STATUS_SUCCESS),
            input_failure_count=ended.count(Result.GENERIC_STATUS_FAILURE),
            input_timeout_count=ended.count(Result.GENERIC_STATUS_TIMEOUT),
            input_running_at_end_count=sum(one.output is None and bool(one.container) for one in mine),
        )

    def _call(self, call_id: str) -> Call:
        if call_id not in self.calls:
            raise not_found(f"no call {call_id}")
        return self.calls[call_id]


def cancelled() -> Result:
    """Return the result of a cancelled input."""
    return Result(status=Result.GENERIC_STATUS_TERMINATED, exception="cancelled")
