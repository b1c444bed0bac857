"""A confined process reaches only what it may, whichever user it runs as and whatever it starts."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation import sandbox
from services.executor.isolation.sandbox import Bubblewrap, Confinement, Kind, Landlock, Sandbox
from tests.isolation import sandbox_attempts as attempts

ATTEMPTS = Path(attempts.__file__)
PROMISES = ATTEMPTS.with_name("sandbox_promises.py")
ROOT = ATTEMPTS.parents[2]
NOBODY = 65534
REFUSED = {"EACCES", "EPERM"}
# A link that would give new rights is refused as if it led to another file system.
REFUSED_AS_ELSEWHERE = {"link a secret into the temp directory": "EXDEV"}
# Not every machine has these places, and one that isn't there needs no refusing.
MAY_BE_MISSING = {
    "read the keys of certificates", "open the kernel's log", "open the kernel's memory",
    "open the system request key", "create in /dev/shm", "clone a mount",
}  # fmt: skip
ALL_GROUPS = ("files", "processes", "signals", "restricted by systems", "network", "other sockets")

needs_landlock = pytest.mark.skipif(
    not isinstance(sandbox.detect(), Landlock), reason="this kernel has no Landlock"
)
BWRAP = shutil.which("bwrap")
needs_bubblewrap = pytest.mark.skipif(BWRAP is None, reason="bubblewrap is not installed")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or "0000000000000000" in Path("/proc/self/status").read_text().split("CapEff:")[1][:18],
    reason="only root can do all of it unconfined",
)


@dataclasses.dataclass
class Scene:
    """A machine in small: a service with secrets, a neighbour, open ports, and a tool's two folders."""

    folder: Path
    target: dict[str, Any]

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def tools(self) -> Path:
        return self.folder / "tools"

    @property
    def temp(self) -> Path:
        return self.folder / "temp"

    def confinement(self, level: Sandbox, kind: Kind | None = None) -> Confinement:
        return sandbox.confinement(
            level,
            prefixes=sandbox.prefixes_of(Path(sys.executable)),
            tools=self.tools,
            temp=self.temp,
            also=[ATTEMPTS, PROMISES],
            kind=kind,
        )

    def run(self, script: Path, confined: Confinement | None, **request: Any) -> Any:
        """What the script printed, as the process of its own that it ran in."""
        asked = {
            "package": str(sandbox.OURS[1]), "spec": confined and confined.to_json(), "route": "direct",
            "uid": None, "groups": (), "sweep": False, "target": self.target, **request,
        }  # fmt: skip
        prefix = [] if confined is None else sandbox.command(confined)
        done = subprocess.run(
            [*prefix, sys.executable, "-s", str(script), json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.temp,
            env={"PYTHONPATH": str(ROOT), "SERVICE_SECRET": "hunter2"},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def state(self) -> dict[str, Any]:
        """Everything outside of the temp directory that an attempt could have changed."""
        paths = [path for place in (self.outside, self.tools) for path in [place, *sorted(place.rglob("*"))]]
        return {str(path): _state(path) for path in paths}


def _state(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    content = path.read_bytes() if path.is_file() else b""
    seen = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns)
    return *seen, content, os.listxattr(path, follow_symlinks=False)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Not in `tmp_path`, which nobody but its owner may enter."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fullsend-scene-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        for name in ("outside/folder", "tools", "temp"):
            (folder / name).mkdir(parents=True)
        (folder / "outside" / "secret.txt").write_text("secret")
        (folder / "outside" / ".env").write_text("REDIS_URL=redis://:secret@localhost")
        (folder / "tools" / "tool.py").write_text("def tool(): return 1\n")
        neighbour = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        )
        stack.callback(neighbour.kill)
        target = {
            "outside": str(folder / "outside"),
            "secret": str(folder / "outside" / "secret.txt"),
            "readable": str(folder / "tools" / "tool.py"),
            "temp": str(folder / "temp"),
            "home": str(Path.home()),
            "neighbour": neighbour.pid,
            **_listeners(stack, folder / "outside"),
        }
        yield Scene(folder, target)


def _listeners(stack: contextlib.ExitStack, outside: Path) -> dict[str, Any]:
    """Sockets that anybody on this machine can reach."""

    def bound(family: int, kind: int, address: Any) -> Any:
        listener = stack.enter_context(socket.socket(family, kind))
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        return listener.getsockname()

    abstract = f"fullsend-{os.getpid()}"
    return {
        "tcp": bound(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))[1],
        "udp": bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))[1],
        "unix": bound(socket.AF_UNIX, socket.SOCK_STREAM, str(outside / "stream.sock")),
        "unix_datagram": bound(socket.AF_UNIX, socket.SOCK_DGRAM, str(outside / "datagram.sock")),
        "abstract": (bound(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract), abstract)[1],
    }


def not_refused(came: dict[str, dict[str, str]]) -> dict[str, str]:
    """The attempts that confinement did not stop, and what came of them."""
    return {
        name: what
        for attempts in came.values()
        for name, what in attempts.items()
        if what not in REFUSED and what != REFUSED_AS_ELSEWHERE.get(name) and not _is_missing(name, what)
    }


def _is_missing(name: str, what: str) -> bool:
    return what == "ENOENT" and name in MAY_BE_MISSING


