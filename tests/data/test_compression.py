"""Compressed bytes: read to the end whatever the library thinks the end is, refused where they are not whole."""

import bz2
import gzip
import lzma
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.compression import COMPRESSIONS, UNQUESTIONED_BYTES, Allowance, Forward, ahead, decompress, fits
from bytelm.errors import SourceError

MIB = 1 << 20
TEXT = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(2000))


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def zst_of_unknown_size(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    return compressor.compress(data) + compressor.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": zst,
}


def test_blocks_taken_ahead_are_the_same_and_an_error_stays_in_its_place() -> None:
    taken: list[int] = []

    def blocks(count: int, *, fails: bool) -> Iterator[bytes]:
        for number in range(count):
            taken.append(number)
            yield b"%d" % number
        if fails:
            raise SourceError("no more")

    for count in (0, 1, 20):
        assert list(ahead(blocks(count, fails=False))) == [b"%d" % number for number in range(count)]
        given = ahead(blocks(count, fails=True))
        assert [next(given) for _ in range(count)] == [b"%d" % number for number in range(count)]
        with pytest.raises(SourceError, match="no more"):
            next(given)
    taken.clear()
    given = ahead(blocks(1000, fails=False))
    assert next(given) == b"0"
    given.close()  # pyright: ignore[reportAttributeAccessIssue]  a generator
    assert len(taken) < 20, "who stops early has not read everything"


ZEROS = bytes(80 * MIB)
SKIPPABLE = b"\x5f\x2a\x4d\x18" + struct.pack("<I", 5) + b"aside"


def in_blocks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[begin : begin + size] for begin in range(0, len(data), size))


def content_of(compression: str, stored: bytes, block: int = 1 << 20) -> bytes:
    blocks = list(decompress(compression, in_blocks(stored, block), b"name"))
    assert all(1 <= len(one) <= MIB for one in blocks)
    return b"".join(blocks)


def test_every_compression_is_tried_here() -> None:
    assert set(COMPRESS) == set(COMPRESSIONS)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(COMPRESSIONS),
    st.lists(st.binary(max_size=3000) | st.integers(1, 400_000).map(bytes), min_size=1, max_size=5),
    st.sampled_from([1, 7, 1000, 1 << 20]),
)
def test_streams_one_after_another_are_read_to_the_end_of_the_last(
    compression: str, contents: list[bytes], block: int
) -> None:
    contents = contents[:1] if compression == "lzma" else contents
    stored = b"".join(map(COMPRESS[compression], contents))
    assert fits(compression, stored[:18])
    assert content_of(compression, stored, block) == b"".join(contents)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([zst, zst_of_unknown_size]), st.binary(max_size=300_000)), max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
    st.booleans(),
)
def test_frames_of_zstd_may_have_others_to_be_skipped_between_them(
    frames: list[tuple[Callable[[bytes], bytes], bytes]], places: list[int], rle: bool
) -> None:
    parts = [compress(data) for compress, data in frames]
    for place in places:
        parts.insert(place, SKIPPABLE)
    if rle:
        parts.append(zst(b"\0" * 3_000_000))
    stored = b"".join(parts)
    assert content_of("zst", stored) == b"".join(data for _, data in frames) + b"\0" * (3_000_000 * rle)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_whatever_is_cut_off_is_refused(compression: str) -> None:
    stored = COMPRESS[compression](TEXT[:3000])
    for length in range(1, len(stored)):
        with pytest.raises(SourceError, match="is damaged: ") as caught:
            content_of(compression, stored[:length])
        assert caught.value.reason == "damaged"


def test_a_skippable_frame_that_is_cut_off_is_refused() -> None:
    for length in range(1, len(SKIPPABLE)):
        with pytest.raises(SourceError, match="cut off"):
            content_of("zst", zst(TEXT) + SKIPPABLE[:length])


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_no_flipped_bit_changes_the_content_in_silence(compression: str) -> None:
    stored = COMPRESS[compression](TEXT[:2000])
    chance = random.Random(1)
    refused = 0
    for _ in range(400):
        bit = chance.randrange(len(stored) * 8)
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert content_of(compression, bytes(flipped)) == TEXT[:2000]
        except SourceError as error:
            refused += 1
            assert error.reason == "damaged"
    assert refused > 300


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_other_bytes_after_the_end_are_refused(compression: str) -> None:
    blocks: list[bytes] = []
    with pytest.raises(SourceError, match="is damaged: "):
        blocks += decompress(compression, in_blocks(COMPRESS[compression](TEXT) + b"garbage, and no stream", 100), b"x")
    assert content_of(compression, COMPRESS[compression](TEXT)) == TEXT


@pytest.mark.parametrize("zeros", [1, 4, 512, 200_000])
def test_zeros_after_the_end_are_padding_where_the_format_has_padding(zeros: int) -> None:
    for compression in ("gz", "xz"):
        one = COMPRESS[compression](TEXT)
        assert content_of(compression, one + bytes(zeros)) == TEXT
        assert content_of(compression, one + bytes(zeros) + one) == TEXT + TEXT
    for compression in ("bz2", "lzma", "zst"):
        with pytest.raises(SourceError, match="is damaged: "):
            content_of(compression, COMPRESS[compression](TEXT) + bytes(zeros))


