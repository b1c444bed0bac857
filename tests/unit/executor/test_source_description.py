"""What a tool's source says about it, as far as possible what importing it would say."""

import hashlib
from pathlib import Path

import pytest

from services.executor.isolation.calls import Description, Module
from services.executor.isolation.pool import Pool
from services.executor.tools.source_description import described
from shared.errors import ToolError

TOOLS = Path(__file__).parents[3] / "tools"


def parameters(signature: str) -> dict[str, object]:
    source = f"from typing import *\ndef tool({signature}): ...\n"
    return dict(described("tool", Path("tool.py"), source.encode()).parameters)


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("str", {"type": "string"}),
        ("'int'", {"type": "integer"}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        ("typing.List[float]", {"type": "array", "items": {"type": "number"}}),
        ("tuple[str, ...]", {"type": "array", "items": {"type": "string"}}),
        ("tuple[str, int]", {"type": "array"}),
        ("dict[str, int]", {"type": "object"}),
        ("str | None", {"type": ["string", "null"]}),
        ("Optional[bool]", {"type": ["boolean", "null"]}),
        ("Union[int, list]", {"type": ["integer", "array"]}),
        ("list[int] | None", {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}),
        ("int | Elsewhere", {}),
        ("Literal['a', 2]", {"enum": ["a", 2]}),
        ("Annotated[int, 'x']", {"type": "integer"}),
        ("Elsewhere", {}),
        ("'not python('", {}),
    ],
)
def test_an_annotation_becomes_a_schema(annotation: str, schema: dict[str, object]) -> None:
    assert parameters(f"a: {annotation}") == {
        "type": "object",
        "properties": {"a": schema},
        "required": ["a"],
        "additionalProperties": False,
    }


def test_defaults_and_kinds_of_parameters_are_read() -> None:
    found = parameters("p, /, a, b=-1, *, c, d={'x': [None, 1.5]}, e=print, f=(1, 2), g={1: 2}, **rest")

    assert found["properties"] == {
        "a": {},
        "b": {"default": -1},
        "c": {},
        "d": {"default": {"x": [None, 1.5]}},
        "e": {},
        "f": {"default": [1, 2]},
        "g": {},
    }
    assert (found["required"], found["additionalProperties"]) == (["a", "c"], True)


@pytest.mark.parametrize(
    ("source", "kind", "entry"),
    [
        ("def tool(): return 1", "sync", "tool"),
        ("def run(): yield 1", "generator", "run"),
        ("async def tool(): return 1", "async", "tool"),
        ("async def tool(): yield 1", "async generator", "tool"),
        ("def tool():\n    def inner(): yield 1\n    return inner", "sync", "tool"),
        ("from x import tool", "sync", "tool"),
    ],
)
def test_the_function_that_is_called_is_found(source: str, kind: str, entry: str) -> None:
    found = described("tool", Path("tool.py"), source.encode())

    assert (found.kind, found.entry) == (kind, entry)
    assert found.parameters["additionalProperties"] is source.startswith("from")


@pytest.mark.parametrize("source", [b"def tool(:", b"\x00", b"x = " + b"(" * 5_000, b"\xff"])
def test_what_is_no_python_is_refused(source: bytes) -> None:
    with pytest.raises(ToolError, match=r"^tool\.py can't be imported: "):
        described("tool", Path("tool.py"), source)


async def test_shipped_tools_are_described_as_when_they_are_imported() -> None:
    pool = Pool(capacity=1)
    await pool.start()
    try:
        for path in sorted(TOOLS.glob("*.py")):
            source = path.read_bytes()
            imported = await pool.describe(Module(path.stem, path, hashlib.sha256(source).hexdigest()), 30.0)
            by_source = described(path.stem, path, source)

            assert _said(by_source) == _said(imported), path
            for name, schema in by_source.parameters["properties"].items():
                assert schema.items() <= imported.parameters["properties"][name].items(), (path, name)
    finally:
        await pool.stop()


def _said(one: Description) -> tuple[object, ...]:
    schema = one.parameters
    names = list(schema["properties"])
    return one.name, one.entry, one.kind, one.summary, one.returns, names, schema["required"]
