"""Any message of a process is handled or ends that process, and is never a fault of the service."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.executor.isolation.calls import Capture, Module, NothingKept
from services.executor.isolation.common import protocol
from services.executor.isolation.connection import Disconnected, close_all
from services.executor.isolation.parent import ForkRequest, Parent
from services.executor.isolation.process import LoadFailed, Process, ProcessOptions
from services.executor.isolation.rpc import description, raised, returned
from services.executor.isolation.workdir import Workdir

METHODS = [
    "progress", "metrics", "partial", "recall", "record", "keep", "fetch",
    "forked", "exited", "retire", "hello", "call", "",
]  # fmt: skip
NAMES = [
    "done", "total", "message", "metrics", "name", "value", "tags", "item", "key", "number", "size", "sha256",
    "media_type", "reference", "children", "child", "status", "rss", "cpu", "problem", "reason", "run_id",
    "version",
]  # fmt: skip
DEEP = "[" * 900 + "]" * 900
DEPTHS = [*range(100, 900, 100), *range(900, 1000, 5), 2_000]
"""Depending on the depth of the stack, some can't be read, and some can be read but not shown."""

CHILD = 2**40

numbers = st.sampled_from([0, 1, -1, 2**31, 2**63, 2**200, 1e300, -1e308, float("inf"), float("-inf"), 1.5])
texts = st.sampled_from(["", "a", "\0", "\ud800", "a" * 200, "../../x", "1"]) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
params = st.dictionaries(st.sampled_from(NAMES), values, max_size=8) | values
messages = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(METHODS) | values,
        "params": params,
        "id": values,
        "result": values,
        "error": values,
    },
)


def ended(status: Any) -> dict[str, Any]:
    """A parent's report of a child's end."""
    child = {"child": CHILD, "status": status, "rss": 1, "cpu": 1}
    return {"method": "exited", "params": {"children": [child]}}


class ParentOfNone(Parent):
    """Forks nothing, and keeps the other end of the socket."""

    peer = -1

    def fork(self, requests: Sequence[ForkRequest], *, fresh: bool) -> list[int]:
        [request] = requests
        self.peer, *rest = request.descriptors
        close_all(rest)
        return [1]

    def end_child(self, token: int, grace_seconds: float, *, stacks: bool) -> None:
        """There is no child."""


class Keeper(NothingKept):
    """Opens each artifact."""

    async def keep(self, capture: Capture) -> str | None:
        """Open it, as a store would."""
        capture.open().close()
        return None


class Heard:
    """A process that exists as far as the executor can tell, and the effects of what it sends."""

    def __init__(self, directory: Path) -> None:
        self.faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.faults.append(context))
        self.parent = ParentOfNone()
        module = Module("tool", directory / "tool.py", "digest")
        self.process = Process(module, ProcessOptions(directory=directory), Workdir(directory / "1"))
        self.process.start(self.parent)
        self.process.on_forked(os.getpid())
        self.process.attach(lambda event: None, Keeper())
        self.child = Process(module, ProcessOptions(directory=directory), Workdir(directory / "2"))
        self.process.expect(CHILD, self.child)

    async def say(self, text: str) -> None:
        """Have the process send this, and wait until it is handled."""
        payload = text.encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            os.write(self.parent.peer, len(payload).to_bytes(4, "big") + payload)
        for _ in range(5):
            await asyncio.sleep(0)

    def close(self) -> None:
        """The process is over."""
        self.process.on_exited(None, None, None)
        close_all([self.parent.peer])


def said(message: dict[str, Any]) -> str:
    text = json.dumps({"jsonrpc": "2.0", **message})
    return text.replace("-Infinity", "-1e999").replace("Infinity", "1e999")


def request(method: str, members: str, request_id: str = "1") -> str:
    return f'{{"jsonrpc":"2.0","method":"{method}","params":{members},"id":{request_id}}}'


async def _hear(directory: Path, text: str) -> tuple[list[dict[str, Any]], str]:
    heard = Heard(directory)
    await heard.say(text)
    fate = heard.process.fate
    heard.close()
    await asyncio.sleep(0)
    return heard.faults, fate


@given(messages)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    {"method": "keep", "params": {"name": "a", "number": float("inf"), "size": 1, "sha256": ""}, "id": 1}
)
@example({"method": "fetch", "params": {"reference": "x", "number": float("inf")}, "id": 1})
@example({"method": "forked", "params": {"children": [[CHILD, float("inf")]]}})
@example({"method": "forked", "params": {"children": [[float("inf"), 1]]}})
@example({"method": "forked", "params": {"children": [[[], 1]]}})
@example(ended("x"))
@example(ended(2**70))
@example({"method": "exited", "params": {"children": CHILD}})
@example({"method": "recall", "params": {"key": "a"}, "id": float("inf")})
@example({"method": "recall", "params": {"key": "a"}})
def test_any_message_is_handled_or_ends_the_process(
    tmp_path_factory: pytest.TempPathFactory, message: dict[str, Any]
) -> None:
    faults, fate = asyncio.run(_hear(tmp_path_factory.getbasetemp(), said(message)))

    assert faults == []
    assert fate == "" or "it broke the protocol" in fate


