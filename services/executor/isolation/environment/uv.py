"""Runs uv: finds interpreters and builds virtual environments."""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from services.executor.isolation.environment.built_files import installed_in
from services.executor.isolation.environment.uv_settings import UvSettings, masked
from services.executor.isolation.environment.walls import Walls
from services.executor.isolation.sandbox import Confinement
from services.executor.isolation.sandbox import command as command_prefix
from shared.errors import ToolEnvironmentError

if TYPE_CHECKING:
    from packaging.version import Version

# uv would read a pyproject.toml, uv.toml or .python-version of the directory that the service was started in.
NEUTRAL = "/"
SUPERVISE = Path(__file__).with_name("supervise.py")
OUTPUT_HEAD_BYTES = 65_536
OUTPUT_TAIL_BYTES = 262_144
MESSAGE_HEAD_CHARACTERS = 1_000
MESSAGE_TAIL_CHARACTERS = 3_000
QUERY_SECONDS = 60.0
# The oldest that `child` runs under.
OLDEST_PYTHON = "3.9"
_QUERY = """\
import json, sys, sysconfig
major, minor, micro, level, serial = sys.version_info
version = "%d.%d.%d" % (major, minor, micro)
if level != "final":
    version += {"alpha": "a", "beta": "b"}.get(level, "rc") + str(serial)
suffix = sysconfig.get_config_var("EXT_SUFFIX")
print(json.dumps([sys.executable, sys.implementation.name, version, suffix, sysconfig.get_platform()]))
"""
_NEEDS_BUILD = re.compile(r"building from source is disabled|Building source distributions is disabled")
_UNREACHABLE = re.compile(r"Failed to (fetch|download)|error sending request|Request failed after")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python on this machine.  Packages that are installed for one fit all with the same `identity`."""

    python: Path
    version: str
    identity: str


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The exit status of a command, and the beginning and the end of what it printed."""

    exit_code: int
    output: str
    errors: str


