"""What the name of a file says it is: an archive, something compressed, or a table.

.gz .bz2 .xz .lzma .zst           compressed, by these names and those that are used as well (.gzip, .zstd, …)
.tar .tgz .tbz2 .txz .tzst .zip   an archive
.jsonl .ndjson .jsonlines .jl …   a table of lines of JSON, where a field is asked for
.json                             a table if it holds lines, a list of objects or one that has the field
.csv .tsv                         a table with a header
.parquet .pq                      a table
"""

from typing import Final

from bytelm.data.compression import COMPRESSIONS

TABLES: Final = ("jsonl", "json", "csv", "parquet")
"""Forms whose rows can be documents."""

_COMPRESSED: Final = {
    **{name.encode(): name for name in COMPRESSIONS},
    b"gzip": "gz",
    b"bz": "bz2",
    b"bzip2": "bz2",
    b"zstd": "zst",
}
_ARCHIVES: Final = {
    b"tgz": "tar+gz",
    b"taz": "tar+gz",
    b"tbz": "tar+bz2",
    b"tbz2": "tar+bz2",
    b"txz": "tar+xz",
    b"tlz": "tar+lzma",
    b"tzst": "tar+zst",
    b"tar": "tar",
    b"zip": "zip",
}
_TABLES: Final = {
    **dict.fromkeys((b"jsonl", b"ndjson", b"jsonlines", b"jl", b"ldjson"), "jsonl"),
    b"json": "json",
    **dict.fromkeys((b"csv", b"tsv", b"tab"), "csv"),
    **dict.fromkeys((b"parquet", b"pq", b"parq"), "parquet"),
}


def form_of(name: bytes, *, has_field: bool) -> str:
    """How a file is read: ``file`` as it is, or what it is, ``+`` and how it is compressed.

    Args:
        name: Name of the file.
        has_field: A field of tables was asked for, so that tables are opened; else they are files like others.

    Example:
        >>> form_of(b"a.tar.zstd", has_field=False), form_of(b"a.json.gz", has_field=True)
        ('tar+zst', 'json+gz')
    """
    stem, dot, ending = name.lower().rpartition(b".")
    if not dot:
        return "file"
    compression = _COMPRESSED.get(ending)
    if compression is None:
        return _ARCHIVES.get(ending) or _table(ending, has_field)
    _, dot, ending = stem.rpartition(b".")
    if dot and ending == b"tar":
        return f"tar+{compression}"
    return f"{_table(ending, has_field) if dot else 'file'}+{compression}"


def is_table(form: str) -> bool:
    """Whether a form is a table's."""
    return form.partition("+")[0] in TABLES


def is_archive(form: str) -> bool:
    """Whether a form is an archive's."""
    return form.startswith(("tar", "zip"))


def _table(ending: bytes, has_field: bool) -> str:
    return _TABLES.get(ending, "file") if has_field else "file"
