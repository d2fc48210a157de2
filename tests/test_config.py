"""Settings: refused at load with the reason, round-trip through TOML, every field read by someone."""

import ast
import re
from pathlib import Path

import pytest

from bytelm.config import BUDGETS, RunConfig, describe_settings
from bytelm.errors import ConfigError
from bytelm.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_builds_and_survives_toml(preset: str) -> None:
    config = RunConfig.build(preset)
    assert RunConfig.from_toml(config.to_toml(version="0.1.0")) == config


def test_changes_are_read_as_toml_and_later_ones_win() -> None:
    config = RunConfig.build(
        "tiny",
        [
            "heads.count=2",
            "heads.count=4",
            'model.attention_pattern=["global"]',
            "heads.family=mlp",
            "train.device=cpu",
        ],
    )
    assert config.heads.count == 4
    assert config.model.attention_pattern == ("global",)
    assert config.heads.family == "mlp"
    assert config.train.device == "cpu"


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_that_is_asked_for_replaces_the_presets(budget: str) -> None:
    train = RunConfig.build("tiny", [f"train.{budget}=77"]).train
    assert [name for name in BUDGETS if getattr(train, name) is not None] == [budget]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.dmodel=64"], "unknown setting 'model.dmodel'; did you mean 'model.d_model'"),
        (["window_bytes=64"], "did you mean 'data.window_bytes'"),
        (["train.window_bytes=64"], "did you mean 'data.window_bytes'"),
        (["trian.seed=1"], "did you mean 'train.seed'"),
        (["heads.count"], "written section.key=value"),
        (["heads.count=0"], "heads.count = 0"),
        (["heads.count=33"], "less than or equal to 32"),
        (["heads.family=medusa"], "'linear', 'mlp', 'transformer', 'causal', 'anticausal' or 'shared'"),
        (["heads.weight_ratio=0"], "heads.weight_ratio = 0"),
        (["heads.curriculum=backward"], "'none', 'forward' or 'reverse'"),
        (["model.d_model=130"], "model.d_model = 130 is not divisible by model.attention_heads = 4"),
        (["model.d_model=12"], "is odd"),
        (["model.kv_heads=3"], "not divisible by model.kv_heads = 3"),
        (["model.local_window_bytes=1024"], "longer than data.window_bytes"),
        (["heads.keep_parameters_equal=true"], "needs a layer for each head"),
        (["heads.keep_parameters_equal=true", "heads.family=shared"], "causal, anticausal; found shared"),
        (["heads.keep_parameters_equal=true", "heads.family=transformer"], "leaves no trunk"),
        (["train.steps=5", "train.bytes=5"], "one budget decides"),
        (["train.learning_rate=nan"], "train.learning_rate"),
        (["train.optimizer=adam"], "'adamw' or 'muon'"),
        (["train.optimizer=adamw", "train.muon_momentum=0.9"], "only with train.optimizer = muon"),
        (["train.decay_fraction=0.1"], "only with train.schedule = wsd"),
        (["train.schedule=wsd", "train.decay_fraction=0.9", "train.warmup_fraction=0.2"], "more than the budget"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_reason(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        RunConfig.build("tiny", changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        RunConfig.build("smal")


def test_a_damaged_config_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        RunConfig.from_toml("[model\n")


@pytest.mark.parametrize("family", ["transformer", "causal", "anticausal"])
def test_keeping_parameters_equal_takes_k_minus_1_layers_off_the_trunk(family: str) -> None:
    changes = [f"heads.family={family}", "heads.keep_parameters_equal=true", "heads.count=3"]
    assert RunConfig.build("tiny", changes).trunk_layers == 2


def test_every_field_has_a_description_and_is_read_somewhere() -> None:
    read = {
        node.attr
        for folder in ("bytelm", "cli", "data")
        for path in (ROOT / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    } | set(BUDGETS)  # read by name, in one loop
    for name, _, description in describe_settings():
        assert description, f"{name} has no description"
        assert name.rpartition(".")[2] in read, f"{name} is never read"