@needs_root
def test_without_confinement_every_attempt_succeeds(scene: Scene) -> None:
    # "files" removes what the others need; "restricted by systems" depends on the system's settings.
    groups = ["processes", "signals", "network", "other sockets", "files"]

    came = scene.run(ATTEMPTS, None, route="fork", groups=groups)

    # Some arguments are senseless on purpose; what counts is that the kernel came to look at them.
    looked_at = {"done", "EINVAL", "EFAULT", "EBADF", "ENODEV", "ENOSYS", "ENOEXEC", "ENOKEY", "EIO"}
    unreal = {
        name: what
        for group in came.values()
        for name, what in group.items()
        if what not in looked_at and not _is_missing(name, what)
    }
    assert unreal == {}


@needs_landlock
@pytest.mark.parametrize("level", [Sandbox.FILES, Sandbox.FILES_AND_NETWORK])
@pytest.mark.parametrize("route", ["direct", "fork", "exec", "memory"])
def test_nothing_outside_is_reached(scene: Scene, level: Sandbox, route: str) -> None:
    before = scene.state()

    came = scene.run(ATTEMPTS, scene.confinement(level), route=route, groups=ALL_GROUPS)

    allowed = attempts.NETWORK if level is Sandbox.FILES else {}
    assert not_refused(came).keys() == allowed.keys()
    assert scene.state() == before


@needs_landlock
@pytest.mark.parametrize("broken", [{"writable": ["/no/such/place"]}, {"level": "paper"}])
def test_a_process_that_can_not_be_confined_says_so(scene: Scene, broken: dict[str, Any]) -> None:
    confined = scene.confinement(Sandbox.FILES)

    with pytest.raises(AssertionError, match="NotConfined"):
        scene.run(ATTEMPTS, confined, spec={**confined.to_json(), **broken})


@needs_landlock
def test_files_alone_leaves_the_network_open(scene: Scene) -> None:
    came = scene.run(ATTEMPTS, scene.confinement(Sandbox.FILES), groups=["network"])

    assert set(came["network"].values()) == {"done"}


@needs_landlock
@needs_root
def test_an_ordinary_user_is_confined_as_well(scene: Scene) -> None:
    for path in [scene.folder, *scene.folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    before = scene.state()

    came = scene.run(
        ATTEMPTS, scene.confinement(Sandbox.FILES_AND_NETWORK), uid=NOBODY, groups=["files", "other sockets"]
    )

    assert not_refused(came) == {}
    assert scene.state() == before


@needs_landlock
@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5])
def test_an_older_kernel_confines_as_well(scene: Scene, abi: int) -> None:
    before = scene.state()

    came = scene.run(ATTEMPTS, scene.confinement(Sandbox.FILES_AND_NETWORK, Landlock(abi)), groups=ALL_GROUPS)

    assert not_refused(came).keys() == attempts.SIGNALS.keys()
    assert scene.state() == before


@needs_landlock
def test_every_call_of_the_table_is_refused(scene: Scene) -> None:
    came = scene.run(ATTEMPTS, scene.confinement(Sandbox.FILES), sweep=True)

    assert set(came["every refused call"].values()) == {"EPERM"}


@needs_landlock
def test_calls_of_other_machines_and_newer_kernels_are_refused(scene: Scene) -> None:
    came = scene.run(ATTEMPTS, scene.confinement(Sandbox.FILES), sweep=True)

    if os.uname().machine == "x86_64":
        assert came["foreign calls"] == {"x32": "ENOSYS", "i386": "SIGSYS", "clone3": "ENOSYS"}


@needs_landlock
@pytest.mark.parametrize("level", [Sandbox.FILES, Sandbox.FILES_AND_NETWORK])
def test_what_every_tool_needs_works(scene: Scene, level: Sandbox) -> None:
    came = scene.run(PROMISES, scene.confinement(level))

    assert {name: what for name, what in came.items() if what != "done"} == {}


@needs_landlock
@pytest.mark.parametrize("abi", [2, 4, 5])
def test_what_every_tool_needs_works_on_an_older_kernel(scene: Scene, abi: int) -> None:
    came = scene.run(PROMISES, scene.confinement(Sandbox.FILES_AND_NETWORK, Landlock(abi)))

    assert {name: what for name, what in came.items() if what != "done"} == {}


# What namespaces leave to be opened: places and processes of their own, with nothing in them.
OF_THE_NAMESPACE = {
    "list the home", "list /", "list /tmp", "create in /dev/shm", "open a terminal",
    "list the parent's folder", "open environ of the parent", "open cmdline of the parent",
    "open maps of the parent", "open fd of the parent", "open task of the parent",
    "signal the parent", "signal the parent by descriptor",
}  # fmt: skip


@needs_bubblewrap
@pytest.mark.parametrize("level", [Sandbox.FILES, Sandbox.FILES_AND_NETWORK])
def test_bubblewrap_hides_everything_outside(scene: Scene, level: Sandbox) -> None:
    before = scene.state()
    confined = scene.confinement(level, Bubblewrap(Path(BWRAP or "")))

    came = scene.run(ATTEMPTS, confined, groups=ALL_GROUPS)

    done = {name for group in came.values() for name, what in group.items() if what == "done"}
    assert done <= OF_THE_NAMESPACE | (attempts.NETWORK.keys() if level is Sandbox.FILES else set())
    assert scene.state() == before


@needs_bubblewrap
def test_what_every_tool_needs_works_under_bubblewrap(scene: Scene) -> None:
    came = scene.run(PROMISES, scene.confinement(Sandbox.FILES_AND_NETWORK, Bubblewrap(Path(BWRAP or ""))))

    assert {name: what for name, what in came.items() if what != "done"} == {}
