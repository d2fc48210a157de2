"""Archives: every file in them, in order, and never a shorter archive in silence."""

import io
import random
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.archives import TAR_BLOCK_BYTES, Header, is_tar, is_zip, tar_members, zip_members
from bytelm.data.compression import UNQUESTIONED_BYTES, Allowance, Forward
from bytelm.data.documents import Document, Skipped
from bytelm.errors import SourceError

MIB = 1 << 20
Members = list[tuple[str, bytes]]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def members_of_tar(stored: bytes, block: int = 1 << 20) -> Iterator[Document | Skipped]:
    blocks = (stored[begin : begin + block] for begin in range(0, len(stored), block))
    return tar_members(Forward(blocks), b"a.tar", Allowance(b"a.tar", len(stored), 1000.0))


def members_of_zip(stored: bytes, most_expansion: float = 1000.0) -> Iterator[Document | Skipped]:
    return zip_members(io.BytesIO(stored), b"a.zip", Allowance(b"a.zip", len(stored), most_expansion))


def read(found: Iterator[Document | Skipped]) -> list[tuple[bytes, bytes]]:
    """Names within the archive and contents, of what is read; reasons in place of the contents of the rest."""
    return [
        (one.name[7:], b"".join(one.blocks())) if isinstance(one, Document) else (one.path[7:], one.reason.encode())
        for one in found
    ]


def packed(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for member in members:
            info, content = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def header(name: str, kind: bytes, size: int, prefix: bytes = b"ustar\x0000") -> bytes:
    """A tar header with a right checksum, whatever it claims."""
    size_field = b"%011o\0" % size if 0 <= size < 1 << 33 else b"\x80\0\0\0" + struct.pack(">q", size)
    if size < 0:
        size_field = b"\xff" * 4 + struct.pack(">q", size)
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136] = size_field
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257 : 257 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=300)
members = st.lists(
    st.tuples(
        names.filter(lambda name: name.strip("/") == name), st.binary(max_size=3000) | st.just(b"x" * (3 * MIB + 1))
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.sampled_from([100, 512, 1 << 20]))
def test_the_members_of_a_tar_are_the_files_that_were_packed(files: Members, form: int, block: int) -> None:
    stored = packed(*files, form=form)
    assert is_tar(stored[:512])
    assert read(members_of_tar(stored, block)) == [(name.encode(), content) for name, content in files]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(names.filter(lambda name: not name.endswith("/")), st.binary(max_size=3000)), max_size=6),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_members_of_a_zip_are_the_files_that_were_packed(files: Members, method: int, is_stream: bool) -> None:
    stored = zipped(files, method, is_stream=is_stream)
    assert is_zip(stored)
    assert read(members_of_zip(stored)) == [(name.encode(), content) for name, content in files]


