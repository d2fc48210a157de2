"""The loaders that bench_loader.py compares, each behind the same three words: prepare, read, state.

Each is used as its own documentation says a local training should use it, in the fastest form found, in the process
that trains: a worker process more would add the cost of handing over to each, and nothing that one core can use. All
give uint8 tensors of (B, T) or (B, T + K); T bytes a window are counted. What each does besides:

    zstd 3, zstd 19     the program itself, one file, to nowhere: decodes and verifies its checksum. No windows
    bare frames         the frames of our corpus one after another, zstd's readinto into one buffer, places from the
                        seek table. zstd verifies its own checksum; no hash of ours, no windows
    checked frames      the same frames through ShardReader: hash of the packed bytes, which takes the place of zstd's
                        checksum, hash of the document table
    bytelm              WindowLoader: all of that, shuffled windows of T + K bytes with document boundaries; resumes
                        exactly, on any number of ranks
    memory map          the raw bytes uncompressed, windows in a random permutation of all of them, copied into a
                        batch; resumes exactly. No compression, no checksums, no boundaries
    litdata raw         StreamingDataset and StreamingDataLoader with TokensLoader: uint8 chunks of 64 MB, uncompressed,
                        memory-mapped; chunks shuffled, then blocks of 256 windows and windows in them; resumes. No
                        checksums, no boundaries
    litdata zstd        the same with chunks compressed whole at level 3: it decompresses each into a file, which takes
                        the compressed one's place in the folder, and maps that. Before each pass the folder is as it
                        was written, which makes it a first epoch; later ones are "litdata raw". No checksums
    webdataset          tar files of 64 MB, one window a member, uncompressed; tars shuffled, then a buffer of 16 MiB.
                        No checksums; no resume: a second run begins elsewhere
    datasets parquet    Hugging Face datasets, streaming, a window a row, zstd level 3, Arrow tables, which is its fast
                        form; files shuffled, then a buffer of 16 MiB; resumes without what was in the buffer. No
                        checksums (those of parquet's pages are off by default)
    datasets jsonl.zst  the same over lines of at most 8,192 characters of a document (it reads the rest of a line, in
                        which a block of 10 MB ends, byte by byte: long lines cost seconds), encoded, joined and cut
                        into windows here. JSON holds text: bytes that are not UTF-8 arrive as U+FFFD
"""

import contextlib
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

SEED = 0
HEADS = 8
BUFFER_BYTES = 16 << 20
CHUNK_BYTES = 64_000_000
STORED_WINDOW = 8192  # windows that a peer must cut when it writes


@dataclass
class Reading:
    """One pass over the data that has begun, or several.

    Attributes:
        batches: uint8 tensors, until they are over.
        state: Where it is, for ``Loader.read``; None where the loader knows no way back.
        close: Ends it.
    """

    batches: Iterator[Any]
    state: Callable[[], Any] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Loader:
    """One loader.

    Attributes:
        read: Begins a number of passes over what is in the work folder, the first at a state if one is given.
        stays_open: Whether that number may be above 1: then the same loader gives one epoch after another, as it does
            in a training.
        prepare: Writes its files into the work folder; None where it reads those of others.
        needs: Distributions without which it is absent.
        program: A program without which it is absent.
        imports: Modules that are imported before anything is measured.
        batch_bytes: Bytes that count of one batch; None where they are those of its tensor.
        before: Makes the next pass like the first.
    """

    read: Callable[[Path, Any, int], Reading]
    prepare: Callable[[Path], None] | None = None
    needs: tuple[str, ...] = ()
    program: str | None = None
    imports: tuple[str, ...] = ()
    batch_bytes: int | None = None
    before: Callable[[Path], None] = field(default=lambda _: None)
    stays_open: bool = True


def raw_file(work: Path) -> Path:
    """The bytes that everyone delivers, one document behind the other."""
    return work / "raw"


def corpus_folder(work: Path, level: int) -> Path:
    """The same as a corpus."""
    return work / f"corpus-{level}"


def packed_file(work: Path, level: int) -> Path:
    """The same as one zstd file."""
    return work / f"raw.{level}.zst"


# --- zstd and our own frames


