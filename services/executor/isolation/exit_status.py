"""How a process ended, in words."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from services.executor.isolation.calls import Exit

OURS = [Path(__file__).with_name(package) for package in ("child", "common")]

_MEANINGS = {
    "SIGSEGV": "a segmentation fault",
    "SIGABRT": "abort() was called",
    "SIGBUS": "a bus error",
    "SIGFPE": "an arithmetic error in native code",
    "SIGILL": "an illegal instruction",
}


def decode_status(status: int | None) -> tuple[int | None, str | None]:
    """Exit code and signal name, one of them None, from a status of wait(2)."""
    if status is None:
        return None, None
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return None, signal.Signals(number).name
        except ValueError:
            return None, f"SIG{number}"
    return os.waitstatus_to_exitcode(status), None


def exit_of(
    status: int | None,
    peak_rss_bytes: int | None,
    cpu_seconds: float | None,
    stacks: str,
    last_lines: Iterable[str],
) -> Exit:
    """How a process ended, from its status as in wait(2) and what it left; with the tool's stacks only."""
    code, number = decode_status(status)
    return Exit(
        code,
        number,
        peak_rss_bytes,
        cpu_seconds,
        stacks=without_ours(stacks),
        last_lines=tuple(last_lines),
    )


def without_ours(stacks: str) -> str:
    """A dump of faulthandler without the frames of the executor's code."""
    ours = tuple(f'File "{folder}{os.sep}' for folder in OURS)
    return "\n".join(line for line in stacks.splitlines() if not line.strip().startswith(ours))


def died_with_parent(exit_: Exit) -> bool:
    """Whether nothing is known about its end, because its parent was gone first."""
    return exit_.exit_code is None and exit_.signal is None and not exit_.oom_killed


def reason(exit_: Exit) -> str:
    """The sentence for a process that ended although the executor had not requested it."""
    if exit_.oom_killed:
        return "its process was killed by the kernel: memory had run out, the machine's or its container's"
    if exit_.signal == "SIGXCPU":
        return "CPU limit: the run used more CPU seconds than it is allowed"
    if exit_.signal is not None:
        meaning = _MEANINGS.get(exit_.signal)
        return f"its process was ended by {exit_.signal}" + (f" ({meaning})" if meaning else "")
    if exit_.exit_code is not None:
        return f"its process ended itself with exit code {exit_.exit_code} before it answered"
    return "its process ended together with the process that had started it"
