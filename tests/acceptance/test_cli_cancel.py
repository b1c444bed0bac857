"""`fullsend cancel`."""

from services.executor.store import Order, Store
from tests.acceptance.commands import Shell
from tests.conftest import Neighbour, Serve, Tools


async def test_a_running_run_is_ended(shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools) -> None:
    tools("wait", "import time\ndef wait(): time.sleep(60)\n")
    await neighbour.publish("exp_1", "wait")
    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        [started] = await neighbour.events("exp_1", "run_started")
        done = await shell.fullsend("cancel", started["run_id"])
        again = await shell.fullsend("cancel", started["run_id"])

    assert done.lines == [f"{started['run_id']} is cancelled"]
    assert (again.code, again.lines) == (0, done.lines)
    assert (await neighbour.record(started["run_id"]))["status"] == "cancelled"


async def test_a_queued_run_is_cancelled_at_once(shell: Shell, neighbour: Neighbour, store: Store) -> None:
    timestamp = await store.queue.enqueue(Order("exp_1", trigger="trigger"))

    done = await shell.fullsend("cancel", f"exp_1:{timestamp}")

    assert done.lines == [f"exp_1:{timestamp} is cancelled"]
    assert (await neighbour.result("exp_1"))["status"] == "cancelled"


async def test_an_ended_run_cant_be_cancelled(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("quick", "def quick(): return 1\n")
    await neighbour.publish("exp_1", "quick")
    async with serve():
        run_id = (await neighbour.run("exp_1"))["run_id"]
        done = await shell.fullsend("cancel", run_id)

    assert done.error == f"error: {run_id} is already completed"


async def test_an_unknown_run_cant_be_cancelled(shell: Shell, store: Store) -> None:
    done = await shell.fullsend("cancel", "exp_1:1-0")

    assert done.error.startswith("error: there is no run 'exp_1:1-0'")
