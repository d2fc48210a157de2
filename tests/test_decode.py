"""Decoding through torch gives the specified bytes with every kind of draft, and ends exactly where it must.

Models are float64, so that no two logits are as near as rounding: what is tested is that the algorithm loses nothing.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bytelm.config import HeadFamily, HeadsConfig, ModelConfig
from bytelm.decode import decode_steps, generate
from bytelm.drafting import DraftPolicy
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings, Generation, Step
from bytelm.kv_cache import KVCache
from bytelm.layers import Pass
from bytelm.model import ByteLM
from bytelm.outlet import OutputBuffer
from bytelm.vocab import BYTE_COUNT, EOD, VOCABULARY_SIZE, Vocab
from tests.specification import specified_bytes

FAMILIES: tuple[HeadFamily, ...] = ("linear", "mlp", "transformer", "causal", "anticausal", "shared")
SPECULATIVE: tuple[DraftPolicy, ...] = ("adaptive", "heads", "ngram")
INDEPENDENT = FAMILIES[:3]
"""Enough where it is the decoder that is tested: a chain decodes as the transformer heads do, and takes longer."""
HEADS = 5
CONTEXT = 90
SHAPE = ModelConfig(
    d_model=32,
    layers=2,
    attention_heads=2,
    kv_heads=1,
    d_ff=64,
    attention_pattern=("local", "global"),
    local_window_bytes=24,
)


class WatchedLM(ByteLM):
    """A model that notes what the decoder asks of it."""

    def __init__(self, model: ModelConfig, heads: HeadsConfig) -> None:
        super().__init__(model, heads)
        self.caches: list[KVCache] = []
        self.rows: list[int] = []
        self.prefills: list[list[int]] = []

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        self.caches.append(super().new_cache(batch, capacity))
        return self.caches[-1]

    def prefill(self, inputs_1T: Tensor, cache: KVCache, sequence: int = 0) -> None:
        self.prefills.append(inputs_1T[0].tolist())
        super().prefill(inputs_1T, cache, sequence)

    def decode(self, inputs_BM: Tensor, shared: Pass) -> Tensor:
        self.rows.append(inputs_BM.shape[1])
        return super().decode(inputs_BM, shared)


def random_model(family: HeadFamily, *, heads: int = HEADS, seed: int = 0) -> WatchedLM:
    """Random weights with logits far apart: the output is not one byte repeated, and it hardly ever ends."""
    torch.manual_seed(seed)
    model = WatchedLM(SHAPE, HeadsConfig(family=family, count=heads)).eval().double()
    with torch.no_grad():
        unembedding(model).mul_(8.0)
        unembedding(model).view(-1, VOCABULARY_SIZE, SHAPE.d_model)[:, EOD] = 0.0
    return model


def unembedding(model: ByteLM) -> nn.Parameter:
    heads: Any = model.heads
    return heads.unembedding.weight


_WORDS = [b"the ", b"byte ", b"models ", b"read ", b"and ", b"drafts ", b"\xe2\x82\xac ", b"\xff\x00 "]


def _document(source: random.Random) -> bytes:
    """A walk over the words, each of which has two that may follow, of which one is likelier."""
    word, words = 0, []
    for _ in range(source.randint(8, 16)):
        words.append(_WORDS[word])
        word = (word + source.choice((1, 1, 1, 3))) % len(_WORDS)
    return b"".join(words) + b"."


@functools.cache
def trained_model(family: HeadFamily) -> WatchedLM:
    """A few seconds of training on documents of eight words: most drafts are right, some are not."""
    source = random.Random(7)
    model = random_model(family, seed=3).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream = [identifier for _ in range(1500) for identifier in (EOD, *_document(source))]
    length = 48
    for _ in range(100):
        starts = [source.randrange(len(stream) - length - HEADS) for _ in range(16)]
        windows_BW = torch.tensor([stream[start : start + length + HEADS] for start in starts])
        logits_BTKV = model(windows_BW[:, :length])
        targets_BTK = windows_BW.unfold(1, HEADS, 1)[:, 1:]
        loss = F.cross_entropy(logits_BTKV.flatten(0, 2), targets_BTK.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.double()


def draft_parameters(model: ByteLM) -> list[Tensor]:
    """Weights of heads 1 … K - 1, one tensor a head, as views: changing them changes drafts alone."""
    if model.heads_config.family == "linear":
        return list(unembedding(model).data.split(VOCABULARY_SIZE))[1:]
    heads: Any = model.heads
    layers = heads.layers if model.heads_config.family == "mlp" else heads.blocks
    matrices = [max(layer.parameters(), key=Tensor.numel).data for layer in layers]
    return matrices[1:]


def prompts(count: int, seed: int) -> list[bytes]:
    """Text, random bytes, nothing, every byte value, and lengths around the context's end."""
    source = random.Random(seed)
    text = b"".join(_document(source) for _ in range(40))
    special = [b"", b"\x00", bytes(range(256)), b"\xff" * 40]
    edges = [CONTEXT + extra for extra in (*range(-12, 3), 300)]
    special += [text[:length] for length in edges]
    if count < 2 * len(special):
        special = source.sample(special, count // 2)
    random_bytes = [source.randbytes(source.randint(1, 60)) for _ in range((count - len(special)) // 2)]
    texts = []
    while len(special) + len(random_bytes) + len(texts) < count:
        start = source.randrange(len(text) - 80)
        texts.append(text[start : start + source.randint(1, 80)])
    return special + random_bytes + texts


SEVERAL = [
    pytest.param(family, marks=[] if family in ("linear", "transformer", "causal") else pytest.mark.slow)
    for family in FAMILIES
]


def prompts_for(family: HeadFamily) -> int:
    """Prompts of a fast test."""
    return 40 if family in INDEPENDENT[:1] else 24


def settings_of(index: int, **changes: Any) -> dict[str, Any]:
    """Every rule of choice in turn."""
    rules: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": index},
        {"utf8": True},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": index},
        {"repetition_penalty": 1.3},
        {"temperature": 0.9, "min_p": 0.05, "seed": index, "utf8": True, "repetition_penalty": 1.2},
        {"temperature": 0.6, "stop": (b"the", b"e"), "sequence": index},
    ]
    return rules[index % len(rules)] | changes


def run(model: ByteLM, prompt: bytes, *, context_bytes: int = CONTEXT, **settings: Any) -> Generation:
    return generate(model, prompt, GenerateSettings(**settings), context_bytes=context_bytes)


def both(
    model: ByteLM, prompt: bytes, *, context_bytes: int = CONTEXT, draft: DraftPolicy = "heads", **settings: Any
) -> Generation:
    """The speculative generation, after checking that it equals the plain one."""
    plain = run(model, prompt, context_bytes=context_bytes, draft="none", **settings)
    speculative = run(model, prompt, context_bytes=context_bytes, draft=draft, **settings)
    assert speculative.data == plain.data
    assert speculative.finish_reason == plain.finish_reason
    assert set(plain.sources) <= {0}
    return speculative


def as_specified(model: ByteLM, prompt: bytes, *, context_bytes: int = CONTEXT, **settings: Any) -> Generation:
    """The generation, after checking that its bytes are the specified ones."""
    found = run(model, prompt, context_bytes=context_bytes, **settings)
    expected = specified_bytes(model, prompt, GenerateSettings(**settings), context_bytes=context_bytes)
    assert (found.data, found.finish_reason) == expected
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_policy_gives_the_specified_bytes_with_random_weights(family: HeadFamily) -> None:
    model, policies = random_model(family), ("none", *SPECULATIVE)
    outputs = {
        as_specified(model, prompt, max_bytes=10, draft=policies[index // 2 % 4], **settings_of(index)).data
        for index, prompt in enumerate(prompts(prompts_for(family), 1))
    }
    assert len(outputs) > prompts_for(family) / 3, (
        "the model says the same to every prompt: the test would see no error"
    )


@pytest.mark.parametrize("family", SEVERAL)
def test_every_policy_gives_the_specified_bytes_where_most_drafts_are_accepted(family: HeadFamily) -> None:
    model = trained_model(family)
    results = [
        as_specified(model, prompt, max_bytes=16, draft=SPECULATIVE[index // 2 % 2], **settings_of(index))
        for index, prompt in enumerate(prompts(prompts_for(family), 2))
    ]
    assert sum(len(result.data) for result in results) / sum(result.steps for result in results) > 2.0
    assert {source for result in results for source in result.sources} == {-1, *range(HEADS)}
    assert {result.finish_reason for result in results} == {"max_bytes", "stop", "end_of_document"}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_speculative_equals_plain_on_long_continuations(family: HeadFamily) -> None:
    model = trained_model(family)
    for index, prompt in enumerate(prompts(300, 3)):
        both(model, prompt, max_bytes=100, draft=SPECULATIVE[index // 2 % 3], **settings_of(index))


@pytest.mark.parametrize("family", INDEPENDENT)
def test_damaged_draft_heads_cost_steps_and_change_no_byte(family: HeadFamily) -> None:
    model = trained_model(family)
    weights = draft_parameters(model)
    intact = [weight.clone() for weight in weights]
    asked = prompts(40, 5)[-4:]
    expected = [run(model, prompt, max_bytes=20, draft="heads") for prompt in asked]

    def steps_of_damaged(replacements: Sequence[Tensor]) -> int:
        try:
            for weight, replacement in zip(weights, replacements, strict=True):
                weight.copy_(replacement)
            results = [run(model, prompt, max_bytes=20, draft="heads") for prompt in asked]
            adaptive = [run(model, prompt, max_bytes=20) for prompt in asked]
        finally:
            for weight, original in zip(weights, intact, strict=True):
                weight.copy_(original)
        assert [result.data for result in results] == [result.data for result in expected]
        assert [result.data for result in adaptive] == [result.data for result in expected]
        return sum(result.steps for result in results)

    steps = sum(result.steps for result in expected)
    generator = torch.Generator().manual_seed(0)
    assert steps_of_damaged(intact) == steps
    assert steps_of_damaged(intact[1:] + intact[:1]) > steps, "heads permuted"
    assert steps_of_damaged([torch.zeros_like(weight) for weight in intact]) > steps, "heads zeroed"
    randomised = [torch.empty_like(weight).normal_(generator=generator) for weight in intact]
    assert steps_of_damaged(randomised) > steps, "heads randomised"
    # Heads that are not even numbers draft nothing: as many steps as there are bytes, and one for an end.
    plain_steps = sum(run(model, prompt, max_bytes=20, draft="none").steps for prompt in asked)
    assert steps_of_damaged([torch.full_like(weight, torch.nan) for weight in intact]) == plain_steps


def test_exact_ties_go_to_the_lowest_byte_and_are_all_accepted() -> None:
    model = random_model("linear")
    nn.init.zeros_(unembedding(model))
    result = both(model, b"tie", max_bytes=25)
    assert result.data == b"\x00" * 25
    assert result.steps == 6  # nothing is drafted for the first pass: 1, then 5 times 5 bytes less one
    assert result.acceptance_by_head == (1.0,) * HEADS


def test_drafts_from_the_distribution_of_the_trunk_itself_are_all_accepted_when_sampled() -> None:
    model = random_model("linear")
    nn.init.zeros_(unembedding(model))
    result = both(model, b"as the trunk", max_bytes=25, temperature=1.0, top_p=0.9, seed=8)
    assert len(set(result.data)) > 15
    assert result.steps == 6
    assert result.acceptance_by_head == (1.0,) * HEADS


@pytest.mark.parametrize("draft", ["none", "adaptive"])
def test_the_bytes_are_specified_also_where_the_context_slides(draft: DraftPolicy) -> None:
    model = random_model("causal")
    greedy = as_specified(model, b"so it begins", max_bytes=120, context_bytes=48, draft=draft)
    assert len(set(greedy.data)) > 5
    as_specified(model, b"", max_bytes=120, context_bytes=33, draft=draft, temperature=1.0)


def test_a_prompt_beyond_the_context_begins_with_its_last_half() -> None:
    model, prompt = random_model("linear"), random.Random(2).randbytes(CONTEXT)
    run(model, prompt[1:], max_bytes=1)  # with the EOD in front it just fits
    run(model, prompt, max_bytes=1)
    # The last id is read by the first pass itself.
    assert model.prefills == [[EOD, *prompt[1:-1]], list(prompt[-CONTEXT // 2 : -1])]


def test_the_context_slides_at_the_same_bytes_with_and_without_drafts() -> None:
    model = random_model("linear")
    result = both(model, b"", max_bytes=300)
    half = len(model.prefills) // 2
    assert model.prefills[:half] == model.prefills[half:]
    ids = [EOD, *result.data]
    # Ids that found the context full; the half that stays includes them, so the next is one id later than a half.
    ends = range(CONTEXT, 300, CONTEXT // 2 + 1)
    assert len(ends) > 3
    slid = [ids[end + 1 - CONTEXT // 2 : end] for end in ends]
    assert model.prefills[:half] == [[], *slid]


@pytest.mark.parametrize("family", SEVERAL)
def test_after_every_step_the_cache_is_that_of_a_fresh_prefill(family: HeadFamily) -> None:
    prompt = b"the byte models read and dra"
    # Few drafts are right in one model, many in the other.
    _compare_caches(random_model(family), prompt, GenerateSettings(max_bytes=36), 50)
    for seed in range(2):
        settings = GenerateSettings(max_bytes=120, temperature=0.3, seed=seed)
        _compare_caches(trained_model(family), prompt, settings, 40)


def _compare_caches(model: WatchedLM, prompt: bytes, settings: GenerateSettings, context_bytes: int) -> None:
    ids, start = [EOD, *prompt], 0
    for step in decode_steps(model, prompt, settings, context_bytes=context_bytes):
        if len(ids) - start > context_bytes:
            start = len(ids) - context_bytes // 2
        ids += step.data
        if step.finish_reason is not None:
            break
        cache = model.caches[-1]
        # The last id is read by the next pass.
        length = cache.lengths[0]
        assert length == len(ids) - 1 - start
        fresh = ByteLM.new_cache(model, 1, context_bytes)
        ByteLM.prefill(model, torch.tensor([ids[start:-1]], dtype=torch.int64), fresh)
        for layer in range(len(model.layers) + model.heads.cache_layers):
            ours, theirs = cache.read(layer, 1, 0, length), fresh.read(layer, 1, 0, length)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert len(ids) > context_bytes


def test_a_pass_has_just_the_rows_that_it_needs() -> None:
    model = trained_model("linear")
    model.rows.clear()
    run(model, b"the byte ", max_bytes=40, draft="none")
    assert set(model.rows) == {1}
    model.rows.clear()
    run(model, b"the byte ", max_bytes=40, draft="heads")
    assert model.rows[0] == 1
    assert max(model.rows) == HEADS


@pytest.mark.parametrize("max_bytes", range(21))
def test_max_bytes_is_exact(max_bytes: int) -> None:
    result = both(random_model("linear"), b"count", max_bytes=max_bytes)
    assert len(result.data) == len(result.sources) == max_bytes
    assert result.finish_reason == "max_bytes"
    whole = both(random_model("linear"), b"count", max_bytes=25)
    assert whole.data.startswith(result.data)


@pytest.mark.parametrize("family", INDEPENDENT)
def test_accepted_drafts_and_steps_add_up_to_the_bytes(family: HeadFamily) -> None:
    settings = GenerateSettings(max_bytes=60, temperature=0.5, seed=1, draft="heads")
    for prompt in prompts(40, 11)[-10:]:
        steps = list(decode_steps(trained_model(family), prompt, settings, context_bytes=CONTEXT))
        assert all(step.drafted == tuple(range(1, 1 + len(step.drafted))) for step in steps)
        result = Generation.of(steps, prediction_heads=HEADS, elapsed_s=2.0)
        # A pass whose own choice is the end of the document gives one byte less.
        ended = result.finish_reason == "end_of_document"
        assert sum(step.accepted for step in steps) + len(steps) - ended == len(result.data)
        assert all(0 <= step.accepted <= len(step.drafted) < HEADS for step in steps)
        for head in range(1, HEADS):
            proposed = sum(len(step.drafted) >= head for step in steps)
            acceptance = result.acceptance_by_head[head]
            assert result.sources.count(head) == (acceptance * proposed if acceptance is not None else 0)
        assert result.bytes_per_step == len(result.data) / len(steps)
        assert result.bytes_per_second == len(result.data) / 2.0


def test_each_byte_names_the_head_that_drafted_it() -> None:
    settings = GenerateSettings(max_bytes=40, draft="heads")
    for step in decode_steps(trained_model("linear"), b"the byte ", settings, context_bytes=CONTEXT):
        assert step.sources == (*range(1, step.accepted + 1), 0)


def _cut(whole: bytes, stops: Sequence[bytes]) -> bytes:
    """The specification of stop strings: the first to be complete counts; of two that end together, the longer."""
    for end in range(1, len(whole) + 1):
        ends = [stop for stop in stops if whole[:end].endswith(stop)]
        if ends:
            return whole[: end - max(map(len, ends))]
    return whole


@pytest.mark.parametrize("family", INDEPENDENT[:1])
def test_stop_strings_cut_inside_and_across_accepted_blocks(family: HeadFamily) -> None:
    model, source = trained_model(family), random.Random(3)
    cut_at_draft = 0
    for prompt in (b"the ", b"drafts \xe2\x82", b"byte models"):
        whole = run(model, prompt, max_bytes=48, draft="none", temperature=0.3)
        for _ in range(12):
            starts = [source.randrange(len(whole.data)) for _ in range(source.randint(1, 3))]
            stops = tuple(whole.data[start : start + source.randint(1, 9)] for start in starts)
            result = both(model, prompt, max_bytes=48, temperature=0.3, stop=stops)
            assert result.data == _cut(whole.data, stops)
            assert result.finish_reason == "stop"
            assert len(result.sources) == len(result.data)
            cut_at_draft += result.data[-1:] != b"" and result.sources[-1] > 0
    assert cut_at_draft > 5


def test_a_stop_string_is_looked_for_in_generated_bytes_alone_and_its_beginning_is_held_back() -> None:
    model = random_model("linear")
    nn.init.zeros_(unembedding(model))  # says nothing but zero bytes
    settings = {"max_bytes": 12, "stop": (b"\x00" * 8,)}
    assert both(model, b"\x00" * 7, **settings).data == b""
    never = GenerateSettings(max_bytes=12, stop=(b"\x00" * 8 + b"x",), draft="heads")
    steps = list(decode_steps(model, b"", never, context_bytes=CONTEXT))
    # What might begin the string waits until it cannot any more, and the end releases the rest.
    assert [len(step.data) for step in steps] == [0, 0, 3, 9]
    assert b"".join(step.data for step in steps) == b"\x00" * 12


FEW_BYTES = st.binary(min_size=1, max_size=16).map(lambda data: bytes(byte % 2 for byte in data))


@given(st.lists(FEW_BYTES.map(lambda data: data[:3]), max_size=3), FEW_BYTES, st.integers(1, 16), st.data())
def test_the_output_ends_where_it_must_for_any_blocks(
    stops: list[bytes], whole: bytes, max_bytes: int, data: st.DataObject
) -> None:
    """Byte by byte: a stop string first, then the last byte, then the end of the document."""
    buffer, out, sources, rest = OutputBuffer(max_bytes, stops), b"", list[int](), [*whole, EOD]
    finish_reason = None
    while finish_reason is None:
        count = data.draw(st.integers(1, len(rest)))
        places = range(len(whole) + 1 - len(rest), len(whole) + 1 - len(rest) + count)
        block = rest[:count]
        finish_reason = buffer.push(
            bytes(block) if EOD not in block else block, places, [-float(one) for one in places]
        )
        rest = rest[count:]
        popped = buffer.pop_safe(last=finish_reason is not None)
        out, sources = out + popped[0], [*sources, *popped[1]]
        assert popped[2] == tuple(-float(one) for one in popped[1])
        assert _cut(whole[:max_bytes], stops).startswith(out)
    expected = _cut(whole[:max_bytes], stops)
    assert out == expected
    assert sources == list(range(len(out)))
    if any(stop in whole[:max_bytes] for stop in stops):
        assert finish_reason == "stop"
    else:
        assert finish_reason == ("max_bytes" if len(whole) >= max_bytes else "end_of_document")


class Pairs(Vocab):
    """Ids that stand for two bytes or none."""

    def encode(self, data: bytes) -> Any:
        raise NotImplementedError

    def bytes_of(self, identifier: int) -> bytes:
        return bytes((identifier, identifier)) if identifier % 2 else b""


def test_ids_that_stand_for_several_bytes_are_cut_inside() -> None:
    buffer = OutputBuffer(5, [], Pairs())
    assert buffer.push([65, 66, 67], [0, 1, 2]) is None
    assert buffer.pop_safe(last=False) == (b"AACC", (0, 0, 2, 2), ())
    assert buffer.push([69, 71], [3, 4]) == "max_bytes"
    assert (buffer.pop_safe(last=True), buffer.count) == ((b"E", (3,), ()), 5)


@pytest.mark.parametrize("family", INDEPENDENT)
def test_the_end_of_a_document_ends_the_output_also_where_it_was_drafted(family: HeadFamily) -> None:
    model = trained_model(family)
    ends = [run(model, prompt, max_bytes=400, temperature=0.5, seed=seed) for seed, prompt in enumerate([b"", b"the "])]
    assert {end.finish_reason for end in ends} == {"end_of_document"}
    assert all(end.data.endswith(b".") for end in ends)
    assert both(model, b"the byte models.", max_bytes=20).data == b""


def test_one_head_has_nothing_to_draft() -> None:
    model = random_model("linear", heads=1)
    result = both(model, b"alone", max_bytes=20)
    assert result.steps == 20
    assert result.acceptance_by_head == (1.0,)
    assert set(model.rows) == {1}


def test_the_largest_number_of_heads_is_decoded_exactly() -> None:
    both(random_model("linear", heads=32), b"many heads", max_bytes=60)
    both(random_model("transformer", heads=32), b"", max_bytes=34, temperature=1.0)


def test_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    model = random_model("linear")
    first, again, other = (both(model, b"", max_bytes=16, temperature=1.0, seed=seed).data for seed in (1, 1, 2))
    assert first == again != other


def test_sampled_bytes_follow_the_distribution_of_the_model() -> None:
    model = random_model("linear", heads=2)
    with torch.no_grad():
        logits_V = model(torch.tensor([[EOD, 7]]))[0, -1, 0, :BYTE_COUNT].double()
        probability_V = logits_V.softmax(0)
    draws = 400
    counts_V = torch.zeros(BYTE_COUNT, dtype=torch.float64)
    for seed in range(draws):
        result = run(model, b"\x07", max_bytes=1, temperature=1.0, seed=seed, context_bytes=8)
        counts_V[list(result.data)] += 1
    likely = probability_V * draws > 8
    chi_square = ((counts_V - probability_V * draws) ** 2 / (probability_V * draws))[likely].sum().item()
    freedom = int(likely.sum())
    assert freedom > 5
    assert chi_square < freedom + 3.1 * (2 * freedom) ** 0.5 + 5  # above the quantile of 1 - 1e-3


def test_no_byte_asked_for_takes_no_step() -> None:
    result = run(random_model("linear"), b"x", max_bytes=0)
    assert (result.data, result.steps, result.bytes_per_step, result.finish_reason) == (b"", 0, 0.0, "max_bytes")
    assert result.acceptance_by_head == (None,) * HEADS


def test_an_interrupted_generation_is_summed_up_as_far_as_it_came() -> None:
    steps = decode_steps(random_model("linear"), b"x", GenerateSettings(max_bytes=50), context_bytes=CONTEXT)
    part = list(itertools.islice(steps, 3))
    result = Generation.of(part, prediction_heads=HEADS, elapsed_s=1.0, interrupted=True)
    assert (result.steps, result.finish_reason) == (3, "interrupted")


def test_between_two_steps_the_caller_is_not_in_inference_mode() -> None:
    steps: Iterator[Step] = decode_steps(
        random_model("linear"), b"x", GenerateSettings(max_bytes=8), context_bytes=CONTEXT
    )
    for _ in steps:
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_weights_that_have_diverged_are_named() -> None:
    model = random_model("linear")
    nn.init.constant_(model.embedding, torch.nan)
    with pytest.raises(GenerationError, match="weights have diverged"):
        run(model, b"x", max_bytes=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_bytes": -1},
        {"draft": "trie"},
        {"exact": "bit"},
        {"exact": "padded"},
        {"draft": "tree"},
        {"stop": (b"ok", b"")},
        {"temperature": -0.5},
        {"top_k": 3},
        {"seed": -1},
        {"sequence": -1},
        {"repetition_penalty": 0.5},
        {"max_bytes": 5.5},
        {"max_bytes": "5"},
        {"max_bytes": True},
        {"seed": 1.5},
        {"top_k": 2.5, "temperature": 1.0},
        {"top_p": "0.9", "temperature": 1.0},
        {"temperature": None},
        {"utf8": "no"},
        {"logprobs": 1},
        {"stop": b"ok"},
        {"stop": ("ok",)},
        {"stop": (b"\xff",), "utf8": True},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=next(iter(settings))):
        GenerateSettings(**settings)


def test_torch_promises_no_bits() -> None:
    with pytest.raises(GenerationError, match="exact = 'bits' is the promise of the engine"):
        run(random_model("linear"), b"x", exact="bits")
