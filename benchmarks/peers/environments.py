"""The virtual environments of the systems, kept in `.bench/venvs`."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.peers.system import PROJECT, System

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".bench" / "venvs"
LISTED = ("redis", "hiredis", "uvloop", "taskiq-redis", "periodiq", "coredis")


def programs(system: System) -> Path:
    """The directory of the programs of its environment."""
    place = VENVS / system.venv / "bin"
    # An own environment is preferred: the tests' has packages that users do not have, and some are imported.
    return Path(sys.executable).parent if system.venv == PROJECT and not place.exists() else place


def install(system: System) -> None:
    """Install the latest release of a system, or the executor's own requirements.

    Raises:
        subprocess.CalledProcessError: pip has failed, and has printed the reason.
    """
    packages = system.packages or ("--requirement", str(ROOT / "requirements.txt"))
    place = VENVS / system.venv
    if not (place / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", *packages], check=True)


def is_installed(system: System) -> bool:
    """Whether the environment of a system exists."""
    return (programs(system) / "python").exists()


def version(system: System) -> str:
    """The version of a system and of the libraries that matter for its speed."""
    own = _own_distribution(system)
    known = {"fullsend-executor": metadata.version("fullsend-executor")}
    known |= _versions(programs(system) / "python")
    others = [f"{name} {known[name]}" for name in LISTED if name in known and name != own]
    return ", ".join([known.get(own, "?"), *others])


def _own_distribution(system: System) -> str:
    if system.venv == PROJECT:
        return "fullsend-executor"
    return system.packages[0].partition("[")[0]


def _versions(python: Path) -> dict[str, str]:
    """The versions of the packages installed for an interpreter."""
    code = "import json; from importlib.metadata import distributions as d; "
    code += "print(json.dumps({one.metadata['Name'].lower(): one.version for one in d()}))"
    out = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    known: dict[str, str] = json.loads(out)
    return known
