"""What a pool grants each of its processes."""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.executor.isolation import sandbox
from services.executor.isolation.calls import Module


@dataclass(frozen=True, slots=True)
class Terms:
    """The same for every process of a pool; `directory` holds their temp directories."""

    environ: Mapping[str, str] = field(default_factory=dict)
    limit_bytes: int = 33_554_432
    log_bytes_per_second: int = 4_194_304
    max_runs: int = 1000
    max_rss_bytes: int | None = None
    grace_seconds: float = 0.25
    directory: Path = Path(tempfile.gettempdir())
    readable: tuple[Path, ...] = ()


def confinement(module: Module, terms: Terms, place: Path) -> sandbox.Confinement | None:
    """What a process that serves `module` may reach; SandboxUnavailableError if it can't be held to that."""
    if module.sandbox is sandbox.Sandbox.OFF:
        return None
    python = module.python or Path(sys.executable)
    return sandbox.of_tool(
        module.sandbox,
        file=module.path,
        python=python,
        temp=place,
        environ=terms.environ,
        environment=python.parent.parent if module.environment else None,
        also=terms.readable,
    )
