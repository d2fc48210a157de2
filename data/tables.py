"""One column of a table as documents: a row each, of JSON lines, of Parquet files, or of a Hugging Face data set.

A string becomes its UTF-8 bytes, bytes stay as they are. A row that has no such field, or null there, or anything that
is neither a string nor bytes, gives no document and is counted: nothing is guessed or converted. A column inside
another is written with dots, ``meta.text``.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from bytelm.data.compression import Allowance, Forward
from bytelm.data.documents import BLOCK_BYTES, Document, Skipped, damaged, shown_path
from bytelm.data.storage import remote_errors
from bytelm.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SEPARATOR: Final = b"#"
"""Stands between a table's path and the number of a row, from 1."""

DATASET: Final = "hf:"
"""What the name of a Hugging Face data set begins with, where it is a source."""

MOST_LINE_BYTES: Final = 64 << 20
"""The longest line of JSON: it must be held in memory several times over to be understood."""

PART_BYTES: Final = 64 << 20
"""A larger table is read in parts of about that size, so that several processes can share it."""

_HELD_BYTES: Final = 16 << 20
_MOST_HELD_ROWS: Final = 1024
# Numbers are not wanted: many of them need not be held, and a long one need not be refused.
_DECODER: Final = json.JSONDecoder(parse_int=lambda _: None, parse_float=lambda _: None)
_BOM: Final = b"\xef\xbb\xbf"
_MOST_NAMED: Final = 20
_PARQUET_MAGICS: Final = (b"PAR1", b"PARE")


def json_rows(
    content: Forward, name: bytes, field: str, *, begin: int = 0, end: int | None = None, is_part: bool = False
) -> Iterator[Document | Skipped]:
    """A document for each line of JSON; empty lines count, but give nothing.

    Args:
        content: The lines, in UTF-8. A part that does not begin at 0 is read from one byte before it on: a line belongs
            to the part that its first byte lies in.
        name: What the table is called.
        field: The field.
        begin: Where the part begins.
        end: Where it ends; the line that is begun there is read to its end. None reads everything.
        is_part: This is a part: nobody knows how many lines came before, so rows are named by the place of their line.

    Yields:
        A ``Document`` for a row, also for one that is damaged, which its ``blocks`` then says; a ``Skipped`` for a row
        without the field.

    Raises:
        SourceError: The lines cannot be read on.
    """
    for number, (position, line) in enumerate(_lines(content), start=1):
        if end is not None and position >= end:
            return
        if position < begin:
            continue
        row = b"@%d" % position if is_part else b"%d" % number
        if line is None:
            what = f"its line {row.decode()} has more than {MOST_LINE_BYTES >> 20} MiB"
            yield _failing(name + SEPARATOR + row, damaged(name, what, "split it or leave it out"))
        elif line and not line.isspace():
            yield _json_row(line.removeprefix(_BOM) if not position else line, name, row, field)


