"""Describes a tool from its source, without running anything: provisional, until it can be imported."""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Description
from services.executor.isolation.common import docstring
from shared.errors import ToolError

_KINDS = {
    "string": ("str",),
    "integer": ("int",),
    "number": ("float",),
    "boolean": ("bool",),
    "object": ("dict", "Dict", "Mapping"),
    "array": ("list", "tuple", "set", "frozenset", "List", "Tuple", "Set", "Sequence", "Iterable"),
    "null": ("None",),
}
_TYPES = {name: kind for kind, names in _KINDS.items() for name in names}
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def described(name: str, path: Path, source: bytes) -> Description:
    """Return what the source of a tool says about it.

    A tool whose function isn't defined in its own file by `def` is described as taking anything.

    Args:
        name: of the tool.
        path: of its file, for messages.
        source: its content.

    Raises:
        ToolError: it isn't Python.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise ToolError(f"{path} can't be imported: {type(exc).__name__}: {exc}") from None
    functions = {one.name: one for one in module.body if isinstance(one, Function)}
    function = functions.get(name) or functions.get("run")
    if function is None:
        _refuse_class(name, path, module)
        summary = docstring.sections(ast.get_docstring(module) or "")[""]
        anything = {"type": "object", "properties": {}, "required": [], "additionalProperties": True}
        return Description(name, name, 1, "sync", summary, anything)
    sections = docstring.sections(ast.get_docstring(function) or ast.get_docstring(module) or "")
    return Description(
        name=name,
        entry=function.name,
        line=function.lineno,
        kind=_kind(function),
        summary=sections[""],
        parameters=_schema(function.args, docstring.arguments(sections.get("Args", ""))),
        returns=sections.get("Returns", ""),
    )


def _refuse_class(name: str, path: Path, module: ast.Module) -> None:
    for one in module.body:
        if isinstance(one, ast.ClassDef) and one.name in (name, "run"):
            raise ToolError(
                f"{path}: {one.name} is the class {one.name}, not a function; define def {name}(...)"
            )


def _kind(function: Function) -> str:
    yields = any(isinstance(one, ast.Yield | ast.YieldFrom) for one in _own_nodes(function))
    if isinstance(function, ast.AsyncFunctionDef):
        return "async generator" if yields else "async"
    return "generator" if yields else "sync"


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, without those of the functions and classes in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _SCOPES):
            yield child
            yield from _own_nodes(child)


def _schema(arguments: ast.arguments, about: dict[str, str]) -> dict[str, Any]:
    by_position = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(by_position) - len(arguments.defaults))
    defaults += arguments.defaults
    pairs = [*zip(by_position, defaults, strict=True)][len(arguments.posonlyargs) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {
        "type": "object",
        "properties": {one.arg: _property(one, default, about.get(one.arg)) for one, default in pairs},
        "required": [one.arg for one, default in pairs if default is None],
        "additionalProperties": arguments.kwarg is not None,
    }


def _property(argument: ast.arg, default: ast.expr | None, about: str | None) -> dict[str, Any]:
    schema = _type(argument.annotation)
    if default is not None:
        # Other values are known only when the module is run.
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            schema["default"] = _plain(ast.literal_eval(default))
    if about:
        schema["description"] = about
    return schema


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(one) for one in value]
        case dict() if all(isinstance(name, str) for name in value):
            return {name: _plain(one) for name, one in value.items()}
        case _:
            raise ValueError


def _type(node: ast.expr | None) -> dict[str, Any]:
    """JSON Schema for an annotation; empty if nothing certain is known."""
    match node:
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Constant(value=str(text)):
            try:
                return _type(ast.parse(text, mode="eval").body)
            except (SyntaxError, ValueError):
                return {}
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return {"type": _TYPES[name]} if name in _TYPES else {}
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([_type(left), _type(right)])
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inside):
            return _generic(name, [*inside.elts] if isinstance(inside, ast.Tuple) else [inside])
        case _:
            return {}


def _generic(name: str, arguments: list[ast.expr]) -> dict[str, Any]:
    match name:
        case "Optional":
            return _union([_type(arguments[0]), {"type": "null"}])
        case "Union":
            return _union([_type(one) for one in arguments])
        case "Annotated":
            return _type(arguments[0])
        case "Literal":
            values = [one.value for one in arguments if isinstance(one, ast.Constant)]
            return {"enum": values} if len(values) == len(arguments) else {}
    schema = _type(ast.Name(id=name))
    is_uniform = len(arguments) == 1 or (len(arguments) == 2 and ast.unparse(arguments[1]) == "...")
    if schema == {"type": "array"} and is_uniform and (items := _type(arguments[0])):
        schema["items"] = items
    return schema


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if not all(schemas):
        return {}
    if all(set(one) == {"type"} for one in schemas):
        kinds = [one["type"] for one in schemas]
        return {"type": [kind for part in kinds for kind in (part if isinstance(part, list) else [part])]}
    return {"anyOf": schemas}
