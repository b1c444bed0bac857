"""A server that has forgotten the scripts, or was restarted, works like any other."""

from typing import Any

from services.executor.store import Finished
from shared.connection import connect
from tests.service.trouble import Server
from tests.store.conftest import Ear, Worker, orders, publish, state_of, store_on


async def test_forgotten_scripts_are_sent_again(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "string")
    await redis.script_flush()
    run = await worker.begun()
    await redis.script_flush()
    await run.requeue()
    await redis.script_flush()
    again = await worker.begun()
    await redis.script_flush()
    assert await again.finish() is Finished.FINISHED
    await redis.script_flush()
    assert await again.finish() is Finished.DONE

    assert (await ear.names()).count("completed") == 1


async def test_a_run_survives_a_power_cut_of_the_server(own_server: Server) -> None:
    await own_server.start()
    async with store_on(own_server.url) as store:
        await store.queue.create_group()
        client: Any = connect(own_server.url)
        await publish(client, "string")
        worker = Worker(store)
        run = await worker.begun()
        waiting = await worker.queued()
        own_server.kill()
        await own_server.start()

        assert await run.finish() is Finished.FINISHED
        assert await state_of(client) == "run"
        assert (await worker.claim()).entry == waiting
        assert len(await orders(client)) == 1
        await client.aclose()
