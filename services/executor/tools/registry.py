"""Keeps `tools:{name}` true to what is in the tools folder."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog

from services.executor.isolation.calls import Module
from services.executor.loader import Loader
from services.executor.store import Store
from shared.backoff import until_available
from shared.errors import StoreError, ToolError

log = structlog.get_logger()

LOOK_SECONDS = 5.0
DESCRIBE_TIMEOUT_SECONDS = 30.0
LAYOUT = 1
"""Part of `described_by`: to be raised when the same description is written in other words."""
ACTIVE_FIELDS = {
    "name", "path", "digest", "status", "description", "parameters", "described_by", "updated_at"
}  # fmt: skip


class Registry:
    """Registers the tools that it finds, again when their files change.

    What it finds registered as it would register it itself is left alone: to describe a tool
    takes a process.  Tools that import others beside them, and those with an environment
    of their own, are described at every start: what they are is only known when they are loaded.

    Args:
        store: where they are registered.
        loader: finds and describes them.
        describer: stands for who describes them; called once, in a thread, as it reads many files.
    """

    def __init__(self, store: Store, loader: Loader, describer: Callable[[], str]) -> None:
        self._store = store
        self._loader = loader
        self._describer = describer
        self._described_by = ""
        self._known: dict[str, str] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        self._described_by = f"{LAYOUT}:{await asyncio.to_thread(self._describer)}"
        await self._recognise()
        while True:
            for name in self._loader.names():
                await self._look_at(name)
            await asyncio.sleep(LOOK_SECONDS)

    async def _recognise(self) -> None:
        """Take those as known that are registered as they are."""
        names = self._loader.names()
        try:
            found = await until_available("tools", lambda: self._store.experiments.read_tools(names))
        except StoreError as exc:
            log.warning("tools.not_read", error=str(exc))
            return
        for name, fields in found.items():
            await asyncio.sleep(0)  # each is read from the disk, and there may be a thousand
            if await self._is_current(name, fields):
                self._known[name] = fields["digest"]
        log.info("tools.recognised", tools=len(self._known), of=len(names))

    async def _is_current(self, name: str, fields: Mapping[str, str]) -> bool:
        is_whole = fields.keys() >= ACTIVE_FIELDS and fields["status"] == "active" and "error" not in fields
        if not is_whole or fields["described_by"] != self._described_by:
            return False
        try:
            path = self._loader.find(name).path
            return fields["path"] == str(path) and await self._loader.recognises(name, fields["digest"])
        except ToolError:
            return False

    async def _look_at(self, name: str) -> None:
        try:
            module = self._loader.find(name)
        except ToolError:
            return  # gone, or not to be read; a run that wants it is told why
        if self._known.get(name) == module.digest:
            return
        fields = await self._fields(module)
        try:
            await until_available("tools", lambda: self._store.experiments.register_tool(name, fields))
        except StoreError as exc:  # somebody else's key; tools are run all the same
            log.warning("tool.not_registered", tool=name, error=str(exc))
        else:
            if fields["status"] == "active":
                log.info("tool.registered", tool=name, digest=fields["digest"][:12])
        self._known[name] = fields["digest"]

    async def _fields(self, module: Module) -> dict[str, str]:
        fields = {
            "name": module.name,
            "path": str(module.path),
            "described_by": self._described_by,
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            tool = await self._loader.load(module.name, DESCRIBE_TIMEOUT_SECONDS, aside=True)
        except ToolError as exc:
            log.warning("tool.refused", tool=module.name, error=str(exc))
            return {**fields, "digest": module.digest, "status": "invalid", "error": str(exc)}
        return {
            **fields,
            "digest": tool.module.digest,  # with the neighbours that it turned out to import
            "status": "active",
            "description": tool.description.summary,
            "parameters": json.dumps(tool.description.parameters),
        }
