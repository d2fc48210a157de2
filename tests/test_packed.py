"""Packed matrices multiply as the matrices themselves do; int8 ones as whole numbers do, row by row."""

from pathlib import Path

import pytest
import torch

import bytelm
from bytelm.config import HeadsConfig, ModelConfig
from bytelm.decode import Request, decode_batch
from bytelm.drafting import DraftPolicy
from bytelm.errors import ConfigError
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.packed import SMALLEST_INT8, PackedWeight, QuantizedWeight, pack, why_not_int8

WHY_NOT = why_not_int8(torch.device("cpu"))
needs_int8 = pytest.mark.skipif(WHY_NOT != "", reason=WHY_NOT)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_numbers(input_MI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """The specification: both sides to whole numbers, their exact product, and back."""
    of_weight = weight_OI.abs().amax(1).double() / 127
    of_input = input_MI.abs().amax(1).double() / 127
    whole_OI = (weight_OI.double() / of_weight[:, None]).round()
    whole_MI = (input_MI.double() / of_input[:, None]).round()
    return whole_MI @ whole_OI.T * of_input[:, None] * of_weight


@needs_int8
@pytest.mark.parametrize(("outputs", "inputs"), [(8, 8), (33, 17), (257, 96), (96, 300), (640, 576)])
def test_a_product_of_int8_is_that_of_whole_numbers(outputs: int, inputs: int) -> None:
    weight_OI, input_MI = some(outputs, inputs), some(9, inputs, seed=1)
    product_MO = QuantizedWeight.of(weight_OI).product(input_MI)
    # A number on the edge of two whole ones may fall to either side: one step of one element, no more.
    difference = (product_MO.double() - whole_numbers(input_MI, weight_OI)).abs()
    assert (difference > 1e-4).double().mean() < 0.02
    assert difference.max() < 3 * weight_OI.abs().max() * input_MI.abs().max() / 127
    exact_MO = input_MI.double() @ weight_OI.double().T
    assert (product_MO - exact_MO).norm() < 0.02 * exact_MO.norm()


@needs_int8
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 17), (320, 203), (640, 576)])
def test_a_row_of_int8_has_the_same_bits_wherever_and_with_whatever_it_stands(outputs: int, inputs: int) -> None:
    quantized = QuantizedWeight.of(some(outputs, inputs))
    rows_MI = some(70, inputs, seed=2) * torch.logspace(-3, 3, 70)[:, None]
    whole_MO = quantized.product(rows_MI)
    for start, count in ((0, 1), (5, 1), (69, 1), (1, 3), (2, 7), (30, 40), (3, 64)):
        assert torch.equal(quantized.product(rows_MI[start : start + count]), whole_MO[start : start + count])
    assert torch.equal(quantized.product(rows_MI.view(2, 35, inputs)).view(70, outputs), whole_MO)


@needs_int8
def test_zeros_stay_zeros_and_what_is_no_number_spoils_its_own_row_alone() -> None:
    weight_OI, rows_MI = some(24, 32), some(4, 32, seed=3)
    weight_OI[3] = 0.0
    quantized, expected = QuantizedWeight.of(weight_OI), QuantizedWeight.of(weight_OI).product(rows_MI)
    assert (expected[:, 3] == 0).all()
    rows_MI[1], rows_MI[2, 5] = 0.0, torch.nan
    found = quantized.product(rows_MI)
    assert (found[1] == 0).all()
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 3]], expected[[0, 3]])


@needs_int8
def test_small_matrices_are_not_made_int8() -> None:
    assert isinstance(pack(some(SMALLEST_INT8 // 500, 500), int8=True), QuantizedWeight)
    assert isinstance(pack(some(SMALLEST_INT8 // 500 - 1, 500), int8=True), PackedWeight)
    assert isinstance(pack(some(SMALLEST_INT8 // 500, 500)), PackedWeight)


@needs_int8
def test_drafts_change_no_byte_of_a_model_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.packed.SMALLEST_INT8", 0)
    torch.manual_seed(4)
    shape = ModelConfig(d_model=48, layers=2, attention_heads=4, kv_heads=2, d_ff=96, local_window_bytes=24)
    model = ByteLM(shape, HeadsConfig(count=4)).eval()
    with torch.no_grad():
        model.heads.get_submodule("unembedding").get_parameter("weight").mul_(8.0)
    model.pack(int8=True)
    assert model.int8
    prompts = [b"", b"int8 int8 int8 in", bytes(range(90)), b"\xff" * 40]

    def said(draft: DraftPolicy, slots: int) -> list[bytes]:
        asked = [
            Request(prompt, GenerateSettings(max_bytes=40, draft=draft, temperature=0.7 * (index % 2), sequence=index))
            for index, prompt in enumerate(prompts)
        ]
        found = [b""] * len(prompts)
        for index, step in decode_batch(model, asked, context_bytes=64, slots=slots):
            found[index] += step.data
        return found

    plain = said("none", 1)
    for draft in ("none", "heads", "tree", "ngram", "adaptive"):
        for slots in (1, 3):
            assert said(draft, slots) == plain
    model.pack()
    assert not model.int8


@needs_int8
def test_int8_without_an_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no matrix of this model has 500,000 weights; use float32 or bfloat16"):
        bytelm.load(Path("nano"), precision="int8")


def test_int8_is_for_processors_that_can() -> None:
    assert "it is for CPUs" in why_not_int8(torch.device("cuda:0"))
