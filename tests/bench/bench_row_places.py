"""With which row counts does a row of a float32 product get the same bits wherever it stands?

    python tests/bench/bench_row_places.py

For each row count and number of threads: products of 80 shapes, the same row at every place among random others. The
last line is one JSON object with the share of shapes whose bits are the same at every place, and the same as alone.
"""

import itertools
import json

import torch
import torch.nn.functional as F
from machine import machine

INNER = (32, 64, 128, 320, 352, 384, 576, 864, 1024, 1536)
OUTER = (64, 128, 256, 320, 384, 704, 1024, 2560)
ROWS = (2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32, 33)


def same_bits(rows: int, inner: int, outer: int) -> tuple[bool, bool]:
    """Whether a row's bits are the same at every place, and the same as alone."""
    weight, row = torch.randn(outer, inner), torch.randn(1, inner)
    results = []
    for place in range(rows):
        inputs = torch.randn(rows, inner)
        inputs[place] = row
        results.append(F.linear(inputs, weight)[place])
    everywhere = all(torch.equal(result, results[0]) for result in results)
    return everywhere, torch.equal(results[0], F.linear(row, weight)[0])


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    shapes = list(itertools.product(INNER, OUTER))
    shares = {}
    for threads, rows in itertools.product((1, 2), ROWS):
        torch.set_num_threads(threads)
        outcomes = [same_bits(rows, inner, outer) for inner, outer in shapes]
        shares[f"threads={threads} rows={rows}"] = {
            "same_at_every_place": sum(everywhere for everywhere, _ in outcomes) / len(shapes),
            "same_as_alone": sum(alone for _, alone in outcomes) / len(shapes),
        }
    print(json.dumps({"machine": machine(), "shapes": len(shapes), "shares": shares}))


if __name__ == "__main__":
    main()
