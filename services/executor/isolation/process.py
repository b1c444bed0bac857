"""One subprocess that serves one tool, as the executor sees it."""

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.executor.isolation import errand, exit_status, speech
from services.executor.isolation.calls import Call, Description, Effects, Exit, Module, Report
from services.executor.isolation.common import protocol
from services.executor.isolation.connection import Connection, Disconnected, Refused, close_all, socket_pair
from services.executor.isolation.forkserver import MARK, Birth, Owner
from services.executor.isolation.output import Output
from services.executor.isolation.rpc import Audience
from services.executor.isolation.terms import Terms, confinement
from services.executor.isolation.workdir import Place

TOOLKIT = Path(__file__).parents[3] / "shared" / "toolkit.py"
OVERDUE_SECONDS = 3.0
MAX_CHECKS = 2
FOLLOW_SECONDS = 0.02
"""A fork's log is read while it runs from then on: most runs are over before."""

DISMISSAL_SECONDS = 0.1
"""What a process that was dismissed has to leave by itself."""


class LoadFailed(Exception):
    """The tool can't be imported or breaks the contract; `stale` when its file changed just now."""

    def __init__(self, message: str, traceback: str, stale: bool) -> None:
        super().__init__(message)
        self.traceback = traceback
        self.stale = stale


class Process(Owner):
    """A subprocess from its fork to its burial.

    Any await on it raises Disconnected when the process ends; `exit` then says
    how.  Once a tool is loaded, and before the first call, it can fork others.
    """

    def __init__(self, module: Module, terms: Terms, place: Place) -> None:
        super().__init__()
        self.module = module
        self.key = module.key
        self.terms = terms
        self.pid = 0
        self.loaded = False
        self.unforkable = ""
        self.retired = ""
        self.idle_since = 0.0
        self.exit = Exit()
        self.fate = ""
        self.on_retired: Any = None
        self.on_buried: Any = None
        self.has_room = False
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.owner: Owner | None = None
        self._token = 0
        self._is_dismissed = False
        self._overdue: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._checks = 0
        self._audience = Audience(module.name, place)
        self._output = Output(terms.log_bytes_per_second, self._audience.hear_line)
        # All that a confined process may write to.
        self.place = place
        self.confinement = confinement(module, terms, place.path)
        self._places = {"temp": place.temp, "artifacts": place.artifacts}

    # -- birth ---------------------------------------------------------------------------

    def start(self, owner: Owner, *, fresh: bool = False) -> None:
        """Have `owner` fork this process; what is asked of it from now on waits until it is there.

        Disconnected if somebody ended it before it could begin.
        """
        if self.ended.done():
            raise Disconnected
        [self._token] = owner.fork([self._to_be_born(owner)], fresh=fresh)
        self.follow()

    def _to_be_born(self, owner: Owner) -> Birth:
        descriptors = self._output.take_ends()
        try:
            ours, theirs = socket_pair()
        except OSError:
            close_all(descriptors)
            raise
        self.connection = Connection(ours, self.terms.limit_bytes, self._receive, self._closed)
        self.owner = owner
        self.mark, self.nest = owner.mark, owner.nest
        places = self._places if isinstance(owner, Process) else {}
        return Birth(self, (theirs.detach(), *descriptors), places)

    def fork_all(self, forks: "Sequence[Process]") -> None:
        """Have this process, which has a tool loaded, fork these: their own `start`, for several at a time.

        OSError, with none of them started, if there are no descriptors for them.  They are
        not followed: most runs are over before that would be of use to anybody.
        """
        births: list[Birth] = []
        try:
            for fork in forks:
                births.append(fork._to_be_born(self))
        except OSError:
            close_all([descriptor for birth in births for descriptor in birth.descriptors])
            for fork in forks:
                fork.on_exited(None, None, None)
            raise
        for fork, token in zip(forks, self.fork(births, fresh=False), strict=True):
            fork._token = token
            fork.loaded = True

    def follow(self) -> None:
        """From now on, pass on what it prints as it prints it, and not only when its run is over."""
        if not self.ended.done():
            self._output.follow()

    def follow_later(self) -> None:
        """The same, unless its run is over in a moment."""
        self._timer = asyncio.get_running_loop().call_later(FOLLOW_SECONDS, self.follow)

    def on_forked(self, pid: int) -> None:
        """Keep the process id: for logs and for watching, never for signals."""
        self.pid = pid

    async def load(self) -> None:
        """Import the tool; LoadFailed if it can't be or is no tool."""
        params = {
            "name": self.module.name,
            "path": str(self.module.path),
            "digest": self.module.main or self.module.digest,
            "environ": {**self.terms.environ, MARK: self.mark},
            "toolkit": str(TOOLKIT),
            **self._places,
            "limit_bytes": self.terms.limit_bytes,
            "max_runs": self.terms.max_runs,
            "max_rss_bytes": self.terms.max_rss_bytes,
            "confinement": None if self.confinement is None else self.confinement.to_json(),
        }
        self._loaded(await self._ask("load", protocol.encode_value(params)))

    def _loaded(self, result: Any) -> None:
        match result:
            case {"error": {"message": str(message), "traceback": str(traceback), "stale": bool(stale)}}:
                raise LoadFailed(message, traceback, stale)
            case {"unforkable": str(unforkable)}:
                self.loaded = True
                self.unforkable = unforkable
            case _:
                raise self._broken("an answer to `load` that is none")

    async def describe(self) -> Description:
        """What the tool says of itself; LoadFailed if it can't be called as a tool."""
        match await self._ask("describe", b"{}"):
            case {"error": {"message": str(message)}}:
                raise LoadFailed(message, "", False)
            case described:
                try:
                    return speech.description(described)
                except ValueError as error:
                    raise self._broken(str(error)) from None

    async def _ask(self, method: str, params: bytes) -> Any:
        try:
            return await self.connection.request(method, params)
        except Refused:
            raise self._broken(f"it refused to {method}") from None

    def _broken(self, what: str) -> Disconnected:
        self.connection.close(f"it broke the protocol: {what}")
        return Disconnected()

    # -- one run -------------------------------------------------------------------------

    def listen(self, report: Report | None, effects: Effects | None) -> None:
        """From now on, what the process says goes to this run."""
        if not self._audience.attend(report, effects):
            self._output.last_lines.clear()

    def listen_ahead(self) -> None:
        """What it says until then goes to the first run that it serves."""
        self._audience.keep()

    def call(self, call: Call, params: bytes, *, single: bool) -> asyncio.Future[Any]:
        """The tool's result; Refused with its exception, Disconnected if the process ends first.

        Whatever comes of it, `finish` has to follow.
        """
        head = protocol.encode_value(errand.of(call, single=single))
        return self.connection.request("call", head[:-1] + b',"params":' + params + b"}")

    @property
    def went_unheard(self) -> bool:
        """Whether it ended before it had read the call, so that the call can't have begun."""
        return self.connection.left_unread and not self._audience.has_heard and not self.fate

    def finish(self) -> None:
        """The call is over: pass on what it printed, and remove what is left of its artifacts."""
        if not self.ended.done():
            self._output.drain()
        self._audience.forget_files()

    # -- what it says --------------------------------------------------------------------

    def _receive(self, message: dict[str, Any]) -> None:
        """One message that is no answer.  The process isn't trusted: one that makes no sense is its end."""
        try:
            self._understand(message["method"], message.get("params") or {}, message.get("id"))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError) as error:
            raise protocol.ProtocolBroken(f"{type(error).__name__}: {error}") from None
        except RecursionError:
            raise protocol.ProtocolBroken("a message is nested too deeply") from None

    def _understand(self, method: Any, params: dict[str, Any], request_id: Any) -> None:
        match method:
            case "forked":
                self.announce(params)
            case "exited":
                self.bury(params)
            case "retire":
                self.retired = str(params["reason"]) or "it asked for it"
                if self.on_retired is not None:
                    self.on_retired(self, str(params["run_id"]))
            case "hello":
                if params["version"] != protocol.VERSION:
                    raise ValueError(f"it speaks version {params['version']}, not {protocol.VERSION}")
            case _:
                self._audience.hear(method, params, request_id, self.connection)

    # -- death ---------------------------------------------------------------------------

    def end(self, *, grace_seconds: float, stacks: bool = False) -> None:
        """Have the whole tree ended; `ended` is done when it is."""
        self._is_ending = True
        if self.owner is None:
            self.on_exited(None, None, None)
        elif not self.ended.done():
            self.owner.end_child(self._token, grace_seconds, stacks=stacks)
            self._expect_end(grace_seconds)

    def _expect_end(self, grace_seconds: float) -> None:
        if self._overdue is None:
            loop = asyncio.get_running_loop()
            self._overdue = loop.call_later(grace_seconds + OVERDUE_SECONDS, self._owner_check)

    def _owner_check(self) -> None:
        self._overdue = None
        self._checks += 1
        if isinstance(self.owner, Process) and self._checks > MAX_CHECKS:
            self.owner.give_up()  # it answers and buries nobody: a tool shares its interpreter
        elif self.owner is not None:
            self.owner.check()
        self._expect_end(0)

    def give_up(self) -> None:
        """As the owner of forks, this process doesn't answer any more."""
        self.end(grace_seconds=0)

    def dismiss(self) -> None:
        """The process is about to leave by itself, with nothing more to say; it is ended if it doesn't."""
        self._is_dismissed = True
        self.connection.close()
        if self._timer is not None:
            self._timer.cancel()
        end = functools.partial(self.end, grace_seconds=0)
        self._timer = asyncio.get_running_loop().call_later(DISMISSAL_SECONDS, end)

    def _closed(self, reason: str) -> None:
        """Its end of the socket is closed: it is dead, about to be, or hiding."""
        if reason:
            self.fate = f"its process was ended because {reason}"
        self.orphan()
        if not self._is_ending and not self._is_dismissed:
            self.end(grace_seconds=0)

    def on_exited(
        self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None, problem: str = ""
    ) -> None:
        """Keep how it ended, read what it left, and give everything back."""
        if self.ended.done():
            return
        if problem:
            self.fate = f"no process could be started for it: {problem}"
        if not self._is_dismissed:
            self._hear_last_words()
            self.exit = exit_status.of(
                status, peak_rss_bytes, cpu_seconds, self._output.stacks(), self._output.last_lines
            )
        self.ended.set_result(self.exit)
        if self.owner is not None:
            self.connection.close()
        self._output.close()
        self._audience.close()
        for timer in (self._overdue, self._timer):
            if timer is not None:
                timer.cancel()
        if isinstance(self.owner, Process) and status is not None:
            self.owner.place.take_back(self.place)
        else:
            self.place.remove()
        if self.on_buried is not None:
            self.on_buried(self)

    def _hear_last_words(self) -> None:
        """Pass on what it had still said and printed."""
        if self.owner is not None:
            self.connection.drain()
        self._output.drain()
