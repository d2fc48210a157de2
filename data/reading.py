"""One unit read: the documents of a file, an archive or a part of a table, in any process and always the same."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast

from bytelm.data import archives, tables
from bytelm.data.addresses import blocks_of, is_url, opened, small_file
from bytelm.data.compression import MAGIC_BYTES, Allowance, Forward, ahead, decompress, fits
from bytelm.data.csv_rows import csv_rows
from bytelm.data.documents import Document, ReadOptions, Skipped, Unit, shown_path
from bytelm.data.forms import form_of, is_table
from bytelm.data.json_rows import json_file_rows, json_rows
from bytelm.data.path_filter import PathFilter
from bytelm.data.table_rows import failing
from bytelm.data.walk import list_folder
from bytelm.errors import SourceError
from bytelm.files import refusals_named

WHOLE: Final = "!"
"""Ends the form of an archive that is included as a whole."""

_LARGE_BYTES: Final = 1 << 20
"""What is stored in as many bytes is decompressed by a thread of its own."""

_FIELD_OF_DATASETS: Final = "text"


def read_unit(unit: Unit, options: ReadOptions) -> Iterator[Document | Skipped]:
    """The documents of a unit, in order; the same ones each time while nobody changes the source.

    Args:
        unit: What ``find_units`` gave.
        options: The options that it was found with.

    Yields:
        A ``Document`` for each that is to be read, empty ones too, and a ``Skipped`` for what gives none.

    Raises:
        SourceError: The rest of the unit cannot be read, or is damaged; its ``reason`` says which. An error out of
            ``Document.blocks`` concerns that document; this iterator can then be asked on.
    """
    address, form = unit.address, unit.form.removesuffix(WHOLE)
    if form == "file":
        yield Document(address, partial(blocks_of, address, unit.stored_bytes))
    elif form == "folder":
        list_folder(address, gitignore=options.gitignore, follow_links=options.follow_links)
        raise SourceError(f"cannot read {shown_path(address)}: it could not be listed, but now it can; try again")
    elif form == "hf":
        yield from _read_dataset(unit, options)
    elif form == "jsonl" and unit.parts > 1:
        yield from _read_lines(unit, options)
    elif form in ("zip", "parquet"):
        yield from _read_seekable(unit, form, options)
    else:
        yield from _read_stream(unit, form, options)


def read_whole(unit: Unit) -> bytes | None:
    """The only document of a unit that is a small file as it is, nearly as fast as the system gives it.

    Returns:
        Its bytes; None for every other unit, and for a file that is not as long as it was: ``read_unit`` reads these.

    Raises:
        SourceError: The file has vanished or cannot be read.
    """
    if unit.form != "file" or not unit.stored_bytes or is_url(unit.address):
        return None
    return small_file(unit.address, unit.stored_bytes)


def _read_dataset(unit: Unit, options: ReadOptions) -> Iterator[Document | Skipped]:
    """The rows of a part of a data set: out of its file where that is a table, else as the library gives them."""
    source, field = os.fsdecode(unit.address), options.field or _FIELD_OF_DATASETS
    file = tables.dataset_file(source, unit.part, unit.parts)
    if file is not None and is_table(form := form_of(file, has_field=True)):
        inside = Unit(unit.source, file, form, 0)
        rows = read_unit(inside, replace(options, field=field, include=(), exclude=()))
        first = next(rows, None)
        if first is None:
            return
        if isinstance(first, Skipped) or first.is_row:
            yield first
            yield from rows
            return
    yield from tables.dataset_rows(source, field, unit.part, unit.parts)


def _read_seekable(unit: Unit, form: str, options: ReadOptions) -> Iterator[Document | Skipped]:
    """Documents of what is not read from its beginning to its end."""
    address = unit.address
    allowance = Allowance(address, unit.stored_bytes, options.most_expansion)
    is_form = archives.is_zip if form == "zip" else tables.is_parquet
    with opened(address) as file:
        fits_form = is_form(file.read(MAGIC_BYTES))
        file.seek(0)
        if not fits_form:
            if unit.part == 0:
                yield Document(address, partial(blocks_of, address, 0))
        elif form == "zip":
            yield from _members(unit, archives.zip_members(file, address, allowance), options)
        else:
            yield from tables.parquet_rows(file, address, _field(options), unit.part, unit.parts, allowance)


def _read_stream(unit: Unit, form: str, options: ReadOptions) -> Iterator[Document | Skipped]:
    """Documents of what is read from its beginning to its end, decompressed where it is compressed."""
    address = unit.address
    inner, _, compression = form.partition("+")
    content = Forward(blocks_of(address, unit.stored_bytes))
    if compression:
        if not fits(compression, content.peek(MAGIC_BYTES)):
            yield Document(address, content.rest)
            return
        allowance = Allowance(address, unit.stored_bytes, options.most_expansion)
        blocks = allowance.giving(decompress(compression, allowance.reading(content.rest()), address))
        content = Forward(ahead(blocks) if unit.stored_bytes >= _LARGE_BYTES else blocks)
    if inner == "tar" and archives.is_tar(content.peek(archives.TAR_BLOCK_BYTES)):
        allowance = Allowance(address, unit.stored_bytes, options.most_expansion)
        yield from _members(unit, archives.tar_members(content, address, allowance), options)
    elif is_table(inner):
        allowance = Allowance(address, unit.stored_bytes, options.most_expansion)
        yield from _rows(content, inner, address, _field(options), allowance)
    else:
        yield Document(address, content.rest)


def _rows(content: Forward, form: str, name: bytes, field: str, allowance: Allowance) -> Iterator[Document | Skipped]:
    """The rows of a table that is read from its beginning to its end."""
    if tables.is_parquet(content.peek(MAGIC_BYTES)):
        with tempfile.TemporaryFile(prefix="bytelm-") as spooled:  # it is read from its end on
            with refusals_named(Path(tempfile.gettempdir())):
                for block in content.rest():
                    spooled.write(block)
            spooled.seek(0)
            yield from tables.parquet_rows(cast("BinaryIO", spooled), name, field, 0, 1, allowance)
    elif form == "jsonl":
        yield from json_rows(content, name, field)
    elif form == "json":
        yield from json_file_rows(content, name, field)
    elif form == "csv":
        yield from csv_rows(content, name, field)
    else:
        yield Document(name, content.rest)


def _members(unit: Unit, found: Iterator[Document | Skipped], options: ReadOptions) -> Iterator[Document | Skipped]:
    """What is read of an archive: it is looked into like a source of its own."""
    paths = PathFilter(() if unit.form.endswith(WHOLE) else options.include, options.exclude)
    begin = len(unit.address) + len(archives.SEPARATOR)
    for one in found:
        if not isinstance(one, Document):
            yield one
        elif not paths.keeps(one.name[begin:]):
            yield Skipped(one.name, "excluded")
        elif options.field is not None and is_table(form := form_of(one.name[begin:], has_field=True)):
            yield from _member_rows(one, form, options, options.field)
        else:
            yield one


def _member_rows(member: Document, form: str, options: ReadOptions, field: str) -> Iterator[Document | Skipped]:
    """The rows of a table in an archive; what is wrong with it costs no other member."""
    inner, _, compression = form.partition("+")
    allowance = Allowance(member.name, 0, options.most_expansion)
    try:
        content = Forward(allowance.reading(member.blocks()))
        if compression:
            if not fits(compression, content.peek(MAGIC_BYTES)):
                yield Document(member.name, content.rest)
                return
            content = Forward(allowance.giving(decompress(compression, content.rest(), member.name)))
        yield from _rows(content, inner, member.name, field, allowance)
    except SourceError as error:
        yield failing(member.name, error)


def _read_lines(unit: Unit, options: ReadOptions) -> Iterator[Document | Skipped]:
    """Documents of a part of a file of JSON lines."""
    begin = unit.part * tables.PART_BYTES
    end = begin + tables.PART_BYTES if unit.part + 1 < unit.parts else None
    first = max(0, begin - 1)  # if this byte ends a line, the next one is the part's
    content = Forward(blocks_of(unit.address, 0, first), first)
    yield from json_rows(content, unit.address, _field(options), begin=begin, end=end, is_part=True)


def _field(options: ReadOptions) -> str:
    assert options.field is not None, "the unit is a table because a field was asked for"
    return options.field
