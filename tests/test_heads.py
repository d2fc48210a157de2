"""The prediction heads: one interface, independent heads, decoding that equals the whole window."""

from typing import Any, get_args

import pytest
import torch

from bytelm.config import HeadFamily, HeadsConfig, ModelConfig
from bytelm.heads import FAMILIES, LinearHeads, PredictionHeads, SharedHeads
from bytelm.model import ByteLM
from bytelm.vocab import VOCABULARY_SIZE

CONFIG = ModelConfig(d_model=32, layers=3, attention_heads=4, kv_heads=2, d_ff=48, local_window_bytes=8)
ALL_FAMILIES = sorted(FAMILIES)


def new_model(family: HeadFamily, count: int = 4, *, keep_parameters_equal: bool = False) -> ByteLM:
    heads = HeadsConfig(family=family, count=count, keep_parameters_equal=keep_parameters_equal)
    model = ByteLM(CONFIG, heads)
    model.initialize(torch.Generator().manual_seed(0))
    return model.eval()


def hidden(model: ByteLM, length: int = 21) -> torch.Tensor:
    ids = torch.randint(0, 257, (2, length), generator=torch.Generator().manual_seed(1))
    return model.trunk(ids).detach()


def test_every_family_of_the_settings_exists() -> None:
    assert set(FAMILIES) == set(get_args(HeadFamily))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_all_heads_at_once_equal_each_head_alone(family: HeadFamily) -> None:
    model = new_model(family)
    documents = (torch.arange(21) >= 9).long().expand(2, -1)
    states = hidden(model)
    together = model.heads.logits(states, documents)
    assert together.shape == (2, 21, 4, VOCABULARY_SIZE)
    shared = model.heads.window_pass(states, documents)
    for head in range(4):
        alone = model.heads.head_logits(head, states, shared)
        torch.testing.assert_close(together[:, :, head], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.heads.logits(states, documents, range(1, 3)), together[:, :, 1:3])


DEPENDENT: dict[str, list[int]] = {"causal": [2, 3], "anticausal": [0, 1, 2], "shared": [2, 3]}
"""Heads that change with what belongs to head 2 alone; in other families, head 2 itself."""


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_no_two_heads_are_the_same_and_each_depends_on_those_before_it_in_its_chain_alone(family: HeadFamily) -> None:
    model = new_model(family)
    states = hidden(model)
    before = model.heads.logits(states)
    for head in range(3):
        assert not torch.allclose(before[:, :, head], before[:, :, head + 1])
    with torch.no_grad():
        if isinstance(model.heads, LinearHeads):
            model.heads.unembedding.weight[2 * VOCABULARY_SIZE : 3 * VOCABULARY_SIZE] += 1.0
        elif isinstance(model.heads, SharedHeads):
            model.heads.depth_embedding[2] += 1.0
        for name, weight in model.heads.named_parameters():
            if ".2." in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    changed = (model.heads.logits(states) != before).flatten(0, 1).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == DEPENDENT.get(family, [2])


def test_a_chain_is_its_layers_one_on_top_of_the_other() -> None:
    orders: dict[HeadFamily, tuple[int, ...]] = {"causal": (0, 1, 2, 3), "anticausal": (3, 2, 1, 0)}
    for family, order in orders.items():
        heads: Any = new_model(family).heads
        state = hidden(new_model(family))
        shared = heads.window_pass(state, None)
        logits = heads.logits(state)
        for head in order:
            state = heads.blocks[head](state, shared)
            expected = heads.unembedding(heads.norm(state))
            torch.testing.assert_close(logits[:, :, head], expected, rtol=1e-4, atol=1e-5)


def test_the_shared_layer_is_applied_once_more_for_each_head() -> None:
    model = new_model("shared")
    heads: Any = model.heads
    with torch.no_grad():
        heads.depth_embedding.normal_(generator=torch.Generator().manual_seed(0))
    state = hidden(model)
    shared = heads.window_pass(state, None)
    logits = heads.logits(state)
    assert len(heads.blocks) == 1
    for head in range(4):
        state = heads.blocks[0](state + heads.depth_embedding[head], shared)
        expected = heads.unembedding(heads.norm(state))
        torch.testing.assert_close(logits[:, :, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_head_is_computed_once_for_all_that_want_it(family: HeadFamily) -> None:
    heads = new_model(family).heads
    computed: list[int] = []
    whole = heads.head_state

    def watched(head: int, *arguments: Any) -> torch.Tensor:
        computed.append(head)
        return whole(head, *arguments)

    heads.head_state = watched  # pyright: ignore[reportAttributeAccessIssue]
    states = hidden(new_model(family))
    shared = heads.window_pass(states, None)
    assert sorted(head for head, _ in heads.states(states, shared, range(1, 4))) == [1, 2, 3]
    assert computed == {"causal": [0, 1, 2, 3], "shared": [0, 1, 2, 3], "anticausal": [3, 2, 1]}.get(family, [1, 2, 3])


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_drafts_of_one_row_equal_the_same_row_of_a_whole_window(family: HeadFamily) -> None:
    model = new_model(family)
    ids = torch.randint(0, 257, (1, 64), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(ids)
        cache = model.new_cache(1, 64)
        model.prefill(ids[:, :17], cache)
        # Passes of 8 rows of which 3, 1, 8 … are accepted; only the last accepted row drafts.
        for accepted in (3, 1, 8, 5):
            rejected = torch.full((1, 8 - accepted), 7)
            rows = torch.cat((ids[:, cache.lengths[0] : cache.lengths[0] + accepted], rejected), dim=1)
            shared = model.cached_pass(cache, 1, 8)
            states = model.decode(rows, shared)
            last = accepted - 1
            drafts = model.heads.decode_logits(states, shared, range(1, 4), row_B=torch.tensor([last]))
            place = cache.lengths[0] + last
            torch.testing.assert_close(drafts[0, 0], expected[0, place, 1:], rtol=1e-4, atol=1e-5)
            cache.advance([accepted])


def test_linear_heads_are_one_matrix() -> None:
    heads = new_model("linear").heads
    assert isinstance(heads, LinearHeads)
    assert heads.unembedding.weight.shape == (4 * VOCABULARY_SIZE, 32)


@pytest.mark.parametrize("family", ["transformer", "causal", "anticausal"])
def test_heads_of_layers_can_take_them_off_the_trunk(family: HeadFamily) -> None:
    extra, equal = new_model(family, 3), new_model(family, 3, keep_parameters_equal=True)
    assert (len(extra.layers), len(equal.layers)) == (3, 1)
    plain = new_model(family, 1)
    assert equal.parameter_counts()["total"] == plain.parameter_counts()["total"]
    assert extra.parameter_counts()["total"] > plain.parameter_counts()["total"]


def test_a_family_without_its_logits_cannot_be_made() -> None:
    family: Any = PredictionHeads
    with pytest.raises(TypeError, match="head_state"):
        family(CONFIG, 2, 3)