class Uv:
    """One uv binary, with the settings to reach packages from this machine."""

    def __init__(self, binary: Path, settings: UvSettings) -> None:
        self._binary = binary
        self._settings = settings

    async def build(
        self,
        folder: Path,
        python: Path,
        dependencies: Sequence[str],
        exclude_newer: str | None = None,
        walls: Callable[[], Walls] | None = None,
    ) -> list[str]:
        """Make a virtual environment of `python` in `folder`, with `dependencies`; return what is installed.

        Wheels are installed, which runs no code of theirs.  Only if that isn't enough, packages are built,
        inside walls and away from the environment, and the wheels that come of it are installed.

        Args:
            folder: where it is made.
            python: the interpreter.
            dependencies: requirements.
            exclude_newer: packages that were uploaded later are ignored.
            walls: confine what is built; None if nothing may be built.

        Raises:
            ToolEnvironmentError: has the message of uv.

        Cancelling ends uv and everything that it has started, and leaves the folder as it is.
        """
        await self._make(folder, python)
        if not dependencies:
            return []
        options = [f"--exclude-newer={exclude_newer}"] if exclude_newer else []
        described_in = await self._install(folder, python, [*options, "--", *dependencies], walls)
        # By an interpreter that looks for no packages: uv's own way runs what their .pth files say.
        command = [str(python), "-I", "-S", "-m", "compileall", "-q", "-q", "-j", "2"]
        await run_supervised([*command, str(folder / "lib")], self._settings.environ)
        return await asyncio.to_thread(installed_in, described_in)

    async def _make(self, folder: Path, python: Path) -> None:
        made = await self._run("venv", "--quiet", "--no-project", "--python", str(python), str(folder))
        if made.exit_code:
            raise ToolEnvironmentError(
                f"uv can't make a virtual environment of {python}: {self._message(made)}"
            )

    async def _install(
        self, folder: Path, python: Path, arguments: Sequence[str], walls: Callable[[], Walls] | None
    ) -> Path:
        """Install packages; return the environment that says where they came from."""
        wheels_only = [*self._installing(folder), "--no-build"]
        installed = await self._run(*wheels_only, *arguments)
        if not installed.exit_code:
            return folder
        if _NEEDS_BUILD.search(installed.errors):
            if walls is None:
                raise ToolEnvironmentError(
                    "a dependency of the tool has to be built, and only wheels are installed for a tool with "
                    "sandbox 'files' or 'files+network' (the operator can set TOOL_BUILDS_ALLOWED): "
                    f"{self._message(installed)}"
                )
            used = walls()
            await self._make(used.trial, python)
            await self._build_inside(used, folder, arguments)
            return used.trial
        if _UNREACHABLE.search(installed.errors):
            # Often, uv's cache is enough.  Without the network, uv uses it only if it is told to.
            again = await self._run(*wheels_only, "--offline", *arguments)
            if not again.exit_code:
                log.warning("environment.built_offline", reason=self._message(installed))
                return folder
        raise ToolEnvironmentError(f"uv can't install the tool's dependencies: {self._message(installed)}")

    def _installing(self, folder: Path) -> list[str]:
        python = str(folder / "bin" / "python")
        return ["pip", "install", "--quiet", "--python", python, *self._settings.install_options]

    async def _build_inside(self, walls: Walls, folder: Path, arguments: Sequence[str]) -> None:
        """Install packages on trial inside the walls, and in `folder` again, with the wheels that were built.

        When the trial has ended, none of its processes is left that could change these.
        """
        command = [str(self._binary), *self._installing(walls.trial), *arguments]
        built = await run_supervised(command, walls.environ, walls.confinement)
        if not built.exit_code:
            overrides = await asyncio.to_thread(walls.write_overrides, self._settings.environ)
            built = await self._run(*self._installing(folder), "--no-build", *overrides, *arguments)
        if built.exit_code:
            raise ToolEnvironmentError(f"uv can't build the tool's dependencies: {self._message(built)}")

    async def choose(self, requires_python: str, preferred: Interpreter) -> Interpreter:
        """The interpreter that `requires_python` allows: the preferred one, or the newest that uv finds.

        None is downloaded.  Raises ToolEnvironmentError if there is none.
        """
        # Imported here, because only tools that choose their Python need it.
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version

        specifiers = SpecifierSet(requires_python)
        if specifiers.contains(preferred.version, prereleases=True):
            return preferred
        known = await self._installed()
        fitting = [version for version in known if specifiers.contains(version, prereleases=True)]
        for version in sorted(fitting, reverse=True):
            with contextlib.suppress(ToolEnvironmentError):
                return await self.identify(known[version])
        versions = ", ".join(str(version) for version in sorted({*known, Version(preferred.version)}))
        raise ToolEnvironmentError(
            f"the tool needs Python {requires_python}, but none of this machine's interpreters fits "
            f"({versions}); install one where uv finds it, or change requires-python"
        )

    async def _installed(self) -> "dict[Version, Path]":
        """The CPythons that uv finds, by version; of each version, the one that uv lists first."""
        listed = await self._query(
            self._binary, "python", "list", "--only-installed", "--all-versions", "--output-format", "json"
        )
        if listed.exit_code:
            raise ToolEnvironmentError(f"uv can't list the interpreters: {self._message(listed)}")
        try:
            return _usable(json.loads(listed.output))
        except (ValueError, KeyError, TypeError) as exc:
            raise ToolEnvironmentError(f"uv's list of interpreters can't be read: {exc!r}") from exc

    async def identify(self, python: Path) -> Interpreter:
        """Ask an interpreter for its version and identity."""
        said = await self._query(python, "-I", "-S", "-c", _QUERY)
        if said.exit_code:
            raise ToolEnvironmentError(f"{python} can't be used: {self._message(said)}")
        executable, *identity = json.loads(said.output)
        return Interpreter(Path(executable), identity[1], " ".join(map(str, identity)))

    # -- processes --------------------------------------------------------------------

    async def _run(self, *arguments: str) -> CommandResult:
        return await run_supervised([str(self._binary), *arguments], self._settings.environ)

    async def _query(self, program: Path, *arguments: str) -> CommandResult:
        """Run a command that answers within QUERY_SECONDS."""
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                return await run_supervised([str(program), *arguments], self._settings.environ)
        except TimeoutError:
            raise ToolEnvironmentError(f"{program} didn't answer within {QUERY_SECONDS:g} s") from None

    def _message(self, finished: CommandResult) -> str:
        """The error message of a command, without secrets and without the lines before it."""
        text = finished.errors.strip()
        start = re.search(r"^(error:|\s*\u00d7)", text, re.MULTILINE)
        text = masked(text[start.start() :] if start else text, self._settings.secrets).strip()
        if len(text) > MESSAGE_HEAD_CHARACTERS + MESSAGE_TAIL_CHARACTERS:
            text = f"{text[:MESSAGE_HEAD_CHARACTERS]}\n[...]\n{text[-MESSAGE_TAIL_CHARACTERS:]}"
        return text.removeprefix("error: ") or f"it ended with status {finished.exit_code} and no message"


def _usable(listed: Sequence[Mapping[str, Any]]) -> "dict[Version, Path]":
    from packaging.version import Version

    oldest = Version(OLDEST_PYTHON)
    found: dict[Version, Path] = {}
    for entry in listed:
        version = Version(entry["version"])
        ordinary = entry["implementation"] == "cpython" and entry["variant"] == "default"
        if ordinary and version >= oldest:
            found.setdefault(version, Path(entry["path"]))
    return found


async def run_supervised(
    command: Sequence[str], environ: Mapping[str, str], confined: Confinement | None = None
) -> CommandResult:
    """Run a command in a neutral directory; its whole process tree ends when this call ends, or this process.

    Args:
        command: the program and its arguments.
        environ: its environment variables.
        confined: what it may reach; by default, all that this process may.
    """
    prefix = command_prefix(confined) if confined else []
    spec = json.dumps(confined.to_json() | {"pretends": True}) if confined and not prefix else ""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(SUPERVISE), spec, *prefix, *command,
        cwd=NEUTRAL,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.TaskGroup() as readers:
            output = readers.create_task(_ends_of(process.stdout))
            errors = readers.create_task(_ends_of(process.stderr))
        await process.wait()
    finally:
        process.stdin.close()
        await process.wait()
    return CommandResult(process.returncode or 0, output.result(), errors.result())


async def _ends_of(stream: asyncio.StreamReader) -> str:
    """The beginning and the end of what is printed; the rest is dropped."""
    head = tail = b""
    while chunk := await stream.read(65_536):
        room_bytes = OUTPUT_HEAD_BYTES - len(head)
        head += chunk[:room_bytes]
        tail = (tail + chunk[room_bytes:])[-OUTPUT_TAIL_BYTES:]
    return (head + tail).decode(errors="replace")
