"""Texts that a decoding benchmark continues: code, prose, random bytes, and a text that repeats itself.

    python tests/bench/held_out.py --code FOLDER… --prose FOLDER… --out OUT [--kibibytes 128]

The folders hold texts that the model was not trained on; each gives a document in turn, so that none is most of its
kind. OUT gets ``code-…`` and ``prose-…`` from them, and ``random`` and ``repetitive``, which are made. The same folders
give the same files.
"""

import argparse
import random
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bytelm.quickstart import unpack_sample

KINDS: Final = ("code", "prose", "random", "repetitive")
_LONGEST: Final = 16 << 10  # bytes of a document


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


def assemble(code: Sequence[Path], prose: Sequence[Path], out: Path, size: int) -> dict[str, int]:
    """Write a folder of held-out texts.

    Args:
        code: Folders of programs.
        prose: Folders of other texts.
        out: Made where it is missing; files that it held of these names go.
        size: Bytes of each kind, about.

    Returns:
        Bytes by kind.
    """
    out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        for old in out.glob(f"{kind}*"):
            old.unlink()
    sizes = {}
    for kind, folders in (("code", code), ("prose", prose)):
        drawn = draw(folders, size)
        for place, (suffix, data) in enumerate(drawn):
            (out / f"{kind}-{place:03}{suffix}").write_bytes(data)
        sizes[kind] = sum(len(data) for _, data in drawn)
    for kind, data in (("random", random_bytes()), ("repetitive", repeating_text())):
        (out / kind).write_bytes(data)
        sizes[kind] = len(data)
    return sizes


def texts(folder: Path | None) -> dict[str, bytes]:
    """Held-out bytes of each kind from files named ``code*``, ``prose*``, ``random*`` and ``repetitive*``.

    Kinds that are missing are taken from Python's standard library and the shipped sample, or made.
    """
    found = {kind: _joined(folder.glob(f"{kind}*") if folder else ()) for kind in KINDS}
    found["code"] = found["code"] or _joined(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40])
    if not found["prose"]:
        with tempfile.TemporaryDirectory() as unpacked:
            unpack_sample(Path(unpacked))
            found["prose"] = max((file.read_bytes() for file in Path(unpacked).rglob("*") if file.is_file()), key=len)
    found["random"] = found["random"] or random_bytes()
    found["repetitive"] = found["repetitive"] or repeating_text()
    return found


def prompts_of(data: bytes, count: int, length: int, seed: int) -> list[bytes]:
    """Pieces from random places."""
    source = random.Random(seed)
    return [data[place : place + length] for place in (source.randrange(len(data) - length) for _ in range(count))]


def _joined(files: Iterable[Path]) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(files))


def main() -> None:
    """Assemble a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, nargs="+", required=True)
    parser.add_argument("--prose", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kibibytes", type=int, default=128)
    arguments = parser.parse_args()
    sizes = assemble(arguments.code, arguments.prose, arguments.out, arguments.kibibytes << 10)
    for kind, size in sizes.items():
        print(f"{kind}: {size:,} bytes")


if __name__ == "__main__":
    main()
