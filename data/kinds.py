"""Kinds of documents, told by their names and their first bytes.

What holds a zero byte in its first 8 KiB is binary, and its first bytes say of which kind. Everything else is text if
it is UTF-8, and also if it is not but its name is one of a text kind: a source file of 1994 with a Latin-1 name in it
is still C. The name then says of which kind; a first line ``#!`` does where the name is silent. A kind is a label for
filters, mixtures and reports: nothing is decoded or left out by it unless somebody asks.
"""

import re
from typing import Final

# Index: name, group, endings of names, whole names. The index is on disk: new kinds are put at the end.
_TABLE: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("binary", "binary", "", ""),
    (
        "text",
        "prose",
        "txt text log asc",
        "README LICENSE LICENCE COPYING NOTICE AUTHORS THANKS NEWS INSTALL TODO HISTORY CHANGES ChangeLog Changelog "
        "CHANGELOG CONTRIBUTORS MAINTAINERS VERSION copyright",
    ),
    ("c", "code", "c h", ""),
    ("c++", "code", "cc cpp cxx c++ hh hpp hxx h++ ipp tpp inl cu cuh ino", ""),
    ("c#", "code", "cs csx", ""),
    ("objective-c", "code", "m mm", ""),
    ("java", "code", "java", ""),
    ("kotlin", "code", "kt kts", ""),
    ("scala", "code", "scala sbt", ""),
    ("groovy", "code", "groovy gradle", "Jenkinsfile"),
    ("python", "code", "py pyi pyx pxd pyw bzl bazel", "SConstruct SConscript BUILD WORKSPACE wscript"),
    ("javascript", "code", "js mjs cjs jsx", ""),
    ("typescript", "code", "ts tsx mts cts", ""),
    ("go", "code", "go", "go.mod"),
    ("rust", "code", "rs", ""),
    ("swift", "code", "swift", ""),
    ("dart", "code", "dart", ""),
    ("zig", "code", "zig", ""),
    ("d", "code", "d di", ""),
    ("nim", "code", "nim", ""),
    ("ruby", "code", "rb rake gemspec erb", "Rakefile Gemfile Vagrantfile"),
    ("perl", "code", "pl pm t", ""),
    ("php", "code", "php phtml", ""),
    ("lua", "code", "lua", ""),
    ("tcl", "code", "tcl", ""),
    ("r", "code", "r", ""),
    ("julia", "code", "jl", ""),
    ("fortran", "code", "f for f77 f90 f95 f03 f08", ""),
    ("pascal", "code", "pas pp dpr", ""),
    ("ada", "code", "adb ads", ""),
    ("haskell", "code", "hs lhs cabal", ""),
    ("ocaml", "code", "ml mli mll mly", ""),
    ("erlang", "code", "erl hrl", ""),
    ("elixir", "code", "ex exs", ""),
    ("clojure", "code", "clj cljs cljc edn", ""),
    ("lisp", "code", "lisp lsp cl el scm ss rkt", ""),
    ("vim", "code", "vim", ".vimrc"),
    ("shell", "code", "sh bash zsh ksh fish", ".bashrc .profile .bash_profile .zshrc PKGBUILD configure"),
    ("powershell", "code", "ps1 psm1 psd1", ""),
    ("batch", "code", "bat cmd", ""),
    ("awk", "code", "awk", ""),
    ("sql", "code", "sql", ""),
    ("make", "code", "mk mak am", "Makefile makefile GNUmakefile Kbuild Kconfig"),
    ("cmake", "code", "cmake", "CMakeLists.txt"),
    ("autoconf", "code", "ac m4", ""),
    ("meson", "code", "", "meson.build meson_options.txt meson.options"),
    ("docker", "code", "dockerfile", "Dockerfile Containerfile"),
    ("nix", "code", "nix", ""),
    ("assembly", "code", "s asm", ""),
    ("verilog", "code", "v sv svh vh", ""),
    ("vhdl", "code", "vhd vhdl", ""),
    ("shader", "code", "glsl vert frag hlsl wgsl", ""),
    ("protobuf", "code", "proto thrift", ""),
    ("html", "markup", "html htm xhtml", ""),
    ("xml", "markup", "xml xsl xslt xsd dtd rng xul ui rss atom wsdl plist", ""),
    ("svg", "markup", "svg", ""),
    ("css", "markup", "css scss sass less", ""),
    ("tex", "markup", "tex ltx sty cls bib bst dtx", ""),
    ("texinfo", "markup", "texi texinfo", ""),
    ("roff", "markup", "roff man mdoc", ""),
    ("postscript", "markup", "ps eps", ""),
    ("markdown", "prose", "md markdown mdx rmd", ""),
    ("rst", "prose", "rst rest", ""),
    ("asciidoc", "prose", "adoc asciidoc", ""),
    ("org", "prose", "org", ""),
    ("json", "data", "json geojson ipynb webmanifest", ""),
    ("jsonl", "data", "jsonl ndjson", ""),
    ("yaml", "data", "yaml yml", ""),
    ("toml", "data", "toml", "Cargo.lock poetry.lock"),
    ("ini", "data", "ini cfg conf properties desktop service", ".gitconfig .editorconfig"),
    ("csv", "data", "csv tsv", ""),
    ("diff", "data", "diff patch", ""),
    ("po", "data", "po pot", ""),
    ("elf", "binary", "so o ko", ""),
    ("pe", "binary", "exe dll pyd", ""),
    ("mach-o", "binary", "dylib", ""),
    ("library", "binary", "a", ""),
    ("java-class", "binary", "class", ""),
    ("python-bytecode", "binary", "pyc pyo", ""),
    ("wasm", "binary", "wasm", ""),
    ("png", "binary", "png", ""),
    ("jpeg", "binary", "jpg jpeg", ""),
    ("gif", "binary", "gif", ""),
    ("webp", "binary", "webp", ""),
    ("bmp", "binary", "bmp", ""),
    ("tiff", "binary", "tif tiff", ""),
    ("icon", "binary", "ico icns", ""),
    ("pdf", "binary", "pdf", ""),
    ("gzip", "binary", "gz tgz", ""),
    ("bzip2", "binary", "bz2", ""),
    ("xz", "binary", "xz lzma", ""),
    ("zstd", "binary", "zst", ""),
    ("7z", "binary", "7z", ""),
    ("zip", "binary", "zip jar whl docx xlsx pptx odt epub apk npz", ""),
    ("tar", "binary", "tar", ""),
    ("wav", "binary", "wav", ""),
    ("mp3", "binary", "mp3", ""),
    ("ogg", "binary", "ogg opus oga ogv", ""),
    ("flac", "binary", "flac", ""),
    ("mp4", "binary", "mp4 m4a m4v mov", ""),
    ("matroska", "binary", "mkv webm", ""),
    ("midi", "binary", "mid midi", ""),
    ("font", "binary", "ttf otf ttc woff woff2", ""),
    ("sqlite", "binary", "sqlite sqlite3 db", ""),
    ("parquet", "binary", "parquet", ""),
    ("arrow", "binary", "arrow feather", ""),
    ("numpy", "binary", "npy", ""),
    ("hdf5", "binary", "h5 hdf5", ""),
    ("safetensors", "binary", "safetensors", ""),
    ("gettext", "binary", "mo gmo", ""),
)

