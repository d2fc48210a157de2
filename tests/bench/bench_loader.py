"""How fast bytes come out of a corpus, beside zstd itself, a memory map and the loaders of others.

    python tests/bench/bench_loader.py [--data FOLDER] [--repeats 4] [--quick] [--only NAME ...]

Measured is what a training has to give away: MB of windows delivered for each second of processor time, user and
system, of the loader's process with all of its threads and children. One core for all: every loader runs in a process
of its own that is bound to the same core, torch with one thread, the files in the page cache. Loaders take turns, as
many rounds as there are repeats; the median counts, with least and most beside it, and a ratio is the median of the
rounds' ratios. A measurement reads whole epochs, about a gigabyte; a loader that gives one epoch after another, as a
training needs it, is opened once. Opening belongs to the measurement, importing libraries does not.

Memory is the peak of resident memory during the epochs above what the same process held after its imports (mapped
pages of files included; Linux only). The first batch is timed from the opening of the files, and a resumed one too,
from a state that was saved in the middle of the epoch; whether it is the very batch that came next is checked.

What each loader does and does not do is said in ``loaders.py``. Those whose libraries are missing
(``pip install 'bytelm[bench]'``) are named under ``absent``. The data are files of a folder, those of the Python
standard library by default, once through ``bytelm ingest``: what remains of them is what everyone delivers.

The last line is one JSON object. Ratios, ``peak_rss_mb``, ``first_batch_s`` and ``resume_s`` are those of bytelm with
windows of 8,192 bytes; ``by_loader`` has the latter for all. ``ratio_to_litdata`` is over litdata with compressed
chunks, which take as much of the disk as ours; ``ratio_to_litdata_raw`` over uncompressed ones.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loaders import Loader, corpus_folder, loaders, packed_file, raw_file
from standard_library import standard_library

OURS = "bytelm 8192x16"
RATIOS = {
    "ratio_to_zstd": "zstd 3",
    "ratio_to_zstd_19": "zstd 19",
    "ratio_to_bare": "bare frames",
    "ratio_to_checked": "checked frames",
    "ratio_to_memory_map": "memory map 8192x16",
    "ratio_to_litdata": "litdata zstd 8192x16",
    "ratio_to_litdata_raw": "litdata raw 8192x16",
}
LIBRARIES = ("torch", "numpy", "zstandard", "litdata", "zstd", "webdataset", "datasets", "pyarrow")
OFFLINE = {"LITDATA_DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def resident_mb() -> tuple[float, float]:
    """Resident memory now and at its peak; NaN where the system does not tell."""
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        now, peak = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
        return now, peak
    return float("nan"), float("nan")


def forget_peak() -> None:
    """Let the peak of resident memory begin anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def counted_bytes(loader: Loader, batch: Any) -> int:
    """Bytes of a batch, which those without tensors give as a number."""
    return batch if isinstance(batch, int) else loader.batch_bytes or batch.numel()


