"""Calls Lua scripts and commands, and turns redis-py's errors into ours."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import redis.exceptions
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared.errors import StoreError, StoreUnavailableError

COMMAND_TIMEOUT_SECONDS = 15.0

_FOLDER = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^-- include (\w+\.lua)$", re.MULTILINE)
# What is refused to a command of a script is told with the code or without, at the beginning or not,
# as the server is old or new.
_PASSING = re.compile(
    r"(?:^|: )-?(?:OOM|READONLY|NOPERM|MISCONF|LOADING|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|BUSY|TRYAGAIN|NOAUTH"
    r"|UNKILLABLE|UNBLOCKED)\b"
    r"|command not allowed when used memory|can't write against a read only replica"
    r"|no permissions to (?:run|access)|user executing the script can't"
)


class Scripts:
    """The scripts of `lua/`, each under its file's name."""

    def __init__(self, client: Redis) -> None:
        # Any: redis-py annotates for both protocols, bytes and text at once; the methods above are exact.
        self.client: Any = client
        self._scripts: dict[str, AsyncScript] = {}
        self._register = client.register_script

    async def call(self, name: str, keys: Sequence[str], args: Sequence[str | int | float] = ()) -> Any:
        """Run `lua/{name}.lua`.

        Raises:
            StoreUnavailableError: Redis can't be reached or refuses for now; nothing
                or all of the script was done.
            StoreError: anything else that Redis found wrong.
        """
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._register(source(name))
        async with asking(name):
            return await script(keys=keys, args=args)


@cache
def source(name: str) -> str:
    """The text of `lua/{name}.lua`, with the files that it includes."""
    text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: (_FOLDER / match[1]).read_text(encoding="utf-8"), text)


@contextlib.asynccontextmanager
async def asking(what: str, may_take_seconds: float | None = 0.0) -> AsyncIterator[None]:
    """The one place where a redis-py error becomes one of ours, and where an answer is waited for.

    The time limit is kept here and not by redis-py, whose own way of keeping it
    loses a cancellation now and then under Python 3.11.

    Args:
        what: is named in the error.
        may_take_seconds: how long a blocking command blocks, None for ever; the time limit counts from then.
    """
    limit_seconds = None if may_take_seconds is None else COMMAND_TIMEOUT_SECONDS + may_take_seconds
    try:
        async with asyncio.timeout(limit_seconds):
            yield
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as exc:
        raise StoreUnavailableError(
            f"{what}: Redis can't be reached: {str(exc) or 'no answer in time'}"
        ) from exc
    except redis.exceptions.RedisError as exc:
        if _PASSING.search(str(exc)) or isinstance(exc, _REFUSALS):
            raise StoreUnavailableError(f"{what}: Redis refuses for now: {exc}") from exc
        raise StoreError(f"{what}: Redis answers: {exc}") from exc


_REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.ClusterDownError,
)