def parquet_parts(file: BinaryIO, name: bytes, stored_bytes: int) -> int:
    """In how many parts a Parquet file is read: row groups are never cut.

    Args:
        file: It, open and seekable.
        name: What it is called.
        stored_bytes: Its size.

    Raises:
        SourceError: It is damaged.
    """
    groups = _open_parquet(file, name).num_row_groups
    return max(1, min(groups, stored_bytes // PART_BYTES))


def is_parquet(beginning: bytes) -> bool:
    """Whether the first bytes are those of a Parquet file."""
    return beginning.startswith(_PARQUET_MAGICS)


def parquet_rows(
    file: BinaryIO, name: bytes, field: str, part: int, parts: int, allowance: Allowance
) -> Iterator[Document | Skipped]:
    """A document for each row of a part of a Parquet file, row group by row group.

    Args:
        file: It, open and seekable.
        name: What it is called.
        field: The column; strings or bytes.
        part: Which part.
        parts: How many there are.
        allowance: How much the values may be together.

    Yields:
        A ``Document`` for a row, and a ``Skipped`` for a null.

    Raises:
        SourceError: The file is damaged, or has no such column.
    """
    table = _open_parquet(file, name)
    path = _column(table, name, field)
    metadata = table.metadata
    first, last = (metadata.num_row_groups * edge // parts for edge in (part, part + 1))
    row = sum(metadata.row_group(group).num_rows for group in range(first))
    for group in range(first, last):
        for value in _values(table, group, path, name):
            row += 1
            allowance.give(len(value or b""))
            yield _row(name + SEPARATOR + b"%d" % row, value)


def dataset_parts(source: str) -> tuple[str, int]:
    """What to call a Hugging Face data set so that everybody reads the same split, and in how many parts.

    Args:
        source: ``hf:NAME[:config[:split]]``; the name may be a local folder. Without a split it is ``train``, or the
            only one that there is.

    Raises:
        SourceError: There is no such data set, configuration or split, or it cannot be reached.
    """
    name, config, split = _dataset_name(source)
    if not split:
        splits = list(_load_dataset(source, name, config, None))
        if "train" not in splits and len(splits) != 1:
            raise SourceError(
                f"{source} has the splits {', '.join(splits)}; name one: {DATASET}{name}:{config}:{splits[0]}"
            )
        split = "train" if "train" in splits else splits[0]
    dataset = _load_dataset(source, name, config, split)
    return f"{DATASET}{name}:{config}:{split}", max(1, dataset.num_shards)


def dataset_rows(source: str, field: str, part: int, parts: int) -> Iterator[Document | Skipped]:
    """A document for each row of a part of a Hugging Face data set, streamed.

    Args:
        source: As ``dataset_parts`` gives it.
        field: The column.
        part: Which part.
        parts: How many there are.

    Yields:
        A ``Document`` for a row, and a ``Skipped`` for one without the field.

    Raises:
        SourceError: The data set cannot be read, or has no such column.
    """
    dataset = _load_dataset(source, *_dataset_name(source))
    columns = dataset.column_names
    if columns is not None:
        column = field if field in columns else field.partition(".")[0]
        if column not in columns:
            raise _no_column(os.fsencode(source), field, columns)
        dataset = dataset.select_columns([column])
    if parts > 1:
        dataset = dataset.shard(parts, part)
    rows = iter(dataset)
    prefix = os.fsencode(source) + SEPARATOR + (b"%d." % part if parts > 1 else b"")
    number = 0
    while True:
        try:
            row = next(rows, None)
        except _dataset_errors() as error:
            raise SourceError(f"cannot read {source}: {_said(error)}; check the network and try again") from error
        if row is None:
            return
        number += 1
        yield _row(prefix + b"%d" % number, _value(row, field))


def _lines(content: Forward) -> Iterator[tuple[int, bytes | None]]:
    """Where each line begins, and the line without its end; None in place of one that is too long."""
    begin = content.tell()
    held: list[bytes] = []
    held_bytes = 0
    while block := content.some():
        *whole, rest = block.split(b"\n")
        for line in whole:
            size = held_bytes + len(line)
            yield begin, b"".join((*held, line)) if size <= MOST_LINE_BYTES else None
            begin += size + 1
            held.clear()
            held_bytes = 0
        held_bytes += len(rest)
        held = [*held, rest] if held_bytes <= MOST_LINE_BYTES else []
    if held_bytes:
        yield begin, b"".join(held) if held_bytes <= MOST_LINE_BYTES else None


def _json_row(line: bytes, name: bytes, row: bytes, field: str) -> Document | Skipped:
    row_name = name + SEPARATOR + row
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        return _failing(row_name, damaged(name, f"its line {row.decode()} is not UTF-8"))
    except (ValueError, RecursionError) as error:
        return _failing(row_name, damaged(name, f"its line {row.decode()} is not JSON ({_said(error)})"))
    return _row(row_name, _value(value, field))


def _value(row: object, field: str) -> object:
    """What a row holds in a field, or in one field of another; None where there is nothing."""
    if isinstance(row, dict) and field in row:
        return row[field]
    for part in field.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def _row(name: bytes, value: object) -> Document | Skipped:
    if isinstance(value, str):
        try:
            value = value.encode("utf-8")
        except UnicodeEncodeError:
            what = "it holds half of a surrogate pair, which is no text"
            return _failing(name, damaged(name, what, "repair the row or leave it out"))
    if isinstance(value, bytes):
        return Document(name, partial(_cut, value))
    return Skipped(name, "no_field")


def _cut(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), BLOCK_BYTES):
        yield data[begin : begin + BLOCK_BYTES]


def _failing(name: bytes, error: SourceError) -> Document:
    """A document that cannot be read: whoever tries is told why."""

    def fail() -> Iterator[bytes]:
        raise error

    return Document(name, fail)


def _open_parquet(file: BinaryIO, name: bytes) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    with _arrow_errors(name):
        # A buffer for each column, refilled as it is read, holds less than a whole row group.
        return pq.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False, page_checksum_verification=True)


def _column(table: "pq.ParquetFile", name: bytes, field: str) -> list[str]:
    """The way to a column: its name, or those of the columns around it and its own.

    Raises:
        SourceError: There is none, or it holds neither strings nor bytes.
    """
    import pyarrow as pa

    schema = table.schema_arrow
    path = [field] if field in schema.names else field.split(".")
    found: Any = pa.struct(list(schema))
    for part in path:
        if not pa.types.is_struct(found) or found.get_field_index(part) < 0:
            raise _no_column(name, field, schema.names)
        found = found.field(part).type
    kind = found.value_type if pa.types.is_dictionary(found) else found
    if not any(is_kind(kind) for is_kind in _text_types()):
        raise SourceError(
            f"{shown_path(name)} holds neither strings nor bytes in {field!r}, but {found}; name another field",
            reason="no_field",
        )
    return path


def _text_types() -> tuple[Callable[["pa.DataType"], bool], ...]:
    from pyarrow import types

    return (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_fixed_size_binary,
        types.is_null,
    )


def _values(table: "pq.ParquetFile", group: int, path: list[str], name: bytes) -> Iterator[bytes | None]:
    """The values of a column in a row group, a few rows at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    about = table.metadata.row_group(group)
    row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
    rows = min(max(1, _HELD_BYTES // row_bytes), _MOST_HELD_ROWS)
    batches = table.iter_batches(rows, row_groups=[group], columns=[".".join(path)], use_threads=False)
    while True:
        with _arrow_errors(name):
            batch = next(batches, None)
            if batch is None:
                return
            column = batch.column(path[0])
            if len(path) > 1:
                column = pc.struct_field(column, path[1:])  # pyright: ignore[reportAttributeAccessIssue]
            values = column.cast(pa.large_binary()).to_pylist()
        yield from values


@contextlib.contextmanager
def _arrow_errors(name: bytes) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's; what Arrow itself finds has no number
        raise damaged(name, f"Parquet cannot be read ({_said(error)})") from error


def _no_column(name: bytes, field: str, columns: Sequence[str]) -> SourceError:
    there = ", ".join(map(repr, columns[:_MOST_NAMED])) + (", …" if len(columns) > _MOST_NAMED else "")
    return SourceError(f"{shown_path(name)} has no field {field!r}, but {there}; name one of these", reason="no_field")


def _dataset_name(source: str) -> tuple[str, str, str]:
    name, config, split, *rest = (*source.removeprefix(DATASET).split(":"), "", "")
    if not name or any(rest):
        raise SourceError(f"{source!r} names no data set; write {DATASET}NAME, {DATASET}NAME:config:split")
    return name, config, split


def _load_dataset(source: str, name: str, config: str, split: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=True)
    except _dataset_errors() as error:
        raise SourceError(
            f"cannot read {source}: {_said(error)}; check the name, the configuration, the split and the network"
        ) from error


def _dataset_errors() -> tuple[type[Exception], ...]:
    """What reading a data set can raise: a file system, a file format, a network, or the library itself."""
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    network = getattr(sys.modules.get("httpx"), "HTTPError", OSError)
    return (DatasetsError, pa.ArrowException, ValueError, network, *remote_errors())


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
