"""Describes a tool: its parameters as JSON Schema, its docstring, its kind."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from ..common import docstring, protocol, serialize

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
_SEQUENCES = (list, tuple, set, frozenset)


def describe(tool: Any) -> dict[str, Any]:
    """The description, or `error` with a message if the function can't be called with keyword arguments."""
    entry = tool.entry
    try:
        signature = inspect.signature(entry)
    except (TypeError, ValueError) as error:
        return {"error": {"message": f"{tool.path}: {tool.entry_name}() has no readable signature: {error}"}}
    problem = _positional_only(signature, tool)
    if problem:
        return {"error": {"message": problem}}
    sections = docstring.sections(inspect.getdoc(entry) or inspect.getdoc(tool.module) or "")
    return {
        "name": tool.name,
        "entry": tool.entry_name,
        "module": tool.module.__name__,
        "line": _line(entry),
        "kind": _kind(entry),
        "summary": sections[""],
        "parameters": _schema(signature, _hints(entry), docstring.arguments(sections.get("Args", ""))),
        "returns": sections.get("Returns", ""),
        "neighbours": tool.baseline.neighbours(),
    }


def _positional_only(signature: inspect.Signature, tool: Any) -> str:
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            return (
                f"{tool.path}: {tool.entry_name}() takes {parameter.name!r} by position only, but tools are "
                f"called with keyword arguments; remove the / from its parameters"
            )
    return ""


def _line(entry: Any) -> int:
    code = getattr(inspect.unwrap(entry), "__code__", None)
    return code.co_firstlineno if code else 1


def _kind(entry: Any) -> str:
    entry = inspect.unwrap(entry)
    if inspect.isasyncgenfunction(entry):
        return "async generator"
    if inspect.iscoroutinefunction(entry):
        return "async"
    return "generator" if inspect.isgeneratorfunction(entry) else "sync"


# -- parameters -----------------------------------------------------------------------


def _schema(signature: inspect.Signature, hints: dict[str, Any], described: dict[str, str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    more = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            more = True
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        properties[name] = _property(parameter, hints.get(name, parameter.empty), described.get(name))
        if parameter.default is parameter.empty:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}


def _property(parameter: inspect.Parameter, hint: Any, described: str | None) -> dict[str, Any]:
    schema = _type(hint)
    if parameter.default is not parameter.empty:
        try:
            serialize.to_json(parameter.default)
            schema["default"] = _plain(parameter.default)
        except serialize.Unserializable:
            pass
    if described:
        schema["description"] = described
    return schema


def _plain(value: Any) -> Any:
    return protocol.decode(serialize.to_json(value).decode())


def _hints(entry: Any) -> dict[str, Any]:
    """The annotations, each evaluated if it can be: a bad one must not hide the others."""
    function = inspect.unwrap(entry)
    try:
        return typing.get_type_hints(function)
    except Exception:
        pass
    names = {**vars(typing), **getattr(function, "__globals__", {})}
    hints = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            hints[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
        except Exception:
            continue
    return hints


def _type(hint: Any) -> dict[str, Any]:
    """JSON Schema for an annotation; empty if nothing certain is known."""
    if hint is None or hint is type(None):
        return {"type": "null"}
    if hint in _TYPES if isinstance(hint, type) else False:
        return {"type": _TYPES[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is getattr(types, "UnionType", typing.Union):
        return _union([_type(argument) for argument in arguments])
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if str(origin) == "typing.Annotated" or hasattr(hint, "__metadata__"):
        return _type(arguments[0])
    if hint in _SEQUENCES or origin in _SEQUENCES or str(origin).startswith("<class 'collections.abc."):
        return _collection(origin or hint, arguments)
    return {"type": "object"} if origin is dict else {}


def _collection(origin: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    name = getattr(origin, "__name__", "")
    if name in ("Mapping", "MutableMapping"):
        return {"type": "object"}
    if name not in ("list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Collection", "Set"):
        return {}
    schema: dict[str, Any] = {"type": "array"}
    if len(arguments) == 1 or (len(arguments) == 2 and arguments[1] is Ellipsis):
        items = _type(arguments[0])
        if items:
            schema["items"] = items
    return schema


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if not all(schemas):
        return {}
    if all(set(schema) == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}
