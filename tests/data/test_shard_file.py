"""One shard: what goes in comes out, other tools read it too, and no damage passes."""

import io
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.frame_packer import FramePacker
from bytelm.data.shard_file import ShardReader, ShardSummary, ShardWriter
from bytelm.errors import ShardError

FRAME_BYTES = 256
SKIPPABLE = struct.Struct("<II")


def packed_shard(
    documents: list[bytes], *, frame_bytes: int = FRAME_BYTES, level: int = 3
) -> tuple[bytes, ShardSummary]:
    file = io.BytesIO()
    writer = ShardWriter(file, FramePacker(level), frame_bytes=frame_bytes)
    for number, document in enumerate(documents):
        writer.append(document, starts=True, ends=True, source=number % 3, kind=number % 2)
    return file.getvalue(), writer.finish()


def written(path: Path, documents: list[bytes]) -> ShardSummary:
    """A shard on disk."""
    with path.open("wb") as file:
        writer = ShardWriter(file, FramePacker(3), frame_bytes=FRAME_BYTES)
        for number, document in enumerate(documents):
            writer.append(document, starts=True, ends=True, source=number % 3, kind=number % 2)
        return writer.finish()


def read_whole(reader: ShardReader) -> bytes:
    """Raw bytes of all frames, each of them checked."""
    decompressor = zstandard.ZstdDecompressor()
    raw = bytearray()
    for frame in range(reader.frames):
        out = bytearray(reader.frame_size(frame))
        reader.read_frame(frame, memoryview(out), decompressor)
        raw += out
    return bytes(raw)


def some_documents(count: int = 8) -> list[bytes]:
    chance = random.Random(7)
    return [bytes(chance.choices(b"abcdef \n", k=chance.randrange(1, 200))) for _ in range(count)]


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, ShardSummary, bytes]:
    documents = some_documents()
    path = tmp_path / "train-00000.zst"
    return path, written(path, documents), b"".join(documents)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=700), min_size=1, max_size=12), st.sampled_from([1, 7, 256]))
def test_any_documents_come_back_with_their_boundaries(documents: list[bytes], frame_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.zst"
        with path.open("wb") as file:
            writer = ShardWriter(file, FramePacker(1), frame_bytes=frame_bytes)
            for document in documents:
                writer.append(document, starts=True, ends=True, source=5, kind=1)
            summary = writer.finish()
        reader = ShardReader(path, expected_hash=summary.hash)
        raw = b"".join(documents)
        assert read_whole(reader) == raw
        begins = {sum(map(len, documents[:number])) for number in range(len(documents))}
        decompressor = zstandard.ZstdDecompressor()
        for frame in range(reader.frames):
            begin, size = frame * frame_bytes, reader.frame_size(frame)
            found = reader.read_frame(frame, memoryview(bytearray(size)), decompressor)
            inside = {begin} | {place for place in begins if begin <= place < begin + size}
            assert (found.offsets_P + begin).tolist() == sorted(inside)
            assert found.starts_P.tolist() == [place in begins for place in sorted(inside)]
            assert found.follows_end_P.tolist() == [place in begins and place > begin for place in sorted(inside)]
            assert found.continues == (begin not in begins)
            assert found.ends_document == (begin + size in begins or begin + size == len(raw))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=12),
    st.sampled_from([7, 64, 1000]),
    st.integers(2, 4),
)
def test_threads_pack_the_same_shard(documents: list[bytes], frame_bytes: int, threads: int) -> None:
    files = [io.BytesIO(), io.BytesIO()]
    found: list[ShardSummary] = []
    for file, count in zip(files, (1, threads), strict=True):
        with FramePacker(3, count) as packer:
            writer = ShardWriter(file, packer, frame_bytes=frame_bytes)
            for document in documents:
                writer.append(document, starts=True, ends=True, source=5, kind=1)
            found.append(writer.finish())
    assert found[0] == found[1]
    assert files[0].getvalue() == files[1].getvalue()
    assert found[0].packed_bytes == len(files[0].getvalue())