KINDS: Final = tuple(name for name, *_ in _TABLE)
"""Names of the kinds of documents; the piece table holds the index into this. New ones are put at the end."""

GROUPS: Final = ("code", "markup", "data", "prose", "binary")
"""What kinds are put together as."""

_BINARY: Final = KINDS.index("binary")
_TEXT: Final = KINDS.index("text")
_ROFF: Final = KINDS.index("roff")
_HTML: Final = KINDS.index("html")
_MP4: Final = KINDS.index("mp4")
_WAV: Final = KINDS.index("wav")
_WEBP: Final = KINDS.index("webp")
_TAR: Final = KINDS.index("tar")
_MOST_ARCHITECTURES: Final = 44
"""Mach-O files for several machines begin like Java classes, but have a count here, and classes a version from 45."""
_JAVA_CLASS: Final = KINDS.index("java-class")
_MACH_O: Final = KINDS.index("mach-o")
_GROUP_OF: Final = tuple(group for _, group, *_ in _TABLE)
_SNIFFED_BYTES: Final = 8 << 10


def _indices(column: int, *, binary: bool) -> dict[bytes, int]:
    return {
        word.encode(): kind
        for kind, row in enumerate(_TABLE)
        if (row[1] == "binary") is binary
        for word in row[column].split()
    }


_TEXT_ENDINGS: Final = _indices(2, binary=False)
_BINARY_ENDINGS: Final = _indices(2, binary=True)
_WHOLE_NAMES: Final = _indices(3, binary=False)
_WRAPPINGS: Final = frozenset((b"gz", b"bz2", b"xz", b"lzma", b"zst", b"in", b"orig"))
"""Endings that say nothing of what is below them: the document was unpacked, or is a template or an old version."""

_INTERPRETERS: Final = {
    name: KINDS.index(kind)
    for kind, names in {
        "shell": b"sh bash dash zsh ksh fish ash",
        "python": b"python pypy",
        "perl": b"perl",
        "ruby": b"ruby",
        "javascript": b"node deno bun",
        "lua": b"lua luajit",
        "php": b"php",
        "tcl": b"tclsh wish expect",
        "awk": b"awk gawk mawk",
        "r": b"Rscript",
        "make": b"make",
    }.items()
    for name in names.split()
}
_SHEBANG: Final = re.compile(rb"#![ \t]*(?:\S*/)?(?:env[ \t]+(?:-\S+[ \t]+)*)?(?:\S*/)?(?P<interpreter>[A-Za-z]+)")