def _read_zstd(level: int) -> Callable[[Path, Any, int], Reading]:
    def batches(work: Path) -> Iterator[int]:
        subprocess.run(["zstd", "-dcq", str(packed_file(work, level))], check=True, stdout=subprocess.DEVNULL)
        yield raw_file(work).stat().st_size

    return lambda work, *_: Reading(batches(work))


def _prepare_zstd(level: int) -> Callable[[Path], None]:
    def prepare(work: Path) -> None:
        out = str(packed_file(work, level))
        subprocess.run(["zstd", "-qf", f"-{level}", "-T0", str(raw_file(work)), "-o", out], check=True)

    return prepare


def _frames(shard: Path) -> list[tuple[int, int, int]]:
    """Offset, packed and raw bytes of each frame, from the seek table that zstd's seekable format defines."""
    with shard.open("rb") as file:
        file.seek(-9, os.SEEK_END)
        count, _, magic = struct.unpack("<IBI", file.read())
        assert magic == 0x8F92EAB1
        file.seek(-9 - 8 * count, os.SEEK_END)
        entries = file.read(8 * count)
    found, offset = [], 0
    for packed, raw in struct.iter_unpack("<II", entries):
        if raw:  # skippable frames stand there with none
            found.append((offset, packed, raw))
        offset += packed
    return found


def _read_bare(work: Path, state: Any, passes: int) -> Reading:
    import zstandard

    del state, passes
    decompressor = zstandard.ZstdDecompressor()

    def batches() -> Iterator[int]:
        buffer = memoryview(bytearray(1 << 20))
        for shard in sorted(corpus_folder(work, 3).glob("train-*.zst")):
            frames = _frames(shard)
            descriptor = os.open(shard, os.O_RDONLY)
            try:
                for offset, packed, raw in frames:
                    with decompressor.stream_reader(os.pread(descriptor, packed, offset)) as stream:
                        assert stream.readinto(buffer[:raw]) == raw
                    yield raw
            finally:
                os.close(descriptor)

    return Reading(batches())


def _read_checked(work: Path, state: Any, passes: int) -> Reading:
    import zstandard

    from bytelm.data.shards import Corpus

    del state, passes
    corpus = Corpus.open(corpus_folder(work, 3))
    decompressor = zstandard.ZstdDecompressor()

    def batches() -> Iterator[int]:
        buffer = memoryview(bytearray(corpus.frame_bytes))
        for entry in corpus.shards("train"):
            reader = corpus.open_shard(entry)
            for frame in range(reader.frames):
                raw = reader.frame_size(frame)
                reader.read_frame(frame, buffer[:raw], decompressor)
                yield raw

    return Reading(batches())


def _bytelm(level: int, window_bytes: int, batch_windows: int) -> Loader:
    def read(work: Path, state: Any, passes: int) -> Reading:
        from bytelm.data.loader import WindowLoader, windows_of
        from bytelm.data.shards import Corpus

        corpus = Corpus.open(corpus_folder(work, level))
        settings: dict[str, Any] = {"window_bytes": window_bytes, "prediction_heads": HEADS, "seed": SEED}
        windows = passes * windows_of(corpus, "train", "stream", **settings).windows_per_epoch
        loader = WindowLoader(
            corpus, batch_windows=batch_windows, end_window=windows // batch_windows * batch_windows, **settings
        )
        if state is not None:
            loader.load_state_dict(state)

        def batches() -> Iterator[Any]:
            for batch in loader:
                yield batch.windows_BW

        return Reading(batches(), loader.state_dict, loader.close)

    return Loader(
        read,
        imports=("torch", "bytelm.data.loader", "bytelm.data.shards"),
        batch_bytes=window_bytes * batch_windows,
    )


# --- A permuted memory map


