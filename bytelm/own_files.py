"""JSON and TOML that bytelm wrote and that anyone can edit: read within limits, and checked for form before it is used.

A checksum says that a file is as somebody left it, not that it makes sense. So every such file comes through here: its
size is limited before it is read, its depth while it is parsed, numbers are finite, no key stands twice, and a schema
says which values there are. What is wrong is one line with the file, the field and what to do about it.

Schemas are written with the few classes below and not with pydantic, which takes longer to load than a short
generation takes: a decoder reads its manifest and its plan through here too.

    STATE = Fields({"step": WHOLE, "corpus": Either(TEXT, ListOf(TEXT))})
    state = read_json(path, STATE, remedy="train again")
"""

import contextlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from bytelm.bounded_reading import read_bounded
from bytelm.errors import BytelmError, CheckpointError, SourceError
from bytelm.utf8 import shown

MOST_BYTES: Final = 16 << 20
"""Of a small file, far beyond what any of ours holds."""
_MOST_DEPTH: Final = 32
_DOTTED: Final = re.compile(r"(?:[\w\"'-]+[ \t]*\.[ \t]*){33}")
"""A key of more parts than levels are allowed."""
_LONGEST_SHOWN: Final = 60


class FormError(ValueError):
    """What is wrong with a content, and where in it.

    Attributes:
        place: Path of the field, such as ``progress.meter.loss``; "" for the whole.
        what: The fault in words.
    """

    def __init__(self, what: str, place: str = "") -> None:
        self.place, self.what = place, what
        super().__init__(f"{place}: {what}" if place else what)

    def inside(self, name: str | int) -> "FormError":
        """The same, seen from one level further out."""
        own = f"[{name}]" if isinstance(name, int) else name
        joined = f"{own}{self.place}" if self.place.startswith("[") else f"{own}.{self.place}" if self.place else own
        return FormError(self.what, joined)


class Schema(Protocol):
    """What a value has to be."""

    def check(self, value: Any) -> None:
        """Accept a value.

        Raises:
            FormError: It is not what it has to be.
        """
        ...


@dataclass(frozen=True)
class Number:
    """A finite number within bounds; whole numbers alone where ``whole``."""

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise FormError(f"{_said(value)} is no {'whole ' if self.whole else ''}number")
        if isinstance(value, float) and not math.isfinite(value):
            raise FormError(f"{value} is not finite")
        if not self.least <= value <= self.most:
            raise FormError(f"{_said(value)} is not within {_bounds(self.least, self.most)}")


@dataclass(frozen=True)
class Text:
    """A string; one of a few where ``known`` says which."""

    known: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if not isinstance(value, str):
            raise FormError(f"{_said(value)} is no text")
        if self.known and value not in self.known:
            raise FormError(f"{_said(value)} is unknown; known: {', '.join(self.known)}")
        if not value.isascii() and _lone_surrogate(value):
            raise FormError("it holds a lone surrogate, which UTF-8 cannot encode")


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if not isinstance(value, bool):
            raise FormError(f"{_said(value)} is neither true nor false")


@dataclass(frozen=True)
class Anything:
    """Any value."""

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        del value


@dataclass(frozen=True)
class Nullable:
    """A value or null."""

    schema: Schema

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if value is not None:
            self.schema.check(value)


@dataclass(frozen=True)
class Either:
    """One of two."""

    first: Schema
    second: Schema

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        try:
            self.first.check(value)
        except FormError as fault:
            try:
                self.second.check(value)
            except FormError as other:
                raise (other if isinstance(value, list | dict) else fault) from None


@dataclass(frozen=True)
class ListOf:
    """A list of values of one kind, of so many at least and at most."""

    schema: Schema
    least: int = 0
    most: int = 1 << 20

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if not isinstance(value, list):
            raise FormError(f"{_said(value)} is no list")
        if not self.least <= len(value) <= self.most:
            raise FormError(f"it has {len(value):,} values, not {_bounds(self.least, self.most)}")
        for place, one in enumerate(value):
            _check_inside(self.schema, one, place)


@dataclass(frozen=True)
class Row:
    """A list of so many values, each of a kind of its own."""

    schemas: tuple[Schema, ...]

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if not isinstance(value, list) or len(value) != len(self.schemas):
            raise FormError(f"{_said(value)} is no list of {len(self.schemas)} values")
        for place, (schema, one) in enumerate(zip(self.schemas, value, strict=True)):
            _check_inside(schema, one, place)


@dataclass(frozen=True)
class Fields:
    """An object with these fields.

    Attributes:
        needed: Fields that must be there, each with its schema.
        optional: Fields that may be there, each with its schema.
        others: Schema of all fields with other names; None allows no others.
        most: The most fields that are allowed.
    """

    needed: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    others: Schema | None = None
    most: int = 1 << 16

    def check(self, value: Any) -> None:
        """See ``Schema``."""
        if not isinstance(value, dict):
            raise FormError(f"{_said(value)} is no object with fields")
        if len(value) > self.most:
            raise FormError(f"it has {len(value):,} fields, and {self.most:,} are the most")
        for name in self.needed:
            if name not in value:
                raise FormError("it is missing", name)
        for name, one in value.items():
            schema = self.needed.get(name) or self.optional.get(name) or self.others
            if schema is None:
                raise FormError("it is unknown here", _said_name(name))
            _check_inside(schema, one, name)


