"""What a tool may do to its temp directory: nobody else's files are lost by it, and no other run."""

import os
from pathlib import Path

import pytest

from services.executor.isolation.calls import Answer, Level, Raised, Returned
from services.executor.isolation.common import directory
from services.executor.isolation.workdir import Workdir, remove
from tests.isolation.bench import Bench
from tests.isolation.workshop import eventually

SPOIL = {
    "temp is a link": "os.rmdir(temp); os.symlink(VICTIM + '/temp', temp)",
    "temp is a file": "os.rmdir(temp); open(temp, 'w').close()",
    "temp is closed": "os.chmod(temp, 0)",
    "temp is another": "os.rmdir(temp); open(temp, 'w').close(); os.unlink(temp); os.mkdir(temp, 0o755)",
    "the workdir is a link": "shutil.rmtree(workdir); os.symlink(VICTIM, workdir)",
    "the workdir is a link elsewhere": "shutil.rmtree(workdir); os.symlink(VICTIM + '/temp', workdir)",
    "the workdir is a file": "shutil.rmtree(workdir); open(workdir, 'w').close()",
    "the workdir is gone": "shutil.rmtree(workdir)",
    "the workdir is closed": "os.chmod(workdir, 0)",
    "a link in it": "os.symlink(VICTIM, 'link'); os.mkdir('d'); os.symlink(VICTIM, 'd/link')",
    "a deep tree": "deep(1500)",
    "directories that are closed": "os.makedirs('a/b/c'); open('a/b/x', 'w').close(); os.chmod('a/b', 0)",
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of somebody else's with something in it wherever a tool's own would have something."""
    for name in ("temp", "artifacts"):
        (tmp_path / "victim" / name).mkdir(parents=True)
        (tmp_path / "victim" / name / "precious").touch()
    (tmp_path / "victim" / "empty").mkdir()
    return tmp_path / "victim"


def contents(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("spoil", SPOIL)
async def test_no_change_of_its_temp_directory_harms_others_or_the_next_run(
    bench: Bench, victim: Path, spoil: str, level: Level
) -> None:
    tool = bench.tool(f"""
        import os, shutil
        VICTIM = {str(victim)!r}
        def deep(levels):
            for _ in range(levels):
                os.mkdir("d")
                os.chdir("d")
        def run(spoil):
            found = [os.listdir(), os.getcwd() == os.environ["TMPDIR"]]
            if spoil:
                temp = os.getcwd()
                workdir = os.path.dirname(temp)
                {SPOIL[spoil]}
            return found
    """)
    before = contents(victim)

    answers: list[Answer] = [
        await bench.run(tool, params={"spoil": one}, level=level) for one in (True, False, True, False)
    ]
    await bench.pool.stop()

    assert answers == [Returned([[], True], 2)] * 4
    assert contents(victim) == before


async def test_deep_and_closed_directories_are_removed_with_the_pool(bench: Bench) -> None:
    tool = bench.tool("""
        import os
        def run():
            pools = os.path.dirname(os.path.dirname(os.getcwd()))
            os.makedirs("closed/below")
            os.chmod("closed", 0)
            for _ in range(1500):
                os.mkdir("d")
                os.chdir("d")
            return pools
    """)
    answer = await bench.run(tool)

    await bench.pool.stop()

    assert isinstance(answer, Returned)
    assert not Path(answer.value).exists()


async def test_a_temp_directory_that_cannot_be_entered_ends_the_process_but_not_the_run(
    bench: Bench,
) -> None:
    tool = bench.tool("import os\ndef run(): return [os.getpid(), os.getcwd()]")
    first = await bench.run(tool)
    assert isinstance(first, Returned)
    temp = Path(first.value[1])

    temp.rmdir()
    temp.touch()
    second = await bench.run(tool)

    assert isinstance(second, Returned)
    assert second.value[0] != first.value[0]


async def test_a_temp_directory_that_cannot_be_made_is_the_tools_error(bench: Bench) -> None:
    answer = await bench.run("def run(): return 1")
    assert answer == Returned(1)
    own = bench.pool.inspect().directory

    own.rename(own.with_name(own.name + "-moved"))
    failed = await bench.run("def run(): return 2")
    own.with_name(own.name + "-moved").rename(own)

    assert isinstance(failed, Raised)
    assert "No such file or directory" in failed.message


# -- removing -------------------------------------------------------------------------


async def test_a_workdir_whose_parent_became_a_link_is_left_alone(tmp_path: Path, victim: Path) -> None:
    workdir = Workdir(tmp_path / "pool" / "1")
    (tmp_path / "pool").symlink_to(tmp_path)
    (tmp_path / "1").symlink_to(victim)
    before = contents(victim)

    workdir.remove()
    remove(str(tmp_path / "pool" / "victim"))

    assert contents(victim) == before
    assert not workdir.is_as_made()


async def test_a_link_in_place_of_a_directory_is_removed_itself(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "1").symlink_to(victim)
    before = contents(victim)

    remove(str(tmp_path / "1"))

    assert not os.path.lexists(tmp_path / "1")
    assert contents(victim) == before


async def test_the_name_of_a_full_directory_is_free_at_once(tmp_path: Path) -> None:
    (tmp_path / "1" / "2" / "3").mkdir(parents=True)

    remove(str(tmp_path / "1"))

    assert not (tmp_path / "1").exists()
    await eventually(lambda: not list(tmp_path.iterdir()))


def test_an_entry_that_can_not_be_removed_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/stays", "b/goes", "c/d/goes"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    unlink = os.unlink

    def refuse(path: str, *, dir_fd: int) -> None:
        if path == "stays":
            raise PermissionError(1, "refused")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    descriptor = directory.open_at(str(tmp_path))
    with pytest.raises(OSError, match="refused"):
        directory.empty(descriptor)
    os.close(descriptor)

    assert contents(tmp_path) == ["a", "a/stays"]


# -- the time stamps of a working directory ------------------------------------------


AT_ONCE = -1
"""Any time stamp counts as one of long ago."""


@pytest.fixture(name="workdir")
def _workdir(tmp_path: Path) -> Workdir:
    """One that was found empty, long ago as far as it knows."""
    workdir = Workdir(tmp_path.resolve() / "1", settled_ns=AT_ONCE)
    directory.make(workdir.temp)
    for path in (workdir.temp, workdir.path):
        while directory.lasting_stamp(os.lstat(path), AT_ONCE) is None:
            os.utime(path)
    assert workdir.is_as_made()
    return workdir


def test_an_unchanged_workdir_is_not_read(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: ["changed"])

    assert workdir.is_as_made()


@pytest.mark.parametrize("spoil", ["a file", "a mode", "beside", "another"])
def test_a_changed_workdir_is_read(workdir: Workdir, spoil: str) -> None:
    inner = Path(workdir.temp)
    before = os.lstat(inner).st_ctime_ns, os.lstat(workdir.path).st_ctime_ns

    while before == (os.lstat(inner).st_ctime_ns, os.lstat(workdir.path).st_ctime_ns):
        match spoil:
            case "a file":
                (inner / "left").unlink(missing_ok=True)
                (inner / "left").touch()
            case "a mode":
                inner.chmod(0o777)
            case "beside":
                (workdir.path / "beside").unlink(missing_ok=True)
                (workdir.path / "beside").touch()
            case _:
                inner.rmdir()
                inner.symlink_to(workdir.path)

    assert not workdir.is_as_made()
