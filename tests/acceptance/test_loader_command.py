"""`python -m services.executor.loader --test FILE`: what somebody who writes a tool asks first."""

from pathlib import Path

import pytest

from services.executor.isolation.sandbox import Unavailable, detect
from tests.acceptance.commands import Done, Shell
from tests.conftest import Tools

GOOD = '''
    # /// script
    # [tool.fullsend]
    # environment = ["MAIL_KEY"]
    # timeout_seconds = 20
    # ///
    async def send(address: str, tags: list[str] | None = None, copies=1) -> dict:
        """Send a letter.

        Args:
            address: Where to.
            tags: What it is
                about.

        Returns:
            Its number.
        """
'''


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A directory that is not the project's."""
    return Shell(tmp_path, {})


async def asked(shell: Shell, path: Path) -> Done:
    """The command's answer for a file."""
    return await shell.python("-m", "services.executor.loader", "--test", str(path))


async def test_a_good_tool_is_described_with_where_each_part_is_written(shell: Shell, tools: Tools) -> None:
    path = tools("send", GOOD)

    done = await asked(shell, path)

    assert (done.code, done.err) == (0, "")
    assert done.lines == [
        "Tool        send",
        f"Function    send() at {path}:7, async",
        "About       Send a letter.",
        "Parameters  names, types and defaults from the signature, descriptions from the docstring",
        "            address: string, required",
        "                Where to.",
        "            tags: string[] | null, default null",
        "                What it is about.",
        "            copies: any type (no annotation), default 1",
        "                (not described)",
        "Returns     Its number.",
        f"Asks for    in the table [tool.fullsend] of its `# /// script` block in {path}",
        '            environment = ["MAIL_KEY"]',
        "            timeout_seconds = 20.0",
    ]


async def test_a_name_that_hides_another_module_is_a_warning(shell: Shell, tools: Tools) -> None:
    path = tools("statistics", "import statistics\ndef run() -> float:\n    return statistics.mean([1])\n")

    done = await asked(shell, path)

    assert done.code == 0
    assert any(line.startswith("Warning     another module is called statistics;") for line in done.lines)


async def test_a_tool_that_ships_keeps_the_contract(shell: Shell) -> None:
    done = await asked(shell, Path(__file__).parents[2] / "tools" / "example_tool.py")

    assert done.code == 0
    assert "            param1: string, required" in done.lines


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("def other(): ...", ["has no function broken() and no function run()", "it defines other()"]),
        ("X = 1", ["has no function broken()", "it defines no function"]),
        ("broken = 3\ndef other(): ...", ["broken is an int, not a function", "it defines other()"]),
        ("class broken:\n    def run(self): ...", ["broken is the class broken, not a function; define def"]),
        ("def broken(a, /): ...", ["takes 'a' by position only", "remove the /"]),
        (
            "def helper():\n    import no_such_module\n\nhelper()\n\ndef broken(): ...",
            [
                "can't be imported: ModuleNotFoundError: No module named 'no_such_module'",
                "Traceback (most recent call last):",
                'broken.py", line 4, in <module>',
                'broken.py", line 2, in helper',
            ],
        ),
        ("def broken(:\n    pass", ["can't be imported: SyntaxError", 'broken.py", line 1']),
        ("import sys\nsys.exit(3)", ["can't be imported", "sys.exit"]),
        ("import os\nos._exit(3)", ["can't be imported", "exit code 3"]),
        (
            "# /// script\n# [tool.fullsend]\n# memry_mb = 3\n# ///\ndef broken(): ...",
            ["[tool.fullsend]", "'memry_mb'"],
        ),
    ],
    ids=[
        "another name", "no function", "not a function", "a class", "by position only", "import error",
        "syntax error", "exits", "ends its process", "asks for what there is not",
    ],
)  # fmt: skip
async def test_what_breaks_the_contract_is_said_exactly(
    shell: Shell, tools: Tools, text: str, complaints: list[str]
) -> None:
    path = tools("broken", text)

    done = await asked(shell, path)

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    for complaint in complaints:
        assert complaint in done.err
    assert "services/executor" not in done.err


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.py", "Tool 'missing' not found: there is no"),
        ("two words.py", "a name has letters, digits, '_' and '-' only"),
        ("notes.txt", "is not a Python file"),
        (".", "is not a Python file"),
    ],
)
async def test_a_file_that_can_not_be_a_tool_is_refused(shell: Shell, name: str, complaint: str) -> None:
    (shell.directory / "two words.py").touch()

    done = await asked(shell, Path(name))

    assert complaint in done.error


async def test_a_link_that_leads_out_of_the_folder_is_refused_as_the_executor_would(
    shell: Shell, tools: Tools
) -> None:
    (shell.directory / "outside.py").write_text("def linked(): ...")
    path = tools("send", GOOD).with_name("linked.py")
    path.symlink_to(shell.directory / "outside.py")

    done = await asked(shell, path)

    assert "leads out of the tools folder" in done.error


async def test_a_tool_is_confined_as_the_settings_say(shell: Shell, tools: Tools, tmp_path: Path) -> None:
    if isinstance(detect(), Unavailable):
        pytest.skip("there is nothing here that confines files")
    secret = tmp_path / "secret"
    secret.write_text("x")
    path = tools("reader", f"TEXT = open({str(secret)!r}).read()\ndef reader(): return TEXT\n")

    confined = await asked(shell.with_variables(SANDBOX="files"), path)
    readable = await asked(shell.with_variables(SANDBOX="files", SANDBOX_READABLE=str(secret)), path)
    wrong = await asked(shell.with_variables(SANDBOX="file"), path)

    assert readable.code == 0
    assert "can't be imported: PermissionError" in confined.err
    assert wrong.err.startswith("error: SANDBOX=file")
    assert (confined.code, wrong.code) == (1, 1)
