"""Executing in this process: a pool of its own, over the tools and the store that the settings name."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uv

from services.executor.artifacts import Keeper, open_blobs
from services.executor.bundles import Bundles
from services.executor.config import Settings
from services.executor.isolation.environment import Environments
from services.executor.isolation.pool import Pool
from services.executor.loader import Loader
from services.executor.needs import passed_to_every_tool
from services.executor.policy import Defaults
from services.executor.service import defaults


@dataclass(frozen=True, slots=True)
class Parts:
    """What an executor or an aggregator in this process is made of."""

    loader: Loader
    pool: Pool
    keeper: Keeper
    defaults: Defaults


@contextlib.asynccontextmanager
async def parts(settings: Settings) -> AsyncIterator[Parts]:
    """The parts, their pool running until the end of the block."""
    pool = Pool(
        capacity=settings.concurrency,
        environ=passed_to_every_tool(os.environ),
        readable=settings.sandbox_readable,
    )
    environments = Environments(settings.environments_path, uv=Path(uv.find_uv_bin()), environ=os.environ)
    blobs = open_blobs(settings.artifacts)
    kept = Bundles(blobs, settings.bundles_path)
    loader = Loader(settings.tools_path, pool, environments, kept, settings.sandbox)
    keeper = Keeper(blobs, settings.inline_artifact_max_bytes)
    await pool.start()
    try:
        yield Parts(loader, pool, keeper, defaults(settings, os.environ))
    finally:
        await pool.stop()
