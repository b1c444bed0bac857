"""Descriptions of tools, read in a subprocess."""

import asyncio
from typing import Any

import pytest

from services.executor.isolation.calls import Description
from shared.errors import ToolCrashedError, ToolError, ToolTimeoutError
from tests.isolation.bench import Bench


async def describe(bench: Bench, source: str, name: str = "") -> Description:
    return await bench.pool.describe(bench.tool(source, name), 20)


async def test_a_description_has_everything_the_docstring_and_the_signature_say(bench: Bench) -> None:
    description = await describe(
        bench,
        '''
        from __future__ import annotations

        def scrape(repo: str, limit: int = 10, *, tags: list[str] | None = None) -> dict:
            """Scrape a repository.

            Slowly.

            Args:
                repo: Owner and name,
                    with a slash.
                limit (int): How many.

            Returns:
                What was found.
            """
        ''',
        name="scrape",
    )

    assert description == Description(
        name="scrape",
        entry="scrape",
        line=4,
        kind="sync",
        summary="Scrape a repository.\n\nSlowly.",
        parameters={
            "type": "object",
            "properties": {
                "repo": {"type": "string", "description": "Owner and name, with a slash."},
                "limit": {"type": "integer", "default": 10, "description": "How many."},
                "tags": {
                    "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                    "default": None,
                },
            },
            "required": ["repo"],
            "additionalProperties": False,
        },
        returns="What was found.",
        module="scrape",
    )


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("str", {"type": "string"}),
        ("bool", {"type": "boolean"}),
        ("float", {"type": "number"}),
        ("dict", {"type": "object"}),
        ("dict[str, int]", {"type": "object"}),
        ("list", {"type": "array"}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        ("tuple[float, ...]", {"type": "array", "items": {"type": "number"}}),
        ("typing.Sequence[str]", {"type": "array", "items": {"type": "string"}}),
        ("typing.Mapping[str, str]", {"type": "object"}),
        ("typing.Optional[str]", {"type": ["string", "null"]}),
        ("int | str", {"type": ["integer", "string"]}),
        ("typing.Literal['a', 'b']", {"enum": ["a", "b"]}),
        ("typing.Annotated[int, 'seconds']", {"type": "integer"}),
        ("'str'", {"type": "string"}),
        ("'Unknown'", {}),
        ("pathlib.Path", {}),
        ("'int | Unknown'", {}),
    ],
)
async def test_annotations_become_json_schema(bench: Bench, annotation: str, schema: dict[str, Any]) -> None:
    description = await describe(bench, f"import pathlib, typing\ndef run(x: {annotation}): pass")

    assert description.parameters["properties"]["x"] == schema


async def test_one_annotation_that_cannot_be_read_does_not_hide_the_others(bench: Bench) -> None:
    description = await describe(bench, "def run(a: 'Unknown', b: 'int'): pass")

    assert description.parameters["properties"] == {"a": {}, "b": {"type": "integer"}}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def run(): pass", "sync"),
        ("async def run(): pass", "async"),
        ("def run(): yield", "generator"),
        ("async def run(): yield", "async generator"),
    ],
)
async def test_the_kind_of_function_is_known(bench: Bench, source: str, kind: str) -> None:
    assert (await describe(bench, source)).kind == kind


async def test_keyword_parameters_allow_more(bench: Bench) -> None:
    description = await describe(bench, "def run(a=object(), **more): pass")

    assert description.parameters["additionalProperties"] is True
    assert description.parameters["properties"] == {"a": {}}
    assert description.parameters["required"] == []


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("x = 1", "has no function"),
        ("def run(a, /): pass", "takes 'a' by position only"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("print('printed')\nimport sys; sys.exit(4)", "sys.exit(4)"),
        ("raise ValueError('at import')", "line 1, in <module>"),
    ],
)
async def test_a_broken_contract_is_a_tool_error_that_names_the_file(
    bench: Bench, source: str, part: str
) -> None:
    tool = bench.tool(source)

    with pytest.raises(ToolError) as caught:
        await bench.pool.describe(tool, 20)

    assert str(tool.path) in str(caught.value)
    assert part in str(caught.value)
    assert "isolation" not in str(caught.value)


async def test_an_import_that_hangs_is_a_time_out(bench: Bench) -> None:
    with pytest.raises(ToolTimeoutError):
        await bench.pool.describe(bench.tool("while True: pass"), 0.3)


async def test_the_error_for_an_import_that_crashes_has_its_last_lines(bench: Bench) -> None:
    with pytest.raises(ToolCrashedError, match="last words"):
        await bench.pool.describe(bench.tool("import os\nprint('last words')\nos._exit(7)"), 20)


async def test_describing_warms_the_process_for_the_first_call(bench: Bench) -> None:
    tool = bench.tool("print('imported')\ndef run(): return 1")

    await bench.pool.describe(tool, 20)
    await bench.run(tool)

    assert bench.lines() == []


async def test_a_cancelled_description_leaves_no_busy_process(bench: Bench) -> None:
    describing = asyncio.create_task(bench.pool.describe(bench.tool("while True: pass"), 20))
    await asyncio.wait([describing], timeout=0.2)

    describing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await describing

    assert not bench.pool.inspect().alive
