"""Packages are built inside walls, wheels are preferred, and nothing of this directory decides about them."""

import json
import os
import shutil
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation import sandbox
from services.executor.isolation.environment.environment_cache import EnvironmentCache
from services.executor.isolation.environment.environments import Environments
from services.executor.isolation.environment.requirements import Requirements
from services.executor.isolation.sandbox import Unavailable
from shared.errors import ToolEnvironmentError
from tests.isolation.users import ROOT_AND_ORDINARY, run_as
from tests.isolation.workshop import Workshop, find_uv, output_of, version_of_pinned

# A harmless build backend: it tries to write and read some files, and puts into its wheel what came of it.
BACKEND = """
import json, os, pathlib, stat, zipfile

def attempt(action):
    try:
        return action() or "done"
    except OSError as error:
        return type(error).__name__

def descend(name):
    os.mkdir(name)
    os.chdir(name)

def build_wheel(directory, config_settings=None, metadata_directory=None):
    tried = {tried}
    tried["env"] = dict(os.environ)
    own = pathlib.Path("own")
    own.write_text("x")
    own.chmod(0o600)
    name, info = "built-1.0-py3-none-any.whl", "built-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        text = "import json\\nTRIED = json.loads(%r)\\ndef main(): print('ran')\\n"
        wheel.writestr("built.py", text % json.dumps(tried))
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: built\\nVersion: 1.0\\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/entry_points.txt", "[console_scripts]\\nsay-built = built:main\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "built"
version = "1.0"
"""
BUILT = Requirements(("built",))


@pytest.fixture(name="workshop")
def _workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "workshop").mkdir()
    return Workshop(tmp_path / "workshop")


@pytest.fixture
def walled(workshop: Workshop) -> Environments:
    """Environments with the real uv; what watches it in other tests could not write its log inside walls."""
    return workshop.environments(uv=find_uv())