def test_a_header_that_claims_a_window_of_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    claims = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40)
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"needs a window of 1,048,576 MiB, more than 128"):
        content_of("zst", claims + b"\1\0\0")
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()


def test_windows_are_taken_up_to_128_mib() -> None:
    def with_window(log: int) -> bytes:
        parameters = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=False)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return compressor.compress(b"small") + compressor.flush()

    assert content_of("zst", with_window(27)) == b"small"
    with pytest.raises(SourceError, match=r"needs a window of 256 MiB, more than 128; .* \(zstd --long=27\)"):
        content_of("zst", with_window(28))


def xz_with_window(code: int) -> bytes:
    """A small xz file whose header claims another window."""
    stored = bytearray(lzma.compress(b"small"))
    assert stored[14:16] == b"\x21\x01"
    end = 12 + 4 * (stored[12] + 1)
    stored[16] = code
    stored[end - 4 : end] = struct.pack("<I", zlib.crc32(stored[12 : end - 4]))
    return bytes(stored)


def test_xz_and_lzma_windows_are_limited_too() -> None:
    assert content_of("xz", xz_with_window(30)) == b"small"  # 128 MiB
    with pytest.raises(SourceError, match="needs a window of more than 128 MiB"):
        content_of("xz", xz_with_window(40))  # 4 GiB
    stored = COMPRESS["lzma"](b"small")
    with pytest.raises(SourceError, match="needs a window of more than 128 MiB"):
        content_of("lzma", stored[:1] + struct.pack("<I", 1 << 31) + stored[5:])


def test_a_frame_that_needs_a_dictionary_says_so() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"%d: some words that come again and again" % n * 3 for n in range(300)
    ]
    dictionary = zstandard.train_dictionary(2000, samples)
    stored = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)
    with pytest.raises(SourceError, match=rf"needs the zstd dictionary {dictionary.dict_id()}"):
        content_of("zst", stored)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_a_bomb_is_refused_and_held_in_little_memory(compression: str) -> None:
    stored = lzma.compress(ZEROS, preset=0) if compression == "xz" else COMPRESS[compression](ZEROS)
    allowance = Allowance(b"bomb", len(stored), 100.0)
    given_bytes = 0
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"'bomb' is damaged: it looks like a decompression bomb: .*100 times"):
        for block in allowance.giving(decompress(compression, allowance.reading(iter([stored])), b"bomb")):
            given_bytes += len(block)
    assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    tracemalloc.stop()
    assert given_bytes <= max(UNQUESTIONED_BYTES, 100 * len(stored))


def test_an_allowance_asks_nothing_up_to_64_mib_and_counts_what_was_read_where_the_size_is_not_known() -> None:
    Allowance(b"x", 1, 1.0).give(UNQUESTIONED_BYTES)
    with pytest.raises(SourceError, match="bomb"):
        Allowance(b"x", 1, 1.0).give(UNQUESTIONED_BYTES + 1)
    Allowance(b"x", UNQUESTIONED_BYTES, 2.0).give(2 * UNQUESTIONED_BYTES)
    unknown = Allowance(b"x", 0, 100.0)
    assert list(unknown.reading(iter([bytes(MIB)]))) == [bytes(MIB)]
    unknown.give(100 * MIB)
    with pytest.raises(SourceError, match="1,048,576 bytes give more than 100 times"):
        unknown.give(1)


@pytest.mark.parametrize(
    ("compression", "beginning"),
    [
        ("gz", b"GIF89a"),
        ("gz", b""),
        ("gz", b"\x1f"),
        ("bz2", b"BZ"),
        ("xz", b"\xfd7zXZ"),
        ("zst", b"\x28\xb5\x2f"),
        ("zst", b"\x4f\x2a\x4d\x18"),
        ("lzma", b"words that are no header"),
        ("lzma", COMPRESS["lzma"](b"")[:13]),
    ],
)
def test_what_begins_otherwise_does_not_fit(compression: str, beginning: bytes) -> None:
    assert not fits(compression, beginning)


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=10),
    st.lists(st.tuples(st.sampled_from(["peek", "read", "some", "seek"]), st.integers(1, 30)), max_size=20),
)
def test_reading_forwards_is_reading_a_file(blocks: list[bytes], steps: list[tuple[str, int]]) -> None:
    whole = b"".join(blocks)
    content = Forward(iter(blocks))
    place = 0
    for step, size in steps:
        expected = whole[place : place + size]
        if step == "peek":
            assert content.peek(size) == expected
            continue
        if step == "read":
            assert content.read(size) == expected
        elif step == "some":
            expected = content.some(size)
            assert whole[place:].startswith(expected)
            assert len(expected) <= size
            assert bool(expected) == (place < len(whole))
        else:
            assert content.seek(place + size) == place + len(expected)
        place += len(expected)
        assert content.tell() == place
    with pytest.raises(ValueError, match="the bytes before this place are gone"):
        content.seek(place - 1)
    assert b"".join(content.rest()) == whole[place:]
