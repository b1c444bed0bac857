"""What the description of a tool depends on, apart from its code."""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from services.executor import isolation
from services.executor.isolation.sandbox import Sandbox
from shared import toolkit

OURS = Path(isolation.__file__).parent


def describer(sandbox: Sandbox, readable: Iterable[Path]) -> str:
    """Stands for who describes tools: another one may say something else of the same code.

    Another one is other code of ours, another Python, other packages beside it, or other confinement.

    Args:
        sandbox: what every tool is kept from.
        readable: what confined tools may read besides their own.
    """
    confinement = [sandbox.value, *map(str, readable)]
    parts = [sys.version, confinement, sorted(_installed()), list(_code())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code() -> Iterator[str]:
    for path in [*sorted(OURS.rglob("*.py")), Path(toolkit.__file__)]:
        yield hashlib.sha256(path.read_bytes()).hexdigest()


def _installed() -> Iterator[str]:
    """Each distribution that can be imported from, by the folder that has its name and version."""
    for entry in dict.fromkeys(sys.path):
        for pattern in ("*.dist-info", "*.egg-info"):
            yield from (path.name for path in Path(entry).glob(pattern)) if entry else ()
