"""Settings, log set-up, signals -> `Service.run()`."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import structlog

from services.executor import config
from services.executor.service import Service
from shared import log as logs
from shared.connection import server
from shared.errors import FullsendError, SettingsError

log = structlog.get_logger()

SECOND_SIGNAL_EXIT = 130
ENDING = (signal.SIGTERM, signal.SIGINT)


def run() -> int:
    """Run the service, as the environment and the files say, until SIGTERM or SIGINT; the exit code."""
    logs.configure()
    try:
        settings = config.load()
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return 2
    logs.configure(level=settings.log_level, for_good=True)
    try:
        return serve(settings, os.environ)
    except FullsendError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1


def serve(settings: config.Settings, variables: Mapping[str, str]) -> int:
    """Run the service with `settings`; holds the embedded server if that is asked for."""
    early: list[int] = []  # signals that come before the service takes them must not leave a server behind
    for number in ENDING:
        signal.signal(number, lambda number, _: early.append(number))
    with server(settings.redis_url) as url:
        asyncio.run(_run(settings, url, variables, early))
    return 0


async def _run(
    settings: config.Settings, url: str, variables: Mapping[str, str], early: Sequence[int]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("service.aborted", signal=number.name)
            os._exit(SECOND_SIGNAL_EXIT)
        log.info("signal.received", signal=number.name, hint="a second one ends the service at once")
        stop.set()

    for number in ENDING:
        loop.add_signal_handler(number, on_signal, number)
    for early_number in early:
        on_signal(signal.Signals(early_number))
    await Service(settings, url, variables).run(stop)
