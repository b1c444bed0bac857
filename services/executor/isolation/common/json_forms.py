"""Rules that turn objects into values that JSON knows, or that are nearer to it.

A class is recognised by the package and the name of one of its bases, so that no package is imported here.
"""

from __future__ import annotations

import math
import os
import sys
from collections import abc
from typing import Any, Callable, Iterable

CANT_HOLD = "which JSON can't hold; return text, a number, a list or a dict there, or save it as an artifact"


class NoForm(TypeError):
    """No rule turns the object into something simpler.  A message begins with a verb: `is a ...`."""


def simpler(value: Any) -> Any:
    """One step from an object that JSON doesn't know towards one it does.  Raises NoForm if there is none."""
    for base in type(value).__mro__[:-1]:
        rule = _RULES.get((base.__module__.partition(".")[0], base.__qualname__))
        if rule is not None:
            return rule(value)
    return _by_shape(value)


def clash(keys: Iterable[Any]) -> str | None:
    """The keys of a dict that become the same text, for a message; None if there are none."""
    by_text: dict[str, Any] = {}
    for key in keys:
        text = key_text(key)
        if text in by_text:
            return f"{by_text[text]!r:.80} and {key!r:.80}"
        by_text[text] = key
    return None


def key_text(key: Any) -> str:
    """A key as the text that JSON has for it.  Raises NoForm for a key that isn't a single simple value."""
    if isinstance(key, str):
        return key
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(key)
    if isinstance(key, float):
        return float.__repr__(key)
    if isinstance(key, (abc.Collection, bytes)):
        raise NoForm
    return key_text(simpler(key))


# -- by the names of classes ------------------------------------------------------------


def _in_order(values: Any) -> list[Any]:
    """Sorted, or where that isn't possible in an order that is the same for equal sets of plain values."""
    kinds = set(map(type, values))
    if len(kinds) > 1 or not kinds.isdisjoint((set, frozenset)):  # sets are compared by what they contain
        return sorted(values, key=_sort_text)
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=_sort_text)


def _sort_text(value: Any) -> str:
    items = _in_order(value) if isinstance(value, abc.Set) else value
    return f"{type(value).__name__} {items!r}"


def _duration(value: Any) -> str:
    microseconds = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    return _iso_duration(microseconds * 1_000 + getattr(value, "nanoseconds", 0))  # pandas has these


def _iso_duration(nanoseconds: int) -> str:
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{count}{unit}" for count, unit in ((hours, "H"), (minutes, "M")) if count]
    if fraction:
        parts.append(f"{seconds}.{fraction:09}".rstrip("0") + "S")
    elif seconds or not (parts or days):
        parts.append(f"{seconds}S")
    text = (f"{days}D" if days else "") + ("T" + "".join(parts) if parts else "")
    return f"{'-' if nanoseconds < 0 else ''}P{text}"


def _model(value: Any) -> Any:
    """A pydantic model.  It converts keys itself, so these are compared before."""
    if not hasattr(value, "model_dump"):
        return value.dict()  # pydantic 1
    _refuse_clashes(value.model_dump())
    return value.model_dump(mode="json")


def _refuse_clashes(value: Any) -> None:
    if isinstance(value, dict):
        same = clash(key for key in value if key is None or isinstance(key, (str, bool, int, float)))
        if same:
            raise NoForm(f"has the keys {same}, which are the same text in JSON")
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        _refuse_clashes(item)


def _struct(value: Any) -> dict[str, Any]:
    """A structure of msgspec, without the members that are not set."""
    members = ((name, getattr(value, name)) for name in value.__struct_fields__)
    return {name: one for name, one in members if type(one).__name__ != "UnsetType"}


def _numpy_scalar(value: Any) -> Any:
    item = value.item()
    if type(item) is not type(value):
        return item
    number = float(value) if value.dtype.kind == "f" else math.inf  # more precise than Python's numbers
    if math.isinf(number):
        raise NoForm(f"is {value!r}, {CANT_HOLD}")
    return number


def _numpy_record(value: Any) -> dict[str, Any]:
    if not value.dtype.names:
        raise NoForm
    return {name: value[name] for name in value.dtype.names}


def _numpy_time(value: Any) -> Any:
    item = value.item()
    if isinstance(item, int):  # Python's dates are coarser, or have fewer years
        coarse = value.astype("datetime64[us]")
        item = coarse.item() if coarse == value else None
        if not hasattr(item, "isoformat"):
            return str(value)
    return item  # None for "not a time"


def _numpy_duration(value: Any) -> Any:
    item = value.item()
    if not isinstance(item, int):
        return item
    if "[ns]" in str(value.dtype):
        return _iso_duration(item)
    raise NoForm(f"is {value.dtype}, {CANT_HOLD}")