def test_a_piece_may_be_appended_in_parts_and_be_cut_at_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "shard.zst"
    with path.open("wb") as file:
        writer = ShardWriter(file, FramePacker(1), frame_bytes=64)
        writer.append(b"a" * 10, starts=False, ends=False, source=0, kind=0)
        writer.append(b"b" * 10, starts=False, ends=True, source=0, kind=0, continues=True)
        writer.append(b"c" * 10, starts=True, ends=False, source=1, kind=1)
        writer.append(b"d" * 10, starts=False, ends=False, source=1, kind=1)
        summary = writer.finish()
    assert (summary.pieces, summary.documents) == (3, 1)
    found = ShardReader(path).read_frame(0, memoryview(bytearray(40)), zstandard.ZstdDecompressor())
    assert found.offsets_P.tolist() == [0, 20, 30]
    assert found.starts_P.tolist() == [False, True, False]
    assert found.follows_end_P.tolist() == [False, True, False]
    assert found.sources_P.tolist() == [0, 1, 1]
    assert found.kinds_P.tolist() == [0, 1, 1]
    assert not found.ends_document


def test_the_piece_table_is_read_without_a_frame_and_refuses_damage(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, raw = shard
    table = ShardReader(path).read_pieces()
    lengths = [len(document) for document in some_documents()]
    assert table.lengths_P.tolist() == lengths
    assert table.begins_P.tolist() == [sum(lengths[:number]) for number in range(len(lengths))]
    assert table.starts_P.all()
    assert table.ends_P.all()
    assert table.sources_P.tolist() == [number % 3 for number in range(len(lengths))]
    assert table.kinds_P.tolist() == [number % 2 for number in range(len(lengths))]
    assert table.content_hash(xxhash.xxh3_128_digest(raw)).hex() == ShardReader(path).content
    reader = ShardReader(path)
    content = bytearray(path.read_bytes())
    rows_end = len(content) - 17 - 8 * (reader.frames + 2)
    for row in range(len(lengths)):
        damaged = bytearray(content)
        damaged[rows_end - 16 * (row + 1)] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"the piece table of frame \d"):
            reader.read_pieces()
    path.write_bytes(content)
    assert len(raw) == sum(reader.read_pieces().lengths_P)


def test_the_zstd_program_gives_the_raw_bytes_back(shard: tuple[Path, ShardSummary, bytes]) -> None:
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("the zstd program is not installed")
    path, _, raw = shard
    with path.open("rb") as file:
        assert subprocess.run([program, "-d"], stdin=file, capture_output=True, check=True).stdout == raw


