"""A measured system: its environment, its commands, and how the report describes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PROJECT = "project"
"""The environment of this project; its systems need no other."""


class Case(StrEnum):
    """The purpose for which a service is started."""

    BUSY = "busy"
    """Throughput; latency and memory are measured with the same settings."""
    WIDE = "wide"
    """Fifty jobs at the same time."""
    SINGLE = "single"
    """One job at a time, so that a hanging job takes the only slot."""
    DEFAULT = "default"
    """Default settings."""
    CRON = "cron"
    """Two schedules."""


@dataclass(frozen=True, slots=True)
class System:
    """A measured system.

    `commands` are the programs of the service by case, from the environment's `bin`; `{root}` stands for the
    directory of this project and `{url}` for the server's address.  `variables` are environment variables for
    all cases, `more` for single cases.  `venv` is the name of the environment, and `packages` are installed
    in it.  `isolated` says how jobs are isolated from each other.
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
        """The environment variables of its programs and its client."""
        defaults = {"DEFAULTS": "1"} if case is Case.DEFAULT else {}
        return {**self.variables, **defaults, **self.more.get(case, {})}
