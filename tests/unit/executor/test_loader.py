"""Loading tools: finding the code of a name, and describing each form of it once."""

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest

from services.executor.artifacts import LocalBlobs
from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment.environments import Environment
from services.executor.isolation.environment.requirements import Requirements
from services.executor.isolation.sandbox import Sandbox
from services.executor.loader import Loader
from services.executor.tools.bundles import MAX_BYTES, Bundle, Bundles
from shared.errors import ToolError, ToolNotFoundError


class Describer:
    """Describes modules instead of a child process: by their names, or with an error that the test sets."""

    def __init__(self) -> None:
        self.asked: list[Module] = []
        self.fault: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        self.asked.append(module)
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        return Description(module.name, module.name, 1, "sync", "", {})


class OwnEnvironment:
    """An installer whose only environment is that of the service; notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Requirements] = []

    async def find(self, requirements: Requirements) -> Environment | None:
        own = Path(sys.executable)
        return None if requirements.dependencies else Environment(own, own, "")

    async def ensure(self, requirements: Requirements) -> Environment:
        self.asked.append(requirements)
        return Environment(Path(sys.executable), Path(sys.executable), "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


@pytest.fixture
def describer() -> Describer:
    return Describer()


@pytest.fixture
def kept(tmp_path: Path) -> Bundles:
    return Bundles(LocalBlobs(tmp_path / "blobs"), tmp_path / "bundles")


@pytest.fixture
def loader(folder: Path, describer: Describer, kept: Bundles) -> Loader:
    return Loader(folder, describer, OwnEnvironment(), kept)


def refusal(loader: Loader, name: str) -> str:
    with pytest.raises(ToolNotFoundError) as refused:
        loader.find(name)
    return str(refused.value)


# -- capabilities ---------------------------------------------------------------------

ASKING = """# /// script
# [tool.fullsend]
# capabilities = ["net_raw"]
# ///
"""


async def test_a_tool_is_given_the_capabilities_that_are_allowed(
    folder: Path, describer: Describer, kept: Bundles
) -> None:
    (folder / "ping.py").write_text(ASKING)
    loader = Loader(folder, describer, OwnEnvironment(), kept, capabilities=["net_raw", "chown"])

    assert (await loader.load("ping", 10)).module.capabilities == ("net_raw",)


async def test_a_tool_that_asks_for_a_capability_that_is_not_allowed_is_refused(
    folder: Path, loader: Loader
) -> None:
    (folder / "ping.py").write_text(ASKING)

    with pytest.raises(ToolError, match=r"ping.py asks for .*'net_raw'.*TOOL_CAPABILITIES_ALLOWED"):
        await loader.load("ping", 10)


async def test_a_capability_that_nobody_can_have_is_refused(folder: Path, loader: Loader) -> None:
    (folder / "ping.py").write_text(ASKING.replace("net_raw", "sys_ptrace"))

    with pytest.raises(ToolError, match=r"capabilities.*is no capability that a tool can have; these are"):
        await loader.load("ping", 10)


# -- names ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "resend_email", "with-dash", "9", "x" * 128])
def test_a_tool_is_the_file_of_its_name(name: str, folder: Path, loader: Loader) -> None:
    (folder / f"{name}.py").write_text("x = 1\n")

    assert loader.find(name) == Module(name, folder / f"{name}.py", hashlib.sha256(b"x = 1\n").hexdigest())


def test_a_missing_tool_is_not_found_under_the_name_that_was_given(folder: Path, loader: Loader) -> None:
    assert refusal(loader, "nothing") == f"Tool 'nothing' not found: there is no {folder}/nothing.py"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            ".",
            "..",
            "../tool",
            "../tools/tool",
            "sub/tool",
            "sub.tool",
            "tool.py",
            "tool.",
            ".tool",
        ),
        *(
            "/etc/passwd",
            "/tool",
            "~/tool",
            "tool\n",
            "tool\0",
            "tööl",
            "\uff54ool",
            "__init__",
            "_tool",
            "-tool",
        ),
        *(
            "tool tool",
            "tool;x",
            "tool%2e",
            "..\\tool",
            "tool/..",
            "file:tool",
            "x" * 129,
            "x" * 300,
            "x" * 100_000,
        ),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str, folder: Path, loader: Loader) -> None:
    for path in (folder / "tool.py", folder.parent / "tool.py", folder / "__init__.py", folder / "_tool.py"):
        path.write_text("")
    (folder / "sub").mkdir()
    (folder / "sub" / "tool.py").write_text("")

    with pytest.raises(ToolError, match="can't be a tool: a name has letters, digits") as error:
        loader.find(name)
    assert not isinstance(error.value, ToolNotFoundError)


@pytest.mark.parametrize("target", ["../outside.py", "sub/inside.py"])
def test_a_link_that_leads_out_of_the_folder_is_refused(target: str, folder: Path, loader: Loader) -> None:
    (folder / "sub").mkdir()
    (folder / target).write_text("")
    (folder / "tool.py").symlink_to(target)

    assert refusal(loader, "tool") == (
        f"Tool 'tool' not found: {folder}/tool.py leads out of the tools folder"
    )


def test_a_link_inside_the_folder_is_a_tool_of_its_own_name(folder: Path, loader: Loader) -> None:
    (folder / "real.py").write_text("")
    (folder / "alias.py").symlink_to("real.py")

    assert loader.find("alias").name == "alias"


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere"), os.mkfifo]
)
def test_only_a_regular_file_is_a_tool(make: object, folder: Path, loader: Loader) -> None:
    make(folder / "tool.py")  # type: ignore[operator]

    assert "there is no" in refusal(loader, "tool")


def test_a_folder_reached_by_a_link_is_the_folder(
    folder: Path, tmp_path: Path, describer: Describer, kept: Bundles
) -> None:
    (folder / "tool.py").write_text("")
    (tmp_path / "link").symlink_to(folder)

    assert (
        Loader(tmp_path / "link", describer, OwnEnvironment(), kept).find("tool").path == folder / "tool.py"
    )


def test_all_names_are_listed_in_order(folder: Path, loader: Loader) -> None:
    for name in ("b.py", "a.py", "__init__.py", "_private.py", "note.txt", "two words.py", "c-d.py"):
        (folder / name).write_text("")

    assert loader.names() == ["a", "b", "c-d"]


def test_a_missing_folder_has_no_tools(tmp_path: Path, describer: Describer, kept: Bundles) -> None:
    loader = Loader(tmp_path / "nowhere", describer, OwnEnvironment(), kept)

    assert loader.names() == []
    assert "there is no" in refusal(loader, "tool")


# -- forms ----------------------------------------------------------------------------


def test_a_changed_file_is_another_form(folder: Path, loader: Loader) -> None:
    path = folder / "tool.py"
    digests = set()
    for text in ("a = 1\n", "a = 2\n", "a = 3\n", "a = 33\n", ""):
        path.write_text(text)
        digests.add(loader.find("tool").digest)

    assert len(digests) == 5


def test_a_file_that_changed_but_not_its_time_is_another_form(folder: Path, loader: Loader) -> None:
    path = folder / "tool.py"
    digests = set()
    for text in ("a = 1\n", "a = 2\n"):
        path.write_text(text)
        os.utime(path, (1_000_000_000, 1_000_000_000))  # as `cp -p` and `rsync -t` do
        digests.add(loader.find("tool").digest)

    assert len(digests) == 2


def test_a_replaced_file_is_another_form(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text("a = 1\n")
    first = loader.find("tool")
    (folder / "new").write_text("a = 2\n")
    (folder / "new").rename(folder / "tool.py")

    assert loader.find("tool").digest != first.digest


def test_a_removed_file_is_not_found(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text("")
    loader.find("tool")
    (folder / "tool.py").unlink()

    assert "there is no" in refusal(loader, "tool")


def test_a_file_that_is_too_large_is_refused(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text("#" * (MAX_BYTES + 1))

    with pytest.raises(
        ToolError, match=r"tool\.py is 4,000,001 bytes long; a tool's code may have 4,000,000"
    ):
        loader.find("tool")


async def test_a_form_is_described_once(folder: Path, loader: Loader, describer: Describer) -> None:
    (folder / "tool.py").write_text("a = 1\n")
    describer.open.clear()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(loader.load("tool", 5.0))
        await asyncio.sleep(0)
        describer.open.set()
    await loader.load("tool", 5.0)
    assert len(describer.asked) == 1

    (folder / "tool.py").write_text("a = 2\n")
    await loader.load("tool", 5.0)

    assert len(describer.asked) == 2


async def test_equal_files_are_described_by_their_own_names(
    folder: Path, loader: Loader, describer: Describer
) -> None:
    (folder / "one.py").write_text("def run(): ...\n")
    (folder / "two.py").write_text("def run(): ...\n")
    one, two = await loader.load("one", 5.0), await loader.load("two", 5.0)

    assert (one.description.name, two.description.name) == ("one", "two")


async def test_a_tool_with_an_error_is_described_again(
    folder: Path, loader: Loader, describer: Describer
) -> None:
    (folder / "tool.py").write_text("")
    describer.fault = ToolError("tool.py has no function 'tool'")
    for _ in range(2):
        with pytest.raises(ToolError, match="has no function 'tool'"):
            await loader.load("tool", 5.0)
    describer.fault = None

    assert (await loader.load("tool", 5.0)).module.name == "tool"
    assert len(describer.asked) == 3


# -- packages and references ----------------------------------------------------------


def package(folder: Path, name: str = "tool", **files: str) -> Path:
    """Create a package with these files, given without `.py`."""
    (folder / name).mkdir()
    for file, text in {"__init__": "", **files}.items():
        (folder / name / f"{file}.py").write_text(text)
    return folder / name


async def test_a_directory_with_an_init_file_is_a_tool(folder: Path, loader: Loader) -> None:
    package(folder, inner="a = 1\n")

    tool = await loader.load("tool", 5.0)

    assert loader.names() == ["tool"]
    assert tool.module.path.name == "__init__.py"
    assert (tool.module.path.parent / "inner.py").read_text() == "a = 1\n"
    assert tool.module.path.parent != folder / "tool"


def test_any_changed_file_makes_a_package_another_form(folder: Path, loader: Loader) -> None:
    path = package(folder, inner="a = 1\n")
    digests = [loader.find("tool").digest]
    (path / "inner.py").write_text("a = 2\n")
    digests.append(loader.find("tool").digest)
    (path / "inner.py").rename(path / "other.py")
    digests.append(loader.find("tool").digest)
    (path / "data.txt").write_text("")
    digests.append(loader.find("tool").digest)

    assert len(set(digests)) == 4


def test_times_and_bytecode_do_not_change_the_form(folder: Path, loader: Loader) -> None:
    path = package(folder, inner="a = 1\n")
    digest = loader.find("tool").digest
    os.utime(path / "inner.py", (1_000_000_000, 1_000_000_000))
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "inner.cpython-311.pyc").write_bytes(b"compiled")

    assert loader.find("tool").digest == digest


def test_a_file_and_a_package_of_one_name_are_refused(folder: Path, loader: Loader) -> None:
    package(folder)
    (folder / "tool.py").write_text("")

    with pytest.raises(ToolError, match=r"are both called 'tool'; remove or rename one of them"):
        loader.find("tool")


def test_a_package_that_contains_a_link_is_refused(folder: Path, loader: Loader) -> None:
    (package(folder) / "secret").symlink_to("/etc/passwd")

    with pytest.raises(ToolError, match="secret is not a regular file"):
        loader.find("tool")


@pytest.mark.parametrize("make", ["file", "package"])
async def test_a_reference_finds_the_code_as_it_was(make: str, folder: Path, loader: Loader) -> None:
    path = folder / "tool.py" if make == "file" else package(folder) / "__init__.py"
    path.write_text("a = 1\n")
    first = await loader.load("tool", 5.0)
    path.write_text("a = 2\n")
    await loader.load("tool", 5.0)

    again = await loader.load(f"tool@sha256:{first.module.digest}", 5.0)

    assert again.module.digest == first.module.digest
    assert again.module.path.read_text() == "a = 1\n"


async def test_a_reference_outlives_the_tool(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text("a = 1\n")
    digest = (await loader.load("tool", 5.0)).module.digest
    (folder / "tool.py").unlink()

    assert (await loader.load(f"tool@sha256:{digest}", 5.0)).module.digest == digest


async def test_an_unknown_reference_is_not_found(loader: Loader) -> None:
    reference = f"tool@sha256:{'0' * 64}"
    with pytest.raises(ToolNotFoundError, match=f"Tool '{reference}' not found"):
        await loader.load(reference, 5.0)


@pytest.mark.parametrize("reference", ["tool@sha256:12", "tool@", "@sha256:", "tool@md5:" + "0" * 64])
async def test_what_is_no_reference_is_no_tool(reference: str, loader: Loader) -> None:
    with pytest.raises(ToolError, match="is no tool: a bundle reference is name@sha256") as error:
        await loader.load(reference, 5.0)
    assert not isinstance(error.value, ToolNotFoundError)


async def test_a_corrupt_bundle_is_never_run(folder: Path, loader: Loader, tmp_path: Path) -> None:
    (folder / "tool.py").write_text("a = 1\n")
    digest = (await loader.load("tool", 5.0)).module.digest
    await loader.all_kept()
    blob = tmp_path / "blobs" / "sha256" / digest[:2] / digest
    blob.chmod(0o644)
    blob.write_text("a = 6\n")

    with pytest.raises(ToolError, match=r"can't be read: .* is corrupt"):
        await loader.load(f"tool@sha256:{digest}", 5.0)


async def test_a_store_that_fails_does_not_keep_a_tool_from_loading(
    folder: Path, loader: Loader, tmp_path: Path
) -> None:
    (tmp_path / "blobs").write_text("no directory")
    (folder / "tool.py").write_text("a = 1\n")

    assert (await loader.load("tool", 5.0)).module.path == folder / "tool.py"


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", "a b", ""])
async def test_a_reference_finds_only_code(name: str, folder: Path, loader: Loader, tmp_path: Path) -> None:
    (folder / "tool.py").write_text("a = 1\n")
    digest = (await loader.load("tool", 5.0)).module.digest
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ToolError, match="a bundle reference is"):
        await loader.load(f"{name}@sha256:{digest}", 5.0)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["../x.py", "/x.py", "a/../../x.py", "a//x.py", "."])
async def test_a_manifest_finds_only_code(path: str, loader: Loader, kept: Bundles, tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    content = blobs.put(b"planted = 1\n").sha256
    manifest = f"{content}  __init__.py\n{content}  {path}\n".encode()
    digest = blobs.put(manifest).sha256

    tool = await loader.load(f"tool@sha256:{digest}", 5.0)

    assert [file.name for file in tool.module.path.parent.iterdir()] == ["tool.py"]
    assert tool.module.path.read_bytes() == manifest


async def test_the_code_of_another_tool_is_not_found_under_this_name(
    folder: Path, loader: Loader, kept: Bundles
) -> None:
    (folder / "tool.py").write_text("import beside\n")
    bundle = Bundle("tool", {"tool.py": b"a", "beside.py": b"b"})
    kept.keep(bundle)

    with pytest.raises(ToolNotFoundError, match=r"it is the code of another tool: beside\.py, tool\.py"):
        await loader.load(f"other@sha256:{bundle.digest}", 5.0)


@pytest.mark.parametrize("harm", ["changed", "added", "removed", "linked"])
async def test_a_package_whose_copy_was_changed_is_written_again(
    harm: str, folder: Path, loader: Loader, tmp_path: Path
) -> None:
    package(folder, inner="a = 1\n")
    place = (await loader.load("tool", 5.0)).module.path.parent
    inner = place / "inner.py"
    if harm == "added":
        (place / "more.py").write_text("")
    else:
        inner.unlink()
    if harm == "changed":
        inner.write_text("a = 6\n")
    elif harm == "linked":
        inner.symlink_to(folder / "tool" / "inner.py")

    await loader.load("tool", 5.0)

    assert sorted(file.name for file in place.iterdir()) == ["__init__.py", "inner.py"]
    assert inner.read_text() == "a = 1\n"
    assert not inner.is_symlink()


async def test_unused_copies_are_removed(folder: Path, loader: Loader, kept: Bundles) -> None:
    package(folder)
    place = (await loader.load("tool", 5.0)).module.path
    kept.prune(3_600)
    is_kept = place.exists()
    os.utime(place.parents[1], (1_000_000_000, 1_000_000_000))
    kept.prune(3_600)

    assert (is_kept, place.exists()) == (True, False)


# -- what is known already --------------------------------------------------------------


async def test_code_is_recognised_by_its_digest_without_a_process(
    folder: Path, loader: Loader, describer: Describer
) -> None:
    for text in ("def tool(): pass\n", "def tool(): return 1\n"):
        (folder / "tool.py").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()

        assert await loader.recognises("tool", digest)
        assert not await loader.recognises("tool", "0" * 64)
    assert describer.asked == []


async def test_a_package_is_recognised(folder: Path, loader: Loader) -> None:
    (folder / "tool").mkdir()
    (folder / "tool" / "__init__.py").write_text("def tool(): pass\n")

    assert await loader.recognises("tool", loader.find("tool").digest)


async def test_code_that_needs_an_environment_is_not_recognised(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text('# /// script\n# dependencies = ["x"]\n# ///\ndef tool(): pass\n')

    assert not await loader.recognises("tool", loader.find("tool").digest)


async def test_recognised_code_is_kept(folder: Path, loader: Loader, kept: Bundles) -> None:
    (folder / "tool.py").write_text("def tool(): pass\n")
    digest = loader.find("tool").digest

    await loader.recognises("tool", digest)
    await loader.all_kept()

    assert kept.restore("tool", digest).main == b"def tool(): pass\n"


@pytest.mark.parametrize(
    ("setting", "asked", "allowed", "wheels_only"),
    [
        (Sandbox.OFF, "", False, False),
        (Sandbox.OFF, "files", False, True),
        (Sandbox.FILES_AND_NETWORK, "", False, True),
        (Sandbox.FILES, "", True, False),
    ],
)
async def test_only_wheels_are_installed_for_tools_whose_files_are_confined(
    setting: Sandbox,
    asked: str,
    allowed: bool,
    wheels_only: bool,
    folder: Path,
    describer: Describer,
    kept: Bundles,
) -> None:
    wish = f'# [tool.fullsend]\n# sandbox = "{asked}"\n' if asked else ""
    text = f"# /// script\n# dependencies = ['x']\n{wish}# ///\ndef tool(): ...\n"
    (folder / "tool.py").write_text(text)
    installer = OwnEnvironment()
    loader = Loader(folder, describer, installer, kept, setting, builds_allowed=allowed)

    await loader.load("tool", 1.0)

    assert [one.wheels_only for one in installer.asked] == [wheels_only]


async def test_what_would_have_to_be_built_is_described_by_its_source(
    loader: Loader, folder: Path, describer: Describer
) -> None:
    (folder / "tool.py").write_text(
        "# /// script\n# dependencies = ['x']\n# ///\nimport x\ndef tool(a: int): ...\n"
    )
    (folder / "plain.py").write_text("def plain(): ...\n")

    said, plain = await loader.described_by_source("tool"), await loader.described_by_source("plain")

    assert said is not None
    assert said.parameters["properties"] == {"a": {"type": "integer"}}
    assert plain is None
    assert describer.asked == []
