"""What a decoder reads of settings is what the settings are; whatever it does not know is left to them."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.checkpoint_files import find_model
from bytelm.config import HeadsConfig, ModelConfig, RunConfig
from bytelm.errors import CheckpointError, ConfigError
from bytelm.model import ByteLM
from bytelm.model_shape import ReadHeads, ReadTrunk, read_shape, trunk_layers
from bytelm.presets import PRESETS
from bytelm.vocab import BYTES

OTHERS = [
    ["heads.family=transformer", "heads.count=3", "heads.keep_parameters_equal=true", "model.layers=6"],
    ["model.vocabulary=bpe:1000", "model.bytes_per_id=2.5", "model.ngram_sizes=[2, 5]", "model.ngram_rows=7"],
]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_read_as_it_is(preset: str) -> None:
    for changes in ([], *OTHERS) if preset == "tiny" else ([],):
        config = RunConfig.build(preset, ["train.steps=3", *changes])
        shape = read_shape(tomllib.loads(config.to_toml(bytelm="1", corpus="x")))
        assert shape is not None
        for field in dataclasses.fields(ReadTrunk):
            assert getattr(shape.trunk, field.name) == getattr(config.model, field.name)
        for field in dataclasses.fields(ReadHeads):
            assert getattr(shape.heads, field.name) == getattr(config.heads, field.name)
        assert shape.window_bytes == config.data.window_bytes
        for name in ("head_channels", "vocabulary_size", "local_window_ids"):
            assert getattr(shape.trunk, name) == getattr(config.model, name)
        kinds = [shape.trunk.attention_kind(layer) for layer in range(config.model.layers)]
        assert kinds == [config.model.attention_kind(layer) for layer in range(config.model.layers)]
        assert trunk_layers(shape.trunk, shape.heads) == config.trunk_layers


def test_every_setting_of_the_trunk_and_of_the_heads_is_known() -> None:
    assert [field.name for field in dataclasses.fields(ReadTrunk)] == list(ModelConfig.model_fields)
    known = {field.name for field in dataclasses.fields(ReadHeads)}
    assert known < set(HeadsConfig.model_fields)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("d_model = 128", "d_model = 128\nbreadth = 3"),  # of a newer version
        ("count = 8", "count = 8\nbreadth = 3"),
        ("d_ff = 344\n", ""),  # of an older one
        ("d_model = 128", 'd_model = "128"'),
        ("d_model = 128", "d_model = true"),
        ("rope_base = 10000.0", "rope_base = 10000"),
        ('family = "linear"', 'family = "square"'),
        ('vocabulary = "bytes"', "vocabulary = 3"),
        ("ngram_sizes = []", "ngram_sizes = [2.0]"),
        ("[data]", "[dates]"),
        # What no settings are: a number that is not finite, none at all, or one that the others forbid.
        ("rope_base = 10000.0", "rope_base = nan"),
        ("rope_base = 10000.0", "rope_base = inf"),
        ("norm_epsilon = 1e-06", "norm_epsilon = -1.0"),
        ("bytes_per_id = 1.0", "bytes_per_id = 0.0"),
        ("bytes_per_id = 1.0", "bytes_per_id = 2.0"),
        ("d_model = 128", "d_model = 0"),
        ("d_model = 128", "d_model = -128"),
        ("d_model = 128", "d_model = 130"),
        ("layers = 4", "layers = 1000000000"),
        ("attention_heads = 4", "attention_heads = 0"),
        ("kv_heads = 2", "kv_heads = 3"),
        ("count = 8", "count = 0"),
        ("count = 8", "count = 1000000000"),
        ("keep_parameters_equal = false", "keep_parameters_equal = true"),
        ("ngram_sizes = []", "ngram_sizes = [3, 2]"),
        ("ngram_rows = 32768", "ngram_rows = 0"),
        ("window_bytes = 256", "window_bytes = 1"),
        ("window_bytes = 256", "window_bytes = 1000000000000000000"),
        ('vocabulary = "bytes"', 'vocabulary = "bpe:9"'),
    ],
)
def test_what_this_version_did_not_write_is_left_to_the_settings(before: str, after: str) -> None:
    text = RunConfig.build("tiny", []).to_toml()
    assert before in text
    assert read_shape(tomllib.loads(text.replace(before, after))) is None


def saved(folder: Path) -> Path:
    config = RunConfig.build("tiny", ["model.d_model=16", "model.layers=1", "model.d_ff=16", "heads.count=2"])
    torch.manual_seed(0)
    nothing: dict[str, Any] = {"optimizer": {}, "random": {}, "progress": {}}
    weights = ByteLM(config.model, config.heads).state_dict()
    return save_checkpoint(
        folder, Snapshot(step=1, config=config, corpus="x", fingerprint="y", model=weights, **nothing), keep=1
    )


def test_a_model_is_found_with_all_that_a_decoder_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved(tmp_path)
    found = find_model(tmp_path)
    assert found.checkpoint == checkpoint
    assert found.vocabulary is BYTES
    assert found.weights == checkpoint / "model.safetensors"
    assert len(found.digest) == 64
    # Settings that are not plainly known are read by those that know all of them, with the same result.
    monkeypatch.setattr("bytelm.checkpoint_files.read_shape", lambda _: None)
    other = find_model(tmp_path).shape
    assert isinstance(other.trunk, ModelConfig)
    assert other.trunk.d_model == found.shape.trunk.d_model == 16
    assert other.window_bytes == found.shape.window_bytes


def test_unknown_settings_are_refused_though_their_checksum_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RunConfig.build("tiny", []).to_toml(corpus="x")
    monkeypatch.setattr(
        "bytelm.checkpoint.config_text", lambda *_, **__: text.replace("d_model = 128", "d_model = 128\nbreadth = 3")
    )
    saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="breadth"):
        find_model(tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"contents of model\.safetensors are not those that were written"):
        find_model(tmp_path)
