"""The date, machine, server and interpreter of a measurement."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def surroundings(server: Path) -> dict[str, str]:
    """Describe them for a report.  `server` is the server's program."""
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {_processor()}, Linux {kernel}",
        "server": _first_line(server),
        "python": platform.python_version(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _first_line(server: Path) -> str:
    out = subprocess.run([str(server), "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(out.split()[:3])
