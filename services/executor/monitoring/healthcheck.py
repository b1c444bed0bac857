"""Whether the worker on this host lives: asks for its heartbeat in Redis, not only whether Python runs.

A container has a host name of its own, so in one this is the container's worker:

    python -m services.executor.monitoring.healthcheck
"""

import asyncio
import socket
import sys

from services.executor import config
from services.executor.store import Workers
from services.executor.store.scripts import Scripts
from shared.connection import connect, running_server
from shared.errors import FullsendError

PATIENCE_SECONDS = 4.0
"""Less than any sensible time-out of whoever asks, so that the reason is told before that."""


def main() -> int:
    """Print one line; 0 when a worker of this host has a live heartbeat, otherwise 1."""
    try:
        url = running_server(config.load().redis_url)
        alive = asyncio.run(_alive(url))
    except TimeoutError:
        print(f"unhealthy: Redis does not answer within {PATIENCE_SECONDS:g} s")
        return 1
    except FullsendError as exc:
        print("unhealthy:", "; ".join(str(exc).splitlines()))
        return 1
    return _judge(alive, socket.gethostname())


def _judge(alive: list[str], host: str) -> int:
    own = [worker for worker in alive if _host(worker) == host]
    if own:
        print("healthy:", ", ".join(own), "alive")
        return 0
    print(f"unhealthy: no worker on {host} has a live heartbeat; {len(alive)} alive elsewhere")
    return 1


def _host(worker: str) -> str:
    """Where a worker runs: `{host}-{process id}-{random}` without the last two, as hosts may have dashes."""
    return worker.rsplit("-", 2)[0]


async def _alive(url: str) -> list[str]:
    client = connect(url, connections=1)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await Workers(Scripts(client)).alive()
    finally:
        await client.aclose()


if __name__ == "__main__":
    sys.exit(main())
