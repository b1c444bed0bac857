"""The artifacts and large results of runs, however the runs ended."""

import asyncio
import base64
import hashlib
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from services.executor.artifacts import LocalBlobs
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.conftest import Work
from tests.service.trouble import Log

INLINE_MAX_BYTES = 64_000


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    """The store of the service under test."""
    return LocalBlobs(tmp_path / "artifacts")


async def artifacts(neighbour: Neighbour, result: dict[str, Any]) -> dict[str, Any]:
    """Return the artifacts in the record of the run of this result."""
    record = await neighbour.record(result["run_id"])
    found: dict[str, Any] = json.loads(record["artifacts"])
    return found


@pytest.mark.parametrize("size", [0, 1, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1])
async def test_an_artifact_is_inline_up_to_the_limit_and_addressed_above_it(
    serve: Serve, neighbour: Neighbour, tools: Tools, blobs: LocalBlobs, size: int
) -> None:
    tools(
        "tool",
        "from shared import toolkit\ndef tool(size): return toolkit.artifact('error', b'x' * size)\n",
    )
    await neighbour.publish("exp_1", "tool", params={"size": size})
    content = b"x" * size
    digest = hashlib.sha256(content).hexdigest()

    async with serve():
        found = await artifacts(neighbour, await neighbour.run("exp_1"))

    reference = found["error"].pop("reference")
    assert found["error"] == {"size_bytes": size, "sha256": digest, "media_type": "application/octet-stream"}
    if size <= INLINE_MAX_BYTES:
        assert base64.b64decode(reference.removeprefix("data:application/octet-stream;base64,")) == content
    else:
        assert reference == f"cas://{digest}"
        assert blobs.read(digest) == content


