"""Packages and a uv for tests: the packages are written on the spot, and uv can be watched and held."""

import asyncio
import contextlib
import hashlib
import importlib
import os
import re
import shutil
import sys
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation.environment.environments import Environment, Environments

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30.0
# Logs each call; at `pip`, hangs with a grandchild that left the session, or waits at the gate.
WATCHED_UV = """\
#!/bin/sh
printf '%s\\n' "$*" >> {log}
if [ "$1" = pip ]; then
    env > {env}
    if [ -e {hang} ]; then
        setsid sleep 1000 & echo $! >> {pids}
        echo $$ >> {pids}
        exec sleep 1000
    fi
    if [ -p {gate} ]; then read _ < {gate}; fi
    if [ -e {script} ]; then . {script}; fi
fi
exec {uv} "$@"
"""


def find_uv() -> Path:
    """The uv binary of this environment, else of the machine; the test is skipped if there is none."""
    with contextlib.suppress(ImportError, FileNotFoundError):
        return Path(importlib.import_module("uv").find_uv_bin())
    found = shutil.which("uv")
    if found is None:
        pytest.skip("there is no uv: neither the package of that name nor a program on PATH")
    return Path(found)


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Workshop:
    """One test's packages, its uv and its folder of environments; nothing needs a network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folder = directory / "environments"
        self.wheels = directory / "wheels"
        self.wheels.mkdir()
        self.clock = Clock()
        self._log, self._gate, self._pids = directory / "log", directory / "gate", directory / "pids"
        self._hang, self._script, self._environ = directory / "hang", directory / "script", directory / "env"
        self.uv = self._watched_uv(find_uv())
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "UV_CACHE_DIR": str(directory / "cache"),
            "UV_FIND_LINKS": str(self.wheels),
            "UV_OFFLINE": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def environments(self, **chosen: Any) -> Environments:
        """The environments of one service; several may share the folder."""
        defaults: dict[str, Any] = {"uv": self.uv, "environ": self.environ, "clock": self.clock}
        return Environments(self.folder, **(defaults | chosen))

    def wheel(self, name: str, version: str, requires: str = "") -> Path:
        """A package with one module that has a version, and a command that prints it."""
        info = f"{name}-{version}.dist-info"
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        files = {
            f"{name}.py": f"VERSION = {version!r}\ndef main() -> None:\n    print(VERSION)\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[console_scripts]\nsay-{name} = {name}:main\n",
        }
        record = "".join(f"{path},sha256={_sha256(text)},{len(text)}\n" for path, text in files.items())
        wheel = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
                archive.writestr(path, text)
        return wheel

    # -- the watched uv ---------------------------------------------------------------

    def calls(self, command: str = "") -> list[str]:
        """The calls of uv so far that begin with this word."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if line.startswith(command)]

    def note(self, line: str) -> None:
        """Add a line to the log of calls."""
        with self._log.open("a") as log:
            log.write(line + "\n")

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Until the end of the block, every installation hangs."""
        self._hang.touch()
        try:
            yield
        finally:
            self._hang.unlink()

    def close_gate(self) -> None:
        """From now on, installations wait at the gate."""
        os.mkfifo(self._gate)

    def open_gate(self) -> None:
        """Let all installations continue, those that wait and those that follow."""
        held = self._gate.rename(self._gate.with_suffix(".open"))
        # Without O_NONBLOCK it would wait for one to wait; so it fails, and nothing is to be done.
        with contextlib.suppress(OSError):
            os.close(os.open(held, os.O_WRONLY | os.O_NONBLOCK))

    def at_installation(self, script: str) -> None:
        """Have a piece of shell script run before each installation."""
        self._script.write_text(script)

    def seen_environ(self) -> dict[str, str]:
        """The environment of the last installation."""
        lines = self._environ.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    async def installing(self, count: int = 1) -> None:
        """Wait until so many installations have begun."""
        await eventually(lambda: len(self.calls("pip")) >= count)

    async def hung(self) -> list[int]:
        """Wait until an installation hangs; return its processes."""
        await eventually(lambda: self._pids.exists() and len(self._pids.read_text().split()) >= 2)
        return [int(pid) for pid in self._pids.read_text().split()]

    # -- what is on disk --------------------------------------------------------------

    def markers(self) -> list[Path]:
        """The files that mark finished environments."""
        return sorted(self.folder.glob("*.json"))

    def folders(self) -> list[Path]:
        """Environments, finished or not."""
        return sorted(path for path in self.folder.iterdir() if path.is_dir())

    def names(self) -> list[str]:
        """The files in the folder, without digests and nonces."""
        return sorted(re.sub(r"^[0-9a-f]{64}|[0-9a-f]{8}$", "", path.name) for path in self.folder.iterdir())

    def age(self, seconds: float) -> None:
        """Make every environment look unused for so long."""
        for marker in self.markers():
            then = time.time() - seconds
            os.utime(marker, (then, then))

    def _watched_uv(self, real: Path) -> Path:
        watched = self.directory / "uv"
        places = {name: self.directory / name for name in ("log", "gate", "pids", "hang", "script", "env")}
        watched.write_text(WATCHED_UV.format(uv=real, **places))
        watched.chmod(0o755)
        return watched


async def output_of(*command: str | Path) -> str:
    """The output of a program, which must succeed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().strip()


async def version_of_pinned(environment: Environment) -> str:
    """The version of the package `pinned` that is installed there."""
    return await output_of(environment.python, "-c", "import pinned; print(pinned.VERSION)")


def another_service(workshop: Workshop, requirements: Any) -> list[str]:
    """The command line of a process that prepares one environment and prints its interpreter."""
    script = (
        "import asyncio, pathlib\n"
        "from services.executor.isolation.environment.environments import Environment, Environments\n"
        "from services.executor.isolation.environment.requirements import Requirements\n"
        "async def main():\n"
        f"    environments = Environments(pathlib.Path({str(workshop.folder)!r}),\n"
        f"        uv=pathlib.Path({str(workshop.uv)!r}), environ={workshop.environ!r})\n"
        f"    print((await environments.ensure({requirements!r})).python)\n"
        "asyncio.run(main())\n"
    )
    return [sys.executable, "-c", script]


async def eventually(fact: Callable[[], Any]) -> None:
    """Wait until `fact` is true; fail after PATIENCE_SECONDS."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not fact():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, zombies included."""
    return Path("/proc", str(pid)).exists()


def _sha256(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