def _memory_map(window_bytes: int, batch_windows: int) -> Loader:
    def read(work: Path, state: Any, passes: int) -> Reading:
        import numpy as np
        import torch

        data = np.memmap(raw_file(work), np.uint8, "r")
        windows_NT = data[: len(data) // window_bytes * window_bytes].reshape(-1, window_bytes)
        draws = np.random.default_rng(SEED)
        order_N = np.concatenate([draws.permutation(len(windows_NT)) for _ in range(passes)])
        at = state or 0

        def batches() -> Iterator[Any]:
            nonlocal at
            while at + batch_windows <= len(order_N):
                rows_B = order_N[at : at + batch_windows]
                at += batch_windows
                yield torch.from_numpy(windows_NT[rows_B])

        return Reading(batches(), lambda: at)

    return Loader(read, imports=("torch", "numpy"))


# --- litdata


def uint8_blocks(path: str) -> Iterator[Any]:
    """The bytes of a file as tensors of a megabyte, as litdata asks for them; found by name in its own process."""
    import torch

    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            yield torch.frombuffer(bytearray(block), dtype=torch.uint8)


def _prepare_litdata(folder: str, compression: str | None) -> Callable[[Path], None]:
    def prepare(work: Path) -> None:
        litdata = importlib.import_module("litdata")
        more = {"compression": compression, "compression_level": "chunk"} if compression else {}
        with contextlib.redirect_stdout(sys.stderr):
            litdata.optimize(
                fn=uint8_blocks,
                inputs=[str(raw_file(work))],
                output_dir=str(work / folder),
                chunk_bytes=CHUNK_BYTES,
                item_loader=litdata.TokensLoader(),
                num_workers=1,
                reorder_files=False,
                verbose=False,
                **more,
            )

    return prepare


def _litdata(compression: str | None, window_bytes: int, batch_windows: int) -> Loader:
    written = "litdata" if compression is None else "litdata-zstd"
    folder = written if compression is None else "litdata-zstd-read"

    def read(work: Path, state: Any, passes: int) -> Reading:
        litdata = importlib.import_module("litdata")
        dataset = litdata.StreamingDataset(
            str(work / folder),
            item_loader=litdata.TokensLoader(block_size=window_bytes),
            shuffle=True,
            drop_last=True,
            seed=SEED,
        )
        loader = litdata.StreamingDataLoader(dataset, batch_size=batch_windows, num_workers=0, drop_last=True)
        if state is not None:
            loader.load_state_dict(state)
        return Reading(chain.from_iterable(loader for _ in range(passes)), loader.state_dict)

    def restore(work: Path) -> None:
        shutil.rmtree(work / folder, ignore_errors=True)
        shutil.copytree(work / written, work / folder, copy_function=os.link)

    return Loader(
        read,
        prepare=_prepare_litdata(written, compression),
        needs=("litdata", "zstd") if compression else ("litdata",),
        imports=("torch", "litdata"),
        before=restore if compression else lambda _: None,
        stays_open=compression is None,
    )


# --- Peers that store windows as records


def _stored_windows(work: Path) -> Iterator[bytes]:
    with raw_file(work).open("rb") as file:
        while len(window := file.read(STORED_WINDOW)) == STORED_WINDOW:
            yield window


def _joined(rows: list[bytes]) -> Any:
    import torch

    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)


def _prepare_webdataset(work: Path) -> None:
    webdataset = importlib.import_module("webdataset")
    folder = work / "webdataset"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxsize=CHUNK_BYTES, maxcount=1 << 40, verbose=0) as sink:
        for number, window in enumerate(_stored_windows(work)):
            sink.write({"__key__": f"{number:09d}", "bin": window})


