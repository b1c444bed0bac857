"""How a run is performed: the experiment's policy counts most, then the tool's needs, then the settings.

It also decides which environment variables a tool sees.  Pure.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Final, Literal

from pydantic import AfterValidator

from services.executor.isolation.calls import NO_LIMITS, Level, Limits
from services.executor.isolation.environment.requirements import block_of
from services.executor.isolation.sandbox import Sandbox, known_capability
from shared.backoff import Backoff
from shared.documents import kind, printable, validated
from shared.errors import ContractError, ToolError
from shared.log import masking, naming
from shared.messages import LimitKey, Policy, PositiveCount, PositiveNumber, WireRecord

MEGABYTE = 1_000_000

Capability = Annotated[str, AfterValidator(known_capability)]

ENVIRONMENT_ALLOW_LIST: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
"""Environment variables that every tool sees: programs need them, and they hold no secrets."""


def allowed_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those of `variables` that every tool sees."""
    return {name: variables[name] for name in ENVIRONMENT_ALLOW_LIST if name in variables}


WITHHELD: Final = frozenset({"REDIS_URL"})
"""Variables that no tool gets, whoever allows it: with them it could give the executor orders."""

_PATTERN = re.compile(r"[A-Za-z0-9_*]+")


def is_withheld(name: str) -> bool:
    """Return whether no tool gets the variable `name`.  Settings are read in any case, so this is, too."""
    return name.upper() in WITHHELD


def variable_pattern(text: str) -> str:
    """Return `text` if it is the name of a variable, in which `*` stands for any characters.

    Raises:
        ValueError: it has other characters than a name.
    """
    if not _PATTERN.fullmatch(text):
        raise ValueError("expected the name of a variable, or a pattern such as MYAPP_*")
    return text


def _matches(name: str, pattern: str) -> bool:
    return re.fullmatch(pattern.replace("*", ".*"), name) is not None


# -- a tool's needs ---------------------------------------------------------------------

_TABLE: Final = "fullsend"


class ModalNeeds(WireRecord, extra="forbid"):
    """The table `[tool.fullsend.modal]`: the container that a tool needs on Modal; None for the settings'."""

    timeout_seconds: PositiveNumber | None = None
    memory_mib: PositiveCount | None = None
    cpu: PositiveNumber | None = None
    gpu: str | None = None
    secrets: tuple[str, ...] | None = None


class ToolNeeds(WireRecord, extra="forbid"):
    """The table `[tool.fullsend]` in the PEP 723 block of a tool's file."""

    environment: tuple[str, ...] = ()
    isolation: Literal["warm", "fork", "spawn"] | None = None
    sandbox: Sandbox | None = None
    capabilities: tuple[Capability, ...] = ()
    timeout_seconds: PositiveNumber | None = None
    max_concurrent: PositiveCount | None = None
    max_per_minute: PositiveNumber | None = None
    burst: PositiveCount | None = None
    limit_key: LimitKey | None = None
    memory_mb: PositiveCount | None = None
    cpu_seconds: PositiveCount | None = None
    file_size_mb: PositiveCount | None = None
    open_files: PositiveCount | None = None
    processes: PositiveCount | None = None
    modal: ModalNeeds | None = None


def needs_of(place: str, text: str) -> ToolNeeds:
    """Return the needs in a tool's file, which is read and not run.

    Args:
        place: names the table in messages.
        text: the file's content.

    Raises:
        ToolError: the block can't be read; says where and why.
    """
    tool = block_of(place, text).get("tool", {})
    if isinstance(tool, dict):
        _check_tables(place, text, tool)
    needs = tool.get(_TABLE, {}) if isinstance(tool, dict) else tool
    if not isinstance(needs, dict):
        raise ToolError(f"{place} is {kind(needs)}; expected a table")
    try:
        return validated(ToolNeeds, place, needs)
    except ContractError as exc:
        raise ToolError(str(exc)) from None


def _check_tables(place: str, text: str, tool: Mapping[str, object]) -> None:
    """Refuse tables that are almost [tool.fullsend], and its members in [tool]: they would be ignored."""
    for name in tool:
        if name in ToolNeeds.model_fields:
            problem = (
                f"{name!r} is a member of [tool], which has no such member; put it below [tool.fullsend]"
            )
            raise ToolError(f"{place}: {_line_of(rf'(tool *[.] *)?{name} *=', text)}{problem}")
        if name != _TABLE and get_close_matches(re.sub(r"[-_ ]", "", name.casefold()), [_TABLE], cutoff=0.8):
            problem = f"[tool.{printable(name)}] is not known; write [tool.{_TABLE}]"
            raise ToolError(f"{place}: {_line_of(rf'.*{re.escape(name)}', text)}{problem}")


