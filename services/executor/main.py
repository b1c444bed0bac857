"""Start the service: `python -m services.executor.main`."""

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import structlog
import uvloop

from services.executor import config
from services.executor.isolation.common.kernel import set_dumpable
from services.executor.service import Service
from shared import log as logs
from shared.connection import server
from shared.documents import visible
from shared.errors import FullsendError, SettingsError

log = structlog.get_logger()

COLLECTED_OBJECTS = 50_000
"""The collector of garbage looks when there are so many more objects than at its last look."""
SECOND_SIGNAL_EXIT_CODE = 130
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Run the service until SIGTERM or SIGINT, and return the exit code."""
    set_dumpable(False)  # before Redis is waited for: tools of another service may run already
    argparse.ArgumentParser(
        prog="python -m services.executor.main",
        description="Runs experiments. Settings come from the environment, .env and config/schedule.yaml.",
    ).parse_args()
    logs.configure()
    try:
        settings = config.load()
    except SettingsError as exc:
        print(visible(str(exc)), file=sys.stderr)
        return 2
    logs.configure(level=settings.log_level, for_good=True)
    try:
        return serve(settings, os.environ)
    except FullsendError as exc:
        print(visible(f"error: {exc}"), file=sys.stderr)
        return 1


def serve(settings: config.Settings, variables: Mapping[str, str]) -> int:
    """Run the service until SIGTERM or SIGINT, and return the exit code.

    Args:
        settings: the settings; for `embedded`, the server runs as long as the service.
        variables: the environment, from which tools get the variables that they may see.

    Raises:
        FullsendError: the service can't start.
    """
    received: list[int] = []  # before the loop handles signals: they must not leave an embedded server behind
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    # A full collection that looks at all that was imported delays all runs by 35 ms; now by 0.5 ms.
    gc.freeze()
    # Runs leave no cycles behind.  With the default, 700, collections take a tenth of a burst's time.
    gc.set_threshold(COLLECTED_OBJECTS)
    with server(settings.redis_url) as url, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, url, variables, received))
    return 0


async def _run(
    settings: config.Settings, url: str, variables: Mapping[str, str], received: Sequence[int]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("service.aborted", signal=number.name)
            os._exit(SECOND_SIGNAL_EXIT_CODE)
        log.info("signal.received", signal=number.name, hint="a second signal stops the service at once")
        stop.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    for early in received:
        on_signal(signal.Signals(early))
    await Service(settings, url, variables).run(stop)


if __name__ == "__main__":
    sys.exit(main())
