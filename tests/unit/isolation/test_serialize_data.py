"""Results made with NumPy, pandas, polars and pyarrow, as JSON."""

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pytest

from services.executor.isolation.common import serialize

ROW = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.int64(3), 3),
        ({np.int64(3): np.str_("x")}, {"3": "x"}),
        ({np.datetime64("2026-01-02"): 1}, {"2026-01-02": 1}),
        (np.longdouble("1.5"), 1.5),
        (np.array([1.5], np.longdouble), [1.5]),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(7), 7),
        (np.ma.masked_array([1, 2], [False, True]), [1, None]),
        (ROW, [{"a": 1, "b": 2.0}]),
        (ROW[0], {"a": 1, "b": 2.0}),
        (np.datetime64("2026-01-02T03:04:05", "s"), "2026-01-02T03:04:05"),
        (np.datetime64("2026-01-02T03:04:05", "ns"), "2026-01-02T03:04:05"),
        (np.datetime64("2026-01-02T03:04:05.123456789"), "2026-01-02T03:04:05.123456789"),
        (np.datetime64("NaT"), None),
        (np.array(["2026-01-02", "NaT"], "M8[ns]"), ["2026-01-02T00:00:00", None]),
        (np.array("2026-01-02", "M8[ns]"), "2026-01-02T00:00:00"),
        (np.timedelta64(90, "s"), "PT1M30S"),
        (np.timedelta64(1_500_000_001, "ns"), "PT1.500000001S"),
        (pyarrow.table({"a": [1, None]}), [{"a": 1}, {"a": None}]),
        (pyarrow.array([1, 2]), [1, 2]),
        (pyarrow.scalar(5), 5),
    ],
)
def test_arrays_and_their_scalars(value: Any, plain: Any) -> None:
    assert json.loads(serialize.to_json(value)) == plain


@pytest.mark.parametrize(
    ("value", "beginning"),
    [
        (np.array([1.0, np.inf]), "result[1] is inf"),
        (np.longdouble("1e4000"), "result is np.longdouble('1e+4000')"),
        (np.complex128(1), "result is complex"),
        (np.clongdouble(1), "result is np.clongdouble"),
        (np.array([b"x"]), "result[0] is bytes"),
        (np.timedelta64(3, "M"), "result is timedelta64[M]"),
        (np.dtype("i4"), "result is Int32DType"),
        ({np.int64(3): 1, "3": 2}, "result has the keys np.int64(3) and '3'"),
    ],
)
def test_arrays_that_have_no_form(value: Any, beginning: str) -> None:
    with pytest.raises(serialize.Unserializable) as caught:
        serialize.to_json(value)

    assert str(caught.value).startswith(beginning)


FRAMES: list[tuple[Callable[[Any], Any], Any]] = [
    (lambda pd: pd.Timestamp("2026-01-02T03:04:05.123456789Z"), "2026-01-02T03:04:05.123456789+00:00"),
    (lambda pd: [pd.NaT, pd.NA, pd.Period("2026-01")], [None, None, "2026-01"]),
    (lambda pd: pd.Timedelta("1 days 00:00:01.000000005"), "P1DT1.000000005S"),
    (lambda pd: pd.Series([1.5, None]), [1.5, None]),
    (lambda pd: pd.Series([1, 2], index=["a", "b"]), {"a": 1, "b": 2}),
    (lambda pd: pd.Series([1], index=pd.to_datetime(["2026-01-02"])), {"2026-01-02T00:00:00": 1}),
    (lambda pd: pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
    (lambda pd: pd.Index([1, 2]), [1, 2]),
    (lambda pd: pd.MultiIndex.from_tuples([(1, 2)]), [[1, 2]]),
    (lambda pd: pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    (lambda pd: pd.DataFrame({"a": [1]}, index=["r"]), {"r": {"a": 1}}),
    (lambda pd: pd.DataFrame(), []),
]


@pytest.mark.parametrize(("make", "plain"), FRAMES)
def test_values_of_pandas(make: Callable[[Any], Any], plain: Any) -> None:
    pandas = pytest.importorskip("pandas")

    assert json.loads(serialize.to_json(make(pandas))) == plain


@pytest.mark.parametrize(
    ("make", "beginning"),
    [
        (lambda pd: pd.Series([1, 2], index=["a", "a"]), "result has the label 'a' twice"),
        (lambda pd: pd.DataFrame([[1, 2]], columns=["a", "a"]), "result has the column 'a' twice"),
        (lambda pd: pd.DataFrame([[1, 2]], columns=[1, "1"]), "result[0] has the keys 1 and '1'"),
        (lambda pd: pd.DataFrame({"a": [float("inf")]}), "result[0]['a'] is inf"),
    ],
)
def test_values_of_pandas_that_have_no_form(make: Callable[[Any], Any], beginning: str) -> None:
    pandas = pytest.importorskip("pandas")

    with pytest.raises(serialize.Unserializable) as caught:
        serialize.to_json(make(pandas))

    assert str(caught.value).startswith(beginning)


def test_values_of_polars() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1, None], "d": [datetime.date(2026, 1, 2), None]})

    assert json.loads(serialize.to_json(frame)) == [{"a": 1, "d": "2026-01-02"}, {"a": None, "d": None}]
    assert json.loads(serialize.to_json(frame["a"])) == [1, None]
    with pytest.raises(serialize.Unserializable, match="LazyFrame"):
        serialize.to_json(frame.lazy())
