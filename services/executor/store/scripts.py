"""Lua scripts, the calls of them, and the translation of redis-py's errors into ours.

Each script is a file in `lua/`.  A header comment says what it does and names its keys and arguments:

    -- Ends a run.
    --
    -- KEYS  queue record
    -- ARGV  group entry events[]
    --   entry  the claim of the run
    -- returns "finished" | "stale"
    -- include types.lua

`events[]` is a list of any length; of KEYS, only the last may be one.  The names become local variables
of the script, so that no script counts its arguments.  The caller declares the script beside its use,
with the same names; a difference is an error when the module is imported.  The header also names the files
that are included, each of them once; they can include others in the same way, and use the names.
"""

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import redis.exceptions
from redis.asyncio import Redis

from services.executor.store.resp import Argument, SharedConnection
from shared import keys
from shared.backoff import Backoff
from shared.documents import json_text
from shared.errors import StoreError, StoreUnavailableError, UnknownDatabaseError

COMMAND_TIMEOUT_SECONDS = 15.0
LOST_ANSWER: Final = Backoff(0.05, 0.1, max_attempts=3)

FOLDER: Final = Path(__file__).parent / "lua"

_INCLUDE = re.compile(r"-- include (\w+\.lua)")
_NAMES = re.compile(r"-- (KEYS|ARGV)  (.+)")
_PARAMETER = re.compile(r"\b(?:KEYS|ARGV)\b")
_PLACE = re.compile(r"user_script:(\d+)")
# Versions of Redis differ: the code of an error comes first, or behind the script's name, or not at all.
_PASSING = re.compile(
    r"(?:^|: )-?(?:OOM|READONLY|NOPERM|MISCONF|LOADING|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|BUSY|TRYAGAIN|NOAUTH"
    r"|UNKILLABLE|UNBLOCKED)\b"
    r"|command not allowed when used memory|can't write against a read only replica"
    r"|[Nn]o permissions to (?:run|access)|user executing the script can't"
)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What an operator can choose about a store.

    Args:
        document_max_bytes: a larger experiment, schedule or registration of a tool is not read.
        channel_prefix: stands before the names of all channels.
    """

    document_max_bytes: int = 1_000_000
    channel_prefix: str = ""


_BOUND: Final = f"local LARGEST_BYTES = {StoreOptions().document_max_bytes} "


class Script:
    """One script, as its caller uses it.

    Args:
        name: of the file in `folder`, without `.lua`.
        keys: the names in the line `KEYS` of the header; the last one ends with `[]` if it is a list.
        args: the names in the line `ARGV` of the header; those of lists end with `[]`.
        folder: where the file is.

    Attributes:
        text: what Redis executes.
        digest: the SHA-1 of the text, by which Redis knows it.

    Raises:
        ValueError: the header differs from the names, or the file is not written as the module says.
    """

    def __init__(
        self, name: str, *, keys: Sequence[str] = (), args: Sequence[str] = (), folder: Path = FOLDER
    ) -> None:
        path = folder / f"{name}.lua"
        self.name = name
        for word, ours in (("KEYS", keys), ("ARGV", args)):
            theirs = _names_in(path, word)
            if theirs != list(ours):
                raise ValueError(f"{path.name}: {word} is {theirs}, but its caller declares {list(ours)}")
        if any(map(_is_list, keys[:-1])):
            raise ValueError(f"{path.name}: of KEYS, only the last may be a list")
        self._places, lines = zip(*_lines(path, _bindings(keys, args)), strict=True)
        self.text = "\n".join(lines)
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self._key_count = len(keys)
        self._has_key_list = any(map(_is_list, keys))
        self._argument_count = len(args)
        self._single = [at for at, one in enumerate(args) if not _is_list(one)]
        self._lists = [at for at, one in enumerate(args) if _is_list(one)]

    def adapted(self, options: StoreOptions) -> tuple[str, str]:
        """The digest and the text of the script with other options than by default."""
        text = self.text.replace(_BOUND, f"local LARGEST_BYTES = {options.document_max_bytes} ")
        for channel in (keys.METRICS, keys.RESULTS):
            text = text.replace(f"'{channel}'", f"'{options.channel_prefix}{channel}'")
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text

    def packed(self, keys: Sequence[str], args: Sequence[Any]) -> list[Argument]:
        """Keys and arguments as they are sent behind the script: the number of keys comes first.

        Raises:
            TypeError: there are too many or too few.
        """
        is_complete = len(keys) >= self._key_count - 1 if self._has_key_list else len(keys) == self._key_count
        if not is_complete or len(args) != self._argument_count:
            raise TypeError(f"{self.name}.lua was called with {len(keys)} keys and {len(args)} arguments")
        if not self._lists:
            return [len(keys), *keys, *args]
        packed = [len(keys), *keys, *(args[at] for at in self._single)]
        for at in self._lists:
            packed += (len(args[at]), *args[at])
        return packed

    def located(self, message: str) -> str:
        """An error message of Redis, with the file and line of each place in the script."""

        def place(match: re.Match[str]) -> str:
            line = int(match[1]) - 1
            return self._places[line] if line < len(self._places) else match[0]

        return _PLACE.sub(place, message)


class Scripts:
    """Calls scripts.

    Args:
        client: for commands, and for the connection on which the scripts are called.
        on_unavailable: is called when Redis is not there for a script.
        options: what the operator chose.
    """

    def __init__(
        self,
        client: Redis,
        on_unavailable: Callable[[], None] = lambda: None,
        options: StoreOptions | None = None,
    ) -> None:
        # Any: redis-py annotates for both protocols, bytes and text at once; the methods above are exact.
        self.client: Any = client
        self._connection = SharedConnection(client, COMMAND_TIMEOUT_SECONDS)
        self.on_unavailable = on_unavailable
        self._options = options or StoreOptions()
        self._adapted = functools.cache(lambda script: script.adapted(self._options))
        self.dataset = ""
        """What identified Redis' data at the last heartbeat, see `Workers.identify_data`."""

    def channel(self, name: str) -> str:
        """The channel that is called `name` in the contract, as it is called on this server."""
        return self._options.channel_prefix + name

    def send(self, *command: Argument) -> None:
        """Send a command whose answer nobody waits for, behind all that was sent before."""
        self._connection.execute(*command).add_done_callback(_ignore)

    def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any] = (),
        *,
        asks_again: bool = True,
    ) -> Awaitable[Any]:
        """Execute a script; the answer is awaited.

        Args:
            script: which one.
            keys: in the order of the script's `KEYS`; the items of a list come last.
            args: in the order of the script's `ARGV`; a sequence for each list.
            asks_again: whether a call whose answer was lost is sent again, a moment later.

        Raises:
            StoreUnavailableError: Redis can't be reached or refuses for now; the script was
                executed as a whole or not at all.
            StoreError: Redis found anything else wrong.
        """
        packed = script.packed(keys, args)
        return self._ask(
            script, lambda verb, text: self._connection.execute(verb, text, *packed), asks_again=asks_again
        )

    def call_together(
        self,
        script: Script,
        keys: Sequence[str],
        args: Callable[[int], Sequence[Any]],
        item: msgspec.Struct,
        *,
        group: str = "",
        weight: int = 0,
    ) -> Awaitable[Any]:
        """Execute a script for an item, in one call with other items of this turn of the event loop.

        The script's last argument is the list of the items, each a MessagePack map; it answers with a list.

        Args:
            script: which one.
            keys: the same for each item.
            args: all arguments but the last one, the same for each item, given the sum of the weights.
            item: what the script is executed for.
            group: only items of the same group are sent together.
            weight: see `args`.

        Raises:
            StoreUnavailableError, StoreError: as for `call`; one item's error is no other one's.
        """
        encoded = msgspec.msgpack.encode(item)

        def ask(verb: str, text: str) -> asyncio.Future[Any]:
            def command(items: Sequence[bytes], weights: int) -> Sequence[Argument]:
                return verb, text, *script.packed(keys, [*args(weights), items])

            return self._connection.execute_together((verb, script.name, group), command, encoded, weight)

        return self._ask(script, ask)

    async def _ask(
        self, script: Script, ask: Callable[[str, str], asyncio.Future[Any]], *, asks_again: bool = True
    ) -> Any:
        digest, text = self._adapted(script)
        attempt = 0
        while True:
            attempt += 1
            try:
                try:
                    return await ask("EVALSHA", digest)
                except redis.exceptions.NoScriptError:
                    # A restarted server, another one, or SCRIPT FLUSH. With SCRIPT LOAD and EVALSHA, the
                    # script could be forgotten again in between.
                    return await ask("EVAL", text)
            except (redis.exceptions.RedisError, OSError) as exc:
                is_last = not asks_again or LOST_ANSWER.is_exhausted(attempt)
                if is_last or not isinstance(exc, redis.exceptions.ConnectionError):
                    error = translated(script.name, exc, script.located)
                    if isinstance(error, StoreUnavailableError):
                        self.on_unavailable()
                    raise error from exc
                await asyncio.sleep(LOST_ANSWER.pause_seconds(attempt))


