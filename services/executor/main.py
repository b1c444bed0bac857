"""The door: `python -m services.executor.main`.

It imports next to nothing itself, so that it can say how the rest is imported, and what is begun before.
"""

import gc
import os
import sys
from pathlib import Path
from types import ModuleType

from services.executor.isolation import launch
from services.executor.policy import allowed_environment


def main() -> int:
    """Run the service until SIGTERM or SIGINT; the exit code."""
    if len(sys.argv) > 1:
        _look_at_arguments()
    launch.ahead(Path(sys.executable), allowed_environment(os.environ))
    code: int = load().run()
    return code


def load() -> ModuleType:
    """The service, imported in as little time and memory as can be.

    Meanwhile nothing becomes garbage: to look for it took a sixth of the start.  What is there
    then stays until the end, so later looks, which hold up all runs, are spared it as well.
    """
    gc.disable()
    _import_structlog()
    from services.executor import serving

    gc.freeze()
    gc.enable()
    return serving


def _look_at_arguments() -> None:
    """There are none, so all that comes of it is help, or a refusal."""
    import argparse

    argparse.ArgumentParser(
        prog="python -m services.executor.main",
        description="Runs experiments. Settings come from the environment, .env and config/schedule.yaml.",
    ).parse_args()


def _import_structlog() -> None:
    """Without rich, which it imports where it is installed, for tracebacks that `shared/log.py` writes."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # "not installed", in the import system's words
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


if __name__ == "__main__":
    sys.exit(main())
