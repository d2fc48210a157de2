"""The frames of a split: found in whichever shard they are, decoded into a buffer, safe to read from many threads."""

import threading
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from bytelm.data.order import Run
from bytelm.data.shard_file import FramePieces, ShardReader
from bytelm.data.shards import Corpus

_OPEN_SHARDS: Final = 256  # an open file and 24 bytes a frame for each


class Frames:
    """Reads the frames of one split.

    Args:
        corpus: An open corpus.
        split: Which of its splits.

    Attributes:
        name: What to call it in messages.
        frame_bytes: Raw bytes of every frame but the last of each shard.
        shard_bytes_S: Raw bytes of each shard, int64.
        is_remote: Shards are read through a network and a cache.

    Raises:
        CorpusError: The corpus has no such split.
    """

    def __init__(self, corpus: Corpus, split: str) -> None:
        self._corpus = corpus
        self._shards = corpus.shards(split)
        self._readers: dict[int, ShardReader] = {}
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self.name = f"the {split} split of {corpus.folder.address}"
        self.fingerprint = f"{corpus.fingerprint}:{split}"
        self.frame_bytes = corpus.frame_bytes
        self.is_remote = corpus.folder.local is None and corpus.cache is not None
        self.shard_bytes_S: NDArray[np.int64] = np.array([shard.raw_bytes for shard in self._shards], np.int64)

    def read(self, run: Run, out: memoryview) -> FramePieces:
        """Decode frames, and find the pieces that touch them.

        Raises:
            ShardError: The shard is missing, or a frame or its piece rows are damaged.
        """
        return self._reader(run.shard).read_frames(run.first_frame, run.frames, out, self._decompressor())

    def decode(self, run: Run, out: memoryview) -> None:
        """Decode frames, or the beginning of them where ``out`` is shorter.

        Raises:
            ShardError: The shard is missing, or a frame is damaged.
        """
        self._reader(run.shard).decode_frames(run.first_frame, run.frames, out, self._decompressor())

    def fetch(self, run: Run) -> None:
        """Read what frames and their piece rows need, so that a cache has it.

        Raises:
            ShardError: The shard is missing or damaged.
        """
        self._reader(run.shard).fetch(run.first_frame, run.frames)

    def pieces(self, run: Run) -> FramePieces:
        """The pieces that touch frames.

        Raises:
            ShardError: The shard is missing, or its piece rows are damaged.
        """
        return self._reader(run.shard).frame_pieces(run.first_frame, run.frames)

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._corpus.open_shard(self._shards[shard])
            with self._lock:
                self._readers[shard] = reader
                if len(self._readers) > _OPEN_SHARDS:
                    del self._readers[next(iter(self._readers))]
        return reader

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._of_thread, "decompressor"):
            self._of_thread.decompressor = zstandard.ZstdDecompressor()
        return self._of_thread.decompressor
