"""Calls Lua scripts and commands, and turns redis-py's errors into ours."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import redis.exceptions
from redis.asyncio import Redis

from services.executor.store.pipelined import Pipelined
from shared.backoff import Backoff
from shared.errors import StoreError, StoreUnavailableError

COMMAND_TIMEOUT_SECONDS = 15.0
LOST_ANSWER: Final = Backoff(0.05, 0.1, max_attempts=3)

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
    """The scripts of `lua/`, each under its file's name.

    Args:
        client: for commands, and for the connection that the scripts are called on.
    """

    def __init__(self, client: Redis) -> None:
        # Any: redis-py annotates for both protocols, bytes and text at once; the methods above are exact.
        self.client: Any = client
        self._pipelined = Pipelined(client, COMMAND_TIMEOUT_SECONDS)

    async def call(
        self,
        name: str,
        keys: Sequence[str],
        args: Sequence[str | int | float] = (),
        *,
        asks_again: bool = True,
    ) -> Any:
        """Run `lua/{name}.lua`.

        Args:
            asks_again: whether a call whose answer was lost is sent again, a moment later.

        Raises:
            StoreUnavailableError: Redis can't be reached or refuses for now; nothing
                or all of the script was done.
            StoreError: anything else that Redis found wrong.
        """
        command = ("EVALSHA", digest(name), len(keys), *keys, *args)
        attempt = 0
        while True:
            attempt += 1
            try:
                try:
                    return await self._pipelined.ask(*command)
                except redis.exceptions.NoScriptError:  # a server that was restarted, or another one
                    await self._pipelined.ask("SCRIPT", "LOAD", source(name))
                    return await self._pipelined.ask(*command)
            except (redis.exceptions.RedisError, OSError) as exc:
                is_last = not asks_again or LOST_ANSWER.is_exhausted(attempt)
                if is_last or not isinstance(exc, redis.exceptions.ConnectionError):
                    raise translated(name, exc) from exc
                await asyncio.sleep(LOST_ANSWER.pause_seconds(attempt))


@cache
def source(name: str) -> str:
    """The text of `lua/{name}.lua`, with the files that it includes."""
    text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: (_FOLDER / match[1]).read_text(encoding="utf-8"), text)


@cache
def digest(name: str) -> str:
    """What Redis knows the script by once it is loaded."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


@contextlib.asynccontextmanager
async def asking(what: str, may_take_seconds: float | None = 0.0) -> AsyncIterator[None]:
    """Where a redis-py error becomes one of ours, and where an answer is waited for.

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
    except (redis.exceptions.RedisError, OSError) as exc:
        raise translated(what, exc) from exc


def translated(what: str, exc: Exception) -> StoreError:
    """Our error for one of redis-py's, or of the network's."""
    if isinstance(exc, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError):
        return StoreUnavailableError(f"{what}: Redis can't be reached: {str(exc) or 'no answer in time'}")
    if _PASSING.search(str(exc)) or isinstance(exc, _REFUSALS):
        return StoreUnavailableError(f"{what}: Redis refuses for now: {exc}")
    return StoreError(f"{what}: Redis answers: {exc}")


_REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.ClusterDownError,
)