def _ignore(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()


def source(file_name: str) -> str:
    """The text of a file in `lua/` that others include, with what it includes itself."""
    return "\n".join(line for _, line in _lines(FOLDER / file_name))


def _lines(path: Path, bindings: str = "", included: set[Path] | None = None) -> Iterator[tuple[str, str]]:
    """The place and the text of each line; the bindings come first, included files where they are named."""
    included = set() if included is None else included
    is_header = True
    if bindings:
        yield f"{path.name}:1", bindings
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path.name}:{number}"
        if not line.startswith("--"):
            is_header = False
        if match := _INCLUDE.fullmatch(line.strip()):
            if not is_header:
                raise ValueError(f"{place}: an include must be part of the header")
            if (other := path.parent / match[1]) not in included:
                included.add(other)
                yield from _lines(other, "", included)
        elif _PARAMETER.search(line.partition("--")[0]):
            raise ValueError(f"{place}: KEYS and ARGV are used by the names in the header")
        else:
            yield place, line


def _names_in(path: Path, word: str) -> list[str]:
    """The names in the lines `KEYS` or `ARGV` of a header."""
    names: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        if (match := _NAMES.fullmatch(line)) and match[1] == word:
            names += match[2].split()
    return names


def _is_list(name: str) -> bool:
    return name.endswith("[]")


