"""One that takes part: where it lives, how it is started, what is to be known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PROJECT = "project"
"""The environment that this program runs in; a system that lives there needs no other."""


class Case(StrEnum):
    """What a service is started for."""

    BUSY = "busy"
    """For throughput; also what latency and memory are measured with."""
    WIDE = "wide"
    """Fifty jobs at once."""
    SINGLE = "single"
    """One job at a time, so that one that hangs takes all the room there is."""
    DEFAULT = "default"
    """As it comes."""
    CRON = "cron"
    """With two schedules."""


@dataclass(frozen=True, slots=True)
class System:
    """One that takes part.

    `commands` are the programs that make up the service, by case, in an environment's
    `bin`; `{root}` is where this project is, `{url}` the server's address.  `variables`
    are for all cases, `more` for some.  `venv` names the environment, for which
    `packages` are installed.  `isolated` says what keeps one job from the next.
    """

    name: str
    app: str
    venv: str
    packages: tuple[str, ...]
    commands: Mapping[Case, tuple[str, ...]]
    settings: str
    source: str
    isolated: str
    variables: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[Case, Mapping[str, str]] = field(default_factory=dict)

    def environ(self, case: Case) -> dict[str, str]:
        """What its programs and its client read from the environment."""
        defaults = {"DEFAULTS": "1"} if case is Case.DEFAULT else {}
        return {**self.variables, **defaults, **self.more.get(case, {})}
