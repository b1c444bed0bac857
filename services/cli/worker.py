"""`fullsend worker`."""

import os

from services.cli import connection
from services.executor import serving
from shared import log


def worker() -> int:
    """Run the executor here, until Ctrl-C or SIGTERM.

    Without REDIS_URL it brings a server of its own, with its data in .fullsend/, which the other
    commands find from the same directory. Settings come from the environment, .env and
    config/schedule.yaml; `fullsend doctor` lists them.
    """
    settings = connection.settings()
    log.configure(level=settings.log_level, for_good=True)
    return serving.serve(settings, os.environ)