class Pipe(io.RawIOBase):
    """Where nobody can go back: sizes then stand behind the members."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.written += data
        return len(data)


def zipped(files: Members, method: int = zipfile.ZIP_DEFLATED, *, is_stream: bool = False) -> bytes:
    file = Pipe() if is_stream else io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would cut it at a zero or change its slashes
            archive.writestr(info, content, method)
    return file.written if isinstance(file, Pipe) else file.getvalue()


def test_blocks_of_a_member_are_at_most_a_mebibyte() -> None:
    content = bytes(3 * MIB + 5)
    for found in (members_of_tar(packed(("a", content)), 5 * MIB), members_of_zip(zipped([("a", content)]))):
        document = next(found)
        assert isinstance(document, Document)
        sizes = [len(block) for block in document.blocks()]
        assert sum(sizes) == len(content)
        assert all(1 <= size <= MIB for size in sizes)


def test_members_that_nobody_reads_or_not_to_their_end_are_passed_over() -> None:
    files = [(f"{number}", b"%d" % number * 700_000) for number in range(4)]
    found = members_of_tar(packed(*files), 1000)
    first = next(found)
    second = next(found)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert next(second.blocks())[:2] == b"11"
    assert read(found) == [(b"2", b"2" * 700_000), (b"3", b"3" * 700_000)]


def test_links_and_devices_in_a_tar_are_passed_over_and_named() -> None:
    stored = packed(
        ("file", b"content"),
        special("hard", tarfile.LNKTYPE, "file"),
        special("soft", tarfile.SYMTYPE, "/etc/passwd"),
        special("pipe", tarfile.FIFOTYPE),
        special("disk", tarfile.BLKTYPE),
        special("tape", tarfile.CHRTYPE),
        special("folder", tarfile.DIRTYPE),
        special("unheard-of", b"Q"),
        ("last", b"one"),
    )
    assert read(members_of_tar(stored)) == [
        (b"file", b"content"),
        (b"hard", b"link"),
        (b"soft", b"link"),
        (b"pipe", b"special"),
        (b"disk", b"special"),
        (b"tape", b"special"),
        (b"unheard-of", b"special"),
        (b"last", b"one"),
    ]


def test_links_and_devices_in_a_zip_are_passed_over_and_named() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, mode, system in [
            ("link", 0o120777, 3),
            ("pipe", 0o010644, 3),
            ("file", 0o100644, 3),
            ("dos", 0o120777, 0),
            ("folder/", 0o040755, 3),
        ]:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.create_system = system
            archive.writestr(info, b"" if name.endswith("/") else b"content")
    assert read(members_of_zip(file.getvalue())) == [
        (b"link", b"link"),
        (b"pipe", b"special"),
        (b"file", b"content"),
        (b"dos", b"content"),
    ]


def test_names_lead_nowhere_and_stay_the_bytes_that_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "inner"
    place.mkdir()
    monkeypatch.chdir(place)
    names = ["../outside", f"{tmp_path}/absolute", "..", "caf\udce9", "a" * 400]
    stored = packed(*((name, b"x") for name in names))
    assert read(members_of_tar(stored)) == [(name.encode("utf-8", "surrogateescape"), b"x") for name in names]
    assert [name for name, _ in read(members_of_zip(zipped([(name, b"x") for name in names[:3]])))] == [
        name.encode() for name in names[:3]
    ]
    assert list(tmp_path.iterdir()) == [place]
    assert list(place.iterdir()) == []


def test_names_in_a_zip_that_are_no_utf8_are_kept() -> None:
    stored = zipped([("caf?", b"x")]).replace(b"caf?", b"caf\xe9")
    assert read(members_of_zip(stored)) == [(b"caf\xe9", b"x")]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the command tar to make archives with holes")
@pytest.mark.parametrize(
    "form", [["--format=gnu"], *(["--format=posix", f"--sparse-version={n}"] for n in ("0.0", "0.1", "1.0"))]
)
@pytest.mark.parametrize("islands", [0, 1, 4, 5, 40])
def test_holes_in_a_file_are_zeros_again(tmp_path: Path, form: list[str], islands: int) -> None:
    content = bytes(8192) + b"".join(b"%06d" % n * 700 + bytes(60_000) for n in range(islands)) + bytes(3 * MIB)
    with (tmp_path / "holes").open("wb") as file:
        for begin in range(0, len(content), 4096):
            block = content[begin : begin + 4096]
            if block.strip(b"\0"):
                file.seek(begin)
                file.write(block)
        file.truncate(len(content))
    (tmp_path / "after").write_bytes(b"after")
    made = subprocess.run(
        ["tar", "-c", "-S", *form, "-C", tmp_path, "holes", "after"], capture_output=True, check=True
    ).stdout
    if len(made) > len(content):
        pytest.skip("this file system keeps no holes")
    assert read(members_of_tar(made, 1000)) == [(b"holes", content), (b"after", b"after")]


def test_holes_cannot_be_larger_than_the_archive_allows() -> None:
    block = bytearray(header("holes", b"S", 0, b"ustar  \0"))
    block[386:410] = b"%011o\0%011o\0" % (4 << 30, 0)
    block[483:495] = b"%011o\0" % (4 << 30)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    given_bytes = 0
    document = next(members_of_tar(bytes(block) + bytes(1024)))
    assert isinstance(document, Document)
    with pytest.raises(SourceError, match="looks like a decompression bomb"):
        for one in document.blocks():
            given_bytes += len(one)
    assert given_bytes <= UNQUESTIONED_BYTES


def test_a_map_of_holes_that_contradicts_itself_is_refused() -> None:
    for entries in (((100, 5), (50, 5)), ((0, 10), (5, 10)), ((0, 2000),), ((900, 101),)):
        block = bytearray(header("holes", b"S", sum(size for _, size in entries), b"ustar  \0"))
        for number, entry in enumerate(entries):
            block[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % entry
        block[483:495] = b"%011o\0" % 1000
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        with pytest.raises(SourceError, match="its map of holes contradicts itself"):
            read(members_of_tar(bytes(block) + bytes(5120)))


FILES: Members = [("first", b"1" * 700), ("second", b"2" * 100), ("third", b"")]


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_that_is_cut_off_anywhere_is_refused(form: str) -> None:
    stored = packed(*FILES, form=FORMATS[form])
    end = len(stored.rstrip(b"\0")) // 512 * 512 + 512
    assert stored[end:].strip(b"\0") == b""
    for length in [*range(512, end, 100), *range(512, end, 512), end]:
        seen: list[tuple[bytes, bytes]] = []
        with pytest.raises(SourceError, match="is damaged: ") as caught:
            for one in members_of_tar(stored[:length]):
                seen += read(iter([one]))
        assert caught.value.reason == "damaged"
        assert seen == [(name.encode(), content) for name, content in FILES][: len(seen)]
    assert len(read(members_of_tar(stored[: end + 512]))) == 3


def test_a_damaged_header_is_refused_and_not_taken_for_the_end() -> None:
    stored = packed(*FILES)
    chance = random.Random(1)
    second = 512 + 1024
    for _ in range(300):
        flipped = bytearray(stored)
        bit = chance.randrange(512 * 8)
        flipped[second + bit // 8] ^= 1 << bit % 8
        with pytest.raises(SourceError, match=r"'a\.tar' is damaged: at byte 2,048 of the tar archive: "):
            read(members_of_tar(bytes(flipped)))


@settings(deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.text("ab/é\udcff.", min_size=1, max_size=200),
    st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"5", b"S", b"L", b"x", b"g"]),
    st.integers(0, 1 << 40),
    st.integers(0, TAR_BLOCK_BYTES - 1),
    st.integers(0, 255),
    st.booleans(),
)
def test_a_header_says_what_tarfile_says_or_is_refused_as_it_is(
    form: str, name: str, kind: bytes, size: int, place: int, value: int, summed: bool
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.linkname = kind, size, 1_700_000_000, "a/target"
    try:
        block = bytearray(info.tobuf(FORMATS[form], "utf-8", "surrogateescape")[-TAR_BLOCK_BYTES:])  # pyright: ignore[reportArgumentType]  an int
    except ValueError:
        return  # a name or a number that this format cannot hold
    block[place] = value
    if summed:
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
    try:
        expected = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        if not summed or not 329 <= place < 345:  # numbers of a device, of which we make nothing
            with pytest.raises(Exception, match=r".") as caught:
                Header.frombuf(block, "utf-8", "surrogateescape")
            assert type(caught.value).__name__ in ("_BadHeaderError", "EOFHeaderError")
        return
    if expected.size < 0:
        return
    found = Header.frombuf(block, "utf-8", "surrogateescape")
    fields = ("name", "size", "type", "linkname", "mode", "mtime")
    assert [getattr(found, field) for field in fields] == [getattr(expected, field) for field in fields]
    assert found.issparse() == expected.issparse()


def test_tars_one_after_another_are_read_as_one_and_other_bytes_after_the_end_are_refused() -> None:
    one, other = packed(("a", b"1")), packed(("b", b"2"))
    assert read(members_of_tar(one + other)) == [(b"a", b"1"), (b"b", b"2")]
    assert read(members_of_tar(one[:1536] + other)) == [(b"a", b"1"), (b"b", b"2")]
    assert read(members_of_tar(one + bytes(100))) == [(b"a", b"1")]
    assert read(members_of_tar(packed())) == []
    for garbage in (b"x", b"x" * 512, bytes(512) + b"x" * 5000):
        with pytest.raises(SourceError, match="is damaged: "):
            read(members_of_tar(one + garbage))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_claims_to_go_on_for_gigabytes_is_refused_before_it_is_held(kind: bytes) -> None:
    def endless() -> Iterator[bytes]:
        yield header("name", kind, 6 << 30)
        while True:
            yield bytes(MIB)

    tracemalloc.start()
    with pytest.raises(SourceError, match="a tar header is longer than 1 MiB"):
        list(tar_members(Forward(endless()), b"a.tar", Allowance(b"a.tar", 0, 1000.0)))
    assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    tracemalloc.stop()


def test_headers_for_all_members_that_never_end_are_refused() -> None:
    def endless() -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            value = b"x" * 900_000
            record = b"key%05d=" % number + value + b"\n"
            record = b"%d " % (len(record) + 7) + record
            yield header("global", b"g", len(record))
            yield record + bytes(-len(record) % 512)
            yield header("file", b"0", 0)

    with pytest.raises(SourceError, match="global headers do not end"):
        list(tar_members(Forward(endless()), b"a.tar", Allowance(b"a.tar", 0, 1000.0)))


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(SourceError, match="a size is negative"):
        read(members_of_tar(header("a", b"0", -512) + bytes(1024)))


def test_the_files_before_damage_are_read_and_what_follows_is_refused_again() -> None:
    stored = packed(("a", b"1" * 100), ("b", b"2" * 5000), ("c", b"3"))[:3000]
    found = members_of_tar(stored)
    assert read(iter([next(found)])) == [(b"a", b"1" * 100)]
    second = next(found)
    assert isinstance(second, Document)
    with pytest.raises(SourceError, match=r"'a\.tar!/b' is damaged: the archive is cut off in it"):
        list(second.blocks())
    with pytest.raises(SourceError, match=r"'a\.tar' is damaged"):
        next(found)


@pytest.mark.parametrize("beginning", [b"", b"x" * 511, b"x" * 512, b"PK\3\4" + bytes(508), bytes(511)])
def test_what_is_no_tar_is_told(beginning: bytes) -> None:
    assert not is_tar(beginning)


def test_an_encrypted_member_cannot_be_read_and_the_others_can() -> None:
    stored = bytearray(zipped([("secret", b"1"), ("open", b"2")]))
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        stored[stored.index(magic) + flags] |= 1
    secret, public = members_of_zip(bytes(stored))
    assert isinstance(secret, Document)
    with pytest.raises(SourceError, match=r"cannot read 'a\.zip!/secret': it is encrypted") as caught:
        list(secret.blocks())
    assert caught.value.reason == "unreadable"
    assert read(iter([public])) == [(b"open", b"2")]


def test_a_member_compressed_by_an_unknown_method_cannot_be_read() -> None:
    stored = bytearray(zipped([("a", b"1")]))
    stored[stored.index(b"PK\1\2") + 10] = 9
    with pytest.raises(SourceError, match="it is compressed by method 9, which bytelm does not know"):
        read(members_of_zip(bytes(stored)))


@pytest.mark.parametrize(("field", "offset"), [("checksum", 16), ("size", 24)])
def test_a_member_that_is_not_what_the_directory_says_is_refused(field: str, offset: int) -> None:
    del field
    stored = bytearray(zipped([("a", b"content" * 100)]))
    stored[stored.index(b"PK\1\2") + offset] ^= 1
    with pytest.raises(SourceError, match="its size or checksum is not that of the directory"):
        read(members_of_zip(bytes(stored)))


def test_a_member_that_gives_more_than_it_claims_is_stopped() -> None:
    stored = bytearray(zipped([("a", bytes(20 * MIB))]))
    at = stored.index(b"PK\1\2") + 24
    stored[at : at + 4] = struct.pack("<I", 10)
    (document,) = members_of_zip(bytes(stored))
    assert isinstance(document, Document)
    with pytest.raises(SourceError, match="its size or checksum"):
        list(document.blocks())


def test_a_zip_that_is_cut_off_anywhere_is_refused() -> None:
    stored = zipped(FILES)
    for length in range(4, len(stored)):
        with pytest.raises(SourceError, match=r"'a\.zip' is damaged: its zip directory cannot be read"):
            list(members_of_zip(stored[:length]))


def test_a_zip_whose_members_overlap_is_a_bomb_all_the_same() -> None:
    """As in David Fifield's archives: many names, one and the same compressed megabytes behind them."""
    kernel = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = bytes(20 * MIB)
    data = kernel.compress(content) + kernel.flush()
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = (
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2",
            20,
            20,
            0,
            8,
            0,
            0,
            zlib.crc32(content),
            len(data),
            len(content),
            1,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + b"a"
    )
    directory = entry * 40
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 40, 40, len(directory), len(local) + len(data), 0)
    read_bytes = 0
    with pytest.raises(SourceError, match=r"'a\.zip' is damaged: it looks like a decompression bomb"):
        for document in members_of_zip(local + data + directory + end):
            assert isinstance(document, Document)
            read_bytes += sum(map(len, document.blocks()))
    assert read_bytes <= UNQUESTIONED_BYTES


def test_a_zip_member_of_bzip2_is_read_in_little_memory() -> None:
    """The standard library would hand out all of it at once: 20 kilobytes there are gigabytes here."""
    stored = zipped([("a", bytes(60 * MIB))], zipfile.ZIP_BZIP2)
    (document,) = members_of_zip(stored)
    assert isinstance(document, Document)
    tracemalloc.start()
    assert sum(map(len, document.blocks())) == 60 * MIB
    assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    tracemalloc.stop()


def test_no_flipped_bit_in_a_zip_changes_a_content_in_silence() -> None:
    stored = zipped([("a", b"some content " * 30), ("b", b"more " * 50)])
    whole = [content for _, content in read(members_of_zip(stored))]
    chance = random.Random(1)
    refused = 0
    for _ in range(500):
        bit = chance.randrange(len(stored) * 8)
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            contents = [content for _, content in read(members_of_zip(bytes(flipped)))]
            assert contents == whole or {b"link", b"special"} & set(contents)
        except SourceError:
            refused += 1
    assert refused > 200