WHOLE: Final = Number(least=0, most=(1 << 63) - 1, whole=True)
"""A count."""
FINITE: Final = Number()
TEXT: Final = Text()
FLAG: Final = Flag()
ANYTHING: Final = Anything()


def parse_json(content: bytes | str, schema: Schema = ANYTHING) -> Any:
    """A value out of strict JSON in UTF-8.

    Raises:
        FormError: It is no JSON, has a number that is not finite, a key twice or too many levels, or is not of the
            schema.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(
            text,
            parse_constant=_not_finite,
            parse_float=_finite,
            object_pairs_hook=_once,
        )
    except FormError:
        raise
    except UnicodeDecodeError as error:
        raise FormError(f"byte {error.start} is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise FormError(
            f"it is no JSON: {error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1}"
        ) from error
    except RecursionError as error:
        raise FormError(f"it has more than {_MOST_DEPTH} levels") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise FormError("it holds a number of too many digits") from error
    if text.count("[") + text.count("{") > _MOST_DEPTH:
        _check_depth(value)
    schema.check(value)
    return value


def parse_toml(content: bytes | str, schema: Schema = ANYTHING) -> dict[str, Any]:
    """A tree out of TOML in UTF-8.

    Raises:
        FormError: It is no TOML, has a number that is not finite or too many levels, or is not of the schema.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if _DOTTED.search(text):  # which the library takes the square of their number for
            raise FormError(f"it has more than {_MOST_DEPTH} levels")
        tree = tomllib.loads(text, parse_float=_finite)
    except FormError:
        raise
    except UnicodeDecodeError as error:
        raise FormError(f"byte {error.start} is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        said = " ".join(str(error).split())
        raise FormError(f"it is no TOML: {said[:1].lower()}{said[1:]}") from error
    except RecursionError as error:
        raise FormError(f"it has more than {_MOST_DEPTH} levels") from error
    except ValueError as error:  # a date that is none, a whole number of thousands of digits
        raise FormError("it holds a number or a date that is none") from error
    _check_depth(tree)
    schema.check(tree)
    return tree


def read_json(
    path: Path,
    schema: Schema,
    *,
    remedy: str,
    error: Callable[[str], BytelmError] = CheckpointError,
    limit_bytes: int = MOST_BYTES,
) -> Any:
    """A value out of a JSON file of ours.

    Args:
        path: The file.
        schema: What the value has to be.
        remedy: End of an error message: what the user can do about a file that is wrong, such as "remove it".
        error: Makes the error from its message.
        limit_bytes: The most bytes that the file may have.

    Raises:
        BytelmError: The file cannot be read, is too large or does not fit the schema; ``error`` makes this error.
    """
    content = read_small(path, remedy=remedy, error=error, limit_bytes=limit_bytes)
    with faults_named(path, remedy, error):
        return parse_json(content, schema)


def read_small(
    path: Path,
    *,
    remedy: str,
    error: Callable[[str], BytelmError] = CheckpointError,
    limit_bytes: int = MOST_BYTES,
) -> bytes:
    """The bytes of a small file of ours; as ``read_json`` otherwise."""
    try:
        return read_bounded(path, limit_bytes, what="the file", remedy=remedy)
    except SourceError as cause:
        raise error(str(cause)) from cause


@contextlib.contextmanager
def faults_named(path: Path, remedy: str, error: Callable[[str], BytelmError] = CheckpointError) -> Iterator[None]:
    """Make one line of a ``FormError`` inside the block: the file, the field, what is wrong with it, what to do."""
    try:
        yield
    except FormError as fault:
        raise error(f"{path}: {fault}; {remedy}") from fault


def _check_inside(schema: Schema, value: Any, name: str | int) -> None:
    try:
        schema.check(value)
    except FormError as fault:
        raise fault.inside(name if isinstance(name, int) else _said_name(name)) from None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MOST_DEPTH + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for several in inner for one in several]
        if not level:
            return
    raise FormError(f"it has more than {_MOST_DEPTH} levels")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FormError(f"{text} is not finite")
    return value


def _not_finite(text: str) -> float:
    raise FormError(f"{text} is not finite")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise FormError("it is there twice", _said_name(name))
            seen.add(name)
    return found


def _lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _said(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=not isinstance(value, str) or _lone_surrogate(value), default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _said_name(name: str) -> str:
    return shown(name[:_LONGEST_SHOWN].encode("utf-8", "backslashreplace").decode())


def _bounds(least: float, most: float) -> str:
    return f"{least:,} … {most:,}"
