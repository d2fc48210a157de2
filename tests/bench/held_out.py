"""Texts that a decoding benchmark continues: programs, documentation, prose, and texts that a model cannot know.

    python tests/bench/held_out.py --out OUT python=FOLDER go=FOLDER docs=FOLDER,FOLDER prose=FOLDER … [--kibibytes 128]

The folders hold texts that the model was not trained on; each gives a document in turn, so that none is most of its
kind. OUT gets ``python-…``, ``go-…`` and so on from them. The same folders give the same files.

What is made needs no folder: ``random`` (bytes that nothing can foresee), ``base64`` (the same in 64 letters and lines
of 76), ``repetitive`` (a table whose lines hardly differ). By default ``unseen`` is a text in Georgian and in Finnish,
from the sample; the model that ships has read neither language.
"""

import argparse
import base64
import importlib.resources
import io
import random
import sysconfig
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import zstandard

KINDS: Final = ("python", "go", "rust", "docs", "prose", "unseen", "random", "base64", "repetitive")
_FROM_FOLDERS: Final = KINDS[:6]
_LONGEST: Final = 16 << 10  # bytes of a document
_UNSEEN: Final = ("udhr/kat.txt", "udhr/fin.txt")


def random_bytes(size: int = 1 << 15) -> bytes:
    """Bytes that nothing can foresee."""
    return random.Random(0).randbytes(size)


def repeating_text(lines: int = 600) -> bytes:
    """A table whose lines differ in a number that changes now and then."""
    line = b"name,%d,the same words in every line of a long table;\n"
    return b"".join(line % (row // 40) for row in range(lines))


def draw(folders: Sequence[Path], size: int) -> list[tuple[str, bytes]]:
    """Documents of folders, one of each in turn, in an order that depends on their names alone.

    Args:
        folders: Searched to the bottom.
        size: Bytes at which to stop.

    Returns:
        Suffix and the first bytes of each document.
    """
    left = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 0)
        random.Random(folder.name).shuffle(files)
        left.append(files)
    drawn: list[tuple[str, bytes]] = []
    while any(left) and sum(len(data) for _, data in drawn) < size:
        for files in left:
            if files:
                path = files.pop()
                drawn.append((path.suffix, path.read_bytes()[:_LONGEST]))
    return drawn


def assemble(kinds: dict[str, Sequence[Path]], out: Path, size: int) -> dict[str, int]:
    """Write a folder of held-out texts.

    Args:
        kinds: Folders of each kind.
        out: Made where it is missing; files that it held of these kinds go.
        size: Bytes of each kind, about.

    Returns:
        Bytes by kind.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for kind, folders in kinds.items():
        for old in out.glob(f"{kind}-*"):
            old.unlink()
        drawn = draw(folders, size)
        for place, (suffix, data) in enumerate(drawn):
            (out / f"{kind}-{place:03}{suffix}").write_bytes(data)
        sizes[kind] = sum(len(data) for _, data in drawn)
    return sizes


def texts(folder: Path | None) -> dict[str, bytes]:
    """Bytes of each kind: from the folder's files ``KIND-…``, else made, or left out where nothing can stand for it.

    Without a folder ``python`` is Python's standard library and ``prose`` the sample's Shakespeare, which the model
    that ships has read.
    """
    found = {kind: _joined(folder.glob(f"{kind}-*") if folder else ()) for kind in KINDS}
    found["python"] = found["python"] or _joined(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40])
    found["prose"] = found["prose"] or _sample(("tinyshakespeare.txt",))
    found["unseen"] = found["unseen"] or _sample(_UNSEEN)
    found["random"] = random_bytes()
    found["base64"] = base64.encodebytes(random_bytes())
    found["repetitive"] = repeating_text()
    return {kind: data for kind, data in found.items() if data}


def prompts_of(data: bytes, count: int, length: int, seed: int) -> list[bytes]:
    """Pieces from random places."""
    source = random.Random(seed)
    return [data[place : place + length] for place in (source.randrange(len(data) - length) for _ in range(count))]


def _joined(files: Iterable[Path]) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(files))


def _sample(names: Sequence[str]) -> bytes:
    """Files of the sample that ships, a kibibyte of each in turn, so that both halves hold all of them."""
    packed = importlib.resources.files("bytelm.data").joinpath("sample.tar.zst").read_bytes()
    parts = []
    with (
        zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as tar,
        tarfile.open(fileobj=tar, mode="r|") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.name in names else None
            if file is not None:
                data = file.read()
                parts.append([data[place : place + 1024] for place in range(0, len(data), 1024)])
    shortest = min(map(len, parts))
    return b"".join(piece for place in range(shortest) for piece in (part[place] for part in parts))


def main() -> None:
    """Assemble a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", metavar="KIND=FOLDER,…", help=f"kinds: {', '.join(_FROM_FOLDERS)}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kibibytes", type=int, default=128, help="of each kind, about")
    arguments = parser.parse_args()
    kinds: dict[str, Sequence[Path]] = {}
    for one in arguments.kinds:
        kind, _, folders = one.partition("=")
        if kind not in _FROM_FOLDERS or not folders:
            parser.error(f"{one} is no KIND=FOLDER,…; kinds are {', '.join(_FROM_FOLDERS)}")
        kinds[kind] = [Path(folder) for folder in folders.split(",")]
        for folder in kinds[kind]:
            if not folder.is_dir():
                parser.error(f"{folder} is no folder")
    for kind, size in assemble(kinds, arguments.out, arguments.kibibytes << 10).items():
        print(f"{kind}: {size:,} bytes")


if __name__ == "__main__":
    main()
