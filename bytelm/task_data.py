"""Examples of tasks: rows of a local file, or of the Hugging Face hub where none is given."""

import csv
import io
import json
import os
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from bytelm.bounded_reading import read_bounded
from bytelm.data.compression import COMPRESSIONS, MAGIC_BYTES, Allowance, decompress, fits
from bytelm.errors import SourceError
from bytelm.hub import out_of_reach

_MOST_BYTES: Final = 128 << 20
"""Of a file of examples, as it is stored and as it is unpacked: the largest that is known has less than half of it."""
_MOST_EXPANSION: Final = 1000.0
_MOST_CELL: Final = 1 << 17

Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where examples of a task are.

    Attributes:
        files: Names by which they are known in a folder; the first that is there is taken.
        hub: Name on the Hugging Face hub.
        config: Its configuration; empty for none.
        split: Its split.
        revision: Its revision; None for the newest.
    """

    files: tuple[str, ...]
    hub: str
    config: str = ""
    split: str = "test"
    revision: str | None = None


def read_rows(source: DataSet, data: Path | None, task: str) -> list[Row]:
    """All rows of a data set.

    Args:
        source: Where they are.
        data: A file, or a folder in which one of ``source.files`` lies; None for the hub.
        task: For messages.

    Raises:
        SourceError: There is no such file, it is damaged, or the hub cannot be reached.
    """
    if data is None:
        return _from_hub(source, task)
    place = data
    if data.is_dir():
        found = [data / name for name in source.files if (data / name).exists()]
        if not found:
            raise SourceError(f"{data} holds no data of task {task}; put {' or '.join(source.files)} there")
        place = found[0]
    return read_file(place)


def read_file(place: Path) -> list[Row]:
    """Rows of a file: lines of JSON, a JSON list, a table with a header, or groups of six lines as HellaSwag has them.

    Packed by gzip, bzip2, xz or zstd if its name ends so.

    Raises:
        SourceError: It cannot be read or is damaged.
    """
    text, name = _text_of(place)
    if name.endswith(".txt"):
        return _hellaswag_rows(text, place)
    if name.endswith((".tsv", ".csv")):
        return _objects(_table(text, "\t" if name.endswith(".tsv") else ",", place), place)
    if text.lstrip().startswith("["):
        return _objects(_json(text, place, 1), place)
    lines = enumerate(text.split("\n"), start=1)
    return _objects((_json(line, place, number) for number, line in lines if line.strip()), place)


def field_of(row: Row, names: Sequence[str], task: str, number: int) -> Any:
    """The first field of a row that is there.

    Raises:
        SourceError: None is.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise SourceError(
        f"row {number} of the data of task {task} has no field {' or '.join(map(repr, names))}, only "
        f"{', '.join(map(repr, row)) or 'nothing'}; give data of this task",
        reason="no_field",
    )


def text_of(row: Row, names: Sequence[str], task: str, number: int) -> str:
    """The first field of a row that is there, which must be text.

    Raises:
        SourceError: None is, or it is something else.
    """
    return _as_text(field_of(row, names, task, number), names, task, number)


def texts_of(row: Row, names: Sequence[str], task: str, number: int) -> list[str]:
    """The first field of a row that is there, which must be a list of texts, one at least.

    Raises:
        SourceError: None is, or it is something else.
    """
    values = field_of(row, names, task, number)
    if not isinstance(values, list) or not values:
        raise _wrong(values, "a list of texts", names, task, number)
    return [_as_text(value, names, task, number) for value in values]


def drawn(examples: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """Some examples, drawn without repetition, in their order; all where there is no limit.

    Example:
        >>> drawn("abcdef", 3, seed=0)
        ['b', 'd', 'e']
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    return [examples[place] for place in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def _text_of(place: Path) -> tuple[str, str]:
    """The text of a file, unpacked; and its name, without what says how it is packed."""
    content = read_bounded(place, _MOST_BYTES, what="the data", remedy="give a part of it")
    packed = place.suffix.removeprefix(".")
    name = place.stem if packed in COMPRESSIONS else place.name
    if packed in COMPRESSIONS:
        if not fits(packed, content[:MAGIC_BYTES]):
            raise SourceError(
                f"{place} is damaged: it does not begin as .{packed} does; get it again", reason="damaged"
            )
        allowance = Allowance(os.fsencode(place), len(content), _MOST_EXPANSION)
        unpacked = io.BytesIO()
        for block in allowance.giving(decompress(packed, iter([content]), os.fsencode(place))):
            if unpacked.write(block) and unpacked.tell() > _MOST_BYTES:
                raise SourceError(
                    f"the data {place} has more than {_MOST_BYTES:,} bytes when it is unpacked, and these are the "
                    "most; give a part of it"
                )
        content = unpacked.getvalue()
    try:
        return content.decode("utf-8"), name
    except ValueError as error:
        raise SourceError(f"{place} is damaged: {error}; get it again", reason="damaged") from error


def _as_text(value: Any, names: Sequence[str], task: str, number: int) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "text", names, task, number)
    return value


def _wrong(value: Any, wanted: str, names: Sequence[str], task: str, number: int) -> SourceError:
    return SourceError(
        f"row {number} of the data of task {task} should have {wanted} in {' or '.join(map(repr, names))}, found "
        f"{json.dumps(value, ensure_ascii=False)[:60]}; give data of this task",
        reason="damaged",
    )


def _table(text: str, delimiter: str, place: Path) -> list[Row]:
    limit = csv.field_size_limit(_MOST_CELL)  # of the whole process: whoever needs more sets it
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE))
    except csv.Error as error:
        raise SourceError(f"{place} is damaged: it is no table ({error}); get it again", reason="damaged") from error
    finally:
        csv.field_size_limit(limit)


def _json(text: str, place: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{place} is damaged: line {line} is no JSON ({error}); get it again", reason="damaged"
        ) from error


def _objects(rows: Iterable[Any], place: Path) -> list[Row]:
    found = list(rows)
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise SourceError(f"{place}: row {number} is no JSON object; give data of this task", reason="damaged")
    if not found:
        raise SourceError(f"{place} holds no example; give data of this task", reason="damaged")
    return found


def _hellaswag_rows(text: str, place: Path) -> list[Row]:
    lines = text.rstrip("\n").split("\n")
    if len(lines) % 6 or not all(line.strip().isdigit() for line in lines[1::6]):
        raise SourceError(
            f"{place} is not what HellaSwag's text is: context, number of the right ending, four endings, a line each",
            reason="damaged",
        )
    return [
        {"ctx": lines[start], "label": int(lines[start + 1]), "endings": lines[start + 2 : start + 6]}
        for start in range(0, len(lines), 6)
    ]


def _from_hub(source: DataSet, task: str) -> list[Row]:
    remedy = f"give --data FILE or --data DIR with DIR/{source.files[0]}"
    if reason := out_of_reach(source.hub):
        raise SourceError(f"task {task} has no data here: {reason}; {remedy}")

    import datasets
    from datasets.exceptions import DatasetsError

    network = getattr(sys.modules.get("httpx"), "HTTPError", OSError)
    try:
        table = datasets.load_dataset(source.hub, source.config or None, split=source.split, revision=source.revision)
        return [dict(row) for row in table]
    except (DatasetsError, ValueError, OSError, RuntimeError, network) as error:
        said = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise SourceError(
            f"task {task} has no data here and the hub's {source.hub} cannot be read ({said}); {remedy}"
        ) from error
