"""Runs the commands in this process: the same words in and out, without an interpreter's start for each."""

import asyncio
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.cli.main import main
from tests.acceptance.commands import Done


@dataclass(frozen=True, slots=True)
class Inside:
    """What `Shell` is, one command at a time."""

    directory: Path
    variables: Mapping[str, str]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def fullsend(self, *arguments: str) -> Done:
        """`fullsend ARGUMENTS`, to its end."""
        done = await self.raw(*arguments)
        return Done(done[0], done[1].decode(), done[2].decode())

    async def raw(self, *arguments: str) -> tuple[int, bytes, bytes]:
        """The exit code, and what the command writes as it is."""
        out, err = io.BytesIO(), io.BytesIO()
        async with self.lock:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(self.directory)
                for name, value in {"COLUMNS": "200", **self.variables}.items():
                    patch.setenv(name, value)
                patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8", write_through=True))
                patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="utf-8", write_through=True))
                code = await asyncio.to_thread(main, arguments)
                return code, out.getvalue(), err.getvalue()

    def with_variables(self, **variables: str) -> "Inside":
        """The same with other variables."""
        return Inside(self.directory, {**self.variables, **variables}, self.lock)
