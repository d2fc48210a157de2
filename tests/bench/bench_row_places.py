"""With which row counts does a row get the same bits wherever it stands, and the same as among 8 rows?

    python tests/bench/bench_row_places.py

For each kernel, row count and number of threads: products of 40 shapes and attention of 20, the same row at four
places among random others. The last line is one JSON object with the share of shapes whose bits are the same at all
places, the same as alone, and the same as those of 8 rows.
"""

import itertools
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor

from bytelm import packed
from bytelm.packed import PackedWeight

INNER = (32, 64, 128, 320, 352, 384, 576, 864, 1024, 1536)
OUTER = (64, 320, 704, 2560)
ROWS = (2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 32, 33, 48)
Compute = Callable[[Tensor], Tensor]


def products(dtype: torch.dtype, *, in_layout: bool) -> list[tuple[int, Compute]]:
    """Width of a row and what computes it, for every shape."""
    found: list[tuple[int, Compute]] = []
    for inner, outer in itertools.product(INNER, OUTER):
        weight = torch.randn(outer, inner).to(dtype)
        product = PackedWeight.of(weight) if in_layout else None
        found.append((inner, product.product if product else lambda rows, weight=weight: F.linear(rows, weight)))
    return found


def attentions(dtype: torch.dtype) -> list[tuple[int, Compute]]:
    """Width of a query row and what attends, for numbers of heads, channels and keys."""
    found: list[tuple[int, Compute]] = []
    for (groups, channels), keys in itertools.product(
        ((1, 16), (2, 32), (5, 32), (8, 64), (3, 64)), (128, 256, 640, 2048)
    ):
        key, value = torch.randn(2, 1, groups, keys, channels).to(dtype)
        bias = torch.zeros(1, keys, dtype=dtype)
        bias[:, keys - 60 :] = -torch.inf

        def attend(rows: Tensor, key: Tensor = key, value: Tensor = value, bias: Tensor = bias) -> Tensor:
            query = rows.view(1, len(rows), key.shape[1], -1).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(query, key, value, bias.repeat(len(rows), 1))
            return mixed.transpose(1, 2).reshape(len(rows), -1)

        found.append((groups * channels, attend))
    return found


def same_bits(rows: int, width: int, compute: Compute, dtype: torch.dtype) -> tuple[bool, bool, bool]:
    """Whether a row's bits are the same at every place, as alone, and as among 8 rows."""
    row = torch.randn(1, width).to(dtype)

    def at(place: int, rows: int) -> Tensor:
        inputs = torch.randn(rows, width).to(dtype)
        inputs[place] = row
        return compute(inputs)[place]

    results = [at(place, rows) for place in sorted({0, 1, rows // 2, rows - 1})]
    everywhere = all(torch.equal(result, results[0]) for result in results)
    return everywhere, torch.equal(results[0], at(0, 1)), torch.equal(results[0], at(0, 8))


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    packed.SMALLEST = 0  # the question is that of bits, for every shape
    shares = {}
    for dtype in (torch.float32, torch.bfloat16):
        kernels = {
            "product": products(dtype, in_layout=False),
            "packed product": products(dtype, in_layout=True),
            "attention": attentions(dtype),
        }
        for (name, shapes), threads, rows in itertools.product(kernels.items(), (1, 2), ROWS):
            torch.set_num_threads(threads)
            outcomes = [same_bits(rows, width, compute, dtype) for width, compute in shapes]
            titles = ("same_at_every_place", "same_as_alone", "same_as_8_rows")
            shares[f"{name}, {str(dtype).removeprefix('torch.')}, threads={threads}, rows={rows}"] = {
                title: sum(outcome[index] for outcome in outcomes) / len(shapes) for index, title in enumerate(titles)
            }
    print(json.dumps({"machine": machine(), "shares": shares}))


if __name__ == "__main__":
    main()