def source(workshop: Workshop, **tried: str) -> None:
    """A source distribution of `built`, whose backend evaluates these expressions."""
    expressions = ", ".join(f"{name!r}: attempt(lambda: {text})" for name, text in tried.items())
    files = {
        "pyproject.toml": PROJECT,
        "backend.py": BACKEND.replace("{tried}", "{" + expressions + "}"),
        "PKG-INFO": "Metadata-Version: 2.1\nName: built\nVersion: 1.0\n",
    }
    with tarfile.open(workshop.wheels / "built-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            about = tarfile.TarInfo(f"built-1.0/{name}")
            about.size = len(text)
            archive.addfile(about, BytesIO(text.encode()))


async def tried_in(environments: Environments, requirements: Requirements = BUILT) -> dict[str, Any]:
    """What the backend reports of its attempts."""
    environment = await environments.ensure(requirements)
    found = await output_of(environment.python, "-c", "import built, json; print(json.dumps(built.TRIED))")
    return dict(json.loads(found))


needs_landlock = pytest.mark.skipif(
    isinstance(sandbox.detect(), Unavailable), reason="nothing on this machine can confine a process"
)


@needs_landlock
async def test_a_backend_can_not_leave_its_walls(
    workshop: Workshop, walled: Environments, tmp_path: Path
) -> None:
    secret, victim, shared = tmp_path / "secret", tmp_path / "victim", workshop.directory / "cache"
    secret.write_text("secret")
    shared.mkdir()
    source(
        workshop,
        write=f"pathlib.Path({str(victim)!r}).write_text('x') and None",
        read=f"pathlib.Path({str(secret)!r}).read_text()",
        environ=f"pathlib.Path('/proc/{os.getpid()}/environ').read_text()",
        poison=f"pathlib.Path({str(shared / 'x')!r}).write_text('x') and None",
        mode=f"os.chmod({str(secret)!r}, 0o777)",
        signal=f"os.kill({os.getpid()}, 0)",
    )

    tried = await tried_in(walled)

    refused = {name: tried[name] for name in ("write", "read", "environ", "poison")}
    assert set(refused.values()) == {"PermissionError"}
    assert tried["mode"] == "done"  # it is told so
    assert secret.stat().st_mode & 0o777 != 0o777
    assert not victim.exists()
    assert not (shared / "x").exists()


@needs_landlock
@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
def test_the_same_holds_for_root_and_for_an_ordinary_user(user: int) -> None:
    tried = json.loads(run_as(user, Path(__file__).with_name("build_scene.py")).splitlines()[-1])

    refused = {name: tried[name] for name in ("read", "write", "environ", "memory")}
    assert set(refused.values()) == {"PermissionError"}
    assert tried["was changed"] is False


@needs_landlock
async def test_a_backend_sees_no_credentials_and_a_home_of_its_own(workshop: Workshop) -> None:
    source(workshop)
    workshop.environ |= {"UV_INDEX_LAB_PASSWORD": "hunter2", "HTTPS_PROXY": "http://me:hunter2@127.0.0.1:9"}

    seen = (await tried_in(workshop.environments(uv=find_uv())))["env"]

    assert "hunter2" not in str(seen)
    assert Path(seen["HOME"]).is_relative_to(workshop.folder)
    assert Path(seen["UV_CACHE_DIR"]).is_relative_to(workshop.folder)


@needs_landlock
async def test_what_was_built_works_and_nothing_else_is_left(
    workshop: Workshop, walled: Environments
) -> None:
    source(workshop)

    environment = await walled.ensure(BUILT)

    assert list(environment.python.parents[1].rglob("built.cpython-*.pyc"))
    assert await output_of(environment.python.with_name("say-built")) == "ran"
    assert workshop.folders() == [environment.python.parents[1]]


@needs_landlock
async def test_a_build_can_not_change_the_environment_and_what_it_leaves_is_removed(
    workshop: Workshop, walled: Environments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, wheel = workshop.wheels / "where", tmp_path / "built-1.0-py3-none-any.whl"
    new_folder = EnvironmentCache.new_folder

    def told_folder(cache: EnvironmentCache, digest: str) -> Path:
        folder = new_folder(cache, digest)
        if not where.exists():  # the first one is the environment
            where.write_text(str(folder))
        return folder

    monkeypatch.setattr(EnvironmentCache, "new_folder", told_folder)
    wheel.write_text("no wheel, and none that may be installed")
    environment = f"pathlib.Path(pathlib.Path({str(where)!r}).read_text())"
    source(
        workshop,
        replace=f"({environment} / 'bin' / 'python').unlink()",
        configure=f"({environment} / 'pyvenv.cfg').write_text('home = /') and None",
        deep="(lambda here: [descend('x') for _ in range(1500)] and os.chdir(here))(os.getcwd())",
        link=f"(lambda place: os.makedirs(place) or os.symlink({str(wheel)!r}, place + {wheel.name!r}))("
        "os.environ['UV_CACHE_DIR'] + '/z/z/')",
    )
    workshop.wheel("pinned", "1.0")
    requirements = Requirements(("built", "pinned"))

    made = await walled.ensure(requirements)

    tried = json.loads(
        await output_of(made.python, "-c", "import built, json; print(json.dumps(built.TRIED))")
    )
    del tried["env"]
    assert tried == {
        "replace": "PermissionError",
        "configure": "PermissionError",
        "deep": "done",
        "link": "done",
    }
    assert await version_of_pinned(made) == "1.0"
    assert workshop.folders() == [made.prefix]


@needs_landlock
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
async def test_a_package_that_is_built_from_a_repository_is_known_by_its_commit(workshop: Workshop) -> None:
    source(workshop)
    with tarfile.open(workshop.wheels / "built-1.0.tar.gz") as archive:
        archive.extractall(workshop.wheels, filter="data")
    repository = workshop.wheels / "built-1.0"
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        await output_of("git", "-C", repository, *command)
    for version in ("1.0", "2.0"):
        workshop.wheel("pinned", version)
    override = workshop.directory / "override.txt"
    override.write_text("pinned==1.0\n")
    workshop.environ["UV_OVERRIDE"] = str(override)

    address = f"built @ git+{repository.as_uri()}"
    made = await workshop.environments(uv=find_uv()).ensure(Requirements((address, "pinned")))

    [marker] = workshop.markers()
    [built, pinned] = json.loads(marker.read_text())["installed"]
    assert await output_of("git", "-C", repository, "rev-parse", "HEAD") in built
    assert pinned == "pinned-1.0"  # what the operator overrides is overridden after a build as well
    assert await version_of_pinned(made) == "1.0"


async def test_a_wheel_is_preferred_and_no_code_is_run_for_it(
    workshop: Workshop, walled: Environments
) -> None:
    mark = workshop.directory / "ran"
    source(workshop, write=f"pathlib.Path({str(mark)!r}).touch()")
    workshop.wheel("built", "0.9")

    environment = await walled.ensure(BUILT)

    assert await output_of(environment.python, "-c", "import built; print(built.VERSION)") == "0.9"
    assert not mark.exists()


async def test_a_file_that_python_reads_as_it_starts_is_not_run_by_an_installation(
    workshop: Workshop, walled: Environments
) -> None:
    mark = workshop.directory / "ran"
    with zipfile.ZipFile(workshop.wheel("pinned", "1.0"), "a") as wheel:
        wheel.writestr("pinned.pth", f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")

    environment = await walled.ensure(Requirements(("pinned",)))

    assert not mark.exists()
    assert list(environment.python.parents[1].rglob("pinned.cpython-*.pyc"))


async def test_for_a_confined_tool_nothing_is_built(workshop: Workshop, walled: Environments) -> None:
    source(workshop)

    with pytest.raises(
        ToolEnvironmentError, match=r"has to be built, and only wheels .* TOOL_BUILDS_ALLOWED"
    ):
        await walled.ensure(Requirements(("built",), wheels_only=True))


async def test_where_nothing_can_be_confined_nothing_is_built(
    workshop: Workshop, walled: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "detect", lambda: Unavailable("the kernel has no Landlock"))
    source(workshop)
    workshop.wheel("pinned", "1.0")

    with pytest.raises(ToolEnvironmentError, match=r"has to be built, and sandbox .* can't be enforced here"):
        await walled.ensure(BUILT)
    assert await version_of_pinned(await walled.ensure(Requirements(("pinned",)))) == "1.0"


# -- what decides about versions --------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", "[tool.uv]\noverride-dependencies = ['pinned==1.0']\n"),
        ("uv.toml", "override-dependencies = ['pinned==1.0']\n"),
        ("uv.toml", "exclude-newer = '2000-01-01T00:00:00Z'\n"),
    ],
)
async def test_a_file_in_the_workers_directory_decides_nothing(
    file: str, text: str, workshop: Workshop, walled: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0"):
        workshop.wheel("pinned", version)
    (workshop.directory / file).write_text(text)
    monkeypatch.chdir(workshop.directory)

    assert await version_of_pinned(await walled.ensure(Requirements(("pinned",)))) == "2.0"


async def test_the_operators_file_decides_and_is_part_of_the_digest(
    workshop: Workshop, walled: Environments
) -> None:
    for version in ("1.0", "2.0"):
        workshop.wheel("pinned", version)
    config = workshop.directory / "operators.toml"
    config.write_text("override-dependencies = ['pinned==1.0']\n")

    plain = await walled.ensure(Requirements(("pinned",)))
    chosen = await workshop.environments(config_file=str(config)).ensure(Requirements(("pinned",)))

    assert [await version_of_pinned(one) for one in (plain, chosen)] == ["2.0", "1.0"]
    assert plain.digest != chosen.digest


async def test_the_digest_covers_the_installed_versions(workshop: Workshop) -> None:
    requirements = Requirements(("pinned",))

    async def on(executor: str) -> tuple[str, str]:
        folder = workshop.directory / executor
        environments = Environments(folder, uv=workshop.uv, environ=workshop.environ)
        environment = await environments.ensure(requirements)
        again = await Environments(folder, uv=workshop.uv, environ=workshop.environ).ensure(requirements)
        assert environment == again
        return environment.key, environment.digest

    workshop.wheel("pinned", "1.0")
    first, second = await on("first"), await on("second")
    workshop.wheel("pinned", "2.0")
    third = await on("third")

    assert first == second
    assert first[0] == third[0]
    assert first[1] != third[1]
