"""The model: what it sees, what it counts, and that reading from a cache changes nothing."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bytelm.config import HeadFamily, HeadsConfig, ModelConfig, RunConfig
from bytelm.fine_tuning import freeze
from bytelm.heads import FAMILIES
from bytelm.kv_cache import SLACK, KVCache
from bytelm.masks import visible_dense
from bytelm.model import ByteLM
from bytelm.packing import pack
from bytelm.presets import PRESETS
from bytelm.vocab import EOD, VOCABULARY_SIZE

CONFIG = ModelConfig(
    d_model=32,
    layers=3,
    attention_heads=4,
    kv_heads=2,
    d_ff=48,
    attention_pattern=("local", "global"),
    local_window_bytes=20,
)
ALL_FAMILIES = sorted(FAMILIES)
HEADS = 3


def new_model(family: HeadFamily, config: ModelConfig = CONFIG, count: int = HEADS) -> ByteLM:
    model = ByteLM(config, HeadsConfig(family=family, count=count))
    model.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("unembedding.weight"):
                parameter.mul_(config.d_model)  # logits of some size, so that a difference shows
    return model.eval()


def some_ids(length: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randint(0, EOD + 1, (batch, length), generator=torch.Generator().manual_seed(seed))


# Weights


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("width", [32, 256])
def test_a_fresh_model_spreads_its_probability_over_all_ids(family: HeadFamily, width: int) -> None:
    model = ByteLM(CONFIG.model_copy(update={"d_model": width}), HeadsConfig(family=family, count=HEADS))
    model.initialize(torch.Generator().manual_seed(0))
    logits = model(some_ids(200, batch=2))
    targets = torch.randint(0, VOCABULARY_SIZE, logits.shape[:-1], generator=torch.Generator().manual_seed(1))
    bits = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten()) / math.log(2)
    assert bits.item() == pytest.approx(math.log2(VOCABULARY_SIZE), abs=0.15)


def test_the_residual_stream_does_not_grow_with_depth() -> None:
    def size(layers: int) -> float:
        model = ByteLM(CONFIG.model_copy(update={"layers": layers}), HeadsConfig(count=1))
        model.initialize(torch.Generator().manual_seed(0))
        return model.trunk(some_ids(64)).square().mean().sqrt().item()

    assert size(2) == pytest.approx(size(24), rel=0.25)


def test_weights_come_from_the_generator_that_is_given() -> None:
    first, second, other = (ByteLM(CONFIG, HeadsConfig(count=2)) for _ in range(3))
    first.initialize(torch.Generator().manual_seed(5))
    second.initialize(torch.Generator().manual_seed(5))
    other.initialize(torch.Generator().manual_seed(6))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.embedding, other.embedding)


def test_embedding_and_unembedding_are_not_tied_and_there_are_no_biases() -> None:
    for family in ALL_FAMILIES:
        model = new_model(family)
        assert len(list(model.parameters())) == len({weight.data_ptr() for weight in model.parameters()})
        assert not any("bias" in name for name, _ in model.named_parameters())
        assert not list(model.buffers())


# Counts


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_parameter_counts_are_exact(family: HeadFamily) -> None:
    model = new_model(family)
    counts = model.parameter_counts()
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["total"] == counts["embedding"] + counts["trunk"] + counts["heads"]
    assert counts["embedding"] == VOCABULARY_SIZE * 32
    layer = 2 * 32 + 32 * (4 + 2 * 2) * 8 + (4 + 2) * 8 + 32 * 32 + 32 * 2 * 48 + 48 * 32
    unembedding = 32 * VOCABULARY_SIZE
    expected = {
        "linear": HEADS * unembedding,
        "mlp": HEADS * 32 * 32 + unembedding,
        "shared": layer + HEADS * 32 + unembedding,
    }
    assert counts["trunk"] == 3 * layer
    assert counts["heads"] == 32 + expected.get(family, HEADS * layer + unembedding)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("tiny", 1),
        ("nano", 8),
        ("small", 45),
        ("base", 350),
        ("large", 1300),
        ("induction", 1.4),
        ("arithmetic", 1.4),
        ("paper-7b", 6700),
    ],
)
def test_presets_have_about_the_size_of_their_names(preset: str, millions: float) -> None:
    assert set(PRESETS) == {"tiny", "nano", "small", "base", "large", "induction", "arithmetic", "paper-7b"}
    config = RunConfig.build(preset)
    with torch.device("meta"):
        model = ByteLM(config.model, config.heads)
    assert model.parameter_counts()["total"] / 1e6 == pytest.approx(millions, rel=0.12)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_operations_are_those_that_torch_counts(family: HeadFamily) -> None:
    model = new_model(family)

    def counted(length: int, training: bool) -> float:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits = model(some_ids(length))
            if training:
                logits.sum().backward()
        return counter.get_total_flops() / length

    # Of one byte nothing is hidden, so that a dense kernel computes just what is seen.
    assert model.flops_per_byte(1, training=False) == counted(1, training=False)
    assert model.flops_per_byte(1, training=True) == counted(1, training=True)
    # Of more, a dense kernel computes all pairs: scale what it takes for attention by the share that is seen.
    matrices = model.flops_per_byte(1, training=False) - 4 * 32 * (3 + model.heads.cache_layers)
    last = [CONFIG.attention_kind(2)] * model.heads.cache_layers
    layers = [CONFIG.attention_kind(layer) for layer in range(3)] + last
    seen = {kind: visible_dense(50, window_bytes=None if kind == "global" else 20).sum().item() / 50 for kind in layers}
    assert counted(50, training=False) == pytest.approx(matrices + len(layers) * 4 * 32 * 50)
    expected = matrices + sum(4 * 32 * seen[kind] for kind in layers)
    assert model.flops_per_byte(50, training=False) == pytest.approx(expected)
    assert model.flops_per_byte(50, training=True) == pytest.approx(3 * expected)


def test_a_frozen_trunk_costs_its_forward_pass_alone() -> None:
    model = new_model("linear")
    forward, whole = (model.flops_per_byte(50, training=training) for training in (False, True))
    freeze(model, "trunk")
    of_heads = 2.0 * model.heads.get_parameter("unembedding.weight").numel()
    assert model.flops_per_byte(50, training=False) == forward
    assert model.flops_per_byte(50, training=True) == pytest.approx(whole - 2 * (forward - of_heads))


# What a byte may depend on


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_changing_a_byte_changes_no_logit_before_it_in_any_head(family: HeadFamily) -> None:
    model = new_model(family)
    ids = some_ids(300)
    with torch.no_grad():
        before = model(ids)
        for place in (1, 57, 128, 299):
            changed = ids.clone()
            changed[0, place] = (changed[0, place] + 1) % EOD
            after = model(changed)
            assert torch.equal(after[:, :place], before[:, :place])
            assert (after[0, place] != before[0, place]).any(-1).all()  # every head sees the byte itself


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_packed_documents_equal_each_document_alone(family: HeadFamily) -> None:
    model = new_model(family)
    raw = torch.randint(0, 256, (1, 403), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    starts = [0, 37, 38, 250]
    rows, true = np.zeros(len(starts), dtype=np.int64), np.ones(len(starts), dtype=bool)
    packed = pack(raw, rows, np.array(starts), true, prediction_heads=HEADS)
    with torch.no_grad():
        together = model(packed.inputs_BT, packed.documents_BT)
        slot = 0
        for index, start in enumerate(starts):
            end = starts[index + 1] if index + 1 < len(starts) else 403
            document = torch.cat((torch.tensor([EOD]), raw[0, start:end].long()))
            count = min(len(document), packed.inputs_BT.shape[1] - slot)
            assert torch.equal(packed.inputs_BT[0, slot : slot + count], document[:count])
            alone = model(document[None, :count])
            torch.testing.assert_close(together[:, slot : slot + count], alone, rtol=1e-4, atol=1e-4)
            slot += count


def test_every_id_of_the_vocabulary_can_be_read() -> None:
    assert new_model("linear")(torch.arange(VOCABULARY_SIZE).unsqueeze(0)).isfinite().all()


# The cache


def decoded(model: ByteLM, inputs_BM: Tensor, cache: KVCache, row_B: Tensor | None = None) -> Tensor:
    """Logits (B, M or 1, K, V) of a decoding pass."""
    shared = model.cached_pass(cache, *inputs_BM.shape)
    hidden = model.decode(inputs_BM, shared)
    return model.heads.decode_logits(hidden, shared, range(model.heads.count), row_B=row_B)


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_ragged_passes_through_the_cache_equal_reading_at_once(family: HeadFamily, seed: int) -> None:
    """Three sequences of other lengths; of each pass another part of the rows is accepted, the rest is noise."""
    model = new_model(family)
    draw, length = random.Random(seed), 120
    ids = some_ids(length, seed, batch=3)
    with torch.inference_mode():
        expected, cache = model(ids), model.new_cache(3, length)
        for sequence, start in enumerate((0, draw.randrange(60), 40)):
            model.prefill(ids[sequence : sequence + 1, :start], cache, sequence)
            assert cache.lengths[sequence] == start
        while min(cache.lengths) < length:
            rows = draw.choice([1, 2, 3, 8, 20])
            counts = [min(draw.randint(0, rows), length - one) for one in cache.lengths]
            inputs_BM = some_ids(rows, draw.randrange(999), batch=3)
            for sequence, (start, count) in enumerate(zip(cache.lengths, counts, strict=True)):
                inputs_BM[sequence, :count] = ids[sequence, start : start + count]
            found = decoded(model, inputs_BM, cache)
            assert found.isfinite().all()  # padding too
            for sequence, (start, count) in enumerate(zip(cache.lengths, counts, strict=True)):
                torch.testing.assert_close(
                    found[sequence, :count], expected[sequence, start : start + count], rtol=1e-4, atol=2e-4
                )
            row_B = torch.tensor([max(0, count - 1) for count in counts])
            alone = decoded(model, inputs_BM, cache, row_B)
            torch.testing.assert_close(alone[:, 0], found[range(3), row_B], rtol=1e-4, atol=2e-4)
            cache.advance(counts)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_in_float64_the_cache_changes_hardly_a_bit(family: HeadFamily) -> None:
    model = new_model(family).double()
    ids = some_ids(60, batch=2)
    with torch.inference_mode():
        cache, expected, found = model.new_cache(2, 60), model(ids), []
        for sequence in range(2):
            model.prefill(ids[sequence : sequence + 1, :20], cache, sequence)
        for start in range(20, 60, 5):
            found.append(decoded(model, ids[:, start : start + 5], cache))
            cache.advance([5, 5])
    torch.testing.assert_close(torch.cat(found, 1), expected[:, 20:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_pass_over_the_first_sequences_leaves_the_others_alone(family: HeadFamily) -> None:
    model = new_model(family)
    ids = some_ids(40, batch=2)
    with torch.inference_mode():
        cache = model.new_cache(2, 50)
        for sequence in range(2):
            model.prefill(ids[sequence : sequence + 1, :30], cache, sequence)
        decoded(model, some_ids(8, seed=9), cache)
        cache.advance([6])
        assert cache.lengths == [36, 30]
        cache.move(1, 0)
        found = decoded(model, ids[1:, 30:], cache)
        torch.testing.assert_close(found, model(ids[1:])[:, 30:], rtol=1e-4, atol=2e-4)


def test_a_prompt_takes_the_place_of_what_was_there() -> None:
    model = new_model("transformer")
    with torch.inference_mode():
        cache = model.new_cache(1, 50)
        model.prefill(some_ids(50, 1), cache)
        model.prefill(some_ids(20, 2), cache)
        assert cache.lengths == [20]
        found = decoded(model, some_ids(4, 3), cache)
        expected = model(torch.cat((some_ids(20, 2), some_ids(4, 3)), 1))[:, 20:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_rows_behind_the_end_of_the_cache_stay_finite(family: HeadFamily) -> None:
    model = new_model(family, CONFIG.model_copy(update={"local_window_bytes": 2}))
    ids = some_ids(128)
    with torch.inference_mode():
        cache = model.new_cache(1, 128)
        model.prefill(ids[:, :127], cache)
        logits = decoded(model, torch.cat((ids[:, 127:], some_ids(SLACK - 1)), dim=1), cache)
        assert logits.isfinite().all()
        torch.testing.assert_close(logits[:, 0], model(ids)[:, 127], rtol=1e-4, atol=2e-4)
