"""What is measured comes back from the disk as it was, for the same model and for no other; it changes no byte."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.config import HeadsConfig, ModelConfig
from bytelm.decode import DecodePlan, generate
from bytelm.drafting import Calibration, StepCost
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.tune import PATH_OF_PLAN, read_plan, run_folder, tune, write_plan

CONTEXT = 96


def model_of(seed: int = 0) -> ByteLM:
    torch.manual_seed(seed)
    shape = ModelConfig(d_model=32, layers=2, attention_heads=2, kv_heads=1, d_ff=48, local_window_bytes=24)
    model = ByteLM(shape, HeadsConfig(count=4)).eval()
    unembedding: Any = model.heads.unembedding
    with torch.no_grad():
        unembedding.weight.mul_(8.0)
    return model


def test_a_tuned_model_says_the_same_bytes_and_finds_its_plan_again(tmp_path: Path) -> None:
    model, source = model_of(), random.Random(0)
    kinds = {"a": [b"again " * 6, b"again and " * 5], "b": [source.randbytes(40) for _ in range(3)]}
    said: list[str] = []
    tuning = tune(model, kinds, context_bytes=CONTEXT, max_bytes=16, repeats=2, say=said.append)
    assert [check.kind for check in tuning.checks] == ["a", "b"]
    assert said
    for check in tuning.checks:
        assert min(check.plain, check.predicted, check.achieved) > 0
        assert 1.0 <= check.bytes_per_step <= 16
        assert all(0 <= right <= total for total, right in check.acceptance.values())
    for past, cost in tuning.plan.costs:
        assert 0 < past < CONTEXT
        assert list(cost.cost) == sorted(cost.cost)
        assert cost.of(4) <= cost.of(6) <= cost.of(8) <= cost.of(8, sequences=2)
    assert any(total > 0 for _, total in tuning.plan.calibration.counts.values())

    assert write_plan(tmp_path, tuning.plan, model) == tmp_path / PATH_OF_PLAN
    plan, why = read_plan(tmp_path, model)
    assert (plan, why) == (tuning.plan, "")
    settings = GenerateSettings(max_bytes=60)
    untuned = generate(model, b"again ", settings, context_bytes=CONTEXT)
    tuned = generate(model, b"again ", settings, context_bytes=CONTEXT, tuned=plan)
    assert tuned.data == untuned.data
    # The measured shares are a beginning, not changed by what follows.
    assert read_plan(tmp_path, model)[0] == plan


def test_a_plan_of_other_weights_threads_or_precision_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = model_of()
    plan = DecodePlan(((10, StepCost((1, 4), (1.0, 1.0), 0.1)),), Calibration({"head 0 3": (3.0, 4.0)}))
    assert read_plan(tmp_path, model) == (None, "")
    write_plan(tmp_path, plan, model)
    assert read_plan(tmp_path, model)[0] == plan
    assert "other weights and is not used; run bytelm tune again" in read_plan(tmp_path, model_of(1))[1]
    assert "dtype" in read_plan(tmp_path, model_of().bfloat16())[1]
    value = json.loads((tmp_path / PATH_OF_PLAN).read_bytes())
    value["key"]["threads"] = "99"
    (tmp_path / PATH_OF_PLAN).write_text(json.dumps(value))
    assert "other threads" in read_plan(tmp_path, model)[1]
    for damaged in ('{"format": 2}', "{", "[]", '{"format": 1}'):
        (tmp_path / PATH_OF_PLAN).write_text(damaged)
        plan_found, why = read_plan(tmp_path, model)
        assert plan_found is None
        assert "run bytelm tune again" in why


def test_a_checkpoint_belongs_to_the_folder_of_its_run() -> None:
    assert run_folder(Path("runs/a")) == Path("runs/a")
    assert run_folder(Path("runs/a/checkpoints/step-00000005")) == Path("runs/a")


def test_too_little_to_tune_with_is_refused() -> None:
    for kinds in ({}, {"a": [b"one"]}):
        with pytest.raises(GenerationError, match="too few held-out bytes"):
            tune(model_of(), kinds, context_bytes=CONTEXT)
