"""`fullsend runs`, `show`, `logs` and `watch`."""

import asyncio
import json

from services.executor.store import Order, Store
from tests.acceptance.commands import Shell, interrupted, line_with, row_of
from tests.acceptance.tool_texts import GREET, STUMBLE, WAIT
from tests.conftest import Neighbour, Serve, Tools

# -- runs, show, logs -----------------------------------------------------------------


async def test_runs_lists_the_newest_first_and_can_be_limited_to_an_experiment(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("greet", GREET)
    tools("stumble", STUMBLE)
    await neighbour.publish("exp", "greet", params={"name": "Ada"})
    await neighbour.publish("exp:more", "stumble")
    async with serve():
        first = await neighbour.run("exp")
        other = await neighbour.run("exp:more")
        last = await neighbour.run("exp")

    every, of_one, newest = await asyncio.gather(
        shell.fullsend("runs"),
        shell.fullsend("runs", "exp"),
        shell.fullsend("runs", "--json", "--limit", "1"),
    )

    listed = [line.split("  ")[0] for line in every.lines]
    assert listed == ["RUN", last["run_id"], other["run_id"], first["run_id"]]
    assert [line.split("  ")[0] for line in of_one.lines] == ["RUN", last["run_id"], first["run_id"]]
    row = row_of(every, other["run_id"])
    assert row[1:5] == ["failed", "stumble", "1", "trigger"]
    assert row[-1] == "ValueError: it slipped"
    [record] = json.loads(newest.out)
    assert record["run_id"] == last["run_id"]
    assert record["result_summary"] == {"greeting": "hello Ada", "times": 1}


async def test_runs_lists_queued_runs(shell: Shell, neighbour: Neighbour, store: Store) -> None:
    timestamp = await store.queue.enqueue(Order("exp_1", trigger="trigger"))

    listed = await shell.fullsend("runs")
    shown = await shell.fullsend("show", f"exp_1:{timestamp}")

    assert row_of(listed, f"exp_1:{timestamp}")[1] == "queued"
    assert shown.lines[0] == f"exp_1:{timestamp}  queued"


async def test_show_prints_the_record_of_a_failed_run(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    path = tools("stumble", STUMBLE)
    await neighbour.publish("exp_1", "stumble")
    async with serve():
        result = await neighbour.run("exp_1", triggered_by="a test")

    shown, as_json = await asyncio.gather(
        shell.fullsend("show", result["run_id"]), shell.fullsend("show", result["run_id"], "--json")
    )

    assert shown.lines[0].startswith(f"{result['run_id']}  failed after ")
    for part in (
        "triggered by  a test",
        "  ValueError: it slipped",
        f'File "{path}", line 5, in stumble',
        "Partial results",
        '"id": 2',
    ):
        assert part in shown.out
    record = json.loads(as_json.out)
    assert record["partial_results"] == [{"id": 1}, {"id": 2}]
    assert record["error_type"] == "ValueError"


async def test_show_prints_how_a_killed_run_ended(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    path = tools("wait", WAIT)
    await neighbour.publish("exp_1", "wait", params={"door": "/nowhere/at/all"}, timeout_seconds=0.5)
    async with serve():
        result = await neighbour.run("exp_1")

    shown = await shell.fullsend("show", result["run_id"])

    assert shown.lines[0].startswith(f"{result['run_id']}  timeout after ")
    assert "Stack traces at the end" in shown.out
    assert f'File "{path}"' in shown.out
    assert "signal=SIG" in shown.out


async def test_show_and_logs_of_an_unknown_run_fail(shell: Shell) -> None:
    shown, logged = await asyncio.gather(
        shell.fullsend("show", "exp_1:1-0"), shell.fullsend("logs", "exp_1:1-0")
    )

    assert "there is no run 'exp_1:1-0'" in shown.error
    assert "there is no run 'exp_1:1-0'" in logged.error


async def test_logs_follows_a_run_to_its_end(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("wait", WAIT)
    door = shell.directory / "door"
    await neighbour.publish("exp_1", "wait", params={"door": str(door)})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        run_id = (await neighbour.events("exp_1", "run_started"))[0]["run_id"]
        async with shell.called("logs", run_id, "--follow") as following:
            first = await line_with(following, "waiting")
            door.touch()
            rest, _ = await following.communicate()
    again = await shell.fullsend("logs", run_id, "--times")

    assert first == "waiting\n"
    assert rest == b"done waiting\n"
    assert following.returncode == 0
    assert [line.split()[1:] for line in again.lines] == [
        ["stdout", "waiting"],
        ["stdout", "done", "waiting"],
    ]


# -- watch ----------------------------------------------------------------------------


async def test_watch_shows_entries_and_can_be_continued(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("greet", GREET)
    await neighbour.publish("exp_1", "greet", params={"name": "Ada"})

    async with serve():
        await neighbour.run("exp_1")
        async with shell.called("watch", "--since", "0") as watching:
            past = await line_with(watching, "result", "exp_1:")
            await neighbour.run("exp_1")
            live = await line_with(watching, "result", "exp_1:")
            done = await interrupted(watching)

    assert past != live
    assert "success in" in live
    assert "greeting=hello Ada times=1" in live
    assert done.code == 130
    assert done.err.splitlines()[-1] == f"continue with: fullsend watch --since {live.split()[0]}"
    assert "Traceback" not in done.err


async def test_watch_refuses_a_wrong_cursor(shell: Shell) -> None:
    done = await shell.fullsend("watch", "--since", "yesterday")

    assert "--since 'yesterday' is not a cursor" in done.error
