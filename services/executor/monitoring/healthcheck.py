"""Checks that a worker of this host has a live heartbeat in Redis.

A container has its own host name, so inside a container this checks the container's worker:

    python -m services.executor.monitoring.healthcheck
"""

import asyncio
import socket
import sys

from services.executor import config
from services.executor.isolation.common.kernel import set_dumpable
from services.executor.store import Workers
from services.executor.store.scripts import Scripts
from shared.connection import connect, running_server
from shared.documents import visible
from shared.errors import FullsendError

TIMEOUT_SECONDS = 4.0
"""Less than the usual time-outs of health checks, so that the reason is printed before those end it."""


def main(timeout_seconds: float = TIMEOUT_SECONDS) -> int:
    """Print one line; return 0 if a worker of this host has a live heartbeat, otherwise 1.

    Args:
        timeout_seconds: how long Redis may take to answer.
    """
    set_dumpable(False)  # it knows how to reach Redis, and tools run beside it
    try:
        url = running_server(config.load().redis_url)
        alive = asyncio.run(_alive(url, timeout_seconds))
    except TimeoutError:
        print(f"unhealthy: Redis does not answer within {timeout_seconds:g} s")
        return 1
    except FullsendError as exc:
        print("unhealthy:", visible("; ".join(str(exc).splitlines())))
        return 1
    return _verdict(alive, socket.gethostname())


def _verdict(alive: list[str], host: str) -> int:
    own = [worker for worker in alive if _host(worker) == host]
    if own:
        print("healthy:", ", ".join(own), "alive")
        return 0
    print(f"unhealthy: no worker on {host} has a live heartbeat; {len(alive)} alive elsewhere")
    return 1


def _host(worker: str) -> str:
    """Return the host in a worker's name, `{host}-{process id}-{random}`; hosts may contain dashes."""
    return worker.rsplit("-", 2)[0]


async def _alive(url: str, timeout_seconds: float) -> list[str]:
    client = connect(url, connections=1)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await Workers(Scripts(client)).alive()
    finally:
        await client.aclose()


if __name__ == "__main__":
    sys.exit(main())