async def test_the_limit_is_a_setting(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", "from shared import toolkit\ndef tool(): return toolkit.artifact('a.json', b'12')\n")
    await neighbour.publish("exp_1", "tool")

    async with serve(inline_artifact_max_bytes=1):
        found = await artifacts(neighbour, await neighbour.run("exp_1"))

    assert found["a.json"]["reference"].startswith("cas://")
    assert found["a.json"]["media_type"] == "application/json"


ENDINGS = {
    "raises": ("raise ValueError", "failed"),
    "dies": ("os._exit(3)", "failed"),
    "hangs": ("time.sleep(600)", "timeout"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_artifacts_of_a_run_that_fails_are_listed(
    serve: Serve, neighbour: Neighbour, tools: Tools, ending: str
) -> None:
    line, status = ENDINGS[ending]
    tools(
        "tool",
        f"""
        import os, time
        from shared import toolkit
        def tool():
            toolkit.artifact("before.txt", b"kept")
            {line}
        """,
    )
    await neighbour.publish("exp_1", "tool", timeout_seconds=1)

    async with serve():
        result = await neighbour.run("exp_1")
        record = await neighbour.record(result["run_id"])

    assert record["status"] == status
    assert list(json.loads(record["artifacts"])) == ["before.txt"]


async def test_artifacts_of_earlier_attempts_are_listed(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        """
        from shared import toolkit
        def tool():
            attempt = toolkit.run.attempt
            toolkit.artifact(f"of-attempt-{attempt}", b"")
            toolkit.artifact("of-all", str(attempt).encode())
            if attempt == 1: raise ConnectionError
        """,
    )
    await neighbour.publish("exp_1", "tool", backoff_max=0.01, backoff_min=0.01)

    async with serve():
        found = await artifacts(neighbour, await neighbour.run("exp_1"))

    assert list(found) == ["of-all", "of-attempt-1", "of-attempt-2"]
    assert found["of-all"]["reference"] == "data:application/octet-stream;base64,Mg=="


async def test_the_artifacts_of_a_run_that_was_lost_with_its_worker_are_listed(
    work: Work, serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        """
        import time
        from shared import toolkit
        def tool():
            toolkit.artifact("before.txt", b"kept")
            toolkit.progress(1)
            time.sleep(600)
        """,
    )
    await neighbour.publish("exp_1", "tool", on_worker_death="fail")
    async with work() as one:
        await one.said("triggers.listening")
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        one.signal(signal.SIGKILL)
        await one.ended()

    async with serve():
        result = await neighbour.result("exp_1")
        found = await artifacts(neighbour, result)

    assert (result["status"], list(found)) == ("lost", ["before.txt"])


async def test_an_artifact_that_cant_be_kept_is_an_error_that_says_why(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "artifacts").write_text("in the way")
    tools("tool", "from shared import toolkit\ndef tool(): toolkit.artifact('a', bytes(100_000))\n")
    await neighbour.publish("exp_1", "tool", max_attempts=1)

    async with serve():
        result = await neighbour.run("exp_1")

    assert str(tmp_path / "artifacts") in result["error"]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201])
async def test_a_bad_name_is_refused(serve: Serve, neighbour: Neighbour, tools: Tools, name: str) -> None:
    tools("tool", "from shared import toolkit\ndef tool(name): toolkit.artifact(name, b'')\n")
    await neighbour.publish("exp_1", "tool", params={"name": name}, max_attempts=1)

    async with serve():
        result = await neighbour.run("exp_1")

    assert "can't be an artifact's name" in result["error"]


async def test_many_small_artifacts_do_not_fill_redis(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        """
        from shared import toolkit
        def tool():
            for number in range(100): toolkit.artifact(f"{number:03}", bytes([number]) * 64_000)
            for number in range(901): toolkit.artifact(f"{number + 100:03}", b"")
        """,
    )
    await neighbour.publish("exp_1", "tool", max_attempts=1)

    async with serve():
        result = await neighbour.run("exp_1")
        found = await artifacts(neighbour, result)

    inline = [one for one in found.values() if one["reference"].startswith("data:")]
    assert sum(one["size_bytes"] for one in inline) <= 4_000_000
    assert len(found) == 1_000
    assert "a run may have 1,000 artifacts" in result["error"]


# -- results and errors ---------------------------------------------------------------


async def test_a_large_result_goes_to_the_store(
    serve: Serve, neighbour: Neighbour, tools: Tools, blobs: LocalBlobs
) -> None:
    tools("tool", "def tool(n): return {'text': 'x' * n, 'count': 3}\n")
    await neighbour.publish("exp_1", "tool", params={"n": 100_000})

    async with serve():
        result = await neighbour.run("exp_1")
        record = await neighbour.record(result["run_id"])

    kept = json.loads(blobs.read(record["result"].removeprefix("cas://")))
    assert kept == {"text": "x" * 100_000, "count": 3}
    assert json.loads(record["result_summary"])["count"] == 3
    assert result["result_summary"]["count"] == 3


async def test_large_partial_results_and_tracebacks_go_to_the_store(
    serve: Serve, neighbour: Neighbour, tools: Tools, blobs: LocalBlobs
) -> None:
    tools(
        "tool",
        """
        def tool():
            for number in range(20): yield "y" * 10_000
            raise ValueError("z" * 100_000)
        """,
    )
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        record = await neighbour.record(result["run_id"])

    assert json.loads(blobs.read(record["partial_results"].removeprefix("cas://"))) == ["y" * 10_000] * 20
    assert result["partial_results"] == record["partial_results"]
    traceback = blobs.read(record["traceback"].removeprefix("cas://")).decode()
    assert traceback.endswith(f"ValueError: {'z' * 100_000}")
    assert len(record["error"]) < 20_000


COUNTED = """
    import time
    class Final(Exception): retryable = False
    def tool(calls, kind):
        with open(calls, "a") as file: file.write("x")
        if kind == "raises": raise Final("z" * 100_000)
        if kind == "hangs":
            print("y" * 10)
            time.sleep(600)
        return "x" * 100_000
"""


@pytest.mark.parametrize(
    ("kind", "error_type", "status"),
    [
        ("raises", "Final", "failed"),
        ("hangs", "ToolTimeoutError", "timeout"),
    ],
)
async def test_a_store_that_fails_repeats_no_tool_and_changes_no_outcome(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path,
    kind: str, error_type: str, status: str,
) -> None:  # fmt: skip
    (tmp_path / "artifacts").write_text("in the way")
    tools("tool", COUNTED)
    params = {"calls": str(tmp_path / "calls"), "kind": kind}
    await neighbour.publish("exp_1", "tool", params=params, timeout_seconds=1, max_attempts=3)

    async with serve():
        result = await neighbour.run("exp_1")
        record = await neighbour.record(result["run_id"])

    assert (result["error_type"], record["status"]) == (error_type, status)
    assert (tmp_path / "calls").read_text() == "x"
    if kind == "raises":
        assert "the rest could not be stored" in record["traceback"]


async def test_a_result_is_stored_as_soon_as_there_is_room(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, log: Log
) -> None:
    (tmp_path / "artifacts").write_text("in the way")
    tools("tool", "def tool(): return 'x' * 100_000\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await log.said("result.not_stored")
        (tmp_path / "artifacts").unlink()
        result = await neighbour.result("exp_1")

    assert result["status"] == "success"


# -- code -----------------------------------------------------------------------------


async def test_a_package_is_a_tool(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("neighbour", "def neighbour(): return None\n")
    package = tools("x", "").parent / "packaged"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import help\ndef packaged(): return help.answer()\n")
    (package / "help.py").write_text("def answer():\n    from .inner.deep import ANSWER\n    return ANSWER\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "deep.py").write_text("ANSWER = 42\n")
    await neighbour.publish("exp_1", "packaged")

    async with serve():
        results = [await neighbour.run("exp_1")]
        (package / "inner" / "deep.py").write_text("ANSWER = 43\n")
        results.append(await neighbour.run("exp_1"))
        registered = await eventually(lambda: neighbour.redis.hgetall("tools:packaged"), "it")

    assert [one["result_summary"] for one in results] == [{"value": 42}, {"value": 43}]
    assert registered["status"] == "active"


@pytest.mark.parametrize("sandbox", ["off", "files+network"])
async def test_a_bundle_reference_runs_the_code_as_it_was(
    serve: Serve, neighbour: Neighbour, tools: Tools, sandbox: str
) -> None:
    path = tools("tool", "def tool(): return 1\n")
    await neighbour.publish("exp_1", "tool")

    async with serve(sandbox=sandbox):
        first = await neighbour.run("exp_1")
        digest = (await neighbour.record(first["run_id"]))["tool_digest"]
        path.write_text("def tool(): return 2\n")
        await neighbour.publish("exp_2", f"tool@sha256:{digest}")
        pinned = await neighbour.run("exp_2")
        latest = await neighbour.run("exp_1")
        path.unlink()
        await neighbour.publish("exp_3", f"tool@sha256:{digest}")
        gone = await neighbour.run("exp_3")

    values = [one["result_summary"]["value"] for one in (first, pinned, latest, gone)]
    assert values == [1, 1, 2, 1]


async def test_an_unknown_bundle_is_not_found(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", "def tool(): return 1\n")
    await neighbour.publish("exp_1", f"tool@sha256:{'0' * 64}")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["error_type"] == "ToolNotFoundError"
    assert f"Tool 'tool@sha256:{'0' * 64}' not found" in result["error"]


async def test_files_that_a_tool_imports_from_its_folder_belong_to_its_code(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "import beside\ndef tool(): return beside.VALUE\n")
    helper = tools("beside", "VALUE = 1\n")
    await neighbour.publish("exp_1", "tool", cache="true")

    async with serve():
        first = await neighbour.run("exp_1")
        digest = (await neighbour.record(first["run_id"]))["tool_digest"]
        again = await neighbour.run("exp_1")
        helper.write_text("VALUE = 22\n")
        changed = await neighbour.run("exp_1")
        await neighbour.publish("exp_2", f"tool@sha256:{digest}")
        pinned = await neighbour.run("exp_2")

    values = [one["result_summary"]["value"] for one in (first, again, changed, pinned)]
    assert values == [1, 1, 22, 1]
    assert [one.get("cached") for one in (first, again, changed)] == [None, True, None]


async def test_two_tools_with_the_same_code_are_two_tools(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    for name in ("one", "two"):
        package = tools("x", "").parent / name
        package.mkdir()
        (package / "__init__.py").write_text("def run(): return __name__\n")
        await neighbour.publish(f"exp_{name}", name)

    async with serve():
        results = [await neighbour.run(f"exp_{name}") for name in ("one", "two")]

    assert [one["result_summary"]["value"] for one in results] == ["one", "two"]


async def test_a_store_that_does_not_answer_delays_no_run(
    work: Work, neighbour: Neighbour, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        tools("tool", "def tool(): return 1\n")
        await neighbour.publish("exp_1", "tool", timeout_seconds=20)
        async with work(artifacts="s3://bucket/prefix", shutdown_grace=1) as one:
            await one.said("triggers.listening")
            result = await neighbour.run("exp_1")
            one.signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                code = await one.ended()

    assert (result["status"], code) == ("success", 0)
