"""The parts of a layer: rotary positions, norms, and what a block does with the rows of a pass."""

import math

import pytest
import torch
import torch.nn.functional as F

from bytelm.config import ModelConfig
from bytelm.kv_cache import KVCache, slots_for
from bytelm.layers import (
    Attention,
    Block,
    CachedPass,
    Linear,
    RMSNorm,
    Rotary,
    SwiGLU,
    WindowPass,
    document_positions,
    rotary_tables,
)

CONFIG = ModelConfig(d_model=24, layers=2, attention_heads=3, kv_heads=1, d_ff=40, local_window_bytes=4)


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator, std=0.3)
    return module


def turned(state_C: torch.Tensor, position: int) -> torch.Tensor:
    cosine, sine = rotary_tables(torch.tensor([[position]]), state_C.shape[0], 10_000.0)
    return Rotary(cosine.unsqueeze(2), sine.unsqueeze(2)).turn(state_C.view(1, 1, 1, -1)).flatten()


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
    score = turned(query, 9) @ turned(key, 4)
    torch.testing.assert_close(turned(query, 1005) @ turned(key, 1000), score, rtol=1e-4, atol=1e-4)
    assert not torch.isclose(turned(query, 9) @ turned(key, 5), score, rtol=1e-2)


def test_rotation_keeps_lengths_and_position_zero_is_no_rotation() -> None:
    state = torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned(state, 0), state)
    torch.testing.assert_close(turned(state, 12_345).norm(), state.norm())


def test_rotary_angles_are_those_of_the_formula() -> None:
    cosine, sine = rotary_tables(torch.tensor([100_003]), 8, 500.0)
    for channel in range(4):
        angle = 100_003 * 500.0 ** (-channel / 4)
        assert cosine[0, channel].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert sine[0, channel + 4].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert sine[0, channel].item() == pytest.approx(-math.sin(angle), abs=1e-6)


def test_positions_begin_again_at_each_document() -> None:
    documents = torch.tensor([[0, 0, 0, 0], [3, 4, 4, 9], [0, 1, 2, 3]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 3], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_a_window_pass_rotates_each_document_from_position_zero() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1], [5, 6, 6, 6, 6]])
    rotary = WindowPass.build(CONFIG, documents, documents).rotary
    cosine, sine = rotary_tables(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]), 8, CONFIG.rope_base)
    assert torch.equal(rotary.cosine.squeeze(2), cosine)
    assert torch.equal(rotary.sine.squeeze(2), sine)


def test_rms_norm_is_its_formula_and_computes_in_float32() -> None:
    norm = RMSNorm(32, 1e-3)
    with torch.no_grad():
        norm.gain.uniform_(0.5, 2.0)
    states = torch.randn(5, 32) * 3
    expected = states / (states.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.gain
    torch.testing.assert_close(norm(states), expected)
    halves = states.bfloat16()
    torch.testing.assert_close(norm(halves), norm(halves.float()).bfloat16(), rtol=0, atol=0)


def test_swiglu_is_its_formula() -> None:
    layer = SwiGLU(8, 12)
    drawn(layer)
    states = torch.randn(2, 3, 8)
    gate, up = layer.gate_up.weight[:12], layer.gate_up.weight[12:]
    expected = (F.silu(states @ gate.T) * (states @ up.T)) @ layer.output.weight.T
    torch.testing.assert_close(layer(states), expected)


def test_the_size_of_queries_and_keys_does_not_matter() -> None:
    attention = Attention(CONFIG, "global", 0)
    drawn(attention)
    states = torch.randn(1, 9, 24)
    shared = WindowPass.build(CONFIG, states, None)
    before = attention(states, shared)
    with torch.no_grad():
        attention.query_key_value.weight[: (3 + 1) * 8] *= 7.0
    torch.testing.assert_close(attention(states, shared), before, rtol=1e-4, atol=1e-5)


def test_a_local_layer_sees_its_window_and_a_global_layer_everything() -> None:
    states = torch.randn(1, 9, 24)
    changed = states.clone()
    changed[0, 2] += 1.0
    shared = WindowPass.build(CONFIG, states, None)
    for kind, last in (("local", 2 + 4 - 1), ("global", 8)):
        attention = Attention(CONFIG, "local" if kind == "local" else "global", 0)
        drawn(attention)
        moved = (attention(states, shared) != attention(changed, shared)).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == list(range(2, last + 1))


def test_every_row_of_a_cached_pass_sees_its_own_sequence_up_to_itself() -> None:
    cosine_SC, sine_SC = rotary_tables(torch.arange(slots_for(130)), 8, 10_000.0)
    cache = KVCache(
        layers=0, batch=3, kv_heads=1, capacity=130, cosine_SC=cosine_SC, sine_SC=sine_SC, dtype=torch.float32
    )
    cache.advance([126, 90, 129])
    shared = CachedPass.build(CONFIG, cache, 2, 16, torch.float32)  # the third sequence rests
    assert shared.slots_BM[:, 0].tolist() == [126, 90]
    assert torch.equal(shared.rotary.cosine[1, 3, 0], cosine_SC[93])
    assert set(shared.ranges) == {"local", "global"}
    for kind, (start, end, bias_BRMS) in shared.ranges.items():
        assert bias_BRMS.shape == (2, 3, 16, end - start)
        assert (bias_BRMS == bias_BRMS[:, :1]).all()
        for sequence, first in enumerate((126, 90)):
            for row in range(16):
                seen = (bias_BRMS[sequence, 0, row] == 0).nonzero().flatten().add(start).tolist()
                oldest = first + row - 4 + 1 if kind == "local" else 0
                assert seen == list(range(oldest, first + row + 1))


def test_under_bfloat16_autocast_the_residual_stream_stays_float32() -> None:
    block = Block(CONFIG, "global", 0)
    drawn(block)
    states = torch.randn(2, 9, 24)
    shared = WindowPass.build(CONFIG, states, None)
    with torch.autocast("cpu", torch.bfloat16):
        halved = block(states, shared)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, block(states, shared), rtol=0.1, atol=0.1)


def test_matrices_have_no_bias_and_draw_nothing_themselves() -> None:
    before = torch.random.get_rng_state()
    assert Linear(3, 4).bias is None
    assert torch.equal(torch.random.get_rng_state(), before)