NONSENSE = {
    "number too large": request("keep", '{"name":"a","number":1e999,"size":1,"sha256":""}'),
    "size too large": request("keep", '{"name":"a","number":1,"size":1e999,"sha256":""}'),
    "reference": request("fetch", '{"reference":"x","number":1e999}'),
    "pid": request("forked", f'{{"children":[[{CHILD},1e999]]}}'),
    "pid of the first process, which has no parent": request("forked", f'{{"children":[[{CHILD},1]]}}'),
    "pid of itself": request("forked", f'{{"children":[[{CHILD},{os.getpid()}]]}}'),
    "status": request("exited", f'{{"children":[{{"child":{CHILD},"status":[],"rss":1,"cpu":1}}]}}'),
    "no number to be answered by": request("recall", '{"key":"a"}', "1e999"),
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_ends_the_process(tmp_path: Path, kind: str) -> None:
    faults, fate = await _hear(tmp_path, NONSENSE[kind])

    assert faults == []
    assert "it broke the protocol" in fate


async def test_only_a_child_that_is_there_is_known_by_its_process_id(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    child = subprocess.Popen(["sleep", "1000"])
    ids = []
    try:
        await heard.say(request("forked", f'{{"children":[[{CHILD},{child.pid}]]}}'))
        ids.append(heard.child.pid)
    finally:
        child.kill()
        child.wait()
    await heard.say(request("forked", f'{{"children":[[{CHILD},{child.pid}]]}}'))
    ids.append(heard.child.pid)
    fate = heard.process.fate
    heard.close()

    assert (ids, fate) == ([child.pid, 0], "")


NESTED = {
    "key": request("recall", '{"key":DEEP}'),
    "value": request("record", '{"key":"k","value":DEEP}'),
    "item": request("partial", '{"item":DEEP}'),
    "message": request("progress", '{"done":1,"total":1,"message":DEEP}'),
    "number": request("progress", '{"done":DEEP,"total":1,"message":""}'),
    "method": '{"jsonrpc":"2.0","method":DEEP}',
    "id": '{"jsonrpc":"2.0","id":DEEP}',
    "version": request("hello", '{"version":DEEP}'),
    "reason": request("retire", '{"reason":DEEP,"run_id":DEEP}'),
}


@pytest.mark.parametrize("kind", NESTED)
async def test_no_depth_of_nesting_is_a_fault_of_the_service(tmp_path: Path, kind: str) -> None:
    for depth in DEPTHS:
        text = NESTED[kind].replace("DEEP", "[" * depth + "]" * depth)

        faults, fate = await _hear(tmp_path, text)

        assert faults == []
        assert fate == "" or "it broke the protocol" in fate


async def test_an_invalid_report_of_an_end_loses_no_child(tmp_path: Path) -> None:
    heard = Heard(tmp_path)

    await heard.say(NONSENSE["status"])

    assert heard.child.ended.done()
    heard.close()


ANSWERS = {
    "no object": "5",
    "deep": DEEP,
    "deep error": f'{{"code":1,"message":{DEEP},"data":{DEEP}}}',
}


@pytest.mark.parametrize("error", ANSWERS)
@pytest.mark.parametrize("method", ["load", "describe"])
async def test_an_invalid_error_ends_the_process(tmp_path: Path, method: str, error: str) -> None:
    heard = Heard(tmp_path)
    asking = asyncio.ensure_future(getattr(heard.process, method)())
    await asyncio.sleep(0)

    await heard.say(f'{{"jsonrpc":"2.0","id":1,"error":{ANSWERS[error]}}}')

    with pytest.raises(Disconnected):
        await asking
    assert "it broke the protocol" in heard.process.fate
    heard.close()


@given(values | st.dictionaries(st.sampled_from(["name", "entry", "line", "kind", "parameters"]), values))
@example({"name": "a", "entry": "b", "parameters": {}})
@example({"name": "a", "entry": "b", "parameters": {}, "neighbours": 5, "more": 1})
def test_an_invalid_description_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="description"):
        description(value)


async def test_an_invalid_description_ends_the_process(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    describing = asyncio.ensure_future(heard.process.describe())
    await asyncio.sleep(0)

    await heard.say('{"jsonrpc":"2.0","id":1,"result":{"name":"a","entry":"b","parameters":{},"more":1}}')

    with pytest.raises((Disconnected, LoadFailed)):
        await describing
    heard.close()


@given(values, numbers | st.none())
@example([], float("inf"))
def test_an_invalid_exception_is_a_value_error(value: Any, retry_after_seconds: Any) -> None:
    data = {"error_type": "E", "message": "m", "traceback": "", "retryable": True}
    data["retry_after_seconds"] = retry_after_seconds

    for error in ({"code": protocol.RAISED, "data": value}, {"code": protocol.RAISED, "data": data}):
        try:
            answer = raised(error)
        except ValueError:
            continue
        seconds = answer.retry_after_seconds
        assert seconds is None or 0 <= seconds < float("inf")
    try:
        returned(value)
    except ValueError:
        return
