"""Reads manifests from YAML or JSON; errors name the file, the member and what is allowed there."""

import copy
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from services.planner.models import RANGE, VALUES, RunManifest
from shared.documents import json_object, printable, problem, shown
from shared.errors import ContractError, PlanError
from shared.yaml_reader import yaml_object

MAX_FILE_BYTES: Final = 100_000_000
MAX_MISTAKES: Final = 20
"""How many mistakes are listed; more are usually the same one."""

_PLAIN: Final = re.compile(r"[A-Za-z_]\w*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TAGS: Final = (VALUES, RANGE, "[key]")


def read_manifest(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> RunManifest:
    """Read the manifest in a file: JSON if it is called `*.json` or begins with a brace, else YAML.

    Args:
        path: of the file.
        max_bytes: the most bytes that are read.

    Raises:
        PlanError: the file can't be read, or isn't a manifest; one line for each mistake.
    """
    place, text = str(path), _text(path, max_bytes)
    is_json = path.suffix == ".json" or (path.suffix not in (".yaml", ".yml") and text.lstrip()[:1] == "{")
    try:
        # A copy: the reader caches what it returns.
        members = json_object(place, text) if is_json else copy.deepcopy(yaml_object(place, text))
    except ContractError as exc:
        raise PlanError(str(exc) + _hint(str(exc))) from None
    if is_json:
        _check_json(place, text)
    manifest = manifest_of(place, members)
    if not manifest.cases and manifest.sweep is None:
        raise PlanError(f"{place} has neither 'cases' nor a 'sweep'; it needs at least one case")
    return manifest


def manifest_of(place: str, members: Mapping[str, Any]) -> RunManifest:
    """Return the manifest with these members.

    Args:
        place: where they come from, for error messages.
        members: as a file has them.

    Raises:
        PlanError: one line for each mistake.
    """
    if broken := next(_broken_texts(members), None):
        raise PlanError(
            f"{place} {broken}, half a character, which UTF-8 can't hold; write the whole character"
        )
    try:
        return RunManifest.model_validate(members)
    except ValidationError as exc:
        mistakes = [_mistake(place, one) for one in exc.errors(include_url=False)]
        more = len(mistakes) - MAX_MISTAKES
        left_out = [f"{place} has {more} more mistakes"] if more > 0 else []
        raise PlanError("\n".join(mistakes[:MAX_MISTAKES] + left_out)) from None


def _text(path: Path, max_bytes: int) -> str:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > max_bytes:
            raise PlanError(
                f"{path} is {size_bytes:,} bytes long; at most {max_bytes:,} are read. A 'sweep' makes "
                "many cases of few lines"
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PlanError(f"{path}: there is no such file") from None
    except OSError as exc:
        raise PlanError(f"{path} can't be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise PlanError(f"{path} is not UTF-8: byte {exc.start} is {exc.object[exc.start]:#04x}") from None


def _hint(complaint: str) -> str:
    if "it holds more than" not in complaint:
        return ""
    return "; write the cases as JSON, which may be longer, or as a 'sweep'"


# -- duplicates -----------------------------------------------------------------------


def _check_json(place: str, text: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        for name in _repeated(name for name, _ in pairs):
            raise PlanError(f"{place} has an object with two members '{name}'; leave one out")

    json.loads(text, object_pairs_hook=check)


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _broken_texts(value: Any, parts: tuple[int | str, ...] = ()) -> Iterator[str]:
    """Say where texts are that UTF-8 can't hold."""
    match value:
        case str() if found := _SURROGATE.search(value):
            yield f"member '{printable(member_path(parts))}' has {found[0]!r}"
        case Mapping():
            for name, one in value.items():
                if found := _SURROGATE.search(str(name)):
                    yield f"member '{printable(member_path((*parts, name)))}' has {found[0]!r} in its name"
                yield from _broken_texts(one, (*parts, name))
        case list() | tuple():
            for index, one in enumerate(value):
                yield from _broken_texts(one, (*parts, index))


# -- error messages -------------------------------------------------------------------


def _mistake(place: str, error: ErrorDetails) -> str:
    """Return one line: the place, the value, and what is allowed."""
    parts = [part for part in error["loc"][:-1] if part not in _TAGS]
    # An unknown member may have any name, even that of a tag.
    if error["loc"] and (error["loc"][-1] not in _TAGS or error["type"] == "extra_forbidden"):
        parts.append(error["loc"][-1])
    path, message = member_path(parts), error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "missing":
            return f"{place} has no '{path}', which is needed"
        case "extra_forbidden":
            return f"{place} member '{path}' is not known; {_suggestion(parts)}"
        case "value_error":  # about several members; the message names them
            return f"{place}{f' member {path!r}' if path else ''}: {message}"
        case "list_type" if error["loc"][-1] == VALUES:
            expected = "expected a list of values, or a range such as {low: 0, high: 1}"
            return f"{place} member '{path}' is {_value(error['input'])}: {expected}"
        case kind:
            hint = "; put it in quotes" if kind == "string_type" else ""
            return f"{place} member '{path}' is {_value(error['input'])}: {problem(error)}{hint}"


def member_path(parts: Sequence[int | str]) -> str:
    """Return the path of a member as its author would write it: `cases[3].parameters`."""
    text = ""
    for part in parts:
        if isinstance(part, str) and _PLAIN.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def _value(given: object) -> str:
    """Return a value as JSON, so that the text '4' differs from the number."""
    if isinstance(given, Mapping):
        return "an object"
    try:
        text = json.dumps(given, ensure_ascii=False)
    except (TypeError, ValueError):
        return shown(given)
    return text if len(text) <= 80 else text[:77] + "..."


def _suggestion(parts: Sequence[int | str]) -> str:
    """Suggest a member with a similar name, or where a member of this name belongs."""
    models, name = _models(), str(parts[-1])
    path = [part for part in parts[:-1] if isinstance(part, str)]
    homes = [".".join(path[:end]) for end in range(len(path), -1, -1)]
    known = list(next(models[home] for home in homes if home in models).model_fields)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{close[0]}'?"
    places = [place for place, model in models.items() if name in model.model_fields]
    if places:
        return (
            f"it belongs {' or '.join(f'in {place!r}' if place else 'at the top level' for place in places)}"
        )
    return f"known are {', '.join(known)}"


@cache
def _models() -> dict[str, type[BaseModel]]:
    """Return every model of a manifest by the path of its member; the manifest itself by ''."""
    return dict(_models_below("", RunManifest))


def _models_below(place: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, model
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            yield from _models_below(f"{place}.{name}".removeprefix("."), inner)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for argument in get_args(annotation) for one in _models_in(argument)]