def test_a_zstd_stream_gives_the_raw_bytes_back(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, raw = shard
    with path.open("rb") as file:
        assert zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read() == raw


def test_the_seek_table_is_the_one_of_the_seekable_format(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, raw = shard
    content = path.read_bytes()
    frames, descriptor, magic = struct.unpack("<IBI", content[-9:])
    assert magic == 0x8F92EAB1
    assert descriptor == 0
    table = len(content) - 9 - 8 * frames - 8
    assert SKIPPABLE.unpack(content[table : table + 8]) == (0x184D2A5E, 8 * frames + 9)
    offset = 0
    decoded = b""
    for entry in range(frames):
        packed_bytes, raw_bytes = struct.unpack_from("<II", content, table + 8 + 8 * entry)
        packed = content[offset : offset + packed_bytes]
        if raw_bytes:
            decoded += zstandard.ZstdDecompressor().decompress(packed)
        else:
            assert 0x184D2A50 <= SKIPPABLE.unpack(packed[:8])[0] <= 0x184D2A5F
            assert SKIPPABLE.unpack(packed[:8])[1] == packed_bytes - 8
        offset += packed_bytes
    assert offset == table
    assert decoded == raw


def test_every_frame_stands_alone_with_size_and_checksum(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, raw = shard
    content = path.read_bytes()
    offset, sizes = 24, []
    while SKIPPABLE.unpack_from(content, offset)[0] == zstandard.MAGIC_NUMBER:
        parameters = zstandard.get_frame_parameters(content[offset:])
        assert parameters.has_checksum
        sizes.append(parameters.content_size)
        length = next(
            end for end in range(offset + 9, len(content)) if _decodes(content[offset:end], parameters.content_size)
        )
        offset = length
    assert sizes == [min(FRAME_BYTES, len(raw) - begin) for begin in range(0, len(raw), FRAME_BYTES)]


def _decodes(packed: bytes, size: int) -> bool:
    try:
        return len(zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)) == size
    except zstandard.ZstdError:
        return False


def test_the_content_hash_is_blind_to_the_level_and_sees_boundaries() -> None:
    documents = some_documents()
    _, ours = packed_shard(documents, level=1)
    _, packed_harder = packed_shard(documents, level=19)
    _, cut_elsewhere = packed_shard([documents[0] + documents[1], *documents[2:]], level=1)
    assert packed_harder.packed_bytes != ours.packed_bytes
    assert packed_harder.content == ours.content
    assert cut_elsewhere.content != ours.content


def test_a_flipped_bit_anywhere_is_refused(shard: tuple[Path, ShardSummary, bytes], tmp_path: Path) -> None:
    path, summary, raw = shard
    content = path.read_bytes()
    assert read_whole(ShardReader(path, expected_hash=summary.hash)) == raw
    chance = random.Random(3)
    damaged = tmp_path / "damaged.zst"
    passed = []
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        damaged.write_bytes(flipped)
        try:
            read_whole(ShardReader(damaged, expected_hash=summary.hash))
        except ShardError as error:
            assert str(damaged) in str(error)
            assert "ingest the sources again" in str(error)
        else:
            passed.append(place)
    assert not passed


def test_a_truncated_or_lengthened_shard_is_refused(shard: tuple[Path, ShardSummary, bytes], tmp_path: Path) -> None:
    path, summary, _ = shard
    content = path.read_bytes()
    changed = tmp_path / "changed.zst"
    for length in [*range(0, 64), *range(64, len(content), 7), len(content) - 1]:
        changed.write_bytes(content[:length])
        with pytest.raises(ShardError, match="changed"):
            read_whole(ShardReader(changed, expected_hash=summary.hash))
    changed.write_bytes(content + b"\0")
    with pytest.raises(ShardError, match="changed"):
        ShardReader(changed, expected_hash=summary.hash)


def test_damage_is_named_by_frame_and_byte_range(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, _ = shard
    reader = ShardReader(path)
    content = bytearray(path.read_bytes())
    content[24] ^= 1
    path.write_bytes(content)
    assert reader.frame_place(0)[0] == 24
    with pytest.raises(ShardError, match=r"frame 0 \(bytes 24-\d+\) is damaged; ingest the sources again"):
        reader.read_frame(0, memoryview(bytearray(FRAME_BYTES)), zstandard.ZstdDecompressor())


def test_bytes_before_a_damaged_frame_can_still_be_read(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, raw = shard
    reader = ShardReader(path)
    content = bytearray(path.read_bytes())
    rows_end = len(content) - 17 - 8 * (reader.frames + 2)
    content[rows_end - 1] ^= 1  # the last row of the piece table
    path.write_bytes(content)
    out = bytearray(FRAME_BYTES)
    ShardReader(path).read_frame(0, memoryview(out), zstandard.ZstdDecompressor())
    assert out == raw[:FRAME_BYTES]
    with pytest.raises(ShardError, match=f"the piece table of frame {reader.frames - 1} "):
        read_whole(ShardReader(path))


def test_a_version_of_the_future_is_refused_with_its_number(shard: tuple[Path, ShardSummary, bytes]) -> None:
    path, _, _ = shard
    content = bytearray(path.read_bytes())
    content[16:20] = struct.pack("<I", 7)
    path.write_bytes(content)
    with pytest.raises(ShardError, match="has version 7, this bytelm reads 1"):
        ShardReader(path)


def test_a_shard_of_another_corpus_is_refused(shard: tuple[Path, ShardSummary, bytes], tmp_path: Path) -> None:
    path, _, _ = shard
    other = written(tmp_path / "other.zst", [b"something else"])
    with pytest.raises(ShardError, match="belongs to another corpus or was replaced"):
        ShardReader(path, expected_hash=other.hash)


@pytest.mark.parametrize("content", [b"", b"no shard", b"x" * 1000])
def test_what_is_no_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard.zst"
    path.write_bytes(content)
    with pytest.raises(ShardError):
        ShardReader(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"shard .*gone\.zst is missing; restore it"):
        ShardReader(tmp_path / "gone.zst")
