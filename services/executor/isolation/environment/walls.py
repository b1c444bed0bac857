"""Where packages are built: their code is foreign, and runs before any tool does."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.executor.isolation import sandbox
from services.executor.isolation.environment.built_files import built_wheels
from services.executor.isolation.environment.uv_settings import UvSettings, masked
from services.executor.isolation.sandbox import Confinement, Sandbox

# Compilers, and what they need.
PROGRAMS = tuple(map(Path, ("/usr", "/bin", "/sbin", "/etc/alternatives")))


class Walls:
    """Confines the processes that build packages for one environment.

    They may read the interpreter, uv, the system's programs and the operator's packages, write `place`, and
    use the network.  They see no credentials.  Changes of modes, owners and times of files do nothing and
    report success.  `trial` is where an environment can be made inside.

    Args:
        place: a new directory for uv's cache, temporary files and a home; the caller removes it.
        python, uv: the interpreter of the environment, and the uv binary.
        settings: for uv.
        readable: further paths that the operator lets confined tools read.

    Raises:
        SandboxUnavailableError: nothing here can confine a process.
    """

    def __init__(
        self,
        place: Path,
        python: Path,
        uv: Path,
        settings: UvSettings,
        readable: Sequence[Path],
    ) -> None:
        self._place = place.absolute()
        self.trial = self._place / "trial"
        self.confinement: Confinement = sandbox.confinement(
            Sandbox.FILES,
            prefixes=sandbox.prefixes_of(python),
            tools=uv.resolve(),
            temp=self._place,
            also=[uv.absolute(), *PROGRAMS, *settings.places, *readable],
        )
        self.environ = settings.without_credentials() | {
            "UV_CACHE_DIR": str(self._place / "cache"),
            "TMPDIR": str(self._place / "temp"),
            "HOME": str(self._place / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",  # git fails if it may not read a file that is there
        }
        for name in ("cache", "temp", "home"):
            (self._place / name).mkdir(parents=True)
        if settings.config_file is not None:
            self.environ["UV_CONFIG_FILE"] = str(self._copied(settings.config_file))

    def write_overrides(self, environ: Mapping[str, str]) -> list[str]:
        """Options for uv that have it install the wheels that were built for the trial, and no others.

        `environ` has the operator's own overrides, which uv would ignore then.
        """
        wheels = built_wheels(self._place / "cache", self.trial)
        # A new file, not what a build has put there.
        with tempfile.NamedTemporaryFile("w", dir=self._place, delete=False) as file:
            file.writelines(f"{name} @ {wheel.as_uri()}\n" for name, wheel in wheels.items())
        return [f"--override={path}" for path in (*environ.get("UV_OVERRIDE", "").split(), file.name)]

    def _copied(self, config_file: Path) -> Path:
        """A copy of uv's configuration without credentials."""
        copy = self._place / "uv.toml"
        copy.write_text(masked(config_file.read_text(encoding="utf-8")), encoding="utf-8")
        return copy
