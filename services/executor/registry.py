"""Keeps `tools:{name}` true to what is in the tools folder."""

import asyncio
import json
from datetime import UTC, datetime

import structlog

from services.executor.isolation.calls import Module
from services.executor.loader import Loader
from services.executor.patience import insist
from services.executor.store import Store
from shared.errors import StoreError, ToolError

log = structlog.get_logger()

LOOK_SECONDS = 5.0
DESCRIBE_TIMEOUT_SECONDS = 30.0


class Registry:
    """Registers the tools that it finds, again when their files change.

    Args:
        store: where they are registered.
        loader: finds and describes them.
    """

    def __init__(self, store: Store, loader: Loader) -> None:
        self._store = store
        self._loader = loader
        self._known: dict[str, str] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            for name in self._loader.names():
                await self._look_at(name)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_at(self, name: str) -> None:
        try:
            module = self._loader.find(name)
        except ToolError:
            return  # gone, or not to be read; a run that wants it is told why
        if self._known.get(name) == module.digest:
            return
        fields = await self._fields(module)
        try:
            await insist("tools", lambda: self._store.experiments.register_tool(name, fields))
        except StoreError as exc:  # somebody else's key; tools are run all the same
            log.warning("tool.not_registered", tool=name, error=str(exc))
        self._known[name] = module.digest

    async def _fields(self, module: Module) -> dict[str, str]:
        fields = {
            "name": module.name,
            "path": str(module.path),
            "digest": module.digest,
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            tool = await self._loader.load(module.name, DESCRIBE_TIMEOUT_SECONDS)
        except ToolError as exc:
            log.warning("tool.refused", tool=module.name, error=str(exc))
            return {**fields, "status": "invalid", "error": str(exc)}
        log.info("tool.registered", tool=module.name, digest=module.digest[:12])
        parameters = json.dumps(tool.description.parameters)
        return {
            **fields,
            "status": "active",
            "description": tool.description.summary,
            "parameters": parameters,
        }