def _line_of(pattern: str, text: str) -> str:
    """The number of the first comment that matches, for the beginning of a message; empty if none does."""
    matches = re.compile(f"# *{pattern}").match
    return next((f"line {number}: " for number, line in enumerate(text.split("\n"), 1) if matches(line)), "")


# -- a run's options --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the runs of one experiment with one tool are performed.

    Attributes:
        timeout_seconds: for one attempt.
        level: what an attempt shares with those before it.
        limits: for the processes of an attempt.
        environ: the environment variables that the tool sees.
        mask: masks the values of `environ` in a text.
        named: replaces them by the names of their variables, so that texts that differ stay different.
        backoff: between attempts.
        reported_failures: whether a result with `"success": false` is a failure.
    """

    timeout_seconds: float
    level: Level
    limits: Limits
    environ: Mapping[str, str]
    mask: Callable[[str], str]
    named: Callable[[str], str]
    backoff: Backoff
    reported_failures: bool = True


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies where neither the experiment nor the tool chooses.

    Attributes:
        environment: names of the variables that every tool may see.
        allowed: names of those that a tool may ask for, with `*` for any characters.
        variables: the values of both.
        reported_failures: whether a result with `"success": false` is a failure.
    """

    timeout_seconds: float
    backoff: Backoff
    level: Level
    environment: Sequence[str]
    allowed: Sequence[str]
    variables: Mapping[str, str]
    reported_failures: bool = True

    def options(self, chosen: Policy, needs: ToolNeeds) -> RunOptions:
        """Return how a run is performed of an experiment with the policy `chosen` and a tool with `needs`.

        Most runs have the same; callers keep the options with `functools.lru_cache`.

        Raises:
            ToolError: the tool asks for a variable that it may not be given.
        """
        environ = self.environ(needs)
        return RunOptions(
            timeout_seconds=self.timeout(chosen, needs),
            level=self.isolation(chosen, needs),
            limits=process_limits(chosen, needs),
            environ=environ,
            mask=masking(environ.values()),
            named=naming(environ),
            backoff=self.retries(chosen),
            reported_failures=self.reported_failures,
        )

    def timeout(self, chosen: Policy, needs: ToolNeeds) -> float:
        """Return the seconds that one attempt may take."""
        return chosen.timeout_seconds or needs.timeout_seconds or self.timeout_seconds

    def isolation(self, chosen: Policy, needs: ToolNeeds) -> Level:
        """Return what an attempt shares with those before it."""
        return Level(chosen.isolation or needs.isolation or self.level)

    def environ(self, needs: ToolNeeds) -> dict[str, str]:
        """Return the environment variables that the tool may see.

        Raises:
            ToolError: it asks for one that it may not be given.
        """
        for name in needs.environment:
            self._check_allowed(name)
        given = (*self.environment, *needs.environment)
        return {name: self.variables[name] for name in given if name in self.variables}

    def _check_allowed(self, name: str) -> None:
        if is_withheld(name):
            raise ToolError(
                f"the tool asks for the variable {printable(name)} in [tool.fullsend] environment; "
                "that is the executor's connection to Redis, which no tool is given"
            )
        known = {*self.environment, *ENVIRONMENT_ALLOW_LIST}
        if name not in known and not any(_matches(name, pattern) for pattern in self.allowed):
            raise ToolError(
                f"the tool asks for the variable {printable(name)} in [tool.fullsend] environment, which the "
                f"operator hasn't allowed; add {printable(name)} to TOOL_ENVIRONMENT_ALLOWED to give it to "
                "tools that ask for it"
            )

    def retries(self, chosen: Policy) -> Backoff:
        """Return the back-off between a run's attempts, with their largest number."""
        least = self.backoff.first_seconds if chosen.backoff_min is None else chosen.backoff_min
        most = self.backoff.longest_seconds if chosen.backoff_max is None else chosen.backoff_max
        return retry_backoff(chosen.max_attempts or self.backoff.max_attempts, least, max(least, most))


def retry_backoff(max_attempts: int | None, first_seconds: float, longest_seconds: float) -> Backoff:
    """Return the back-off between a run's attempts: pauses double, and jitter adds up to as much again."""
    return Backoff(first_seconds, longest_seconds, jitter=(0.0, 1.0), max_attempts=max_attempts)


def process_limits(chosen: Policy, needs: ToolNeeds) -> Limits:
    """Return what the processes of a run may use."""
    memory_mb = chosen.memory_mb or needs.memory_mb
    file_size_mb = chosen.file_size_mb or needs.file_size_mb
    limits = Limits(
        memory_bytes=memory_mb and memory_mb * MEGABYTE,
        cpu_seconds=chosen.cpu_seconds or needs.cpu_seconds,
        file_size_bytes=file_size_mb and file_size_mb * MEGABYTE,
        open_files=chosen.open_files or needs.open_files,
        processes=chosen.processes or needs.processes,
    )
    return NO_LIMITS if limits == NO_LIMITS else limits
