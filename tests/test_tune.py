"""What is measured comes back from the disk as it was, for the same model and for no other; it changes no byte."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bytelm.config import HeadsConfig, ModelConfig
from bytelm.decode import DecodePlan, decode_steps, generate
from bytelm.decoding.costs import PassTimer
from bytelm.decoding.engine_decode import prior_costs
from bytelm.drafting import Calibration, StepCost
from bytelm.engine import Engine
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.engine.weights import engine_from_file, engine_from_torch
from bytelm.errors import CheckpointError, GenerationError
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.plans import PATH_OF_PLAN, key_of, read_plan, run_folder, write_plan
from bytelm.tune import row_to_head, tune

CONTEXT = 96
needs_engine = pytest.mark.skipif(load_library() is None, reason=unavailable_reason())
DECODERS = [pytest.param("engine", marks=needs_engine), "torch"]
PLAN = DecodePlan(((10, StepCost((1, 4), (1.0, 1.5), 0.1)),), Calibration({"head 0 3": (3.0, 4.0)}))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(seed: int = 0, heads: int = 4, *, family: Any = "linear") -> ByteLM:
    torch.manual_seed(seed)
    shape = ModelConfig(d_model=32, layers=2, attention_heads=2, kv_heads=1, d_ff=48, local_window_bytes=24)
    model = ByteLM(shape, HeadsConfig(count=heads, family=family)).eval()
    unembedding: Any = model.heads.unembedding
    with torch.no_grad():
        unembedding.weight.mul_(8.0)
    return model


def engine_of(folder: Path, seed: int = 0, precision: Any = "auto", threads: int = 1) -> Engine:
    model, path = model_of(seed), folder / f"model-{seed}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return engine_from_file(
        path, model.config, model.heads_config, model.vocabulary, precision=precision, threads=threads
    )


def decoder_of(name: str, folder: Path, seed: int = 0) -> ByteLM | Engine:
    return engine_of(folder, seed) if name == "engine" else model_of(seed)


def some_kinds() -> dict[str, list[bytes]]:
    source = random.Random(0)
    return {"a": [b"again " * 6, b"again and " * 5], "b": [source.randbytes(40) for _ in range(3)]}


@pytest.mark.parametrize("name", DECODERS)
def test_a_tuned_model_says_the_same_bytes_and_finds_its_plan_again(name: str, tmp_path: Path) -> None:
    model, said = decoder_of(name, tmp_path), list[str]()
    tuning = tune(model, some_kinds(), context_bytes=CONTEXT, max_bytes=16, repeats=2, say=said.append)
    assert [check.kind for check in tuning.checks] == ["a", "b"]
    assert said
    for check in tuning.checks:
        assert min(check.plain, check.predicted, check.achieved) > 0
        assert 1.0 <= check.bytes_per_step <= 16
        assert all(0 <= right <= total for total, right in check.acceptance.values())
    kinds = {kind.startswith("drawn ") for kind, (_, total) in tuning.plan.calibration.counts.items() if total > 0}
    assert kinds == {False, True}  # greedy and sampled are counted apart

    assert write_plan(tmp_path, tuning.plan, model) == tmp_path / PATH_OF_PLAN
    plan, why = read_plan(tmp_path, model)
    assert (plan, why) == (tuning.plan, "")
    settings = GenerateSettings(max_bytes=60)
    untuned = generate(model, b"again ", settings, context_bytes=CONTEXT)
    tuned = generate(model, b"again ", settings, context_bytes=CONTEXT, tuned=plan)
    assert tuned.data == untuned.data
    # The measured shares are a beginning, not changed by what follows.
    assert read_plan(tmp_path, model)[0] == plan


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("context", [2, 9, 60, CONTEXT])
def test_passes_cost_something_and_no_row_makes_one_cheaper(name: str, context: int, tmp_path: Path) -> None:
    timer = PassTimer(decoder_of(name, tmp_path), context_bytes=context)
    for _ in range(2):
        timer.round()
    costs = timer.costs()
    assert [past for past, _ in costs] == sorted({past for past, _ in costs})
    for past, cost in costs:
        assert 0 < past < max(2, context)
        assert cost.rows[-1] <= max(2, context)
        assert min(cost.seconds) > 0.0
        assert list(cost.seconds) == sorted(cost.seconds)
        assert cost.of(1) <= cost.of(2) <= cost.of(2, sequences=2)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("heads", [1, 3])
def test_a_step_costs_at_least_its_pass_and_heads_cost_nothing_where_there_are_none(
    name: str, heads: int, tmp_path: Path
) -> None:
    del tmp_path
    torch_model = model_of(heads=heads, family="shared")
    model = engine_from_torch(torch_model) if name == "engine" else torch_model
    tuning = tune(model, some_kinds(), context_bytes=CONTEXT, max_bytes=8, repeats=3)
    for _, cost in tuning.plan.costs:
        assert list(cost.seconds) == sorted(cost.seconds)
        assert min(cost.seconds) > 0.0 <= cost.sequence
        assert cost.head == 0.0 if heads == 1 else cost.head >= 0.0


def test_a_head_costs_nothing_where_there_is_none_also_when_no_cost_was_found() -> None:
    assert row_to_head((0.0, 0.0), heads=1) == (1.0, 0.0)
    assert row_to_head((0.0, 0.0), heads=3) == (1.0, 1.0)
    assert row_to_head((2e-6, 1e-6), heads=3) == (2e-6, 1e-6)


@needs_engine
def test_drafts_follow_the_costs_of_the_plan(tmp_path: Path) -> None:
    model, prompt = engine_of(tmp_path), b"again and again and again and again and "
    rows = {}
    for name, second_row in (("free", 1.0), ("dear", 1e3)):
        plan = DecodePlan(((10, StepCost((1, 2, 48), (1.0, second_row, second_row * 48), 0.0)),), Calibration())
        settings = GenerateSettings(max_bytes=40)
        rows[name] = [step.rows for step in decode_steps(model, prompt, settings, context_bytes=CONTEXT, tuned=plan)]
    assert set(rows["dear"]) == {1}
    assert max(rows["free"]) > 1


@needs_engine
def test_a_plan_of_another_decoder_is_refused_with_the_reason_and_keeps_its_calibration(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    assert read_plan(tmp_path, engine) == (None, "")
    write_plan(tmp_path, PLAN, engine)
    assert read_plan(tmp_path, engine) == (PLAN, "")
    for other, part in (
        (engine_of(tmp_path, precision="int8"), "decoder"),
        (engine_of(tmp_path, threads=2), "threads"),
        (model_of(), "decoder"),
    ):
        plan, why = read_plan(tmp_path, other)
        assert f"other {part} and is not used; run bytelm tune again" in why
        assert plan is not None
        assert plan.calibration == PLAN.calibration
        assert plan.costs != PLAN.costs
        if isinstance(other, Engine):
            assert plan.costs == prior_costs(other)
    plan, why = read_plan(tmp_path, engine_of(tmp_path, seed=1))
    assert plan is None
    assert "other weights and is not used" in why


def test_a_plan_of_other_weights_threads_or_precision_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = model_of()
    assert read_plan(tmp_path, model) == (None, "")
    write_plan(tmp_path, PLAN, model)
    assert read_plan(tmp_path, model)[0] == PLAN
    assert "other weights and is not used; run bytelm tune again" in read_plan(tmp_path, model_of(1))[1]
    assert "decoder" in read_plan(tmp_path, model_of().bfloat16())[1]
    value = json.loads((tmp_path / PATH_OF_PLAN).read_bytes())
    value["key"]["threads"] = "99"
    (tmp_path / PATH_OF_PLAN).write_text(json.dumps(value))
    assert "other threads" in read_plan(tmp_path, model)[1]


@pytest.mark.parametrize("name", DECODERS)
def test_a_damaged_plan_is_refused_before_a_decoder_sees_it(name: str, tmp_path: Path) -> None:
    model = decoder_of(name, tmp_path)
    path = write_plan(tmp_path, PLAN, model)
    whole = json.loads(path.read_bytes())
    damaged: list[object] = [{"format": 2}, [], {"format": 1}]
    for change in (
        {"rows": [1]},
        {"rows": [4, 1]},
        {"rows": [0, 4]},
        {"seconds": [1.0]},
        {"seconds": [0.0, 1.0]},
        {"seconds": [float("nan"), 1.0]},
        {"seconds": ["a", "b"]},
        {"head": -1.0},
        {"sequence": float("inf")},
        {"past": -1},
        {"past": 1.5},
        {"rows": [1, 10**400]},
        {"seconds": [1.0, 10**400]},
        {"head": None},
        {"rows": list(range(1, 5000)), "seconds": [1.0] * 4999},
    ):
        damaged.append({**whole, "costs": [{**whole["costs"][0], **change}]})
    damaged += [{**whole, "costs": costs} for costs in ([], whole["costs"] * 2)]
    for calibration in (
        {"head 0 3": [4.0, 3.0]},
        {"head 0 3": [-1.0, 3.0]},
        {"head x 3": [1.0, 3.0]},
        {"past 4": [1.0]},
        {"past 4": [1.0, 2.0, 3.0]},
        {"past 4": [1e308, 1e308]},
        {"past 4": [1, 10**400]},
        {"past 4": [float("nan"), float("nan")]},
        {f"head 0 {'9' * 5000}": [1.0, 2.0]},
        [],
    ):
        damaged.append({**whole, "calibration": calibration})
    damaged += [{**whole, "key": []}, {**whole, "key": {"weights": 3}}, {**whole, "format": "x" * 100}]
    for text in ("{", "[" * 100_000, '{"format": 2, "format": 2}', "9" * 5000, *map(json.dumps, damaged)):
        path.write_text(text)
        plan, why = read_plan(tmp_path, model)
        assert plan is None, text
        assert "run bytelm tune again" in why


@needs_engine
def test_one_digest_of_the_weights_whatever_holds_them(tmp_path: Path) -> None:
    engine, model = engine_of(tmp_path), model_of()
    assert (
        key_of(engine)["weights"]
        == key_of(model)["weights"]
        == key_of(engine_of(tmp_path, precision="int8"))["weights"]
    )
    # Numbers that bfloat16 holds are the same numbers in float32.
    assert key_of(model.bfloat16())["weights"] == key_of(model.float())["weights"]


@needs_engine
def test_an_engine_that_was_made_from_no_file_has_no_plan(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="made from none"):
        write_plan(tmp_path, PLAN, engine_from_torch(model_of()))
    write_plan(tmp_path, PLAN, model_of())
    assert read_plan(tmp_path, engine_from_torch(model_of())) == (None, "")


def test_a_checkpoint_belongs_to_the_folder_of_its_run() -> None:
    assert run_folder(Path("runs/a")) == Path("runs/a")
    assert run_folder(Path("runs/a/checkpoints/step-00000005")) == Path("runs/a")


def test_too_little_to_tune_with_is_refused() -> None:
    for kinds in ({}, {"a": [b"one"]}):
        with pytest.raises(GenerationError, match="too few held-out bytes"):
            tune(model_of(), kinds, context_bytes=CONTEXT)


def test_numbers_that_are_not_finite_are_an_error_and_no_figure() -> None:
    model = model_of()
    with torch.no_grad():
        model.get_parameter("layers.0.feed_forward.output.weight")[3, 5] = np.nan
    with pytest.raises(GenerationError, match="not finite"):
        tune(model, some_kinds(), context_bytes=CONTEXT, max_bytes=8, repeats=1)
    if load_library() is not None:
        with pytest.raises(CheckpointError, match=r"layers\.0\.feed_forward\.output\.weight"):
            engine_from_torch(model)


@needs_engine
def test_logits_of_the_engine_that_are_not_finite_are_an_error_and_no_figure() -> None:
    model = model_of()
    with torch.no_grad():
        model.get_parameter("heads.norm.gain").fill_(3e38)  # finite itself, and too large to compute with
    with pytest.raises(GenerationError, match="not finite"):
        tune(engine_from_torch(model), some_kinds(), context_bytes=CONTEXT, max_bytes=8, repeats=1)
