"""Weights reach the engine as they are, or the wrong one is named; nothing inside is used after it was closed."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from bytelm.config import RunConfig
from bytelm.engine import Cache, Engine, Session
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.engine.weights import (
    EnginePrecision,
    engine_from_file,
    engine_from_torch,
    matrix_parameters,
    read_safetensors,
    weights_of,
)
from bytelm.errors import CheckpointError, GenerationError
from bytelm.model import ByteLM
from bytelm.vocab import BYTES

pytestmark = pytest.mark.skipif(load_library() is None, reason=f"no engine: {unavailable_reason()}")

FAMILIES = ("linear", "mlp", "transformer", "causal", "anticausal", "shared")
SMALL = ["model.d_model=32", "model.layers=4", "model.d_ff=48", "model.local_window_bytes=8", "heads.count=3"]
NGRAMS = ["model.ngram_sizes=[2, 3]", "model.ngram_rows=32", "model.ngram_width=8"]


def model_of(family: str = "linear", *changes: str) -> ByteLM:
    config = RunConfig.build("tiny", [*SMALL, f"heads.family={family}", *changes])
    torch.manual_seed(1)
    model = ByteLM(config.model, config.heads).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # gains and tables too
    return model


def saved(model: ByteLM, folder: Path, **changes: torch.Tensor | None) -> Path:
    """A file of its weights; those in ``changes`` are replaced, or left out where None."""
    state: dict[str, Any] = {
        **model.state_dict(),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}, path)
    return path


def engine_of(path: Path, model: ByteLM, precision: EnginePrecision = "auto") -> Engine:
    return engine_from_file(path, model.config, model.heads_config, BYTES, precision=precision)


def logits(engine: Engine) -> np.ndarray:
    session, cache = Session(engine, rows=16, capacity=16), Cache(engine, 16)
    return session.run([cache], [12], np.arange(12, dtype=np.int32) + 60)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [[], NGRAMS])
def test_weights_are_those_of_torch_in_its_order(family: str, changes: list[str]) -> None:
    equal = ["heads.keep_parameters_equal=true"] if family in ("transformer", "causal", "anticausal") else []
    for model in (model_of(family, *changes), model_of(family, *changes, *equal)):
        wanted = weights_of(model.config, model.heads_config)
        assert [(one.name, one.shape) for one in wanted] == [(k, tuple(v.shape)) for k, v in model.state_dict().items()]
        matrices = [p.numel() for n, p in model.named_parameters() if n.endswith("weight")]
        assert matrix_parameters(model.config, model.heads_config) == sum(matrices)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_and_its_torch_model_make_the_same_engine(family: str, tmp_path: Path) -> None:
    model = model_of(family, *NGRAMS)
    from_file = logits(engine_of(saved(model, tmp_path), model))
    assert np.array_equal(from_file, logits(engine_from_torch(model)))
    with torch.no_grad():
        expected = model(torch.arange(12)[None] + 60)[0, :, 0].numpy()
    np.testing.assert_allclose(from_file, expected, atol=1e-4)


def test_a_bfloat16_file_gives_the_bits_of_float32(tmp_path: Path) -> None:
    rounded = model_of("linear", *NGRAMS).to(torch.bfloat16)
    path = saved(rounded, tmp_path)
    auto, wide, eight = (engine_of(path, rounded, kind) for kind in ("auto", "float32", "int8"))
    assert [engine.kind for engine in (auto, wide, eight)] == ["bfloat16", "float32", "int8"]
    assert np.array_equal(logits(auto), logits(wide))
    assert np.array_equal(logits(auto), logits(engine_from_torch(rounded)))
    assert 0 < np.abs(logits(eight) - logits(wide)).max() < 0.5
    assert eight.matrix_bytes < auto.matrix_bytes < wide.matrix_bytes


def test_one_matrix_of_float32_keeps_all_in_float32(tmp_path: Path) -> None:
    model = model_of().to(torch.bfloat16)
    path = saved(model, tmp_path, layers__2__feed_forward__output__weight=torch.zeros(32, 48))
    assert engine_of(path, model).kind == "float32"


def test_numbers_of_a_file_are_views_that_nobody_can_write(tmp_path: Path) -> None:
    path = saved(model_of(), tmp_path)
    found = read_safetensors(path)
    assert all(not array.flags.writeable and not array.flags.owndata for array in found.values())


def test_numbers_at_an_odd_place_are_read_too(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * (5 - len(header) % 4)  # the numbers begin one byte behind a multiple of four
    path = tmp_path / "odd"
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers.tobytes())
    assert np.array_equal(read_safetensors(path)["a"], numbers.reshape(2, 3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads__norm__gain": None}, r"it holds no weight heads\.norm\.gain"),
        ({"heads__norm__gain": torch.ones(31)}, r"its heads\.norm\.gain is 31, and the model's 32"),
        ({"layers__4__more": torch.ones(3)}, r"it holds layers\.4\.more, which the model has not"),
        ({"embedding": torch.full((320, 32), torch.nan)}, "the weight embedding is not finite"),
        (
            {"layers__1__attention__output__weight": torch.full((32, 32), -torch.inf)},
            "layers.1.attention.output.weight",
        ),
    ],
)
def test_a_weight_that_is_wrong_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = model_of()
    with pytest.raises(CheckpointError, match=said) as caught:
        engine_of(saved(model, tmp_path, **changes), model)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_of_a_torch_model_that_is_not_finite_is_named() -> None:
    model = model_of()
    with torch.no_grad():
        model.heads.norm.gain[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"the model: the weight heads\.norm\.gain is not finite"):
        engine_from_torch(model)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"{a}",
        b"TENSOR",
    ],
)
def test_what_is_no_safetensors_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "facts",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        17,
    ],
)
def test_a_header_that_lies_is_refused_before_a_pointer_is_made(facts: Any, tmp_path: Path) -> None:
    header = json.dumps({"a": facts}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no safetensors file"):
        read_safetensors(path)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_arrays({"a": np.array([1.5, -2.0], np.float16)}, path)
    found = read_safetensors(path)["a"]
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, -2.0]


def test_malformed_arrays_are_refused_before_a_pointer_is_made() -> None:
    engine = engine_from_torch(model_of())
    session, cache = Session(engine, rows=8, capacity=16), Cache(engine, 16)
    ids = np.arange(8, dtype=np.int32)
    wrong: Any
    for wrong in (ids.astype(np.int64), np.arange(16, dtype=np.int32)[::2], ids[:7], ids.astype(np.float32)):
        with pytest.raises(AssertionError):
            session.run([cache], [8], wrong)
    for rows in ([9], [0], [4, 4], []):
        with pytest.raises((AssertionError, ValueError)):
            session.run([cache], rows, np.zeros(sum(rows), np.int32))
    with pytest.raises(AssertionError):  # an id that there is not
        session.run([cache], [1], np.array([320], np.int32))
    with pytest.raises(AssertionError):  # the same cache twice
        session.run([cache, cache], [1, 1], ids[:2])
    with pytest.raises(AssertionError):
        session.prefill(cache, np.zeros(17, np.int32))
    with pytest.raises(AssertionError):
        engine.set_weight(0, 0, np.zeros((320, 31), np.float32))
    assert cache.length == 0


def test_what_was_closed_is_not_used() -> None:
    engine = engine_from_torch(model_of())
    session, cache = Session(engine, rows=8, capacity=16), Cache(engine, 16)
    cache.close()
    cache.close()
    with pytest.raises(GenerationError, match="this Cache was closed"):
        session.prefill(cache, np.zeros(1, np.int32))
    other = Cache(engine, 16)
    engine.close()
    with pytest.raises(GenerationError, match="this Engine was closed"):
        session.prefill(other, np.zeros(1, np.int32))


def test_what_lives_inside_the_engine_cannot_be_pickled() -> None:
    engine = engine_from_torch(model_of())
    for thing in (engine, Session(engine, rows=4, capacity=4), Cache(engine, 4)):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)


def test_memory_that_is_used_up_is_said_with_the_size() -> None:
    code = f"""
import resource
from bytelm.config import RunConfig
from bytelm.engine import Cache
from bytelm.engine.weights import engine_from_torch
from bytelm.errors import GenerationError
from bytelm.model import ByteLM
config = RunConfig.build("tiny", {SMALL!r})
engine = engine_from_torch(ByteLM(config.model, config.heads))
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    Cache(engine, 1 << 24)
except GenerationError as error:
    print(error)
Cache(engine, 64)  # and it goes on
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.startswith("memory is used up: the engine needs ")
    assert " MB for a context of 16777216 ids" in found.stdout
    assert found.stdout.count("\n") == 1
