"""The loss: known answers, targets that cannot be shifted, and four ways to the same gradients."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.config import BackwardMode, HeadFamily, HeadsConfig, ModelConfig
from bytelm.errors import ConfigError
from bytelm.heads import FAMILIES
from bytelm.loss import head_weights, multi_byte_loss
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch, pack, plain_batch, with_draft_rows
from bytelm.vocab import VOCABULARY_SIZE

CONFIG = ModelConfig(d_model=32, layers=2, attention_heads=4, kv_heads=2, d_ff=48, attention_pattern=("global",))
ALL_FAMILIES = sorted(FAMILIES)
CHAINS: list[HeadFamily] = ["causal", "anticausal", "shared"]
MODES: list[BackwardMode] = ["sequential", "checkpoint", "auto"]
HEADS = 3


def new_model(family: HeadFamily = "linear", count: int = HEADS) -> ByteLM:
    model = ByteLM(CONFIG, HeadsConfig(family=family, count=count))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def some_batch(count: int = HEADS, seed: int = 0) -> PackedBatch:
    """Two windows of 40 bytes with a document start in each and a join in the second."""
    raw = torch.randint(0, 256, (2, 40 + count), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    places = np.array([0, 1, 1]), np.array([11, 5, 30]), np.array([True, True, False])
    return pack(raw, *places, prediction_heads=count)


def gradients(model: ByteLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def train(model: ByteLM, batch_of: Callable[[torch.Generator], PackedBatch], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        multi_byte_loss(model, batch_of(generator)).loss.backward()
        optimizer.step()
        schedule.step()


# Known answers


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(family: HeadFamily) -> None:
    model = new_model(family)
    with torch.no_grad():
        model.heads.get_parameter("unembedding.weight").zero_()
    output = multi_byte_loss(model, some_batch())
    expected = math.log2(VOCABULARY_SIZE)
    assert output.bits_per_byte_K.tolist() == pytest.approx([expected] * HEADS, abs=1e-4)
    assert output.loss.item() == pytest.approx(HEADS * expected * math.log(2), abs=1e-4)


LAW = {ord("a"): 1 / 2, ord("b"): 1 / 8, ord("c"): 1 / 8, ord("d"): 1 / 8, ord("e"): 1 / 8}


def two_bit_bytes(generator: torch.Generator, windows: int, width: int) -> Tensor:
    """Independent bytes of the law above, whose entropy is 2.000 bits."""
    drawn = torch.multinomial(torch.tensor(list(LAW.values())), windows * width, replacement=True, generator=generator)
    return torch.tensor(list(LAW))[drawn].view(windows, width)


def test_the_law_has_two_bits() -> None:
    assert -sum(share * math.log2(share) for share in LAW.values()) == 2.0


def test_the_true_law_costs_its_entropy_on_every_head() -> None:
    model = new_model()
    law = torch.full((VOCABULARY_SIZE,), 1e-30)
    law[list(LAW)] = torch.tensor(list(LAW.values()))
    direction = torch.ones(32)  # what every byte's hidden state is, once no layer adds anything
    with torch.no_grad():
        model.embedding.copy_(direction.expand_as(model.embedding))
        for name, weight in model.named_parameters():
            if name.endswith("output.weight"):
                weight.zero_()
        unembedding = law.log()[:, None] * direction / 32
        model.heads.get_parameter("unembedding.weight").copy_(unembedding.repeat(HEADS, 1))
        bits = multi_byte_loss(
            model, plain_batch(two_bit_bytes(torch.Generator().manual_seed(0), 64, 1000), HEADS)
        ).bits_per_byte_K
    # 64 000 bytes whose surprise is 1 or 3 bits: the mean strays by 0.004 bits.
    assert bits.tolist() == pytest.approx([2.0] * HEADS, abs=0.016)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_model_trained_on_two_bit_bytes_reaches_two_bits_and_no_less(family: HeadFamily) -> None:
    model = new_model(family)
    train(model, lambda generator: plain_batch(two_bit_bytes(generator, 8, 64 + HEADS), HEADS), steps=60)
    fresh = plain_batch(two_bit_bytes(torch.Generator().manual_seed(2), 64, 256), HEADS)
    with torch.no_grad():
        bits = multi_byte_loss(model, fresh).bits_per_byte_K
    # Less than the entropy would mean that a head sees its own target.
    assert all(1.97 < head < 2.1 for head in bits.tolist()), bits


def counters(generator: torch.Generator) -> Tensor:
    """Windows of bytes that count up from a random one: the present byte tells the whole future."""
    first = torch.randint(0, 256, (16, 1), generator=generator)
    return (first + torch.arange(32 + HEADS)) % 256


def bits_against_the_formula(model: ByteLM) -> list[float]:
    """Bits of each head where the truth is computed from the stream itself, not by the code under test."""
    stream = counters(torch.Generator().manual_seed(3))[:, :32]
    with torch.no_grad():
        logits = model(stream)
    return [
        F.cross_entropy(logits[:, :, head].flatten(0, 1), (stream + 1 + head).flatten() % 256).item() / math.log(2)
        for head in range(HEADS)
    ]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_on_a_counter_every_head_learns_its_own_future_byte(family: HeadFamily) -> None:
    model = new_model(family)
    # One layer for all heads takes its time to tell them apart.
    train(model, lambda generator: plain_batch(counters(generator), HEADS), steps=200 if family == "shared" else 120)
    assert all(bits < 0.1 for bits in bits_against_the_formula(model)), bits_against_the_formula(model)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_head_that_is_shifted_by_one_byte_cannot_pass_for_the_right_one(shift: int) -> None:
    def shifted(generator: torch.Generator) -> PackedBatch:
        batch = plain_batch(counters(generator), HEADS)
        return dataclasses.replace(batch, targets_BTK=(batch.targets_BTK + shift) % 256)

    model = new_model()
    train(model, shifted, steps=120)
    assert all(bits > 3 for bits in bits_against_the_formula(model)), bits_against_the_formula(model)


# Counts and normalisers


def test_each_head_is_normalised_by_its_own_valid_targets() -> None:
    model, batch = new_model(), some_batch()
    output = multi_byte_loss(model, batch)
    logits = model(batch.inputs_BT, batch.documents_BT)
    nats = []
    for head in range(HEADS):
        valid = batch.valid_BTK[..., head]
        nats.append(F.cross_entropy(logits[:, :, head][valid], batch.targets_BTK[..., head][valid]))
        assert output.valid_count_K[head] == valid.sum()
    assert output.valid_count_K.unique().numel() == HEADS  # each boundary takes more from the farther heads
    torch.testing.assert_close(output.bits_per_byte_K, torch.stack(nats).detach() / math.log(2))
    torch.testing.assert_close(output.loss, torch.stack(nats).sum())
    assert not output.bits_per_byte_K.requires_grad


@pytest.mark.parametrize("backward", MODES)
def test_targets_that_do_not_count_have_no_influence(backward: BackwardMode) -> None:
    model, batch = new_model("transformer"), some_batch()
    other = torch.where(batch.valid_BTK, batch.targets_BTK, (batch.targets_BTK + 100) % 256)
    assert not torch.equal(other, batch.targets_BTK)
    expected = multi_byte_loss(model, batch, backward=backward)
    found = multi_byte_loss(model, dataclasses.replace(batch, targets_BTK=other), backward=backward)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.bits_per_byte_K, expected.bits_per_byte_K)


@pytest.mark.parametrize("backward", ["naive", *MODES])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_head_without_targets_adds_nothing(family: HeadFamily, backward: BackwardMode) -> None:
    model, batch = new_model(family), some_batch()
    without = batch.valid_BTK.clone()
    without[..., 2] = False
    output = multi_byte_loss(model, dataclasses.replace(batch, valid_BTK=without), backward=backward)
    assert output.valid_count_K[2] == 0
    assert output.bits_per_byte_K[2] == 0
    torch.testing.assert_close(output.loss.detach(), output.bits_per_byte_K.sum() * math.log(2))
    assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss).values())


@pytest.mark.parametrize("backward", ["naive", *MODES])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_two_micro_batches_with_the_counts_of_both_equal_one_batch(family: HeadFamily, backward: BackwardMode) -> None:
    model, batch = new_model(family), some_batch()
    assert batch.documents_BT is not None
    whole = multi_byte_loss(model, batch)
    expected = gradients(model, whole.loss)
    total, loss, summed = whole.valid_count_K, 0.0, {name: torch.zeros_like(grad) for name, grad in expected.items()}
    for row in range(2):
        own = slice(row, row + 1)
        part = PackedBatch(batch.inputs_BT[own], batch.targets_BTK[own], batch.valid_BTK[own], batch.documents_BT[own])
        output = multi_byte_loss(model, part, backward=backward, counts_K=total)
        loss += output.loss.item()
        for name, gradient in gradients(model, output.loss).items():
            summed[name] += gradient
    assert loss == pytest.approx(whole.loss.item(), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-3, atol=1e-5)


# Draft heads on a share of the rows


@pytest.mark.parametrize("backward", ["naive", *MODES])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_draft_heads_on_a_share_of_the_rows_are_the_formula_over_those_rows(
    family: HeadFamily, backward: BackwardMode
) -> None:
    model, batch = new_model(family), with_draft_rows(some_batch(), 0.3, turn=5)
    assert batch.draft_rows_R is not None
    chosen = torch.zeros(batch.inputs_BT.numel(), dtype=torch.bool)
    chosen[batch.draft_rows_R] = True
    logits, terms = model(batch.inputs_BT, batch.documents_BT), []
    for head in range(HEADS):
        counts = some_batch().valid_BTK[..., head]
        if head:
            counts = counts & chosen.view_as(counts)
        terms.append(F.cross_entropy(logits[:, :, head][counts], batch.targets_BTK[..., head][counts]))
    output = multi_byte_loss(model, batch, backward=backward)
    torch.testing.assert_close(output.bits_per_byte_K * math.log(2), torch.stack(terms).detach())
    expected = gradients(model, torch.stack(terms).sum())
    for name, gradient in gradients(model, output.loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_draft_rows_are_evenly_spread_and_every_row_has_its_turn() -> None:
    batch, seen = some_batch(), set[int]()
    for turn in range(40):
        rows = with_draft_rows(batch, 0.25, turn).draft_rows_R
        assert rows is not None
        assert len(rows) == 20
        assert set(rows.diff().tolist()) == {4}
        seen |= set(rows.tolist())
    assert seen == set(range(80))


def test_a_whole_share_or_one_head_leaves_the_batch_as_it_is() -> None:
    assert with_draft_rows(some_batch(), 1.0, turn=3).draft_rows_R is None
    assert with_draft_rows(some_batch(count=1), 0.5, turn=3).draft_rows_R is None


@pytest.mark.parametrize("backward", ["naive", *MODES])
def test_a_batch_may_have_no_row_for_the_draft_heads(backward: BackwardMode) -> None:
    model, batch = new_model("mlp"), with_draft_rows(some_batch(), 1e-3, turn=1)
    assert batch.draft_rows_R is not None
    assert len(batch.draft_rows_R) == 0
    output = multi_byte_loss(model, batch, backward=backward)
    assert output.valid_count_K.tolist() == [batch.valid_BTK[..., 0].sum(), 0, 0]
    assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss).values())


# Weights of heads, and what is added to their loss

HeadWeights = tuple[float, ...]


@pytest.mark.parametrize(
    ("spent", "forward", "reverse"),
    [
        (-0.1, (1, 0, 0), (1, 1, 1)),
        (0.0, (1, 0, 0), (1, 1, 1)),
        (0.33, (1, 0, 0), (1, 1, 1)),
        (0.34, (1, 1, 0), (1, 1, 0)),
        (0.66, (1, 1, 0), (1, 1, 0)),
        (0.67, (1, 1, 1), (1, 0, 0)),
        (1.0, (1, 1, 1), (1, 0, 0)),
        (1.4, (1, 1, 1), (1, 0, 0)),
    ],
)
def test_a_curriculum_goes_through_as_many_equal_stages_as_there_are_heads(
    spent: float, forward: HeadWeights, reverse: HeadWeights
) -> None:
    assert head_weights(HeadsConfig(count=3, curriculum="forward"), spent) == forward
    assert head_weights(HeadsConfig(count=3, curriculum="reverse"), spent) == reverse
    assert head_weights(HeadsConfig(count=3), spent) == (1, 1, 1)


def test_the_weights_of_heads_are_powers_of_their_ratio() -> None:
    heads = HeadsConfig(count=4, weight_ratio=0.5)
    assert head_weights(heads, 0.5) == (1.0, 0.5, 0.25, 0.125)
    forward = HeadsConfig(count=4, weight_ratio=0.5, curriculum="forward")
    assert head_weights(forward, 0.3) == (1.0, 0.5, 0.0, 0.0)
    for curriculum in ("none", "forward", "reverse"):
        assert head_weights(HeadsConfig(count=1, curriculum=curriculum), 0.5) == (1.0,)


@pytest.mark.parametrize("backward", ["naive", *MODES])
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize(("weights_K", "z_loss"), [((1.0, 0.5, 0.25), 0.0), ((1.0, 0.3, 0.0), 0.1), ((1, 1, 1), 0.2)])
def test_weights_and_z_loss_are_their_formula_in_every_mode(
    family: HeadFamily, backward: BackwardMode, weights_K: HeadWeights, z_loss: float
) -> None:
    model, batch = new_model(family), some_batch()
    logits = model(batch.inputs_BT, batch.documents_BT)
    terms = []
    for head, weight in enumerate(weights_K):
        valid = batch.valid_BTK[..., head]
        nats = F.cross_entropy(logits[:, :, head][valid], batch.targets_BTK[..., head][valid])
        drift = logits[:, :, head][valid].logsumexp(-1).square().mean()
        terms.append(weight * (nats + z_loss * drift))
    expected_loss = torch.stack(terms).sum()
    expected = gradients(model, expected_loss)
    plain = multi_byte_loss(model, batch)

    output = multi_byte_loss(model, batch, backward=backward, weights_K=weights_K, z_loss=z_loss)
    torch.testing.assert_close(output.loss, expected_loss)
    found = gradients(model, output.loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found.get(name, torch.zeros_like(gradient)), gradient, rtol=1e-3, atol=1e-6)
    takes_part = torch.tensor(weights_K) > 0
    torch.testing.assert_close(output.bits_per_byte_K, plain.bits_per_byte_K * takes_part)
    assert torch.equal(output.valid_count_K, plain.valid_count_K * takes_part)


@pytest.mark.parametrize("backward", ["naive", *MODES])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_heads_that_take_no_part_are_not_computed(family: HeadFamily, backward: BackwardMode) -> None:
    model, batch = new_model(family), some_batch()
    read: set[int] = set()
    unembed = model.heads.unembed

    def watched(head: int, state: Tensor) -> Tensor:
        read.add(head)
        return unembed(head, state)

    model.heads.unembed = watched  # pyright: ignore[reportAttributeAccessIssue]
    output = multi_byte_loss(model, batch, backward=backward, weights_K=(1.0, 0.5, 0.0))
    found = gradients(model, output.loss)
    assert 2 not in read
    for name, gradient in found.items():
        if ".2." in name and family != "anticausal":  # there, head 0 stands on all others
            assert not gradient.any()
    if family == "linear":
        assert not found["heads.unembedding.weight"][2 * VOCABULARY_SIZE :].any()


# Modes


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)


@pytest.mark.parametrize("backward", MODES)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_mode_has_the_gradients_of_the_plain_sum(family: HeadFamily, backward: BackwardMode) -> None:
    model, batch = new_model(family), some_batch()
    naive = multi_byte_loss(model, batch, backward="naive")
    expected = gradients(model, 3.0 * naive.loss)  # a loss that is scaled scales its gradients
    assert len(expected) == len(list(model.parameters()))
    other = multi_byte_loss(model, batch, backward=backward)
    torch.testing.assert_close(other.loss, naive.loss)
    torch.testing.assert_close(other.bits_per_byte_K, naive.bits_per_byte_K)
    assert torch.equal(other.valid_count_K, naive.valid_count_K)
    assert relative_difference(gradients(model, 3.0 * other.loss), expected) < 2e-6


@pytest.mark.parametrize("backward", ["naive", *MODES])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_bfloat16_autocast_changes_gradients_a_little(family: HeadFamily, backward: BackwardMode) -> None:
    model, batch = new_model(family), some_batch()
    expected = gradients(model, multi_byte_loss(model, batch, backward="naive").loss)
    with torch.autocast("cpu", torch.bfloat16):
        output = multi_byte_loss(model, batch, backward=backward)
    assert output.loss.dtype == torch.float32
    found = gradients(model, output.loss)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert relative_difference(found, expected) < 0.05


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("backward", ["naive", *MODES])
def test_frozen_parts_get_no_gradient(family: HeadFamily, backward: BackwardMode) -> None:
    batch = some_batch()
    for frozen in ("heads", "trunk"):
        model = new_model(family)
        expected = gradients(model, multi_byte_loss(model, batch, backward="naive").loss)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith("heads.") == (frozen == "trunk"))
        model.zero_grad(set_to_none=True)
        multi_byte_loss(model, batch, backward=backward).loss.backward()
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                assert weight.grad is not None
                torch.testing.assert_close(weight.grad, expected[name], rtol=1e-3, atol=1e-6)
            else:
                assert weight.grad is None


def peak_of_saved_states(family: HeadFamily, backward: BackwardMode, count: int) -> int:
    """Most elements that the graph held at any moment for its backward pass, parameters not counted."""
    model, batch = new_model(family, count), some_batch(count)
    live, peak = 0, 0

    class Saved:
        def __init__(self, state: Tensor) -> None:
            nonlocal live, peak
            self.state = state
            live += state.numel()
            peak = max(peak, live)

        def __del__(self) -> None:
            nonlocal live
            live -= self.state.numel()

    def pack_state(state: Tensor) -> Tensor | Saved:
        return state if state.is_leaf and state.requires_grad else Saved(state)

    def unpack_state(saved: Tensor | Saved) -> Tensor:
        return saved.state if isinstance(saved, Saved) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack_state, unpack_state):
        multi_byte_loss(model, batch, backward=backward).loss.backward()
    return peak


@pytest.mark.parametrize("family", ["mlp", "transformer"])
def test_sequential_heads_hold_the_states_of_one_head_whatever_their_number(family: HeadFamily) -> None:
    of_a_head = peak_of_saved_states(family, "naive", 3) - peak_of_saved_states(family, "naive", 2)
    assert of_a_head > 80 * VOCABULARY_SIZE  # a head's logits, at least
    parameters = sum(weight.numel() for weight in new_model(family, 8).heads.parameters())
    grown = peak_of_saved_states(family, "sequential", 8) - peak_of_saved_states(family, "sequential", 2)
    assert grown <= parameters  # only the gradients that the caller asked for
    assert peak_of_saved_states(family, "naive", 8) - peak_of_saved_states(family, "naive", 2) > 5 * of_a_head


def test_sequential_linear_heads_hold_no_logits_whatever_their_number() -> None:
    parameters = sum(weight.numel() for weight in new_model("linear", 8).heads.parameters())
    grown = peak_of_saved_states("linear", "sequential", 8) - peak_of_saved_states("linear", "sequential", 2)
    assert grown <= parameters
    of_logits = 80 * VOCABULARY_SIZE
    assert peak_of_saved_states("linear", "naive", 8) - peak_of_saved_states("linear", "naive", 2) > 6 * of_logits


@pytest.mark.parametrize("family", CHAINS)
def test_a_chain_holds_its_layers_and_the_logits_of_one_head_or_with_checkpoints_one_state_a_head(
    family: HeadFamily,
) -> None:
    def grown(backward: BackwardMode) -> int:
        return peak_of_saved_states(family, backward, 8) - peak_of_saved_states(family, backward, 2)

    of_logits, of_a_state = 80 * VOCABULARY_SIZE, 80 * 32
    parameters = sum(weight.numel() for weight in new_model(family, 8).heads.parameters())
    # The gradients of the parameters are there earlier, the logits and what the softmax keeps of them never.
    assert grown("sequential") <= grown("naive") - 6 * 2 * of_logits + parameters
    assert grown("checkpoint") <= 6 * 2 * of_a_state


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_auto_is_sequential(family: HeadFamily) -> None:
    assert peak_of_saved_states(family, "auto", 6) == peak_of_saved_states(family, "sequential", 6)
    assert peak_of_saved_states(family, "auto", 6) < peak_of_saved_states(family, "naive", 6)


@pytest.mark.parametrize("backward", ["naive", *MODES])
def test_without_gradients_no_graph_is_made(backward: BackwardMode) -> None:
    model, batch = new_model("transformer"), some_batch()
    with torch.no_grad():
        assert not multi_byte_loss(model, batch, backward=backward).loss.requires_grad
    for weight in model.parameters():
        weight.requires_grad_(False)
    output = multi_byte_loss(model, batch, backward=backward)
    assert not output.loss.requires_grad
    assert output.bits_per_byte_K.shape == (HEADS,)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_sequential_heads_can_be_back_propagated_twice_but_not_derived_twice(family: HeadFamily) -> None:
    model, batch = new_model(family), some_batch()
    gain = model.heads.get_parameter("norm.gain")
    loss = multi_byte_loss(model, batch, backward="sequential").loss
    (once,) = torch.autograd.grad(loss, [gain], retain_graph=True)
    (again,) = torch.autograd.grad(loss, [gain], retain_graph=True)
    assert torch.equal(once, again)
    with pytest.raises(ConfigError, match="second derivative"):
        torch.autograd.grad(loss, [gain], create_graph=True)
