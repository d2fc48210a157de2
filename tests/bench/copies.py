"""Documents that repeat themselves, for a model that has to learn to copy from its context.

    python tests/bench/copies.py --from FOLDER --out OUT [--megabytes 16] [--seed 0]

A small model reads few documents that show the same thing twice, and learns to copy late or never. Each document made
here is a piece of a file of FOLDER (40 to 700 bytes, cut at line ends where there are some), once more after none or
some other text of the same file, and perhaps again: a table shown twice, a name used again, a paragraph quoted. Nothing
else is invented. The same folder and seed give the same documents.
"""

import argparse
import random
from pathlib import Path
from typing import Final

_PIECE: Final = (40, 700)
_BETWEEN: Final = (0, 300)
_TIMES: Final = (2, 2, 2, 3, 4)
_LONGEST: Final = 4096


def cut(text: bytes, generator: random.Random, sizes: tuple[int, int]) -> bytes:
    """A piece of a text of about so many bytes, whole lines where its place has line ends near."""
    size = min(generator.randint(*sizes), len(text))
    begin = generator.randint(0, len(text) - size)
    piece = text[begin : begin + size]
    first, last = piece.find(b"\n"), piece.rfind(b"\n")
    return piece[first + 1 : last + 1] if 0 <= first < last and last - first > size // 2 else piece


def document(text: bytes, generator: random.Random) -> bytes:
    """A piece, and the same again one to three times, with other text of its file between."""
    piece = cut(text, generator, _PIECE)
    parts = [piece]
    for _ in range(generator.choice(_TIMES) - 1):
        parts += [cut(text, generator, _BETWEEN) if generator.random() < 0.7 else b"", piece]
    return b"".join(parts)[:_LONGEST]


def main() -> None:
    """Write the documents, a thousand in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=16.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    files = sorted(path for path in options.source.rglob("*") if path.is_file() and path.stat().st_size > 2 * _PIECE[0])
    if not files:
        parser.error(f"{options.source} has no file of more than {2 * _PIECE[0]} bytes")
    left, number = options.megabytes * 1e6, 0
    while left > 0:
        made = document(generator.choice(files).read_bytes(), generator)
        folder = options.out / f"{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.txt").write_bytes(made)
        left -= len(made)
        number += 1
    print(f"{number} documents in {options.out}")


if __name__ == "__main__":
    main()