# First bytes that are believed whatever the name says; in text only those that no other text begins with.
_TEXT_MAGICS: Final = tuple(
    (magic, KINDS.index(kind)) for magic, kind in ((b"%PDF-", "pdf"), (b"%!PS", "postscript"), (b"<?xml", "xml"))
)
_XML_KINDS: Final = frozenset(KINDS.index(kind) for kind in ("xml", "svg", "html"))
_BINARY_MAGICS: Final = tuple(
    (magic, KINDS.index(kind))
    for magic, kind in (
        (b"\x7fELF", "elf"),
        (b"MZ", "pe"),
        (b"\xcf\xfa\xed\xfe", "mach-o"),
        (b"\xce\xfa\xed\xfe", "mach-o"),
        (b"!<arch>\n", "library"),
        (b"\0asm", "wasm"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff", "jpeg"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"II*\0", "tiff"),
        (b"MM\0*", "tiff"),
        (b"icns", "icon"),
        (b"%PDF-", "pdf"),
        (b"%!PS", "postscript"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"PK\3\4", "zip"),
        (b"PK\5\6", "zip"),
        (b"ID3", "mp3"),
        (b"\xff\xfb", "mp3"),
        (b"OggS", "ogg"),
        (b"fLaC", "flac"),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"MThd", "midi"),
        (b"OTTO", "font"),
        (b"ttcf", "font"),
        (b"wOFF", "font"),
        (b"wOF2", "font"),
        (b"SQLite format 3\0", "sqlite"),
        (b"PAR1", "parquet"),
        (b"ARROW1", "arrow"),
        (b"\x93NUMPY", "numpy"),
        (b"\x89HDF\r\n\x1a\n", "hdf5"),
        (b"\xde\x12\x04\x95", "gettext"),
        (b"\x95\x04\x12\xde", "gettext"),
    )
)
_BY_FIRST_BYTE: Final = {
    first: tuple(pair for pair in _BINARY_MAGICS if pair[0][0] == first) for first in {m[0] for m, _ in _BINARY_MAGICS}
}


def kind_of(name: bytes, beginning: bytes) -> int:
    """Index in ``KINDS`` of a document.

    Args:
        name: Name of the document, as in ``Document.name``.
        beginning: The first block of the document; only its first 8 KiB are looked at.
    """
    sniffed = beginning[:_SNIFFED_BYTES]
    if b"\0" in sniffed:
        return _binary_kind(name, sniffed)
    named = _text_kind(name, sniffed)
    if named is not None:
        return named
    return _TEXT if _is_utf8(sniffed, cut=len(beginning) > len(sniffed)) else _binary_kind(name, sniffed)


def group_of(kind: int) -> str:
    """The group, one of ``GROUPS``, of a kind's index."""
    return _GROUP_OF[kind]


def _text_kind(name: bytes, sniffed: bytes) -> int | None:
    """What the name of something without zero bytes says, or its first line; None if neither says anything."""
    base = name[name.rfind(b"/") + 1 :]
    kind = _WHOLE_NAMES.get(base)
    if kind is None:
        stem, dot, ending = base.rpartition(b".")
        ending = ending.lower()
        while dot and ending in _WRAPPINGS:
            kind = _WHOLE_NAMES.get(stem)
            stem, dot, ending = stem.rpartition(b".")
            ending = ending.lower()
        if dot and kind is None:
            kind = _TEXT_ENDINGS.get(ending)
            if kind is None and ending[:1].isdigit() and sniffed.startswith((b".", b"'\\\"")):
                kind = _ROFF  # ls.1, and a line of roff
    if sniffed[:1] in (b"%", b"<"):
        for magic, told in _TEXT_MAGICS:
            if sniffed.startswith(magic):
                return kind if kind in _XML_KINDS and told in _XML_KINDS else told
    if kind is None and sniffed.startswith(b"#!") and (found := _SHEBANG.match(sniffed)):
        return _INTERPRETERS.get(found["interpreter"])
    if kind is None and sniffed[:15].lower().startswith((b"<!doctype html", b"<html")):
        return _HTML
    return kind


def _binary_kind(name: bytes, sniffed: bytes) -> int:
    """What the first bytes say, or else the name."""
    for magic, kind in _BY_FIRST_BYTE.get(sniffed[0], ()) if sniffed else ():
        if sniffed.startswith(magic):
            return kind
    if sniffed[4:8] == b"ftyp":
        return _MP4
    if sniffed.startswith(b"RIFF"):
        return {b"WAVE": _WAV, b"WEBP": _WEBP}.get(sniffed[8:12], _BINARY)
    if sniffed[257:262] == b"ustar":
        return _TAR
    base = name[name.rfind(b"/") + 1 :]
    _, dot, ending = base.rpartition(b".")
    if sniffed.startswith(b"\xca\xfe\xba\xbe"):
        return _JAVA_CLASS if int.from_bytes(sniffed[4:8], "big") > _MOST_ARCHITECTURES else _MACH_O
    return _BINARY_ENDINGS.get(ending.lower(), _BINARY) if dot else _BINARY


def _is_utf8(sniffed: bytes, *, cut: bool) -> bool:
    try:
        sniffed.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that the end of the sniffed bytes cuts through is no fault of the document.
        return cut and error.reason == "unexpected end of data"
    return True
