"""The correction of draft heads by the two bytes before: it is learnt, it is found again, and it changes no byte."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bytelm.config import HeadsConfig, ModelConfig
from bytelm.decode import DecodePlan, Request, decode_batch, generate, prior_plan
from bytelm.drafting import Calibration, DraftPolicy, StepCost
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.pair_correction import PATH_OF_PAIRS, PairCorrection, read_pairs
from bytelm.pairs import LEAST_BYTES, RANK, bytes_of_chain, fit_pairs
from bytelm.plans import key_of, read_plan, write_plan
from bytelm.sampling import CHOICES
from bytelm.tune import best_pairs
from bytelm.vocab import EOD

CONTEXT, HEADS = 256, 4


def model_of(seed: int = 0, heads: int = HEADS) -> ByteLM:
    """Random weights whose head 0 hangs on the last byte alone, more or less; the other heads guess."""
    torch.manual_seed(seed)
    shape = ModelConfig(d_model=48, layers=2, attention_heads=2, kv_heads=1, d_ff=48, local_window_bytes=24)
    model = ByteLM(shape, HeadsConfig(count=heads)).eval()
    with torch.no_grad():
        model.heads.get_submodule("unembedding").get_parameter("weight").mul_(8.0)
    return model


def noise(seed: int, length: int) -> bytes:
    source = random.Random(seed)
    return bytes(source.choice(b"abcdefgh ") for _ in range(length))


def tables(seed: int, size: float) -> PairCorrection:
    draw = np.random.default_rng(seed)
    shapes = ((CHOICES, RANK), (CHOICES, RANK), (RANK, CHOICES), (HEADS - 1,), (HEADS - 1,))
    return PairCorrection(*(draw.normal(0, size, shape).astype(np.float32) for shape in shapes))


def test_the_correction_is_the_stated_sum() -> None:
    pairs, logits_V = tables(1, 0.5), np.random.default_rng(2).normal(size=320).astype(np.float32)
    for recent, last, before in ((b"", EOD, EOD), (b"x", ord("x"), EOD), (b"yz", ord("z"), ord("y")), (b"abc", 99, 98)):
        expected = pairs.of_head_N[1] * logits_V[:CHOICES] + pairs.of_pair_N[1] * (
            pairs.last_VR[last] @ pairs.out_RV + pairs.before_VR[before] @ pairs.out_RV
        )
        np.testing.assert_allclose(pairs.corrected(1, logits_V, recent), expected, rtol=1e-4, atol=1e-4)


def test_a_fitted_correction_makes_heads_agree_with_the_trunk_on_other_text() -> None:
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    texts = {"a": noise(1, LEAST_BYTES), "b": noise(2, 4000)}
    pairs = fit_pairs(model, texts, context_bytes=CONTEXT, windows=40)
    assert pairs is not None
    other = [noise(seed, CONTEXT) for seed in range(10, 14)]
    alone = bytes_of_chain(model, other, None, context_bytes=CONTEXT)
    corrected = bytes_of_chain(model, other, pairs, context_bytes=CONTEXT)
    assert 1.0 <= alone < 1.5
    assert corrected > alone + 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = fit_pairs(model, texts, context_bytes=CONTEXT, windows=40)
    assert again is not None
    assert np.array_equal(again.out_RV, pairs.out_RV)

    # What was foreseen comes true where the decoder drafts.
    prompt, asked = noise(3, 40), GenerateSettings(max_bytes=120, draft="heads", temperature=0.0)
    plan = prior_plan(model)
    steps = [
        generate(model, prompt, asked, context_bytes=CONTEXT, tuned=replace(plan, pairs=one)).steps
        for one in (None, pairs)
    ]
    assert steps[1] < steps[0]


def test_bytes_of_a_chain_are_counted_as_far_as_all_agree() -> None:
    model = model_of()
    text = noise(5, 30)
    logits_TKV = model(torch.tensor([[EOD, *text]]))[0, :, :, :CHOICES]
    best_TK = logits_TKV.argmax(-1).tolist()
    expected = []
    for row in range(len(text) + 1 - (HEADS - 1)):
        agree = 0
        while agree < HEADS - 1 and best_TK[row][agree + 1] == best_TK[row + agree + 1][0]:
            agree += 1
        expected.append(1 + agree)
    found = bytes_of_chain(model, [text], None, context_bytes=CONTEXT)
    assert found == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_correction_changes_a_byte(seed: int, temperature: float) -> None:
    model = model_of().double()
    prompts = [b"", b"a", noise(7, 50), noise(8, 90) * 2]

    def asked(draft: DraftPolicy, sequence: int) -> GenerateSettings:
        return GenerateSettings(max_bytes=80, draft=draft, temperature=temperature, sequence=sequence)

    plain = [
        generate(model, prompt, asked("none", sequence), context_bytes=CONTEXT).data
        for sequence, prompt in enumerate(prompts)
    ]
    plan = replace(prior_plan(model), pairs=tables(seed, 3.0))
    for draft in ("heads", "adaptive"):
        requests = [Request(prompt, asked(draft, sequence)) for sequence, prompt in enumerate(prompts)]
        found = [b""] * len(prompts)
        for index, step in decode_batch(model, requests, context_bytes=CONTEXT, slots=3, tuned=plan):
            found[index] += step.data
        assert found == plain


def test_too_little_text_or_nothing_to_correct_is_no_correction() -> None:
    assert fit_pairs(model_of(), {"a": noise(1, LEAST_BYTES - 1)}, context_bytes=CONTEXT) is None
    assert fit_pairs(model_of(heads=1), {"a": noise(1, LEAST_BYTES)}, context_bytes=CONTEXT) is None
    assert best_pairs(model_of(), {"a": noise(1, 100)}, context_bytes=CONTEXT) is None


def test_the_best_of_what_there_is_is_kept() -> None:
    model, texts = model_of(), {"a": noise(1, 2 * LEAST_BYTES)}
    fitted = best_pairs(model, texts, context_bytes=CONTEXT, known=tables(1, 5.0))
    assert fitted is not None
    assert fitted.pairs is not None
    assert fitted.within > fitted.without
    again = best_pairs(model, texts, context_bytes=CONTEXT, known=fitted.pairs)
    assert again is not None
    assert again.within >= fitted.within


def test_a_correction_is_found_again_and_outlives_costs_of_another_machine(tmp_path: Path) -> None:
    model, pairs = model_of(), tables(1, 0.5)
    costs = ((10, StepCost((1, 4), (1.0, 1.0), 0.1)),)
    path = write_plan(tmp_path, DecodePlan(costs, Calibration(), pairs=pairs), model)
    plan, why = read_plan(tmp_path, model)
    assert plan is not None
    assert plan.pairs is not None
    assert (plan.costs, why) == (costs, "")
    np.testing.assert_allclose(plan.pairs.out_RV, pairs.out_RV, rtol=1e-3, atol=1e-4)

    path.write_text(path.read_text().replace('"threads": "', '"threads": "9'))
    plan, why = read_plan(tmp_path, model)
    assert plan is not None
    assert plan.pairs is not None
    assert plan.costs == prior_plan(model).costs
    assert "other threads" in why
    assert read_plan(tmp_path, model_of(1))[0] is None  # neither is of those weights
    path.unlink()
    assert read_plan(tmp_path, model)[1] == ""


def test_a_damaged_correction_or_that_of_another_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = model_of()
    weights = key_of(model)["weights"]
    assert read_pairs(tmp_path, weights, HEADS - 1) == (None, "")
    write_plan(
        tmp_path, DecodePlan(((1, StepCost((1, 4), (1.0, 1.0), 0.1)),), Calibration(), pairs=tables(1, 1)), model
    )
    assert read_pairs(tmp_path, weights, HEADS - 1)[0] is not None
    assert "other weights" in read_pairs(tmp_path, "0", HEADS - 1)[1]
    assert "other tables" in read_pairs(tmp_path, weights, HEADS)[1]
    path = tmp_path / PATH_OF_PAIRS
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        pairs, why = read_pairs(tmp_path, weights, HEADS - 1)
        assert pairs is None
        assert "run bytelm tune again" in why
