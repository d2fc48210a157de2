"""How fast raw files become a corpus, beside zstd packing the same bytes.

    python tests/bench/bench_ingest.py [--data FOLDER] [--workers N] [--levels 3 9] [--repeats 5] [--quick]

Wall-clock of whole programs, start included, from files in the page cache: ``bytelm ingest`` with N workers (all cores
by default) at levels 3 and 9, and ``zstd -T<N>`` at the same levels over one file that holds the same documents one
behind the other. They take turns; the median counts, with least and most beside it, and a ratio is the median of the
rounds' ratios of speed. Beside them ``tar | zstd -T<N>``, which has to open every file, as ingesting does. No archive
is opened and no duplicate left out, so that all pack the same bytes.

What ingesting does besides: it reads every file twice, finds duplicates, tells kinds apart, splits by content, hashes
documents, frames and tables, writes them and flushes everything to the disk, which zstd and tar do not. Both write to
the same folder. Processor time is given too, user and system, of the program and its children, and its ratio: on a
machine that does other things meanwhile it is what can be believed.

The data are files of a folder, those of the Python standard library by default. The last line is one JSON object.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import machine
from standard_library import standard_library


def children_cpu_s() -> float:
    """Processor time of children that have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def ingest(data: Path, out: Path, level: int, workers: int) -> None:
    """A folder, ingested."""
    command = [sys.executable, "-m", "bytelm.cli", "ingest", str(data), "--out", str(out), "--level", str(level)]
    words = [*command, "--workers", str(workers), "--raw", "--keep-duplicates", "--json"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def zstd(raw: Path, out: Path, level: int, workers: int) -> None:
    """One file, packed."""
    subprocess.run(["zstd", "-qf", f"-{level}", f"-T{workers}", str(raw), "-o", str(out)], check=True)


def tar_and_zstd(data: Path, out: Path, level: int, workers: int) -> None:
    """A folder, packed."""
    with out.open("wb") as file:
        packing = ["zstd", "-q", f"-{level}", f"-T{workers}"]
        with subprocess.Popen(["tar", "-cf", "-", "-C", str(data), "."], stdout=subprocess.PIPE) as reading:
            subprocess.run(packing, stdin=reading.stdout, stdout=file, check=True)
    assert reading.returncode == 0


def files_below(folder: Path) -> Iterable[Path]:
    """Every regular file, in the order of paths."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


@dataclass
class Measured:
    """What one program at one level did, round after round.

    Attributes:
        wall_s: Seconds of each round.
        cpu_s: Processor seconds of each round.
        packed_bytes: What it wrote.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    packed_bytes: int = 0

    def as_json(self, raw_bytes: int) -> dict[str, Any]:
        """Medians, and the least and most seconds."""
        return {
            "mb_per_s": round(raw_bytes / 1e6 / statistics.median(self.wall_s), 1),
            "seconds": round(statistics.median(self.wall_s), 3),
            "spread": [round(min(self.wall_s), 3), round(max(self.wall_s), 3)],
            "cpu_s": round(statistics.median(self.cpu_s), 3),
            "packed_bytes": self.packed_bytes,
        }


def measure(
    data: Path, raw: Path, work: Path, levels: list[int], workers: int, repeats: int
) -> dict[tuple[str, int], Measured]:
    """All programs at all levels, taking turns."""
    packed, corpus = work / "packed", work / "corpus"
    programs: dict[str, Callable[[int], object]] = {
        "bytelm ingest": lambda level: ingest(data, corpus, level, workers),
        "zstd": lambda level: zstd(raw, packed, level, workers),
        "tar and zstd": lambda level: tar_and_zstd(data, packed, level, workers),
    }
    found = {(name, level): Measured() for level in levels for name in programs}
    for number, (name, level) in itertools.product(range(repeats), found):
        shutil.rmtree(corpus, ignore_errors=True)
        packed.unlink(missing_ok=True)
        os.sync()  # what the one before has left to write is not the next one's
        begin_s, begin_cpu_s = time.perf_counter(), children_cpu_s()
        programs[name](level)
        one = found[name, level]
        one.wall_s.append(time.perf_counter() - begin_s)
        one.cpu_s.append(children_cpu_s() - begin_cpu_s)
        written = [packed] if packed.exists() else list(corpus.glob("*.zst"))
        one.packed_bytes = sum(path.stat().st_size for path in written)
        print(f"{number + 1}/{repeats} {name} {level}: {one.wall_s[-1]:.2f} s", file=sys.stderr)
    return found


def summary(found: dict[tuple[str, int], Measured], raw_bytes: int) -> dict[str, Any]:
    """The JSON object, but for what names the run."""

    levels = sorted({level for _, level in found})

    def ratios(
        other: str, of: Callable[[list[float]], float], seconds: Callable[[Measured], list[float]]
    ) -> dict[str, float]:
        return {
            str(level): round(of([theirs / ours for theirs, ours in pairs]), 3)
            for level in levels
            for pairs in [list(zip(seconds(found[other, level]), seconds(found["bytelm ingest", level]), strict=True))]
        }

    def wall(one: Measured) -> list[float]:
        return one.wall_s

    return {
        "ratio_to_zstd": ratios("zstd", statistics.median, wall),
        "ratio_to_tar_and_zstd": ratios("tar and zstd", statistics.median, wall),
        "cpu_ratio_to_zstd": ratios("zstd", statistics.median, lambda one: one.cpu_s),
        "cpu_ratio_to_tar_and_zstd": ratios("tar and zstd", statistics.median, lambda one: one.cpu_s),
        "ratio_spread": {
            other: {"least": ratios(other, min, wall), "most": ratios(other, max, wall)}
            for other in ("zstd", "tar and zstd")
        },
        "by_program": {f"{name} {level}": one.as_json(raw_bytes) for (name, level), one in found.items()},
    }


def main() -> None:
    """Measure everything and print."""
    parser = argparse.ArgumentParser(description="See the beginning of this file.")
    parser.add_argument("--data", type=Path, help="folder of raw files; default: the Python standard library")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--levels", type=int, nargs="+", default=[3, 9])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--work", type=Path, help="folder to write in; default: where temporary files go")
    options = parser.parse_args()
    if shutil.which("zstd") is None:
        raise SystemExit("the zstd program is not installed, and there is nothing to compare with")
    repeats = 1 if options.quick else options.repeats
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=options.work) as folder:
        data, raw = options.data or standard_library(Path(folder, "files")), Path(folder, "raw")
        files = 0
        with raw.open("wb") as file:  # every file is in the page cache from here on
            for path in files_below(data):
                files += 1
                file.write(path.read_bytes())
        raw_bytes = raw.stat().st_size
        found = measure(data, raw, Path(folder), options.levels, options.workers, repeats)
    report = summary(found, raw_bytes)
    for name, row in report["by_program"].items():
        least, most = row["spread"]
        print(
            f"{name:18} {row['mb_per_s']:7.1f} MB/s, {row['seconds']:.2f} s ({least:.2f}–{most:.2f}), "
            f"{row['cpu_s']:.2f} CPU-s, {row['packed_bytes'] / 1e6:.1f} MB"
        )
    facts = {
        "machine": machine(),
        "zstd program": subprocess.run(["zstd", "-qV"], check=True, capture_output=True, text=True).stdout.strip(),
        "workers": options.workers,
        "repeats": repeats,
        "data": str(options.data) if options.data else "the Python standard library",
        "files": files,
        "raw_bytes": raw_bytes,
    }
    print(json.dumps(report | facts))


if __name__ == "__main__":
    main()