def _read_webdataset(batch_windows: int) -> Callable[[Path, Any, int], Reading]:
    def read(work: Path, state: Any, passes: int) -> Reading:
        del state
        webdataset = importlib.import_module("webdataset")
        tars = sorted(map(str, (work / "webdataset").glob("*.tar")))
        dataset = (
            webdataset.WebDataset(tars, shardshuffle=len(tars), seed=SEED)
            .shuffle(BUFFER_BYTES // STORED_WINDOW)
            .to_tuple("bin")
            .batched(batch_windows, collation_fn=None, partial=False)
        )
        return Reading(_joined([row for (row,) in rows]) for rows in chain.from_iterable([dataset] * passes))

    return read


def _prepare_parquet(work: Path) -> None:
    import itertools

    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    folder = work / "parquet"
    folder.mkdir()
    windows = _stored_windows(work)
    for number in itertools.count():
        rows = list(itertools.islice(windows, CHUNK_BYTES // STORED_WINDOW))
        if not rows:
            return
        table = pyarrow.table({"window": pyarrow.array(rows, pyarrow.binary())})
        place = folder / f"{number:05d}.parquet"
        parquet.write_table(
            table, place, compression="zstd", compression_level=3, row_group_size=1024, use_dictionary=False
        )


def _datasets_stream(kind: str, files: list[Path], batch_rows: int, state: Any, passes: int) -> tuple[Any, Any]:
    datasets = importlib.import_module("datasets")
    datasets.logging.set_verbosity_error()  # it says each time that a resumed buffer begins empty
    names = [str(path) for path in files]
    stream = datasets.load_dataset(kind, data_files=names, streaming=True, split="train")
    stream = stream.shuffle(seed=SEED, buffer_size=BUFFER_BYTES // STORED_WINDOW).with_format("arrow")
    if state is not None:
        stream.load_state_dict(state)

    def tables() -> Iterator[Any]:
        for epoch in range(passes):
            stream.set_epoch(epoch)
            yield from stream.iter(batch_size=batch_rows, drop_last_batch=True)

    return stream, tables()


def _read_parquet(batch_windows: int) -> Callable[[Path, Any, int], Reading]:
    def read(work: Path, state: Any, passes: int) -> Reading:
        files = sorted((work / "parquet").glob("*.parquet"))
        stream, tables = _datasets_stream("parquet", files, batch_windows, state, passes)
        return Reading((_joined(table.column("window").to_pylist()) for table in tables), stream.state_dict)

    return read


def _prepare_jsonl(work: Path) -> None:
    import zstandard

    from bytelm.data.shards import Corpus

    folder = work / "jsonl"
    folder.mkdir()
    corpus = Corpus.open(corpus_folder(work, 3))
    documents = corpus.documents("train")
    for number in range(1 << 20):
        written = 0
        place = folder / f"{number:05d}.jsonl.zst"
        with place.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as packed:
            while written < CHUNK_BYTES and (document := next(documents, None)) is not None:
                text = document.decode("utf-8", "replace")
                for begin in range(0, len(text), STORED_WINDOW):
                    line = {"text": text[begin : begin + STORED_WINDOW]}
                    packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                written += len(document)
        if not written:
            place.unlink()
            return


def _read_jsonl(window_bytes: int, batch_windows: int) -> Callable[[Path, Any, int], Reading]:
    batch_bytes = window_bytes * batch_windows

    def read(work: Path, state: Any, passes: int) -> Reading:
        import torch

        files = sorted((work / "jsonl").glob("*.zst"))
        stream, tables = _datasets_stream("json", files, 64, state, passes)

        def batches() -> Iterator[Any]:
            gathered = bytearray()
            for table in tables:
                for text in table.column("text").to_pylist():
                    gathered += text.encode()
                while len(gathered) >= batch_bytes:
                    yield torch.frombuffer(gathered[:batch_bytes], dtype=torch.uint8).view(batch_windows, -1)
                    del gathered[:batch_bytes]

        return Reading(batches(), stream.state_dict)

    return read


def loaders() -> Mapping[str, Loader]:
    """Every loader by name."""
    return {
        "zstd 3": Loader(_read_zstd(3), _prepare_zstd(3), program="zstd", stays_open=False),
        "zstd 19": Loader(_read_zstd(19), _prepare_zstd(19), program="zstd", stays_open=False),
        "bare frames": Loader(_read_bare, imports=("torch", "zstandard"), stays_open=False),
        "checked frames": Loader(_read_checked, imports=("torch", "zstandard", "bytelm.data.shards"), stays_open=False),
        "bytelm 8192x16": _bytelm(3, 8192, 16),
        "bytelm 2048x16": _bytelm(3, 2048, 16),
        "bytelm 512x8": _bytelm(3, 512, 8),
        "bytelm 8192x16 level 9": _bytelm(9, 8192, 16),
        "memory map 8192x16": _memory_map(8192, 16),
        "litdata raw 8192x16": _litdata(None, 8192, 16),
        "litdata zstd 8192x16": _litdata("zstd:3", 8192, 16),
        "webdataset 8192x16": Loader(
            _read_webdataset(16), _prepare_webdataset, needs=("webdataset",), imports=("torch", "webdataset")
        ),
        "datasets parquet 8192x16": Loader(
            _read_parquet(16), _prepare_parquet, needs=("datasets", "pyarrow"), imports=("torch", "datasets")
        ),
        "datasets jsonl.zst 8192x16": Loader(
            _read_jsonl(8192, 16), _prepare_jsonl, needs=("datasets",), imports=("torch", "datasets")
        ),
    }