def measure(loader: Loader, work: Path, least_bytes: float) -> dict[str, Any]:
    """One measurement, in this process, which is bound to a core."""
    for name in loader.imports:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    expected_bytes = raw_file(work).stat().st_size
    found: dict[str, Any] = {}
    state = following = None
    delivered = 0
    used_s = 0.0
    forget_peak()
    before_mb, _ = resident_mb()
    passes = max(1, round(least_bytes / expected_bytes))
    at_once = passes if loader.stays_open else 1
    for _ in range(passes // at_once):
        loader.before(work)
        delivered_before = delivered
        begin_s, begin_cpu_s = time.perf_counter(), cpu_s()
        reading = loader.read(work, None, at_once)
        for batch in reading.batches:
            if delivered == 0:
                found["first_batch_s"] = round(time.perf_counter() - begin_s, 4)
            delivered += counted_bytes(loader, batch)
            if reading.state is None or following is not None:
                continue
            if state is not None:
                following = batch.clone()
            elif delivered > expected_bytes // 2:
                state = reading.state()
        reading.close()
        used_s += cpu_s() - begin_cpu_s
        assert delivered - delivered_before > 0.98 * at_once * expected_bytes, "a pass left too much out"
    _, peak_mb = resident_mb()
    found |= {
        "mb_per_cpu_s": delivered / 1e6 / used_s,
        "peak_rss_mb": round(peak_mb - before_mb, 1),
        "epochs": passes,
    }
    if state is not None and following is not None:
        begin_s = time.perf_counter()
        reading = loader.read(work, state, 1)
        batch = next(iter(reading.batches))
        found["resume_s"] = round(time.perf_counter() - begin_s, 4)
        found["resumes_exactly"] = bool((batch == following).all()) if batch.shape == following.shape else False
        reading.close()
    return found


def in_own_process(*words: str) -> str:
    """This program with other words, alone; what it wrote last."""
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, env=OFFLINE | os.environ, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return done.stdout.rstrip().rpartition("\n")[2]


def prepare(data: Path, work: Path, names: Sequence[str]) -> None:
    """Write the data in every form that is to be measured and is not there yet."""
    for level in (3, 9):
        if corpus_folder(work, level).exists():
            continue
        out = str(corpus_folder(work, level))
        command = ["ingest", str(data), "--raw", "--out", out, "--level", str(level), "--validation-fraction", "0"]
        subprocess.run([sys.executable, "-m", "bytelm.cli", *command], check=True, stdout=subprocess.DEVNULL)
    from bytelm.data.shards import Corpus

    if not raw_file(work).exists():
        with raw_file(work).open("wb") as file:
            for document in Corpus.open(corpus_folder(work, 3)).documents("train"):
                file.write(document)
    for name in names:
        mark = work / f"{name}.written"
        if loaders()[name].prepare is not None and not mark.exists():
            print(f"writing what {name} reads", file=sys.stderr)
            in_own_process("--prepare", name, "--work", str(work))
            mark.touch()


def absent(loader: Loader) -> str | None:
    """Why a loader cannot run here."""
    for library in loader.needs:
        try:
            importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            return f"the library {library} is not installed; pip install 'bytelm[bench]'"
    if loader.program is not None and shutil.which(loader.program) is None:
        return f"the program {loader.program} is not installed"
    return None


def versions() -> dict[str, str]:
    """Versions of the libraries and of the zstd program."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if shutil.which("zstd"):
        done = subprocess.run(["zstd", "-qV"], check=True, capture_output=True, text=True)
        found["zstd program"] = done.stdout.strip()
    return found


def summary(rounds: dict[str, list[dict[str, Any]]], work: Path) -> dict[str, Any]:
    """The JSON object, but for what names the run."""

    def values(name: str, what: str) -> list[float]:
        return [one[what] for one in rounds[name] if what in one]

    def middle(name: str, what: str, digits: int) -> float | None:
        found = values(name, what)
        return round(statistics.median(found), digits) if found else None

    def ratio(to: str) -> dict[str, Any] | None:
        if to not in rounds or OURS not in rounds:
            return None
        found = [
            ours / other for ours, other in zip(values(OURS, "mb_per_cpu_s"), values(to, "mb_per_cpu_s"), strict=True)
        ]
        return {"median": round(statistics.median(found), 3), "spread": [round(min(found), 3), round(max(found), 3)]}

    ratios = {name: ratio(to) for name, to in RATIOS.items()}
    raw_bytes = raw_file(work).stat().st_size
    packed = {f"zstd {level}": packed_file(work, level) for level in (3, 19)}
    return {
        "mb_per_cpu_s": {name: middle(name, "mb_per_cpu_s", 1) for name in rounds},
        **{name: found["median"] if found else None for name, found in ratios.items()},
        **(
            {what: middle(OURS, what, 4) for what in ("peak_rss_mb", "first_batch_s", "resume_s")}
            if OURS in rounds
            else {}
        ),
        "ratio_spread": {name: found["spread"] for name, found in ratios.items() if found},
        "by_loader": {
            name: {
                "mb_per_cpu_s_spread": [round(of(values(name, "mb_per_cpu_s")), 1) for of in (min, max)],
                "peak_rss_mb": middle(name, "peak_rss_mb", 1),
                "first_batch_s": middle(name, "first_batch_s", 4),
                "resume_s": middle(name, "resume_s", 4),
                "resumes_exactly": all(values(name, "resumes_exactly")) if values(name, "resumes_exactly") else None,
                "epochs": rounds[name][0]["epochs"],
            }
            for name in rounds
        },
        "raw_bytes": raw_bytes,
        "packed_bytes": {
            **{name: path.stat().st_size for name, path in packed.items() if path.exists()},
            **{
                f"corpus level {level}": sum(path.stat().st_size for path in corpus_folder(work, level).glob("*.zst"))
                for level in (3, 9)
            },
        },
    }


def main() -> None:
    """Measure everything and print."""
    parser = argparse.ArgumentParser(description="See the beginning of this file.")
    parser.add_argument("--data", type=Path, help="folder of raw files; default: the Python standard library")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one repeat, one epoch, without zstd 19")
    parser.add_argument("--only", nargs="*", help="names of loaders")
    parser.add_argument(
        "--work", type=Path, help="folder for what is written, used again if it is there; default: one that goes again"
    )
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--least-bytes", type=float, default=1e9, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        write = loaders()[options.prepare].prepare
        assert write is not None
        write(options.work)
        return
    if options.measure:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(measure(loaders()[options.measure], options.work, options.least_bytes)))
        return

    from machine import machine

    repeats, least_bytes = (1, 0.0) if options.quick else (options.repeats, options.least_bytes)
    wanted = options.only or [name for name in loaders() if not (options.quick and name == "zstd 19")]
    missing = {name: reason for name in wanted if (reason := absent(loaders()[name])) is not None}
    names = [name for name in wanted if name not in missing]
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-loader-")))
        work.mkdir(parents=True, exist_ok=True)
        data = options.data or standard_library(work / "files")
        prepare(data, work, names)
        for path in work.rglob("*"):  # into the page cache
            if path.is_file() and not path.is_relative_to(work / "files"):
                path.read_bytes()
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(repeats):
            for name in names:
                words = ["--measure", name, "--work", str(work), "--least-bytes", str(least_bytes)]
                found = json.loads(in_own_process(*words))
                rounds[name].append(found)
                print(
                    f"{number + 1}/{repeats} {name:28} {found['mb_per_cpu_s']:7.0f} MB per CPU-second", file=sys.stderr
                )
        report = summary(rounds, work)
    print_table(report, missing)
    facts = {
        "machine": machine(),
        "versions": versions(),
        "bound_to_one_core": hasattr(os, "sched_setaffinity"),
        "data": str(options.data) if options.data else "the Python standard library",
        "repeats": repeats,
        "absent": missing,
    }
    print(json.dumps(report | facts))


def print_table(report: dict[str, Any], missing: dict[str, str]) -> None:
    """The figures for people."""
    titles = ("MB per CPU-second", "(least–most)", "peak MB", "first batch", "resumed", "at the next batch")
    print(f"{'':28}" + "".join(f"{title:>19}" for title in titles))
    for name, speed in report["mb_per_cpu_s"].items():
        row = report["by_loader"][name]
        least, most = row["mb_per_cpu_s_spread"]
        cells = [f"{speed:.0f}", f"({least:.0f}–{most:.0f})", f"{row['peak_rss_mb']:.0f}"]
        cells += ["–" if row[what] is None else f"{row[what]:.3f} s" for what in ("first_batch_s", "resume_s")]
        cells.append({None: "–", True: "yes", False: "no"}[row["resumes_exactly"]])
        print(f"{name:28}" + "".join(f"{cell:>19}" for cell in cells))
    for name, reason in missing.items():
        print(f"{name:28} absent: {reason}")


if __name__ == "__main__":
    main()
