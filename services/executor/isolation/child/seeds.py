"""Seeds the random generators of a run: those that are loaded, and those that the run imports."""

from __future__ import annotations

import os
import sys
from typing import Any

GENERATORS = ("random", "numpy.random")
SEED_BYTES = 32


def seed(value: int | None) -> None:
    """Seed the random generators that are loaded: with `value`, or with new entropy of the system."""
    for name in GENERATORS:
        if name in sys.modules:
            _seed(name, value)


def _seed(name: str, value: int | None) -> None:
    module: Any = sys.modules[name]
    if name == "random":
        # `random` itself fetches 2,500 bytes, which takes as long as half a reset.
        module.seed(int.from_bytes(os.urandom(SEED_BYTES), "big") if value is None else value)
    else:
        module.seed(None if value is None else value % 2**32)


def begin(value: int) -> None:
    """Seed the generators for a run.  Restoring `sys.meta_path` ends the effect on those not loaded yet."""
    seed(value)
    if not all(name in sys.modules for name in GENERATORS):
        sys.meta_path.insert(0, SeedingFinder(value))


class SeedingFinder:
    """Finds the generators as the other finders do, and seeds them once they are imported."""

    def __init__(self, value: int) -> None:
        self._value = value

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Where the module is; None for any other, or if no finder knows."""
        if name not in GENERATORS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._seed_when_executed(name, spec.loader)
                return spec
        return None

    def _seed_when_executed(self, name: str, loader: Any) -> None:
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return  # not an object for this module alone, so it must not be changed

        def exec_module(module: Any) -> None:
            del loader.exec_module
            loader.exec_module(module)
            _seed(name, self._value)

        loader.exec_module = exec_module
