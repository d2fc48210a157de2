"""Every byte of a corpus checked against its index, to the end, whatever is found.

A reader stops at the first damage, because no wrong byte may get out. Here nothing gets out, so all damage is found:
of each shard the header, the tables, every frame and its piece rows, the hash of the whole content; of each file of
digests its hash; and that files, index and tables name the same sizes and counts. The index was checked when it was
opened.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import xxhash
import zstandard

from bytelm.data.index import INDEX
from bytelm.data.shard_file import ShardReader
from bytelm.data.shards import Corpus, ShardEntry
from bytelm.errors import CorpusError, ShardError


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was written.

    Attributes:
        file: Name of the file within the corpus.
        what: One line that names the place.
        frame: Number of the frame, if it lies in one.
        begin: First byte of that frame in the file.
        end: The first byte behind it.
    """

    file: str
    what: str
    frame: int | None = None
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked, and what was found.

    Attributes:
        shards: Shards.
        frames: Frames that could be told apart.
        raw_bytes: Bytes of sound frames.
        damages: In the order of the index.
        unnamed: Files and folders that lie with the corpus and are no part of it: nothing ever reads them.
    """

    shards: int
    frames: int
    raw_bytes: int
    damages: tuple[Damage, ...]
    unnamed: tuple[str, ...] = ()


def verify(
    corpus: Corpus, splits: Sequence[str], *, threads: int = 1, on_frame: Callable[[int], None] = lambda _: None
) -> Verification:
    """Check every byte of a corpus.

    Args:
        corpus: An open corpus.
        splits: Which of its splits; files of digests belong to all.
        threads: Shards that are checked at the same time, at least 1.
        on_frame: Called with the raw bytes of each frame that was looked at, never by two threads at once.

    Raises:
        CorpusError: The corpus has no such split.
    """
    entries = [entry for split in splits for entry in corpus.shards(split)]
    lock = threading.Lock()

    def looked_at(raw_bytes: int) -> None:
        with lock:
            on_frame(raw_bytes)

    with ThreadPoolExecutor(threads) as pool:
        try:
            found = list(pool.map(lambda entry: _verify_shard(corpus, entry, looked_at), entries))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    damages = [damage for shard in found for damage in shard.damages]
    return Verification(
        shards=len(found),
        frames=sum(shard.frames for shard in found),
        raw_bytes=sum(shard.raw_bytes for shard in found),
        damages=(*damages, *_damages_of_digests(corpus)),
        unnamed=_unnamed(corpus),
    )


def _verify_shard(corpus: Corpus, entry: ShardEntry, looked_at: Callable[[int], None]) -> Verification:
    try:
        reader = corpus.open_shard(entry)
    except ShardError as error:
        looked_at(entry.raw_bytes)
        return Verification(1, 0, 0, (Damage(entry.name, str(error)),))
    decompressor = zstandard.ZstdDecompressor()
    damages: list[Damage] = []
    raw = xxhash.xxh3_128()
    raw_bytes = 0
    buffer = memoryview(bytearray(reader.frame_bytes))
    for frame in range(reader.frames):
        size = reader.frame_size(frame)
        try:
            reader.read_frame(frame, buffer[:size], decompressor)
        except ShardError as error:
            begin, length = reader.frame_place(frame)
            damages.append(Damage(entry.name, str(error), frame, begin, begin + length))
        else:
            raw.update(buffer[:size])
            raw_bytes += size
        looked_at(size)
    damages += [Damage(entry.name, what) for what in _disagreements(reader, entry)]
    if not damages and reader.read_pieces().content_hash(raw.digest()).hex() != entry.content:
        damages.append(Damage(entry.name, f"shard {entry.name} does not hold the content that the index names"))
    return Verification(1, reader.frames, raw_bytes, tuple(damages))


def _disagreements(reader: ShardReader, entry: ShardEntry) -> Iterator[str]:
    for name in ("raw_bytes", "packed_bytes", "pieces", "documents", "content"):
        ours, theirs = getattr(entry, name), getattr(reader, name)
        if ours != theirs:
            yield f"shard {entry.name} has {name} = {theirs}, the index names {ours}"


def _unnamed(corpus: Corpus) -> tuple[str, ...]:
    named = {INDEX, *(entry.name for entry in (*corpus.all_shards, *corpus.digests, *corpus.files))}
    return tuple(name for name in corpus.folder.names() if name not in named)


def _damages_of_digests(corpus: Corpus) -> Iterator[Damage]:
    for entry in corpus.digests:
        try:
            corpus.digests_of(entry)
        except CorpusError as error:
            yield Damage(entry.name, str(error))
    for entry in corpus.files:
        try:
            corpus.files_of(entry)
        except CorpusError as error:
            yield Damage(entry.name, str(error))
