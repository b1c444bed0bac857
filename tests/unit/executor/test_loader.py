"""Tool name -> tool: which file it is, and that it is looked at once for each of its forms."""

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest

from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment import Environment
from services.executor.isolation.requirements import Requirements
from services.executor.loader import MAX_FILE_BYTES, Loader
from shared.errors import ToolError, ToolNotFoundError


class Describer:
    """Stands for the child that looks at a module: says its name, or what is told to be wrong."""

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
    """Stands for the installer: the service's own environment will do."""

    async def ensure(self, requirements: Requirements) -> Environment:
        return Environment(Path(sys.executable), "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


@pytest.fixture
def describer() -> Describer:
    return Describer()


@pytest.fixture
def loader(folder: Path, describer: Describer) -> Loader:
    return Loader(folder, describer, OwnEnvironment())


def refusal(loader: Loader, name: str) -> str:
    with pytest.raises(ToolNotFoundError) as refused:
        loader.find(name)
    return str(refused.value)


# -- names ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "resend_email", "with-dash", "9", "x" * 128])
def test_a_tool_is_the_file_of_its_name(name: str, folder: Path, loader: Loader) -> None:
    (folder / f"{name}.py").write_text("x = 1\n")

    assert loader.find(name) == Module(name, folder / f"{name}.py", hashlib.sha256(b"x = 1\n").hexdigest())


def test_a_tool_that_is_not_there_is_told_as_the_publisher_reads_it(folder: Path, loader: Loader) -> None:
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

    assert refusal(loader, name) == (
        f"Tool '{name}' not found: a tool's name has letters, digits, '_' and '-' only"
    )


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
def test_what_is_no_file_is_no_tool(make: object, folder: Path, loader: Loader) -> None:
    make(folder / "tool.py")  # type: ignore[operator]

    assert "there is no" in refusal(loader, "tool")


def test_a_folder_reached_by_a_link_is_the_folder(folder: Path, tmp_path: Path, describer: Describer) -> None:
    (folder / "tool.py").write_text("")
    (tmp_path / "link").symlink_to(folder)

    assert Loader(tmp_path / "link", describer, OwnEnvironment()).find("tool").path == folder / "tool.py"


def test_all_names_are_listed_in_order(folder: Path, loader: Loader) -> None:
    for name in ("b.py", "a.py", "__init__.py", "_private.py", "note.txt", "two words.py", "c-d.py"):
        (folder / name).write_text("")

    assert loader.names() == ["a", "b", "c-d"]


def test_a_folder_that_is_not_there_has_no_tools(tmp_path: Path, describer: Describer) -> None:
    loader = Loader(tmp_path / "nowhere", describer, OwnEnvironment())

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


def test_a_file_changed_behind_the_clocks_back_is_another_form(folder: Path, loader: Loader) -> None:
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


def test_a_removed_file_is_no_tool_any_more(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text("")
    loader.find("tool")
    (folder / "tool.py").unlink()

    assert "there is no" in refusal(loader, "tool")


def test_a_file_that_is_too_large_is_refused(folder: Path, loader: Loader) -> None:
    (folder / "tool.py").write_text("#" * (MAX_FILE_BYTES + 1))

    with pytest.raises(
        ToolError, match=r"tool\.py is 4,000,001 bytes long; a tool's file may have 4,000,000"
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


async def test_what_is_wrong_is_looked_at_again(folder: Path, loader: Loader, describer: Describer) -> None:
    (folder / "tool.py").write_text("")
    describer.fault = ToolError("tool.py has no function 'tool'")
    for _ in range(2):
        with pytest.raises(ToolError, match="has no function 'tool'"):
            await loader.load("tool", 5.0)
    describer.fault = None

    assert (await loader.load("tool", 5.0)).module.name == "tool"
    assert len(describer.asked) == 3