def _bindings(keys: Sequence[str], args: Sequence[str]) -> str:
    """Lua, in one line: makes the keys and arguments local variables.

    Lists are filled item by item, since `unpack` takes about 8,000 items at most.
    """
    code = []
    for word, names in (("KEYS", keys), ("ARGV", args)):
        if single := [name for name in names if not _is_list(name)]:
            values = ", ".join(f"{word}[{at}]" for at in range(1, len(single) + 1))
            code.append(f"local {', '.join(single)} = {values}")
    if keys and _is_list(keys[-1]):
        name = keys[-1].removesuffix("[]")
        code.append(
            f"local {name} = {{}} for i = {len(keys)}, #KEYS do {name}[i - {len(keys) - 1}] = KEYS[i] end"
        )
    if lists := [name.removesuffix("[]") for name in args if _is_list(name)]:
        first = len(args) - len(lists) + 1
        code.append(
            f"local {', '.join(lists)} = {', '.join(['{}'] * len(lists))} do local at = {first}"
            f" for _, list in ipairs({{{', '.join(lists)}}}) do"
            " for i = 1, ARGV[at] do list[i] = ARGV[at + i] end at = at + 1 + ARGV[at] end end"
        )
    return " ".join(code)


@contextlib.asynccontextmanager
async def asking(what: str, may_take_seconds: float | None = 0.0) -> AsyncIterator[None]:
    """Limit how long an answer is waited for, and turn redis-py's errors into ours.

    The limit is kept here because redis-py's own time-out sometimes loses a
    cancellation under Python 3.11.

    Args:
        what: is named in the error.
        may_take_seconds: how long a blocking command may block, None for ever; it is added to the limit.
    """
    limit_seconds = None if may_take_seconds is None else COMMAND_TIMEOUT_SECONDS + may_take_seconds
    try:
        async with asyncio.timeout(limit_seconds):
            yield
    except (redis.exceptions.RedisError, OSError) as exc:
        raise translated(what, exc) from exc


def translated(what: str, exc: Exception, located: Callable[[str], str] = str) -> StoreError:
    """Our error for one of redis-py's, or of the network's.

    Args:
        what: is named in the error.
        exc: what was raised.
        located: rewrites the message of Redis.
    """
    if isinstance(exc, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError):
        return StoreUnavailableError(f"{what}: Redis can't be reached: {str(exc) or 'no answer in time'}")
    message = located(str(exc))
    if _NO_DATABASE in message:
        return UnknownDatabaseError(f"REDIS_URL names a database that the server doesn't have: {message}")
    if _PASSING.search(message) or isinstance(exc, _REFUSALS):
        return StoreUnavailableError(f"{what}: Redis refuses for now: {message}")
    return StoreError(f"{what}: Redis answers: {message}")


_NO_DATABASE = "DB index is out of range"
_REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.ClusterDownError,
)


Fields = Mapping[str, Any]


def flat(fields: Fields) -> list[str]:
    """Names and values in turn, as HSET takes them; None is left out, other values as JSON."""
    parts: list[str] = []
    for name, value in fields.items():
        if value is None:
            continue
        if not isinstance(value, str):
            value = json_text(value)
        elif not value.isascii():  # a tool may print lone surrogates, which are no UTF-8
            value = value.encode(errors="backslashreplace").decode()
        parts += (name, value)
    return parts


def mark_of(texts: Iterable[str]) -> str:
    """Identifies a batch of texts; the mark is the same when the batch is sent again."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=12).hexdigest()
