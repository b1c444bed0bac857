"""Criteria: conditions on what a plan has found so far, parsed by this grammar and never by `eval`.

    criterion  = either ["after" COUNT]
    either     = both {"or" both}
    both       = single {"and" single}
    single     = "not" single | "(" either ")" | comparison
    comparison = NAME ("<" | "<=" | ">" | ">=") NUMBER
               | NAME ("==" | "!=") (NUMBER | TEXT)

A name is one or more words joined by dots.  A number may be followed by `%`.  A text is in single or
double quotes; a backslash takes the next character literally.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, NoReturn

from shared.documents import kind, printable
from shared.errors import PlanError

MAX_DEPTH: Final = 50
MAX_CHARACTERS: Final = 10_000
SHOWN: Final = 60  # characters before and after the place of an error
OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
EQUALITIES: Final = ("==", "!=")
WORDS: Final = frozenset({"and", "or", "not", "after"})
_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_0-9]+)*)
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<sign><=|>=|==|!=|<|>|\(|\)|%)
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)


class CriterionError(PlanError, ValueError):
    """A criterion can't be parsed; the message shows where, and what is expected there."""


# -- the model ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """`name operator value`."""

    name: str
    operator: str
    value: float | str

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {_written(self.value)}"


@dataclass(frozen=True, slots=True)
class Not:
    """Holds when `part` doesn't hold."""

    part: "Condition"

    def __str__(self) -> str:
        return f"not {_inner(self.part, 'not')}"


@dataclass(frozen=True, slots=True)
class Joined:
    """Holds when all parts hold (`and`), or any of them (`or`); has at least two parts."""

    word: Literal["and", "or"]
    parts: "tuple[Condition, ...]"

    def __str__(self) -> str:
        return f" {self.word} ".join(_inner(part, self.word) for part in self.parts)


Condition = Comparison | Not | Joined


@dataclass(frozen=True, slots=True)
class Verdict:
    """The value of a criterion.

    Attributes:
        holds: whether it holds; None if it can't be judged, or not yet.
        notes: why it can't be judged: one for each name that is missing or can't be compared.
    """

    holds: bool | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Criterion:
    """A condition, and the number of completions from which on it is judged.

    Its text parses to an equal criterion.
    """

    condition: Condition
    after: int = 0

    def __str__(self) -> str:
        return f"{self.condition} after {self.after}" if self.after else str(self.condition)

    def judge(self, values: Mapping[str, Any], completions: int) -> Verdict:
        """Judge the criterion.

        A part that can't be judged leaves the whole open, unless the other parts decide it.

        Args:
            values: by full name or nested; true counts as 1, false as 0.
            completions: the number of cases that have ended.
        """
        if completions < self.after:
            return Verdict(None)
        notes: list[str] = []
        holds = _judged(self.condition, values, notes)
        return Verdict(holds, () if holds is not None else tuple(dict.fromkeys(notes)))


def criterion(text: str) -> Criterion:
    """Parse a criterion.

    Raises:
        CriterionError: the text is no criterion; the message shows the place and what is expected there.
    """
    return _Parser(text).parsed()


# -- judging --------------------------------------------------------------------------


def _judged(condition: Condition, values: Mapping[str, Any], notes: list[str]) -> bool | None:
    match condition:
        case Comparison():
            return _compared(condition, values, notes)
        case Not(part):
            inner = _judged(part, values, notes)
            return None if inner is None else not inner
        case Joined(word, parts):
            return _decided([_judged(part, values, notes) for part in parts], deciding=word == "or")


def _decided(verdicts: list[bool | None], *, deciding: bool) -> bool | None:
    """Combine verdicts: one `deciding` verdict decides; otherwise an open one leaves the whole open."""
    if deciding in verdicts:
        return deciding
    return None if None in verdicts else not deciding


def _compared(comparison: Comparison, values: Mapping[str, Any], notes: list[str]) -> bool | None:
    found = values.get(comparison.name, values)
    for part in comparison.name.split(".") if found is values else ():
        if not isinstance(found, Mapping) or part not in found:
            notes.append(f"there is no {comparison.name} yet")
            return None
        found = found[part]
    wanted = str if isinstance(comparison.value, str) else int | float
    if not isinstance(found, wanted) or found != found:
        other = "a text" if wanted is str else "a number"
        # Not the value itself, which would depend on the order in which cases end.
        what = kind(found) if found == found else "not a number"
        notes.append(f"{comparison.name} is {what} and can't be compared with {other}")
        return None
    return bool(OPERATORS[comparison.operator](found, comparison.value))


