"""Arms and budgets are what was written, the same axis is equal for all, and what cannot be is one line."""

import pytest
import torch

from bytelm.arms import (
    LEAST_STEPS,
    Arm,
    Budget,
    ablation_arms,
    bytes_of_a_step,
    flops_of,
    parameters_of,
    parse_arms,
    parse_budgets,
    settings_of,
    tolerance_of,
)
from bytelm.config import RunConfig
from bytelm.errors import ConfigError
from bytelm.model import ByteLM

BASE = RunConfig.build("tiny", ["model.d_model=64", "model.layers=2", "model.d_ff=96"])
ARMS = parse_arms("byte:k=1,byte:k=4,byte:k=2:family=transformer,bpe:512:k=1,bpe:1k:k=2")


def settings(arm: Arm, budget: str) -> RunConfig:
    ratio = 2.5 if arm.name.startswith("bpe") else 1.0
    return settings_of(arm, BASE, Budget.parse(budget), bytes_per_id=ratio, seed=3)


def test_an_arm_has_one_name_however_it_is_written() -> None:
    assert [arm.name for arm in ARMS] == [
        "byte:k=1", "byte:k=4", "byte:k=2:family=transformer", "bpe:512:k=1", "bpe:1024:k=2",
    ]  # fmt: skip
    assert Arm.parse("byte").name == "byte:k=1"
    assert Arm.parse("bpe:1024:k=2") == ARMS[-1]
    assert len({arm.folder for arm in ARMS}) == len(ARMS)


@pytest.mark.parametrize("text", ["byte:k=1;byte:k=2", "byte:k=1,byte:k=2", "byte:k=1; byte:k=2;", "byte;byte:k=2"])
def test_arms_with_a_comma_or_a_semicolon_between_them_are_as_many(text: str) -> None:
    assert [arm.name for arm in parse_arms(text)] == ["byte:k=1", "byte:k=2"]


def test_an_arm_changes_what_it_names_and_nothing_else() -> None:
    config = settings(Arm.parse("byte:k=4:curriculum=forward:train.learning_rate=0.01"), "bytes:1M")
    assert (config.heads.count, config.heads.curriculum, config.train.learning_rate) == (4, "forward", 0.01)
    assert config.train.seed == 3
    assert config.model == BASE.model
    assert config.data == BASE.data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words:k=1", "is no arm"),
        ("bpe", "is no arm"),
        ("bpe:12:k=1", "there is no vocabulary"),
        ("byte:8", "'8' in the arm"),
        ("byte:heads=8", "'heads=8' in the arm"),
        ("byte:k=1,byte", "is there twice"),
        ("byte:k=1;byte:k=1", "is there twice"),
        ("byte:k=2:a.b=1:c.d=2,byte:c.d=2:a.b=1:k=2", "is there twice"),
        ("byte:k=1:k=2", "names heads.count twice"),
        ("byte:k=1:heads.count=2", "names heads.count twice"),
        ("byte:model.d_ff=64:model.d_ff=96", "names model.d_ff twice"),
        ("byte:k=1 byte:k=2", "names heads.count twice"),
        ("byte:train.seed=4", "'train.seed=4' in the arm .* has no effect: each arm is trained with the same seeds"),
        ("byte:train.steps=4", "has no effect: the budget says that"),
        ("byte:model.vocabulary=bytes", "has no effect: byte or bpe:SIZE"),
        ("run=a/b,run=a-b", "run=a/b and run=a-b would be kept in the same folder"),
        ("byte:data.window_bytes=64", "cannot differ between arms: all arms have the same context"),
        ("byte:train.device=cpu", "cannot differ between arms: .* same device; give --set train.device=cpu for all"),
        (" , ", "there is no arm"),
        (";", "there is no arm"),
    ],
)
def test_words_that_are_no_arm_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_arms(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["byte:k=0", "byte:k=99", "byte:family=round", "byte:model.width=3"])
def test_an_impossible_arm_names_itself(text: str) -> None:
    arm = Arm.parse(text)
    with pytest.raises(ConfigError, match=f"the arm {arm.name}: "):
        settings(arm, "bytes:1M")


@pytest.mark.parametrize(
    "text", ["bytes", "bytes:", "bytes:-1", "words:5", "seconds:0", "flops:many", "flops:1e999", "bytes:1e31"]
)
def test_a_budget_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no budget; write parameters:1M"):
        Budget.parse(text)


