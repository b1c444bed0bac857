"""An environment for each system, kept between runs in `.bench/venvs`."""

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
    """Where the programs of its environment are."""
    place = VENVS / system.venv / "bin"
    # The environment of the tests has more than users have, and some of it is imported where it is found.
    return Path(sys.executable).parent if system.venv == PROJECT and not place.exists() else place


def install(system: System) -> None:
    """Have its environment at the latest releases, and our own as users have it.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    packages = system.packages or ("--requirement", str(ROOT / "requirements.txt"))
    place = VENVS / system.venv
    if not (place / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", *packages], check=True)


def is_installed(system: System) -> bool:
    """Whether it can take part as things are."""
    return (programs(system) / "python").exists()


def version(system: System) -> str:
    """Its release, and of the libraries that its speed hangs on."""
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
    """What is installed there, by name."""
    code = "import json; from importlib.metadata import distributions as d; "
    code += "print(json.dumps({one.metadata['Name'].lower(): one.version for one in d()}))"
    out = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    known: dict[str, str] = json.loads(out)
    return known
