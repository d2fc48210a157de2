"""One column of a table that a library reads as documents, a row each: of Parquet files and Hugging Face data sets."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from bytelm.data.compression import Allowance
from bytelm.data.documents import BLOCK_BYTES, Document, Skipped, damaged, shown_path
from bytelm.data.storage import remote_errors
from bytelm.data.table_rows import SEPARATOR, failing, field_of, no_column, row_document
from bytelm.errors import SourceError
from bytelm.hub import out_of_reach

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DATASET: Final = "hf:"
"""What the name of a Hugging Face data set begins with, where it is a source."""

PART_BYTES: Final = 64 << 20
"""A larger table is read in parts of about that size, so that several processes can share it."""

_HELD_BYTES: Final = 16 << 20
_MOST_HELD_ROWS: Final = 1024
# Packaged readers of the library, and the settings with which they read files as bytelm does.
_READ_HERE: Final[dict[str, dict[str, Any]]] = {
    "json": {"features": None, "field": None, "encoding": "utf-8", "encoding_errors": None},
    "csv": {"features": None, "sep": ",", "delimiter": None, "names": None, "header": "infer", "skiprows": None},
    "parquet": {"features": None, "columns": None, "filters": None},
}
_PARQUET_MAGICS: Final = (b"PAR1", b"PARE")


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

    A row group that is damaged costs its own rows alone, from the first that cannot be read on.

    Args:
        file: It, open and seekable.
        name: What it is called.
        field: The column; strings or bytes.
        part: Which part.
        parts: How many there are.
        allowance: How much the values may be together.

    Yields:
        A ``Document`` for a row, a ``Skipped`` for a null, and one ``Document`` for all rows of a row group that
        cannot be read, which its ``blocks`` then says.

    Raises:
        SourceError: The file is damaged as a whole, or has no such column.
    """
    table = _open_parquet(file, name)
    path = _column(table, name, field)
    metadata = table.metadata
    first, last = (metadata.num_row_groups * edge // parts for edge in (part, part + 1))
    row = sum(metadata.row_group(group).num_rows for group in range(first))
    for group in range(first, last):
        end = row + metadata.row_group(group).num_rows
        for value in _values(table, group, path, name):
            row += 1
            row_name = name + SEPARATOR + b"%d" % row
            if isinstance(value, SourceError):
                yield failing(row_name, value)
                break
            allowance.give(len(value or b""))
            yield row_document(row_name, value)
        row = end


def dataset_parts(source: str) -> tuple[str, int]:
    """What to call a Hugging Face data set so that everybody reads the same split, and in how many parts.

    Args:
        source: ``hf:NAME[:config[:split]]``; the name may be a local folder. Without a split it is ``train``, or the
            only one that there is.

    Raises:
        SourceError: There is no such data set, configuration or split, or it cannot be reached.
    """
    name, config, split = _dataset_name(source)
    files = _files_read_here(source, name, config)
    if not split:
        splits = list(files if files is not None else _load_dataset(source, name, config, None))
        if "train" not in splits and len(splits) != 1:
            raise SourceError(
                f"{source} has the splits {', '.join(splits)}; name one: {DATASET}{name}:{config}:{splits[0]}"
            )
        split = "train" if "train" in splits else splits[0]
    whole_name = f"{DATASET}{name}:{config}:{split}"
    if files is not None and split in files:
        return whole_name, len(files[split])
    return whole_name, max(1, _load_dataset(source, name, config, split).num_shards)


def dataset_file(source: str, part: int, parts: int) -> bytes | None:
    """The file that a part of a data set is, where bytelm reads such files itself.

    The library gives a file up at its first bad row; read here, a bad row costs itself alone.

    Args:
        source: The data set, as ``dataset_parts`` names it.
        part: Number of the part, from 0.
        parts: Number of parts of the data set.

    Returns:
        A path or address; None where the library has to read the data set.

    Raises:
        SourceError: There is no such data set or configuration, or it cannot be reached.
    """
    name, config, split = _dataset_name(source)
    files = (_files_read_here(source, name, config) or {}).get(split, [])
    return os.fsencode(files[part]) if len(files) == parts else None


def dataset_rows(source: str, field: str, part: int, parts: int) -> Iterator[Document | Skipped]:
    """A document for each row of a part of a Hugging Face data set, streamed.

    Args:
        source: The data set, as ``dataset_parts`` names it.
        field: The column that holds the document.
        part: Number of the part, from 0.
        parts: Number of parts of the data set.

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
            raise no_column(os.fsencode(source), field, columns)
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
        yield row_document(prefix + b"%d" % number, *field_of(row, field))


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
            raise no_column(name, field, schema.names)
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


def _values(table: "pq.ParquetFile", group: int, path: list[str], name: bytes) -> Iterator[bytes | SourceError | None]:
    """The values of a column in a row group, a few rows at a time; the error comes last where one cannot be read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    about = table.metadata.row_group(group)
    row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
    rows = min(max(1, _HELD_BYTES // row_bytes), _MOST_HELD_ROWS)
    left = about.num_rows
    batches = table.iter_batches(rows, row_groups=[group], columns=[".".join(path)], use_threads=False)
    while left:
        lost = f" in row group {group + 1} of {table.num_row_groups}: {left:,} of its {about.num_rows:,} rows are lost"
        try:
            with _arrow_errors(name, lost):
                batch = next(batches, None)
                if batch is None:
                    raise pa.ArrowInvalid("it ends before its last row")
                column = batch.column(path[0])
                if len(path) > 1:
                    column = pc.struct_field(column, path[1:])  # pyright: ignore[reportAttributeAccessIssue]
                values = column.cast(pa.large_binary()).to_pylist()
        except SourceError as error:
            yield error
            return
        left -= len(values)
        yield from values


@contextlib.contextmanager
def _arrow_errors(name: bytes, where: str = "") -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's; what Arrow itself finds has no number
        raise damaged(name, f"Parquet cannot be read{where} ({_said(error)})") from error


def _dataset_name(source: str) -> tuple[str, str, str]:
    name, config, split, *rest = (*source.removeprefix(DATASET).split(":"), "", "")
    if not name or any(rest):
        raise SourceError(f"{source!r} names no data set; write {DATASET}NAME, {DATASET}NAME:config:split")
    return name, config, split


def _files_read_here(source: str, name: str, config: str) -> dict[str, list[str]] | None:
    """The files of each split of a data set whose files bytelm reads itself; None of others."""
    with _dataset_refusals(source, name):
        import datasets

        builder: Any = datasets.load_dataset_builder(name, config or None)
    kind = type(builder).__module__.removeprefix("datasets.packaged_modules.")
    usual = _READ_HERE.get(kind.partition(".")[0])
    if usual is None or any(getattr(builder.config, key, value) != value for key, value in usual.items()):
        return None
    found = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    # A file in another has an address of several parts.
    return found if found and not any("::" in file for files in found.values() for file in files) else None


def _load_dataset(source: str, name: str, config: str, split: str | None) -> Any:
    with _dataset_refusals(source, name):
        import datasets

        return datasets.load_dataset(name, config or None, split=split, streaming=True)


@contextlib.contextmanager
def _dataset_refusals(source: str, name: str) -> Iterator[None]:
    if reason := out_of_reach(name):
        raise SourceError(f"cannot read {source}: {reason}; connect to the network, or give files")
    try:
        yield
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
