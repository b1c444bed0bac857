"""The requirements in a script block, and when two blocks share an environment."""

import contextlib
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.isolation.environment.requirements import Requirements, block_of, requirements_of
from shared.errors import ToolError

INTERPRETER = "cpython 3.11.7 linux"
steady = settings(deadline=None, derandomize=True, max_examples=100)


def block(toml: str) -> str:
    """A module with this block."""
    lines = [f"# {line}" if line else "#" for line in textwrap.dedent(toml).strip().splitlines()]
    return "\n".join(["# /// script", *lines, "# ///", '"""A tool."""', "import os", ""])


def read(toml: str) -> Requirements:
    return requirements_of("probe.py", block(toml))


def key(toml: str, interpreter: str = INTERPRETER) -> str:
    return read(toml).digest(interpreter)


# -- reading --------------------------------------------------------------------------


def test_a_block_names_dependencies_and_the_python_they_need() -> None:
    requirements = read(
        """
        requires-python = ">=3.11"
        dependencies = [
            "requests<3",

            "rich",
        ]
        """
    )

    assert requirements == Requirements(("requests<3", "rich"), ">=3.11")
    assert not requirements.is_empty


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import os\n",
        block("dependencies = []"),
        block("[tool.fullsend]\nmemory_mb = 5"),
        block('[tool.uv]\nexclude-newer = "2024-01-01"'),
        "# /// pyproject\n# dependencies = ['a']\n# ///\n",
        "x = '''\n # /// script\n # dependencies = ['a']\n # ///\n'''\n",
    ],
)
def test_a_module_that_asks_for_nothing_needs_no_environment(text: str) -> None:
    assert requirements_of("probe.py", text) == Requirements()
    assert Requirements().is_empty


def test_line_endings_and_a_byte_order_mark_make_no_difference() -> None:
    text = block('dependencies = ["a"]')

    assert requirements_of("probe.py", "\ufeff" + text.replace("\n", "\r\n")) == Requirements(("a",))


def test_a_table_may_have_what_only_others_read() -> None:
    assert block_of("probe.py", block("[tool.black]\nline-length = 9")) == {
        "tool": {"black": {"line-length": 9}}
    }


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("dependencies = [", "isn't TOML"),
        ("dependencies = 'requests'", "must be a list of strings"),
        ("dependencies = ['a', 5]", r"dependencies\[1\] must be a string"),
        ("dependencies = ['a', 'b c']", r"dependencies\[1\]: 'b c' is not a requirement"),
        ("dependencies = ['']", "is not a requirement"),
        ("dependencies = ['-r other.txt']", "is not a requirement"),
        ("dependencies = ['--index-url=https://elsewhere']", "is not a requirement"),
        ("dependencies = ['./folder']", "is not a requirement"),
        ('dependencies = ["a\\n--index-url=https://elsewhere"]', "is not a requirement"),
        ("dependencies = ['a @ https://elsewhere/${TOKEN}/a.whl']", "must not contain variables"),
        ("requires-python = '3.11'", "is not a version specifier"),
        ("requires-python = 3.11", "is not a version specifier"),
        ("requires-python = ['>=3.11']", "is not a version specifier"),
        ("dependancies = ['a']", "'dependancies' isn't a field"),
        ("[tool.uv.sources]\na = {path = '.'}", r"\[tool.uv\] 'sources' isn't supported"),
        ("[[tool.uv.index]]\nurl = 'https://elsewhere'", r"\[tool.uv\] 'index' isn't supported"),
        ("[tool]\nuv = 5", "isn't supported"),
    ],
)
def test_an_invalid_block_is_refused_with_place_and_reason(toml: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason) as caught:
        read(toml)

    assert str(caught.value).startswith("probe.py: ")


def test_two_blocks_are_refused() -> None:
    with pytest.raises(ToolError, match="has 2 `# /// script` blocks"):
        requirements_of("probe.py", block("dependencies = []") + block("dependencies = []"))


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("'2024-01-01'", "2024-01-01"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00+00:00"),
        ("'3 days'", "3 days"),
    ],
)
def test_exclude_newer_is_kept_as_uv_reads_it(written: str, read_as: str) -> None:
    requirements = read(f"dependencies = ['a']\n[tool.uv]\nexclude-newer = {written}")

    assert requirements.exclude_newer == read_as


# -- the key --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dependencies = ['a', 'b']", "dependencies = ['b', 'a', 'a']"),
        ("dependencies = ['Foo_Bar']", "dependencies = ['foo-bar']"),
        ("dependencies = ['a[x,Y]>=1,<2']", "dependencies = ['a [y, x] <2, >= 1']"),
        (
            """dependencies = ["a; python_version<'3.12'"]""",
            """dependencies = ['a ;python_version < "3.12"']""",
        ),
        ("requires-python = '>=3.11,<4'", "requires-python = '<4, >=3.11'"),
        ("dependencies = ['a']", "dependencies = ['a']\n[tool.fullsend]\nmemory_mb = 5"),
        ("dependencies = ['a']", "dependencies = ['a']\n[tool.black]\nx = 1"),
    ],
)
def test_the_same_requirements_written_differently_have_one_key(one: str, other: str) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dependencies = ['a==1']", "dependencies = ['a==2']"),
        ("dependencies = ['a']", "dependencies = ['a[x]']"),
        ("dependencies = ['a']", "dependencies = ['a', 'b']"),
        ("dependencies = ['a']", "dependencies = ['a']\nrequires-python = '>=3.11'"),
        ("dependencies = ['a']", """dependencies = ["a; os_name=='nt'"]"""),
        ("dependencies = ['a @ https://x/1.whl']", "dependencies = ['a @ https://x/2.whl']"),
        ("dependencies = ['a']", "dependencies = ['a']\n[tool.uv]\nexclude-newer = '2024-01-01'"),
    ],
)
def test_different_requirements_have_different_keys(one: str, other: str) -> None:
    assert key(one) != key(other)


def test_each_interpreter_has_a_key_of_its_own() -> None:
    assert key("dependencies = ['a']", "cpython 3.11.7") != key("dependencies = ['a']", "cpython 3.12.1")


def test_a_key_is_a_sha256_that_stays_the_same_from_release_to_release() -> None:
    requirements = Requirements(("a==1", "b"), ">=3.11")

    assert (
        requirements.digest(INTERPRETER) == "bc3c99141fe5fc61e1e815f24f323b874efc69c08e4e6aa92099c0abb5984699"
    )


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
versions = st.from_regex(r"(==|>=|<|~=|!=)[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True)


@steady
@given(st.lists(st.tuples(names, st.lists(versions, max_size=3, unique=True)), max_size=5), st.randoms())
def test_order_and_spelling_never_matter(wanted: list[tuple[str, list[str]]], dice: object) -> None:
    shuffle = dice.shuffle  # type: ignore[attr-defined]
    plain = [name + ",".join(limits) for name, limits in wanted]
    shuffled = [
        f"{name.upper().replace('-', '_')}  {' , '.join(reversed(limits))}" for name, limits in wanted
    ]
    shuffle(shuffled)

    assert key(f"dependencies = {plain!r}") == key(f"dependencies = {shuffled!r}")


@steady
@given(st.text())
def test_no_text_does_worse_than_to_be_refused(text: str) -> None:
    with contextlib.suppress(ToolError):
        requirements_of("probe.py", f"# /// script\n# {text}\n# ///\n")
