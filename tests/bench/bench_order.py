"""How often neighbouring windows come from nearby places of a corpus, beside a full shuffle of all windows.

    python tests/bench/bench_order.py [--frames 30 126 …] [--window-bytes 512 8192] [--epochs 4]

The order is a pure function of the sizes of shards, so no corpus is needed: the shards are as large as an ingestion
makes them, and every frame is full. Counted are pairs of windows that follow each other and begin less than a frame
(256 KiB) apart, and less than 1 MB; in long epochs the pairs of stretches at the beginning, in the middle and at the
end. The full shuffle permutes windows at fixed places. The last line is one JSON object.
"""

import argparse
import json
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray

from bytelm.data.order import ORDER_VERSION, EpochOrder, WindowOrder
from bytelm.data.shard_file import FRAME_BYTES

HEADS = 8
STRETCH = 200_000
NEAR_BYTES = (FRAME_BYTES, 1_000_000)


def shard_sizes(raw_bytes: int) -> NDArray[np.int64]:
    """Shards as an ingestion makes them: a 64th of the corpus each, from 16 to 256 MiB."""
    size = min(max(raw_bytes // 64, 16 << 20), 256 << 20)
    return np.array([min(size, raw_bytes - begin) for begin in range(0, raw_bytes, size)], np.int64)


def starts(order: EpochOrder, groups: int, first_byte_S: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The byte of the corpus at which each window of each group begins."""
    found: list[NDArray[np.int64]] = []
    for number in range(groups):
        group = order.group(number)
        begins_R = np.array([first_byte_S[run.shard] + run.first_frame * FRAME_BYTES for run in group.runs])
        joined_R = np.cumsum([0, *(run.bytes for run in group.runs)])[:-1]
        run_N = np.searchsorted(joined_R, group.starts_N, side="right") - 1
        found.append(begins_R[run_N] + group.starts_N - joined_R[run_N])
    return found


def stretches(windows: int) -> list[NDArray[np.int64]]:
    """Which windows are looked at: all, or some at the beginning, in the middle and at the end."""
    if windows <= 3 * STRETCH:
        return [np.arange(windows)]
    return [np.arange(begin, begin + STRETCH) for begin in (0, windows // 2, windows - STRETCH)]


def near(places_N: list[NDArray[np.int64]]) -> list[float]:
    """Per cent of neighbours that are near, for each distance."""
    apart_N = np.abs(np.concatenate([np.diff(places) for places in places_N]))
    return [100 * float(np.mean(apart_N < distance)) for distance in NEAR_BYTES]


def measure(frames: int, window_bytes: int, epochs: int) -> dict[str, Any]:
    """One corpus and one window size: per cent, and the least and most of the epochs."""
    sizes_S = shard_sizes(frames * FRAME_BYTES)
    first_byte_S = np.cumsum(sizes_S) - sizes_S
    order = WindowOrder(
        sizes_S,
        frame_bytes=FRAME_BYTES,
        fingerprint="0" * 32,
        seed=0,
        window_bytes=window_bytes,
        prediction_heads=HEADS,
    )
    ours: list[list[float]] = []
    shuffled: list[list[float]] = []
    for epoch in range(epochs):
        at = order.epoch(epoch)
        begins = starts(at, order.groups, first_byte_S)
        looked_at = [at.places(windows_N) for windows_N in stretches(order.windows_per_epoch)]
        first_G = np.cumsum([0, *map(len, begins)])[:-1]
        all_begins = np.concatenate(begins)
        ours.append(near([all_begins[first_G[found.groups_N] + found.indices_N] for found in looked_at]))
        chance = np.random.default_rng(epoch).permutation(order.windows_per_epoch) * window_bytes
        shuffled.append(near([chance[windows_N] for windows_N in stretches(order.windows_per_epoch)]))
    row: dict[str, Any] = {"frames": frames, "window_bytes": window_bytes, "windows": order.windows_per_epoch}
    row |= {"lanes": order.lanes, "groups": order.groups}
    for name, found in (("bytelm", ours), ("shuffle", shuffled)):
        for distance, shares in zip(NEAR_BYTES, zip(*found, strict=True), strict=True):
            row[f"{name}_{distance}"] = [round(float(of(shares)), 3) for of in (np.mean, np.min, np.max)]
    return row


def main() -> None:
    """Measure everything and print."""
    parser = argparse.ArgumentParser(description="See the beginning of this file.")
    parser.add_argument("--frames", type=int, nargs="+", default=[30, 126, 300, 1000, 4000, 40_000])
    parser.add_argument("--window-bytes", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    rows = [measure(frames, size, options.epochs) for frames in options.frames for size in options.window_bytes]
    print("per cent of neighbours less than a frame and less than 1 MB apart, and those of a full shuffle")
    for row in rows:
        shares = [row[f"{name}_{distance}"][0] for distance in NEAR_BYTES for name in ("bytelm", "shuffle")]
        print(
            f"{row['frames']:7,} frames, windows of {row['window_bytes']:5,}, {row['lanes']:2} lanes: "
            f"{shares[0]:7.3f} ({shares[1]:.3f}) {shares[2]:8.3f} ({shares[3]:.3f})"
        )
    print(json.dumps({"machine": machine(), "order_version": ORDER_VERSION, "epochs": options.epochs, "rows": rows}))


if __name__ == "__main__":
    main()
