"""Memory of a step, traced: equal to that of a step that computes, and as the architecture says it must grow."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bytelm.config import RunConfig
from bytelm.memory import StepMemory, trace_real_step, trace_step
from bytelm.model import ByteLM

CPU = torch.device("cpu")
SMALL = [
    "model.d_model=32",
    "model.layers=3",
    "model.d_ff=64",
    "model.local_window_bytes=32",
    "data.window_bytes=160",
    "train.optimizer=adamw",
    "heads.count=4",
    "train.batch_windows=2",
]


def traced(*changes: str, bfloat16: bool = True) -> StepMemory:
    return trace_step(RunConfig.build("tiny", [*SMALL, *changes]), CPU, bfloat16=bfloat16).memory


@pytest.mark.parametrize(
    "changes",
    [
        ["train.precision=bfloat16"],
        ["heads.family=mlp"],
        ["heads.family=transformer"],
        ["heads.family=transformer", "heads.backward=naive"],
        ["heads.family=transformer", "heads.backward=checkpoint"],
        ["train.optimizer=muon", "train.accumulation=3"],
        ["train.init_from=elsewhere", "train.frozen=language_model"],
    ],
)
def test_a_step_on_fake_tensors_needs_what_a_real_step_needs(changes: list[str]) -> None:
    config = RunConfig.build("tiny", [*SMALL, *changes])
    bfloat16 = config.train.precision == "bfloat16"
    fake = trace_step(config, CPU, bfloat16=bfloat16)
    real = trace_real_step(config, CPU, bfloat16=bfloat16)
    assert fake.memory == real.memory
    for left, right in ((fake.model, real.model), (fake.optimizer, real.optimizer)):
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in left.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in right.items()
        }


def test_adamw_keeps_two_numbers_a_weight_and_muon_one_of_a_matrix() -> None:
    config = RunConfig.build("tiny", SMALL)
    model = ByteLM(config.model, config.heads)
    weights = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(weights.values())
    hidden = sum(
        count for name, count in weights.items() if name.endswith("weight") and name != "heads.unembedding.weight"
    )
    adamw, muon = traced(), traced("train.optimizer=muon")
    assert adamw.weights == muon.weights == 4 * total
    assert adamw.optimizer == 8 * total + 4 * len(weights)  # and a step number each
    others = len(weights) - len([name for name in weights if name.endswith("weight")]) + 1
    assert muon.optimizer == 4 * hidden + 8 * (total - hidden) + 4 * others


def test_activations_grow_with_the_windows_of_a_micro_batch_and_not_with_accumulation() -> None:
    one, two, four = (traced(f"train.batch_windows={windows}").activations for windows in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    accumulated = traced("train.accumulation=5")
    assert accumulated.gradients == accumulated.weights  # of the micro-batch before
    assert accumulated.activations == pytest.approx(two, rel=0.05)  # the windows of the step are there all along


def test_heads_one_after_another_need_the_memory_of_one() -> None:
    naive, sequential, single = (
        traced("heads.family=transformer", *changes).activations
        for changes in (["heads.backward=naive"], ["heads.backward=sequential"], ["heads.count=1"])
    )
    assert naive > 1.5 * single
    assert sequential < 1.2 * single


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell it")
def test_the_peak_is_that_of_this_program_and_not_of_the_one_that_started_it() -> None:
    code = "import torch; from bytelm.memory import peak_memory_bytes; print(peak_memory_bytes(torch.device('cpu')))"
    large = bytearray(1 << 30)
    large[::4096] = b"x" * len(large[::4096])  # so that it is really there
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 50 << 20 < found < len(large)
