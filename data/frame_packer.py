"""Frames packed one after another or by a few threads; the same bytes in the same order either way.

Threads get several frames at a time and pack them in one call, because whoever reads documents beside them keeps the
interpreter busy: a thread that asked for it again after each frame would wait longer than it packs.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Self

import zstandard

_FRAMES_AT_ONCE: Final = 8
_WAITING_EACH: Final = 2


class FramePacker:
    """Packs the frames of one or more shards; a context that ends its threads.

    Args:
        level: zstd level, 1 to 22.
        threads: How many; with 1 the caller's own packs, and none is started.

    Attributes:
        frames_at_once: As many full frames should be handed over together.
        most_waiting: As many calls of ``pack`` should be unanswered at most; they hold their bytes.
    """

    def __init__(self, level: int, threads: int = 1) -> None:
        self._level = level
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, "pack") if threads > 1 else None
        self.frames_at_once = _FRAMES_AT_ONCE if threads > 1 else 1
        self.most_waiting = _WAITING_EACH * threads if threads > 1 else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def pack(self, raw: bytearray, frame_bytes: int) -> "Future[list[bytes]]":
        """Pack some bytes as frames.

        Args:
            raw: At least one byte; it is not to be changed any more.
            frame_bytes: Bytes of each frame but the last.

        Returns:
            The frames, each with content size and checksum, now or later.
        """
        if self._pool is not None:
            return self._pool.submit(self._pack, raw, frame_bytes)
        done: Future[list[bytes]] = Future()
        done.set_result(self._pack(raw, frame_bytes))
        return done

    def _pack(self, raw: bytearray, frame_bytes: int) -> list[bytes]:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self._level, write_checksum=True, write_content_size=True
            )
        view = memoryview(raw)
        frames = [view[begin : begin + frame_bytes] for begin in range(0, len(raw), frame_bytes)]
        if len(frames) == 1:
            return [compressor.compress(frames[0])]
        # One thread, this one, for all of them: the interpreter is let go of once and asked for once.
        packed = compressor.multi_compress_to_buffer(frames, threads=1)  # pyright: ignore[reportArgumentType]  views, too
        return [packed[number].tobytes() for number in range(len(frames))]
