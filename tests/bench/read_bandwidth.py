"""How fast one thread of this machine reads memory: what a step of a large model cannot be faster than.

A small loop in C++ adds up a buffer, compiled when it is needed with the compiler that builds the engine. Several ways
of reading are tried (with and without prefetching, one stream or four), and the fastest counts. Where there is no
compiler, nothing is measured.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from bytelm.engine.build import BuildError, find_compiler

_SOURCE: Final = """
#include <stdint.h>
typedef uint64_t Words __attribute__((vector_size(64)));

// Adds up `bytes` of each of STREAMS equal parts; a multiple of 512 each.
template <int STREAMS, int AHEAD> static uint64_t total(const char* at, int64_t bytes) {
  Words sum[8] = {};
  const int64_t part = bytes / STREAMS / 512 * 512;
  for (int64_t i = 0; i < part; i += 512)
    for (int s = 0; s < STREAMS; s++) {
      const char* from = at + s * part + i;
      for (int line = 0; line < 8; line++) {
        if (AHEAD) __builtin_prefetch(from + 64 * line + AHEAD, 0, 3);
        sum[line] += *(const Words*)(from + 64 * line);
      }
    }
  uint64_t all = 0;
  for (int line = 0; line < 8; line++)
    for (int lane = 0; lane < 8; lane++) all += sum[line][lane];
  return all;
}

extern "C" uint64_t read_one(const char* at, int64_t bytes) { return total<1, 0>(at, bytes); }
extern "C" uint64_t read_ahead(const char* at, int64_t bytes) { return total<1, 8192>(at, bytes); }
extern "C" uint64_t read_four(const char* at, int64_t bytes) { return total<4, 0>(at, bytes); }
extern "C" uint64_t read_four_ahead(const char* at, int64_t bytes) { return total<4, 2048>(at, bytes); }
"""
_WAYS: Final = ("read_one", "read_ahead", "read_four", "read_four_ahead")


class Reader:
    """Reads the same memory again and again.

    Args:
        most_bytes: Of the buffer.

    Attributes:
        compiler: That made it.

    Raises:
        BuildError: There is no compiler, or it fails.
    """

    def __init__(self, most_bytes: int) -> None:
        command = find_compiler()
        self.compiler = command[0]
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "read.cpp", Path(folder) / "read.so"
            source.write_text(_SOURCE, encoding="utf-8")
            flags = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-Wno-psabi"]
            try:
                subprocess.run([*command, *flags, source, "-o", library], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise BuildError(f"{self.compiler} does not compile the reader of memory: {error}") from error
            self._library = ctypes.CDLL(str(library))
        for way in _WAYS:
            function = getattr(self._library, way)
            function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_int64)
        room = np.ones(most_bytes + 64, np.uint8)  # written, so that every page is there
        start = -room.ctypes.data % 64
        self._buffer = room[start : start + most_bytes]

    def bytes_per_s(self, size_bytes: int, now: Callable[[], float], repeats: int = 3) -> float:
        """Of the fastest way, its fastest repeat; the memory was read just before, as a model's weights were."""
        assert size_bytes <= len(self._buffer)
        address, found = self._buffer.ctypes.data, 0.0
        for way in _WAYS:
            read = getattr(self._library, way)
            read(address, size_bytes)
            for _ in range(repeats):
                begin = now()
                read(address, size_bytes)
                found = max(found, size_bytes / (now() - begin))
        return found
