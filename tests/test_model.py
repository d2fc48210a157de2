"""The model: what it sees, what it counts, and that reading from a cache changes nothing."""

import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bytelm.config import PRESETS, HeadFamily, HeadsConfig, ModelConfig, RunConfig
from bytelm.fine_tuning import freeze
from bytelm.heads import FAMILIES
from bytelm.kv_cache import BUCKET, KVCache
from bytelm.layers import JoinedPass, Linear
from bytelm.masks import visible_dense
from bytelm.model import ROWS_MULTIPLE, ByteLM
from bytelm.packed import why_not_int8
from bytelm.packing import pack
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


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


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


def decoded(model: ByteLM, rows: Tensor, cache: KVCache, heads: range | None = None) -> Tensor:
    """Logits (B, M, k, V) of a decoding pass."""
    shared = model.cached_pass(cache, rows.shape[1])
    which = range(model.heads.count) if heads is None else heads
    return model.heads.decode_logits(model.decode(rows, shared), shared, which)


def cached_logits(model: ByteLM, ids: Tensor, pieces: list[tuple[str, int]]) -> Tensor:
    """Logits of all heads where a text is read in pieces, each through ``prefill`` or through ``decode``."""
    cache = model.new_cache(ids.shape[0], ids.shape[1])
    found = []
    for how, count in pieces:
        rows = ids[:, cache.length : cache.length + count]
        if how == "prefill":
            start = cache.length
            states = model.prefill(rows, cache)
            assert cache.length == start + count
            if model.heads.cache_layers == 0:
                found.append(model.heads.logits(states))
            else:  # heads that attend answer in decoding passes alone
                found.append(torch.full((*rows.shape, model.heads.count, VOCABULARY_SIZE), torch.nan))
        else:
            found.append(decoded(model, rows, cache))
            cache.advance(count)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_reading_through_the_cache_equals_reading_at_once(family: HeadFamily, seed: int) -> None:
    model = new_model(family)
    ids = some_ids(300, seed, batch=2)
    draw = random.Random(seed)
    pieces, place = [], 0
    while place < 300:
        how = draw.choice(["prefill", "decode", "decode"])
        longest = 300 - place if how == "prefill" else min(300 - place, BUCKET - place % BUCKET)
        count = min(longest, draw.choice([0, 1, 2, 3, 8, 20, 100] if how == "prefill" else [1, 2, 3, 8, 20]))
        pieces.append((how, count))
        place += count
    with torch.inference_mode():
        found, expected = cached_logits(model, ids, pieces), model(ids)
    answered = ~found.isnan()
    assert answered.any()
    torch.testing.assert_close(found[answered], expected[answered], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_rejected_rows_leave_no_trace(family: HeadFamily) -> None:
    model = new_model(family)
    ids = some_ids(130)

    def continued(with_rejection: bool) -> Tensor:
        cache = model.new_cache(1, 140)
        model.prefill(ids[:, :96], cache)
        if with_rejection:
            decoded(model, some_ids(8, seed=9), cache)
            cache.advance(6)
            cache.truncate(96)
        found = []
        while cache.length < 128:
            found.append(decoded(model, ids[:, cache.length : cache.length + 8], cache))
            cache.advance(8)
        return torch.cat(found, dim=1)

    with torch.inference_mode():
        assert torch.equal(continued(with_rejection=True), continued(with_rejection=False))


@pytest.mark.parametrize(
    ("dtype", "packed"),
    [
        (torch.float32, ""),
        (torch.float32, "packed"),
        (torch.float32, "int8"),
        (torch.bfloat16, ""),
        (torch.bfloat16, "packed"),
    ],
)
@pytest.mark.parametrize("family", ["linear", "transformer"])
def test_the_bits_of_a_row_depend_on_nothing_but_the_bytes_before_it(
    family: HeadFamily, dtype: torch.dtype, packed: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model(family, RunConfig.build("tiny").model).to(dtype)
    if packed == "int8" and (why := why_not_int8(torch.device("cpu"))):
        pytest.skip(why)
    if packed:
        monkeypatch.setattr("bytelm.packed.SMALLEST", 0)
        monkeypatch.setattr("bytelm.packed.SMALLEST_INT8", 0)
        model.pack(int8=packed == "int8")
        assert model.int8 == (packed == "int8")
        assert all(one.packed is not None for one in model.layers.modules() if isinstance(one, Linear))
    generator = torch.Generator().manual_seed(7)
    ids, position = some_ids(200), 180  # the bucket begins at 128
    cache = model.new_cache(1, 256)
    found = []
    with torch.inference_mode():
        model.prefill(ids[:, :150], cache)
        # Two threads on a busy machine wait for each other: a few places are enough there.
        for rows in (4, 8, 12, 24) if threads == 1 else (4, 12):
            for place in range(0, rows, 3):
                cache.truncate(150)
                while cache.length < position - place:  # every slot from 150 on is written by a pass of some rows
                    count = min(rows, position - place - cache.length)
                    noise = torch.randint(0, EOD, (1, rows - count), generator=generator)
                    decoded(model, torch.cat((ids[:, cache.length : cache.length + count], noise), dim=1), cache)
                    cache.advance(count)
                noise = torch.randint(0, EOD, (1, rows - place - 1), generator=generator)
                inputs = torch.cat((ids[:, position - place : position + 1], noise), dim=1)
                found.append(decoded(model, inputs, cache, range(0, 1))[0, place])
    assert len(found) >= 6
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.usefixtures("threads")
def test_rows_of_several_sequences_have_the_bits_that_they_have_alone() -> None:
    model = new_model("transformer", RunConfig.build("tiny").model)
    lengths, counts = [0, 17, 127, 300, 128], [2, 8, 1, 3, 6]
    multiple = model.rows_of_a_sequence
    alone, passes, inputs, places = [], [], [], []
    with torch.inference_mode():
        for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            cache = model.new_cache(1, 512)
            model.prefill(some_ids(length, index), cache)
            rows = some_ids(count, 100 + index)
            single = torch.cat((rows, some_ids(-count % ROWS_MULTIPLE, 7)), dim=1)
            alone.append(decoded(model, single, cache, range(0, 1))[0, :count])
            cache.truncate(length)
            padding = -count % multiple if index < 4 else -(count + len(places)) % ROWS_MULTIPLE
            passes.append(model.cached_pass(cache, count + padding))
            places += [*range(count), *[-1] * padding]
            inputs.append(torch.cat((rows, some_ids(padding, 9)), dim=1))
        joined = JoinedPass.build(passes)
        inputs_1M = torch.cat(inputs, dim=1)
        assert inputs_1M.shape[1] % ROWS_MULTIPLE == 0
        hidden_1MD = model.decode(inputs_1M, joined)
        logits_MV = model.heads.decode_logits(hidden_1MD, joined, range(0, 1))[0]
    together = logits_MV[[place >= 0 for place in places]].split(counts)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("family", ["linear", "transformer"])
def test_a_row_of_a_tree_sees_its_own_path_and_the_chain_keeps_its_bits(family: HeadFamily) -> None:
    model = new_model(family)
    ids = some_ids(60)
    # Rows 0 1 2 3 are a chain, 4 and 5 another path from row 0, 6 one from row 2, 7 padding.
    parents, paths = [-1, 0, 1, 2, 0, 4, 2, 6], [[0, 4, 5], [0, 1, 2, 6]]
    rows = some_ids(8, seed=5)
    with torch.inference_mode():
        cache = model.new_cache(1, 128)
        model.prefill(ids, cache)
        shared = model.cached_pass(cache, 8, parents)
        hidden = model.decode(rows, shared)
        tree = model.heads.decode_logits(hidden, shared, range(HEADS))[0]
        cache.truncate(60)
        chain = decoded(model, torch.cat((rows[:, :4], some_ids(4)), dim=1), cache)[0]
        assert torch.equal(tree[:4, 0], chain[:4, 0])
        for path in paths:
            expected = model(torch.cat((ids, rows[:, path]), dim=1))[0, 60:]
            torch.testing.assert_close(tree[path], expected, rtol=1e-4, atol=2e-4)


def test_padding_rows_at_the_end_of_the_cache_stay_finite() -> None:
    config = CONFIG.model_copy(update={"local_window_bytes": 2})
    for family in ALL_FAMILIES:
        model = new_model(family, config)
        ids = some_ids(128)
        with torch.inference_mode():
            expected = model(ids)
            cache = model.new_cache(1, 128)
            model.prefill(ids[:, :127], cache)
            logits = decoded(model, torch.cat((ids[:, 127:], some_ids(31)), dim=1), cache)
            assert logits.isfinite().all()
            torch.testing.assert_close(logits[:, 0], expected[:, 127], rtol=1e-4, atol=2e-4)
            for layer in range(3 + model.heads.cache_layers):
                assert all(part.isfinite().all() for part in cache.read(layer, 0, 2 * BUCKET))