def test_several_budgets_have_one_kind_and_stand_in_order() -> None:
    assert [str(budget) for budget in parse_budgets("flops:1e13,2.5T")] == [
        "flops:2.5e+12", "flops:1e+13",
    ]  # fmt: skip
    assert parse_budgets("seconds:60,seconds:240") == parse_budgets("seconds:60, 240")
    close = parse_budgets("bytes:1234567,1234568")
    assert len({str(budget) for budget in close}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seconds:60,bytes:5", "has two kinds, seconds and bytes; one kind alone"),
        ("seconds:60,60.0", "names seconds:60 twice"),
        ("seconds:60,0", "'seconds:0' is no budget"),
        ("seconds:", "'seconds:' is no budget"),
        ("seconds:60,,240", "'seconds:' is no budget"),
        ("", "is no budget"),
    ],
)
def test_budgets_that_cannot_be_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_budgets(text)
    assert "\n" not in str(caught.value)


def test_budgets_as_people_write_them() -> None:
    found = [Budget.parse(text).amount for text in ("bytes:50M", "flops:1e13", "flops:2.5T", "parameters:300k")]
    assert found == [50e6, 1e13, 2.5e12, 3e5]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_equal_bytes_and_operations_are_met_within_a_step(arm: Arm) -> None:
    for text in ("bytes:500k", "flops:2e11"):
        budget, config = Budget.parse(text), settings(arm, text)
        assert config.train.steps is not None
        spent = config.train.steps * bytes_of_a_step(config)
        if budget.kind == "flops":
            spent *= ByteLM(config.model, config.heads).flops_per_byte(config.data.window_bytes, training=True)
        assert abs(spent / budget.amount - 1) <= tolerance_of(config, budget) < 0.05


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_equal_parameters_are_met_as_nearly_as_they_can_be(arm: Arm) -> None:
    budget = Budget.parse("parameters:400k")
    config = settings(arm, "parameters:400k")
    parameters = parameters_of(config)
    total, inner = parameters.total, parameters.inner
    model = ByteLM(config.model, config.heads)
    assert total == sum(parameter.numel() for parameter in model.parameters())
    assert inner == total - model.embedding.numel() - model.heads.get_parameter("unembedding.weight").numel()
    assert abs(total / 400_000 - 1) <= tolerance_of(config, budget) < 0.01
    assert config.train.steps == BASE.train.steps


@pytest.mark.parametrize("text", ["byte:k=2", "bpe:512:k=1"])
def test_parameters_are_told_with_and_without_tables(text: str) -> None:
    plain = parameters_of(settings(Arm.parse(text), "bytes:1M"))
    tables = "model.ngram_sizes=[2,3]:model.ngram_rows=1024:model.ngram_width=16"
    config = settings(Arm.parse(f"{text}:{tables}"), "bytes:1M")
    found = parameters_of(config)
    assert (plain.ngram_tables, found.ngram_tables) == (0, 2 * 1024 * 16)
    assert found.embedding == plain.embedding
    assert found.total == found.embedding + found.ngram_tables + found.inner
    assert found.inner == plain.inner + 2 * 16 * config.model.d_model  # the matrix that widens what is found


def test_an_arm_that_cannot_meet_the_budget_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(
        ConfigError, match=rf"byte:k=1 cannot meet the budget bytes:1000: .* {LEAST_STEPS} are the least"
    ):
        settings(ARMS[0], "bytes:1000")
    with pytest.raises(ConfigError, match=r"bpe:32768:k=1 cannot meet the budget of 400,000 parameters: it has 4,"):
        settings(Arm.parse("bpe:32k"), "parameters:400k")


def test_decoding_without_drafts_costs_the_trunk_and_head_0() -> None:
    one, four = (settings(arm, "bytes:1M") for arm in ARMS[:2])
    assert flops_of(one)[1] == flops_of(four)[1]
    assert flops_of(one)[0] == 3 * flops_of(one)[1]
    assert flops_of(four)[0] > flops_of(one)[0]


@pytest.mark.parametrize("text", ["byte:k=1", "byte:k=4", "bpe:512:k=1"])
def test_operations_agree_with_those_that_torch_counts(text: str) -> None:
    """Of the matrices, in a forward pass whose attention is small beside them."""
    from torch.utils.flop_counter import FlopCounterMode

    config = settings(Arm.parse(text), "bytes:1M").with_changes(["data.window_bytes=128"])
    model = ByteLM(config.model, config.heads)
    length = config.model.ids_for(128)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64))
    by_operator = counter.get_flop_counts()["Global"]
    matrices = sum(flops for operator, flops in by_operator.items() if "mm" in str(operator))
    attention = 4 * config.model.d_model * config.model.layers * length * (length + 1) / 2
    ours = model.flops_per_byte(128, training=False) * config.model.bytes_per_id * length
    assert ours - attention == pytest.approx(matrices, rel=0.02)


def test_an_ablation_begins_with_one_head_and_has_each_arm_once() -> None:
    names = [arm.name for arm in ablation_arms("1,2,4", "linear,transformer", "none")]
    assert names == ["byte:k=1", "byte:k=2", "byte:k=2:family=transformer", "byte:k=4", "byte:k=4:family=transformer"]
    assert ablation_arms("2", "linear", "none,forward")[-1].name == "byte:k=2:curriculum=forward"