def _numpy_array(value: Any) -> Any:
    if value.dtype.kind in "mM" or value.dtype.names:
        return list(value) if value.ndim else value[()]
    return value.tolist()


def _series(value: Any) -> Any:
    return _by_label(value.index, _without_gaps(value))


def _frame(value: Any) -> Any:
    names = value.columns
    if not names.is_unique:
        raise NoForm(f"has the column {_first_twice(names)!r:.80} twice; rename one of them")
    columns = map(_without_gaps, (value.iloc[:, number] for number in range(len(names))))
    rows = map(dict, (zip(names, row) for row in zip(*columns)))  # noqa: B905 - strict= needs Python 3.10
    return _by_label(value.index, list(rows))


def _without_gaps(values: Any) -> list[Any]:
    """The values of a pandas series or index, with None for those that pandas considers missing."""
    missing = values.isna()
    items: list[Any] = values.tolist()
    if missing.any():
        return [None if gap else item for item, gap in zip(items, missing)]  # noqa: B905
    return items


def _by_label(index: Any, values: list[Any]) -> Any:
    """A list if the rows are only counted, else a dict by their labels."""
    if type(index).__name__ == "RangeIndex" and (index.start, index.step) == (0, 1):
        return values
    if not index.is_unique:
        raise NoForm(f"has the label {_first_twice(index)!r:.80} twice in its index; use reset_index()")
    return dict(zip(index.tolist(), values))  # noqa: B905 - as above


def _index(value: Any) -> list[Any]:
    labels: list[Any] = value.tolist() if value.nlevels > 1 else _without_gaps(value)
    return labels


def _first_twice(labels: Any) -> Any:
    return labels[labels.duplicated()][0]


def _nothing(value: Any) -> None:
    return None


def _lazy(value: Any) -> Any:
    raise NoForm(f"is a {type(value).__name__}, whose values aren't known; return what its collect() returns")


def _calling(method: str) -> Callable[[Any], Any]:
    return lambda value: getattr(value, method)()


_RULES: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("builtins", "set"): _in_order,
    ("builtins", "frozenset"): _in_order,
    ("builtins", "range"): list,
    ("builtins", "mappingproxy"): dict,
    ("collections", "deque"): list,
    ("collections", "UserString"): str,
    ("array", "array"): list,
    ("types", "SimpleNamespace"): vars,
    ("enum", "Enum"): lambda value: value.value,
    ("datetime", "date"): _calling("isoformat"),
    ("datetime", "time"): _calling("isoformat"),
    ("datetime", "timedelta"): _duration,
    ("decimal", "Decimal"): str,
    ("fractions", "Fraction"): str,
    ("uuid", "UUID"): str,
    ("ipaddress", "_IPAddressBase"): str,
    ("pydantic", "BaseModel"): _model,
    ("msgspec", "Struct"): _struct,
    ("numpy", "generic"): _numpy_scalar,
    ("numpy", "void"): _numpy_record,
    ("numpy", "datetime64"): _numpy_time,
    ("numpy", "timedelta64"): _numpy_duration,
    ("numpy", "ndarray"): _numpy_array,
    ("pandas", "NaTType"): _nothing,
    ("pandas", "NAType"): _nothing,
    ("pandas", "Period"): str,
    ("pandas", "Interval"): str,
    ("pandas", "Index"): _index,
    ("pandas", "Series"): _series,
    ("pandas", "DataFrame"): _frame,
    ("polars", "Series"): _calling("to_list"),
    ("polars", "DataFrame"): _calling("to_dicts"),
    ("polars", "LazyFrame"): _lazy,
    ("pyarrow", "Scalar"): _calling("as_py"),
    ("pyarrow", "Array"): _calling("to_pylist"),
    ("pyarrow", "ChunkedArray"): _calling("to_pylist"),
    ("pyarrow", "RecordBatch"): _calling("to_pylist"),
    ("pyarrow", "Table"): _calling("to_pylist"),
}
"""By the package and the name of a class; they hold for what is derived from it as well."""


# -- by what a class has ----------------------------------------------------------------


def _by_shape(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, (type, bytes, bytearray, memoryview)):
        raise NoForm
    if hasattr(kind, "__dataclass_fields__"):
        names = [field.name for field in sys.modules["dataclasses"].fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    if hasattr(kind, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(kind, "isoformat"):
        return value.isoformat()
    if hasattr(kind, "tolist") and hasattr(kind, "dtype"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, abc.Mapping):
        return dict(value)
    if isinstance(value, (abc.Sequence, abc.KeysView, abc.ValuesView, abc.ItemsView)):
        return list(value)
    if isinstance(value, abc.Set):
        return _in_order(value)
    raise NoForm
