"""Embeddings of n-grams: which rows are looked up, and that every way of reading looks up the same."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bytelm.config import HeadsConfig, ModelConfig, RunConfig
from bytelm.decode import Request, decode_batch, generate
from bytelm.drafting import DraftPolicy
from bytelm.errors import ConfigError
from bytelm.fine_tuning import freeze
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.ngram_rows import NOTHING, ids_before, ngram_rows
from bytelm.packing import pack
from bytelm.vocab import EOD

SHAPE = ModelConfig(
    d_model=32,
    layers=2,
    attention_heads=4,
    kv_heads=2,
    d_ff=48,
    attention_pattern=("local", "global"),
    local_window_bytes=20,
    ngram_sizes=(2, 4),
    ngram_rows=97,
    ngram_width=12,
)
HEADS = 3


def new_model(seed: int = 0) -> ByteLM:
    """What n-grams add is as large as what bytes are."""
    model = ByteLM(SHAPE, HeadsConfig(count=HEADS))
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator)
    assert model.ngrams is not None
    with torch.no_grad():
        model.ngrams.tables.normal_(generator=generator)
        model.ngrams.output.weight.mul_(2.0)
        model.heads.get_parameter("unembedding.weight").mul_(32.0)
    return model.eval()


def some_ids(length: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randint(0, EOD + 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def rows_of(ids: list[int], sizes: tuple[int, ...] = (2, 3), rows: int = 1000) -> list[list[int]]:
    inputs_1T = torch.tensor([ids])
    return ngram_rows(inputs_1T, ids_before(inputs_1T, max(sizes) - 1), sizes, rows)[:, 0].tolist()


# Which rows


def test_equal_ngrams_share_a_row_wherever_they_stand() -> None:
    twos, threes = rows_of([7, 8, 9, 1, 7, 8, 9, 2, 8, 9])
    assert twos[1] == twos[5]
    assert twos[2] == twos[6] == twos[9]
    assert threes[2] == threes[6] != threes[9]
    assert all(0 <= row < 1000 for row in twos)
    assert all(1000 <= row < 2000 for row in threes)


def test_all_pairs_of_bytes_are_spread_evenly() -> None:
    pairs = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    rows = ngram_rows(pairs[None, :, 1], pairs[None, None, :, 0], (2,), 1 << 16).flatten()
    hit = len(rows.unique()) / (1 << 16)
    assert hit > 0.6  # drawn at random it would be 1 - 1/e
    order = ngram_rows(pairs[None, :, 0], pairs[None, None, :, 1], (2,), 1 << 16).flatten()
    assert (rows == order).float().mean() < 0.01  # the order of the bytes counts


def test_nothing_is_no_id() -> None:
    first = rows_of([0, 0, 0])
    assert first[0][0] != first[0][1]  # the first byte, and the same byte after a zero
    assert len(set(first[1])) == 3


def test_the_ids_before_stay_in_their_document() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    assert ids_before(ids, 2, positions).tolist() == [
        [[NOTHING, 5, NOTHING, 7, 8]],
        [[NOTHING, NOTHING, NOTHING, NOTHING, 7]],
    ]
    assert ids_before(ids[:, :1], 3).tolist() == [[[NOTHING]]] * 3


# Every way of reading


def test_ngrams_that_were_never_trained_add_nothing() -> None:
    fresh = ByteLM(SHAPE, HeadsConfig(count=HEADS))
    fresh.initialize(torch.Generator().manual_seed(1))
    plain = ByteLM(SHAPE.model_copy(update={"ngram_sizes": ()}), HeadsConfig(count=HEADS))
    plain.load_state_dict({name: value for name, value in fresh.state_dict().items() if not name.startswith("ngrams.")})
    assert torch.equal(fresh(some_ids(30)), plain(some_ids(30)))


def test_a_byte_is_told_by_those_before_it_in_the_first_layer() -> None:
    model = new_model()
    changed = [torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[9, 2, 3, 4, 5]])]
    model.layers = torch.nn.ModuleList()
    first, other = (model.trunk(ids)[0] for ids in changed)
    assert [torch.equal(one, two) for one, two in zip(first, other, strict=True)] == [False, False, False, False, True]


def test_packed_documents_equal_each_document_alone() -> None:
    model = new_model()
    raw = torch.randint(0, 256, (1, 103), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    starts = [0, 37, 38, 50]
    rows, true = np.zeros(len(starts), dtype=np.int64), np.ones(len(starts), dtype=bool)
    packed = pack(raw, rows, np.array(starts), true, prediction_heads=HEADS)
    assert packed.documents_BT is not None
    with torch.no_grad():
        together = model(packed.inputs_BT, packed.documents_BT)[0]
        for document in packed.documents_BT[0].unique():
            places = packed.documents_BT[0] == document
            alone = model(packed.inputs_BT[:, places])[0]
            torch.testing.assert_close(together[places], alone, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_sequences_that_are_read_through_the_cache_have_their_own_ngrams(seed: int) -> None:
    model = new_model()
    ids = some_ids(90, seed, batch=3)
    draw = random.Random(seed)
    with torch.inference_mode():
        expected, cache = model(ids), model.new_cache(3, 90)
        for sequence, start in enumerate((0, 1, 40)):
            model.prefill(ids[sequence : sequence + 1, :start], cache, sequence)
        while min(cache.lengths) < 90:
            rows = draw.choice([1, 2, 3, 8, 20])
            counts = [min(draw.randint(0, rows), 90 - one) for one in cache.lengths]
            inputs_BM = some_ids(rows, draw.randrange(999), batch=3)
            for sequence, (start, count) in enumerate(zip(cache.lengths, counts, strict=True)):
                inputs_BM[sequence, :count] = ids[sequence, start : start + count]
            shared = model.cached_pass(cache, 3, rows)
            found = model.heads.decode_logits(model.decode(inputs_BM, shared), shared, range(HEADS))
            for sequence, (start, count) in enumerate(zip(cache.lengths, counts, strict=True)):
                torch.testing.assert_close(
                    found[sequence, :count], expected[sequence, start : start + count], rtol=1e-4, atol=2e-4
                )
            cache.advance(counts)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_no_byte(temperature: float) -> None:
    model = new_model(3).double()
    prompts = [b"", b"the ", b"the bytes and the bytes and"]
    policies: tuple[DraftPolicy, ...] = ("adaptive", "heads", "ngram")

    def asked(draft: DraftPolicy, sequence: int = 0) -> GenerateSettings:
        return GenerateSettings(max_bytes=150, draft=draft, temperature=temperature, seed=5, sequence=sequence)

    plain = []
    for sequence, prompt in enumerate(prompts):
        plain.append(generate(model, prompt, asked("none", sequence), context_bytes=96).data)
        for policy in policies:
            assert generate(model, prompt, asked(policy, sequence), context_bytes=96).data == plain[-1]
    assert len(set(b"".join(plain))) > 12  # not one byte repeated
    requests = [Request(prompt, asked("adaptive", sequence)) for sequence, prompt in enumerate(prompts)]
    together = [b""] * len(prompts)
    for index, step in decode_batch(model, requests, context_bytes=96, slots=2):
        together[index] += step.data
    assert together == plain


# What it costs, and what is refused


def test_parameters_and_operations_are_counted() -> None:
    model = new_model()
    assert model.ngrams is not None
    counts = model.parameter_counts()
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["embedding"] == 320 * 32 + 2 * 97 * 12 + 2 * 12 * 32
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(some_ids(1)).sum().backward()
    assert counter.get_total_flops() == model.flops_per_byte(1, training=True)
    freeze(model, "trunk")
    assert not any(parameter.requires_grad for parameter in model.ngrams.parameters())


@pytest.mark.parametrize("sizes", ["[3, 2]", "[2, 2]", "[1, 2]", "[2, 9]"])
def test_lengths_that_make_no_sense_are_refused(sizes: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.ngram_sizes = .*ascending"):
        RunConfig.build("tiny", [f"model.ngram_sizes={sizes}"])
