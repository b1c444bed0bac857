"""What a process is told of the run that it is to serve, beside the parameters."""

from typing import Any

from services.executor.isolation.calls import NO_LIMITS, Call, Limits


def of(call: Call, *, single: bool) -> dict[str, Any]:
    """All but the parameters; what doesn't apply is left out, since every byte is read twice.

    `single` when the process is to leave after this run.
    """
    errand: dict[str, Any] = {
        "run_id": call.run_id,
        "experiment_id": call.experiment_id,
        "attempt": call.attempt,
        "timeout_seconds": call.timeout_seconds,
    }
    if call.seed is not None:
        errand["seed"] = call.seed
    if call.entry:
        errand["entry"] = call.entry
    if call.environ:
        errand["environ"] = dict(call.environ)
    if call.limits is not NO_LIMITS:
        errand.update(_kernel_limits(call.limits))
    if single:
        errand["single"] = True
    return errand


def _kernel_limits(limits: Limits) -> dict[str, dict[str, int | None]]:
    """Those that the kernel keeps for each process; the others are watched from here."""
    chosen = {
        "cpu_seconds": limits.cpu_seconds,
        "file_size_bytes": limits.file_size_bytes,
        "open_files": limits.open_files,
    }
    return {"limits": chosen} if any(value is not None for value in chosen.values()) else {}
