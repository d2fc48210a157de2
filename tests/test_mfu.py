"""Utilisation: the arithmetic, the known peaks, and a measured peak that no other product exceeds by much."""

import itertools

import pytest
import torch

from bytelm.config import RunConfig
from bytelm.mfu import PeakFlops, known_peak_flops, measured_flops, mfu, peak_flops
from bytelm.model import ByteLM


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_its_driver_reports(name: str, expected: float | None) -> None:
    assert known_peak_flops(name) == expected


def test_the_peak_of_a_cpu_is_measured_and_says_so() -> None:
    peak = peak_flops(torch.device("cpu"), "float32")
    assert peak.flops_per_second > 0
    assert peak.source.startswith("measured here: float32")


def test_two_operations_are_counted_for_each_pair_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("bytelm.mfu.time.perf_counter", lambda: float(next(ticks)))  # a product takes one second
    assert measured_flops(torch.device("cpu"), "float32", side=10, seconds=5) == 2000.0


def test_training_at_the_peak_is_a_utilisation_of_one() -> None:
    config = RunConfig()
    model = ByteLM(config.model, config.heads)
    flops_per_byte = model.flops_per_byte(512, training=True)
    peak = PeakFlops(flops_per_second=2e9, source="example")
    assert mfu(flops_per_byte, 2e9 / flops_per_byte, peak) == pytest.approx(1.0)
    assert mfu(flops_per_byte, 1e9 / flops_per_byte, peak) == pytest.approx(0.5)
