"""The registry of tools: keeps `tools:{name}` up to date with the tools folder."""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from services.executor import isolation
from services.executor.isolation.calls import Description, Module
from services.executor.loader import Loader
from services.executor.store import Store
from shared import toolkit
from shared.backoff import until_available
from shared.documents import cut
from shared.errors import StoreError, ToolError

log = structlog.get_logger()

LOOK_SECONDS = 5.0
DESCRIBE_TIMEOUT_SECONDS = 30.0
SUMMARY_CHARACTERS = 10_000
MEMBER_CHARACTERS = 1_000
"""How long a default and a description of a parameter may be in a registration."""
LAYOUT = 3
"""Part of `described_by`; increase it when the same description is written differently."""
OUR_CODE = Path(isolation.__file__).parent
ACTIVE_FIELDS = {
    "name", "file", "digest", "status", "state", "summary", "parameters", "described_by", "updated_at"
}  # fmt: skip


class Registry:
    """Registers the tools in the tools folder, and registers a tool again when its files change.

    A tool whose registration is current at the start is not described again, because that takes a
    process.  Tools that import other files of the folder, and tools with an environment of their own,
    are described at every start: only loading them shows what they consist of.  A tool whose environment
    isn't built is described by its source, provisionally: registering never builds anything.

    Args:
        store: keeps the registrations.
        worker: this worker's name.
        loader: finds and describes tools.
        fingerprint: returns what descriptions depend on besides the tools' code, see `fingerprint_of`.
            It is called once, in a thread, because it reads many files.
        check_seconds: how often to look which tools no live worker has any more.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        loader: Loader,
        fingerprint: Callable[[], str],
        check_seconds: float,
    ) -> None:
        self._store = store
        self._worker = worker
        self._loader = loader
        self._fingerprint = fingerprint
        self._check_seconds = check_seconds
        self._described_by = ""
        self._known: dict[str, str] = {}
        self._provisional: set[str] = set()
        self._withheld: set[str] = set()
        self._active: set[str] = set()

    async def run(self) -> None:
        """Register tools until cancelled; look at the folder every few seconds."""
        self._described_by = f"{LAYOUT}:{await asyncio.to_thread(self._fingerprint)}"
        await self._recognise()
        await self._adopt()
        check_at = time.monotonic()
        while True:
            if time.monotonic() >= check_at:
                check_at = time.monotonic() + self._check_seconds
                await self._check()
            for name in self._loader.names():
                await self._look_at(name)
            await asyncio.sleep(min(LOOK_SECONDS, max(0.0, check_at - time.monotonic())))

    async def _recognise(self) -> None:
        """Find the tools whose registrations are current."""
        names = self._loader.names()
        try:
            found = await until_available("tools", lambda: self._store.experiments.read_tools(names))
        except StoreError as exc:
            log.warning("tools.not_read", error=str(exc))
            return
        for name, fields in found.items():
            await asyncio.sleep(0)  # a thousand tools are read from the disk; let others run
            if await self._is_current(name, fields):
                self._known[name] = fields["digest"]
                self._active.add(name)
        log.info("tools.recognised", tools=len(self._known), of=len(names))

    async def _adopt(self) -> None:
        """Note the tools that executors have registered before there was a list of them."""
        try:
            async for name, fields in self._store.experiments.scan_tools():
                if isinstance(fields, Mapping) and "described_by" in fields:
                    await self._store.experiments.note_registered([name])
        except StoreError as exc:
            log.warning("tools.not_read", error=str(exc))

    async def _check(self) -> None:
        """Find tools that no live worker has any more, and tools here whose key is gone or says otherwise."""
        experiments, here = self._store.experiments, set(self._loader.names())
        try:
            known = await experiments.registered_tools()
            found = await experiments.read_tools(sorted(known | here))
            living = await self._store.workers.tools_of_living()
            alive = await self._store.workers.alive()
        except StoreError as exc:  # the next check tries again
            log.warning("tools.not_checked", error=str(exc))
            return
        for name in here:
            fields = found.get(name, {})
            state = fields.get("state", "missing")
            is_nobodys = name in self._withheld and fields.get("registered_by") not in alive
            is_wronged = name in self._active and state == "invalid"  # by a worker with another folder
            if is_nobodys or is_wronged or state == "missing":
                self._known.pop(name, None)  # register it again
        if living is None:
            return
        for name in known - here - living:
            if found.get(name, {}).get("state") != "missing":
                await self._is_missing(name)

    async def _is_missing(self, name: str) -> None:
        try:
            if await self._store.experiments.tool_is_missing(name, _now()):
                log.warning("tool.missing", tool=name)
        except StoreError as exc:
            log.warning("tool.not_registered", tool=name, error=str(exc))

    async def _is_current(self, name: str, fields: Mapping[str, str]) -> bool:
        is_whole = fields.keys() >= ACTIVE_FIELDS and "error" not in fields
        is_active = is_whole and fields["status"] == fields["state"] == "active"
        if not is_active or fields["described_by"] != self._described_by:
            return False
        try:
            path = self._loader.find(name).path
            return fields["file"] == str(path) and await self._loader.recognises(name, fields["digest"])
        except ToolError:
            return False

    async def _look_at(self, name: str) -> None:
        try:
            module = self._loader.find(name)
        except ToolError:
            return  # removed or unreadable; a run that uses it reports why
        if self._known.get(name) == module.digest and not await self._can_be_described(name):
            return
        fields = await self._fields(module)
        self._withheld.discard(name)
        (self._active.add if fields["status"] == "active" else self._active.discard)(name)
        try:
            if fields["status"] == "invalid" and await self._is_good_elsewhere(name):
                self._withheld.add(name)
            else:
                await until_available("tools", lambda: self._store.experiments.register_tool(name, fields))
        except StoreError as exc:  # the key has another type; tools run without it
            log.warning("tool.not_registered", tool=name, error=str(exc))
        else:
            if fields["status"] == "active":
                log.info("tool.registered", tool=name, digest=fields["digest"][:12])
        self._known[name] = fields["digest"]

    async def _is_good_elsewhere(self, name: str) -> bool:
        """Whether another worker that lives has registered the tool as active, from a folder of its own.

        If it has this folder, it finds by itself what is wrong.
        """
        experiments, workers = self._store.experiments, self._store.workers
        found = await until_available("tools", lambda: experiments.read_tools([name]))
        fields = found.get(name, {})
        if fields.get("state") != "active" or fields.get("registered_by") == self._worker:
            return False
        return fields.get("registered_by") in await until_available("tools", workers.alive)

    async def _fields(self, module: Module) -> dict[str, str]:
        fields = {
            "name": module.name,
            "file": str(module.path),
            "described_by": self._described_by,
            "registered_by": self._worker,
            "updated_at": _now(),
        }
        self._provisional.discard(module.name)
        try:
            provisional = await self._loader.described_by_source(module.name)
            if provisional is not None:
                self._provisional.add(module.name)
                return {**fields, "digest": module.digest, "provisional": "true", **_described(provisional)}
            tool = await self._loader.load(module.name, DESCRIBE_TIMEOUT_SECONDS, aside=True)
        except ToolError as exc:
            log.warning("tool.refused", tool=module.name, error=str(exc))
            invalid = {"status": "invalid", "state": "invalid", "error": str(exc)}
            return {**fields, "digest": module.digest, **invalid}
        return {
            **fields,
            "digest": tool.module.digest,  # includes the files that it imports from the folder
            **_described(tool.description),
        }

    async def _can_be_described(self, name: str) -> bool:
        """Whether a tool that was registered by its source has its environment now."""
        if name not in self._provisional:
            return False
        try:
            return await self._loader.described_by_source(name) is None
        except ToolError:
            return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _described(description: Description) -> dict[str, str]:
    properties = description.parameters.get("properties", {})
    parameters = {
        **description.parameters,
        "properties": {name: _bounded(schema) for name, schema in properties.items()},
    }
    return {
        "status": "active",
        "state": "active",
        "summary": cut(description.summary, SUMMARY_CHARACTERS),
        "parameters": json.dumps(parameters),
    }


def _bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a parameter, without a default that is long, and with a short description."""
    shown = dict(schema)
    if len(json.dumps(shown.get("default"))) > MEMBER_CHARACTERS:
        del shown["default"]
    if "description" in shown:
        shown["description"] = cut(str(shown["description"]), MEMBER_CHARACTERS)
    return shown


def fingerprint_of(walls: Iterable[object], code: Path = OUR_CODE) -> str:
    """Return a digest of all that descriptions of tools depend on, except the tools' code.

    That is our code that describes them, the Python version, the installed packages, and the confinement.

    Args:
        walls: what the settings say about the confinement of tools.
        code: the directory of our code that describes tools.
    """
    ours = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(code)]
    parts = [sys.version, [str(one) for one in walls], sorted(_installed()), ours]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _files(code: Path) -> list[Path]:
    return [*sorted(code.rglob("*.py")), Path(toolkit.__file__)]


def _installed() -> Iterator[str]:
    """Yield the name and version of each distribution on the import path."""
    for entry in dict.fromkeys(sys.path):
        for pattern in ("*.dist-info", "*.egg-info"):
            yield from (path.name for path in Path(entry).glob(pattern)) if entry else ()
