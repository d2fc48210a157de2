"""Compiled layers: the gradients of the plain ones, in training alone, and refused where nothing can compile."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bytelm.compiling import choose_compile, compile_layers, eagerly
from bytelm.config import HeadFamily, RunConfig
from bytelm.data.ingest import ingest
from bytelm.errors import ConfigError
from bytelm.evaluate import bits_per_byte
from bytelm.loss import multi_byte_loss
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch, pack
from bytelm.run_log import read_log
from bytelm.train import train

# torch's tracer looks at the gradients of all that it is given, and its compiler brings old code with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = [
    "model.d_model=16",
    "model.layers=3",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=3",
    "data.window_bytes=32",
]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def new_model(family: HeadFamily) -> ByteLM:
    torch.manual_seed(0)
    config = RunConfig.build("tiny", [*SMALL, f"heads.family={family}"])
    return ByteLM(config.model, config.heads)


def packed(seed: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(seed)
    windows_BW = torch.randint(0, 256, (2, 32 + 3), dtype=torch.uint8, generator=generator)
    starts = torch.randint(1, 31, (2,), generator=generator).numpy()
    return pack(windows_BW, np.arange(2), starts, np.ones(2, bool), prediction_heads=3)


def gradients(model: ByteLM, batch: PackedBatch, *, bfloat16: bool) -> list[torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = multi_byte_loss(model, batch).loss
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_equal_gradients(family: HeadFamily, backend: str, *, bfloat16: bool, relative: float) -> None:
    plain, compiled = new_model(family), new_model(family)
    compile_layers(compiled, backend=backend)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in compiled.named_parameters()]
    for seed in range(2):
        batch = packed(seed)
        pairs = zip(*(gradients(model, batch, bfloat16=bfloat16) for model in (plain, compiled)), strict=True)
        for left, right in pairs:
            assert (left - right).norm() <= relative * left.norm()


@pytest.mark.parametrize("family", ["linear", "transformer", "shared"])
def test_traced_layers_have_the_gradients_of_plain_ones(family: HeadFamily) -> None:
    assert_equal_gradients(family, "aot_eager", bfloat16=False, relative=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("bfloat16", "relative"), [(False, 1e-5), (True, 0.05)])
@pytest.mark.parametrize("family", ["linear", "transformer", "causal"])
def test_compiled_layers_have_the_gradients_of_plain_ones(family: HeadFamily, bfloat16: bool, relative: float) -> None:
    assert_equal_gradients(family, "inductor", bfloat16=bfloat16, relative=relative)


def test_all_layers_of_a_kind_are_one_program_and_validation_makes_none() -> None:
    model, counter = new_model("linear"), CompileCounterWithBackend("aot_eager")
    compile_layers(model, backend=counter)  # pyright: ignore[reportArgumentType]
    gradients(model, packed(0), bfloat16=False)
    made = counter.frame_count
    gradients(model, packed(0), bfloat16=False)
    with eagerly():
        bits_per_byte(model, [bytes(range(50)), b"abc"], context_bytes=16)
    assert counter.frame_count == made > 0


@pytest.mark.slow
def test_a_run_with_compiled_layers_learns_as_one_without(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("every byte counts, and every head drafts. " * 200)
    ingest([tmp_path / "text"], tmp_path / "corpus")
    logs = []
    for setting in ("on", "off"):
        changes = [f"train.compile={setting}", "train.steps=4", "train.threads=1", "train.precision=float32"]
        changes += ["train.log_every_steps=1", "train.validate_every_steps=2"]
        for _ in train(RunConfig.build("tiny", [*SMALL, *changes]), tmp_path / "corpus", tmp_path / setting):
            pass
        logs.append([record["bits_per_byte_by_head"] for record in read_log(tmp_path / setting)])
    for compiled, plain in zip(*logs, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)


def test_auto_compiles_on_cuda_with_triton_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not choose_compile("auto", CPU)
    monkeypatch.setattr("bytelm.compiling.importlib.util.find_spec", lambda _: None)
    assert not choose_compile("auto", CUDA)
    monkeypatch.setattr("bytelm.compiling.importlib.util.find_spec", lambda _: object())
    assert choose_compile("auto", CUDA)
    assert not choose_compile("off", CUDA)


def test_what_cannot_compile_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.compiling.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="Triton"):
        choose_compile("on", CUDA)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"a C\+\+ compiler"):
        choose_compile("on", CPU)