# -- printing -------------------------------------------------------------------------


def _inner(condition: Condition, outside: str) -> str:
    """Add the parentheses that parsing needs: `and` binds closer than `or`."""
    is_bare = not isinstance(condition, Joined) or (condition.word == "and" and outside == "or")
    return str(condition) if is_bare else f"({condition})"


def _written(value: float | str) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)


# -- parsing --------------------------------------------------------------------------


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Parser:
    """A recursive descent parser; each method parses one rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        if len(text) > MAX_CHARACTERS:
            self._refuse(0, f"at most {MAX_CHARACTERS:,} characters")
        self._next = self._token(0)

    def parsed(self) -> Criterion:
        condition = self._either()
        after = self._count() if self._takes("after") else 0
        if self._next.kind != "end":
            self._refuse(self._next.start, "the end" if after else "'and', 'or', 'after' or the end")
        return Criterion(condition, after)

    def _either(self) -> Condition:
        return self._joined("or", self._both)

    def _both(self) -> Condition:
        return self._joined("and", self._single)

    def _joined(self, word: Literal["and", "or"], read: Callable[[], Condition]) -> Condition:
        parts = [read()]
        while self._takes(word):
            parts.append(read())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _single(self) -> Condition:
        start = self._next.start
        if self._takes("not"):
            return Not(self._deeper(start, self._single))
        if not self._takes("("):
            return self._comparison()
        condition = self._deeper(start, self._either)
        if not self._takes(")"):
            self._refuse(self._next.start, "'and', 'or' or ')'")
        return condition

    def _comparison(self) -> Comparison:
        if self._next.text in WORDS:
            self._refuse(self._next.start, "a name, 'not' or '('")
        name = self._take("name", "a name, 'not' or '('").text
        sign = self._next
        if sign.text not in OPERATORS:
            self._refuse(sign.start, "one of " + " ".join(OPERATORS))
        self._next = self._token(sign.start + len(sign.text))
        return Comparison(name, sign.text, self._value(sign.text))

    def _value(self, sign: str) -> float | str:
        if self._next.kind == "text" and sign in EQUALITIES:
            return re.sub(r"\\(.)", r"\1", self._take("text", "").text[1:-1], flags=re.DOTALL)
        wanted = "a number or a text in quotes (1 is true, 0 is false)" if sign in EQUALITIES else "a number"
        token = self._take("number", wanted)
        value = float(token.text) / (100 if self._takes("%") else 1)
        if not math.isfinite(value):
            self._refuse(token.start, "a number that is not too large")
        return value

    def _count(self) -> int:
        wanted = "how many completions, a whole number from 1 to 999999999"
        token = self._take("number", wanted)
        if not re.fullmatch("0*[1-9][0-9]{0,8}", token.text):
            self._refuse(token.start, wanted)
        return int(token.text)

    def _deeper(self, start: int, read: Callable[[], Condition]) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(start, f"at most {MAX_DEPTH} levels of 'not' and parentheses")
        condition = read()
        self._depth -= 1
        return condition

    def _takes(self, word: str) -> bool:
        """Consume the next token if it is `word`; return whether it was."""
        token = self._next
        if token.kind == "text" or token.text != word:
            return False
        self._next = self._token(token.start + len(word))
        return True

    def _take(self, kind: str, wanted: str) -> _Token:
        """Consume and return the next token, which must be of the `kind`."""
        token = self._next
        if token.kind != kind:
            self._refuse(token.start, wanted)
        self._next = self._token(token.start + len(token.text))
        return token

    def _token(self, start: int) -> _Token:
        found = _TOKEN.match(self._text, start)
        if found is None or found.lastgroup is None:
            start += len(self._text[start:]) - len(self._text[start:].lstrip(" \t\r\n"))
            self._refuse(
                start, "a name, a number, a text in closed quotes, or one of ( ) % " + " ".join(OPERATORS)
            )
        return _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))

    def _refuse(self, start: int, wanted: str) -> NoReturn:
        before, after = printable(self._text[:start])[-SHOWN:], printable(self._text[start:])[:SHOWN]
        raise CriterionError(
            f"the criterion can't be read at character {start + 1}: expected {wanted}\n"
            f"  {before}{after}\n  {' ' * len(before)}^"
        )
