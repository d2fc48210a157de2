"""Files of ours that somebody edited: whatever they hold, it is read within limits, or one line says what is wrong."""

import copy
import hashlib
import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.bounded_reading import FileBytes, lines_of, read_bounded
from bytelm.checkpoint import (
    Snapshot,
    check_resumable,
    find_newest_sound,
    load_model,
    load_snapshot,
    read_run,
    read_training,
    save_checkpoint,
)
from bytelm.checkpoint_files import find_model, rendered, write_manifest
from bytelm.config import RunConfig
from bytelm.errors import BytelmError, CheckpointError, ConfigError, SourceError
from bytelm.model import ByteLM
from bytelm.own_files import (
    FINITE,
    FLAG,
    TEXT,
    WHOLE,
    Either,
    Fields,
    FormError,
    ListOf,
    Nullable,
    Number,
    Text,
    parse_json,
    parse_toml,
    read_json,
)

SMALL = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
CONFIG = RunConfig.build("tiny", [*SMALL, "heads.count=2", "data.window_bytes=128", "train.steps=3"])
PROGRESS = {
    "bytes_seen": 512,
    "elapsed_s": 1.5,
    "loader": {"window": 3, "schedule": [[0, ["0.7", "0.3"]]], "positions": [3, 1]},
    "meter": {"bits_K": [1.0, 2.0], "count_K": [3, 4], "loss": 0.5, "steps": 1, "bytes": 5, "seconds": 0.25},
    "safety": {"skipped_steps": 0, "learning_rate_ratio": 1.0, "best_bits_per_byte": None, "validation_due": False},
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.toml")


def snapshot(config: RunConfig = CONFIG) -> Snapshot:
    torch.manual_seed(0)
    model = ByteLM(config.model, config.heads)
    return Snapshot(
        step=7,
        config=config,
        corpus="c",
        fingerprint="f",
        model=model.state_dict(),
        optimizer={},
        random={"cpu": torch.get_rng_state()},
        progress=copy.deepcopy(PROGRESS),
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, snapshot(), keep=1)


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Change a file of a checkpoint and make its checksums right again."""
    (checkpoint / name).write_bytes(content)
    write_manifest(checkpoint, 7, FILES)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value within a tree."""
    for name in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*path, name)
        yield from places(tree[name], (*path, name))


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return tree


def one_line(error: pytest.ExceptionInfo[BytelmError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 2000
    return text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "NaN is not finite"),
        (b'{"a": -Infinity}', "-Infinity is not finite"),
        (b"[1e999]", "1e999 is not finite"),
        (b"[" * 100_000, "more than 32 levels"),
        (b"[" * 40 + b"]" * 40, "more than 32 levels"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "more than 32 levels"),
        (b'{"a": 1, "b": 2, "a": 3}', "a: it is there twice"),
        (b"\xff", "byte 0 is no UTF-8"),
        (b"{", "it is no JSON: .* at character 2"),
        (b"", "it is no JSON"),
        (b"1" * 5000, "too many digits"),
    ],
)
def test_what_is_no_strict_json_is_named(content: bytes, message: str) -> None:
    with pytest.raises(FormError, match=message):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = nan", "nan is not finite"),
        (b"a = inf", "inf is not finite"),
        (b"a = 1e999", "1e999 is not finite"),
        (b"a = " + b"[" * 100_000, "more than 32 levels"),
        (b"a." * 100_000 + b"b = 1", "more than 32 levels"),
        (b"a = 1\na = 2", "it is no TOML"),
        (b"[a", "it is no TOML"),
        (b"\xff", "byte 0 is no UTF-8"),
        (b"a = 1" + b"0" * 5000, "a number or a date that is none"),
    ],
)
def test_what_is_no_strict_toml_is_named(content: bytes, message: str) -> None:
    with pytest.raises(FormError, match=message):
        parse_toml(content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
@settings(deadline=None)
def test_strict_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=True).encode()) == value


SCHEMA = Fields(
    {"step": WHOLE, "rate": Number(0.0, 1.0), "place": Either(TEXT, ListOf(TEXT, least=1))},
    {"best": Nullable(FINITE), "due": FLAG, "kind": Text(("a", "b")), "inner": Fields(others=ListOf(FINITE, most=2))},
)
SOUND = {"step": 1, "rate": 1, "place": "x", "best": None, "due": True, "kind": "a", "inner": {"n": [1.5, 2]}}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("step",), -1, "step: -1 is not within 0 … "),
        (("step",), 1.0, "step: 1.0 is no whole number"),
        (("step",), True, "step: true is no whole number"),
        (("step",), 1 << 63, "is not within"),
        (("rate",), 1.5, "rate: 1.5 is not within"),
        (("rate",), "1", 'rate: "1" is no number'),
        (("place",), 5, "place: 5 is no text"),
        (("place",), [], "place: it has 0 values"),
        (("place",), ["a", 5], r"place\[1\]: 5 is no text"),
        (("place",), "\ud800", "place: it holds a lone surrogate"),
        (("best",), "low", 'best: "low" is no number'),
        (("due",), 1, "due: 1 is neither true nor false"),
        (("kind",), "c", 'kind: "c" is unknown; known: a, b'),
        (("inner", "n"), [1, 2, 3], r"inner\.n: it has 3 values, not 0 … 2"),
        (("inner", "n", 1), None, r"inner\.n\[1\]: null is no number"),
        (("inner",), [], "inner: .* is no object with fields"),
        (("more",), 1, "more: it is unknown here"),
    ],
)
def test_a_value_that_is_not_of_the_schema_is_named_with_its_place(
    path: tuple[Any, ...], value: Any, message: str
) -> None:
    SCHEMA.check(SOUND)
    with pytest.raises(FormError, match=message):
        SCHEMA.check(changed(SOUND, path, value))


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(FormError, match="rate: it is missing"):
        SCHEMA.check({name: value for name, value in SOUND.items() if name != "rate"})


def test_a_file_is_one_line_with_its_name_its_field_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text('{"step": "x"}')
    with pytest.raises(ConfigError, match=r'f\.json: step: "x" is no whole number; remove it') as error:
        read_json(path, Fields({"step": WHOLE}), remedy="remove it", error=ConfigError)
    one_line(error)
    with pytest.raises(CheckpointError, match=r"f\.json has 13 bytes, and 12 are the most; remove it"):
        read_json(path, SCHEMA, remedy="remove it", limit_bytes=12)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="has more bytes, and 1,000 are the most"):
        read_json(path, SCHEMA, remedy="remove it", limit_bytes=1000)


def test_nothing_is_read_beyond_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"one\r\ntwo\nthree")
    assert read_bounded(path, 14, what="it", remedy="") == path.read_bytes()
    with pytest.raises(SourceError, match=r"it .*text has 14 bytes, and 13 are the most; cut it"):
        read_bounded(path, 13, what="it", remedy="cut it")
    assert list(lines_of(path, 5, 14, CheckpointError)) == [b"one", b"two", b"three"]
    assert list(lines_of(path, 5, 14, CheckpointError, whole=True)) == [b"one", b"two"]
    with pytest.raises(CheckpointError, match="line 1 has more than 4 bytes"):
        list(lines_of(path, 4, 14, CheckpointError))
    with pytest.raises(CheckpointError, match="together have more than 13 bytes"):
        list(lines_of(path, 5, 13, CheckpointError))
    with pytest.raises(SourceError, match="is a folder"):
        read_bounded(tmp_path, 5, what="it", remedy="")


def test_pieces_of_a_file_are_those_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(range(100)))
    found = FileBytes(path, 100)
    assert len(found) == 100
    for place in (slice(None), slice(3, 7), slice(90, 200), slice(50, 20), slice(100, 100)):
        assert found[place] == bytes(range(100))[place]
    path.write_bytes(b"shorter")
    with pytest.raises(SourceError, match="became shorter"):
        found[50:60]


STRANGE = [None, True, -1, 1e308, "x", [], {}, [None]]
"""Put in the place of each value."""


def test_a_state_that_somebody_edited_is_sound_or_one_line(checkpoint: Path) -> None:
    tree = json.loads((checkpoint / "state.json").read_bytes())
    refused = 0
    for path in places(tree):
        for value in STRANGE:
            content = json.dumps(changed(tree, path, value), allow_nan=True).encode()
            put(checkpoint, "state.json", content)
            try:
                check_resumable(checkpoint, load_snapshot(checkpoint))
            except CheckpointError as error:
                refused += 1
                assert "\n" not in str(error)
                assert "state.json" in str(error)
    assert refused > 80


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"step": NaN}', b"\xff" * 9])
def test_a_state_that_is_none_is_one_line(checkpoint: Path, content: bytes) -> None:
    put(checkpoint, "state.json", content)
    with pytest.raises(CheckpointError, match=r"state\.json") as error:
        load_snapshot(checkpoint)
    one_line(error)
    with pytest.raises(CheckpointError, match=r"every checkpoint .*state\.json"):
        find_newest_sound(checkpoint.parent.parent)


@pytest.mark.parametrize("name", ["bytes_seen", "elapsed_s", "loader", "meter"])
def test_a_state_without_what_a_training_needs_is_refused_before_it_begins(checkpoint: Path, name: str) -> None:
    tree = json.loads((checkpoint / "state.json").read_bytes())
    del tree["progress"][name]
    put(checkpoint, "state.json", json.dumps(tree).encode())
    with pytest.raises(CheckpointError, match=rf"state\.json: progress\.{name} is missing"):
        check_resumable(checkpoint, load_snapshot(checkpoint))


def test_settings_that_somebody_edited_are_sound_or_one_line(checkpoint: Path) -> None:
    """In each place of what makes a model; whatever a decoder takes, the settings take as well."""
    tree = tomllib.loads((checkpoint / "config.toml").read_text())
    refused = 0
    asked = [
        path for path in places(tree) if path[0] in ("made_by", "model", "heads") or path == ("data", "window_bytes")
    ]
    for path in asked:
        for value in (True, -1, 10**30, math.nan, "x", [], {}):
            put(checkpoint, "config.toml", tomli_w.dumps(changed(tree, path, value)).encode())
            try:
                found = find_model(checkpoint)
                load_model(checkpoint)
                read_training(checkpoint)
            except (CheckpointError, ConfigError) as error:
                refused += 1
                assert "\n" not in str(error)
                assert "config.toml" in str(error)
            else:
                assert found.shape.window_bytes > 1
    assert refused > 80


@pytest.mark.parametrize(
    "content",
    [b"[model", b"\xff", b"a = " + b"[" * 100_000, b"a." * 100_000 + b"b = 1", b"model = 5", b"[[model]]"],
)
def test_settings_that_are_none_are_one_line(checkpoint: Path, content: bytes) -> None:
    put(checkpoint, "config.toml", content)
    run = checkpoint.parent.parent
    (run / "config.toml").write_bytes(content)
    for read in (find_model, load_model, load_snapshot, read_training, lambda _: read_run(run)):
        with pytest.raises((CheckpointError, ConfigError), match=r"config\.toml") as error:
            read(checkpoint)
        one_line(error)


def test_a_manifest_that_somebody_edited_is_sound_or_one_line(checkpoint: Path) -> None:
    whole = json.loads((checkpoint / "manifest.json").read_bytes())
    del whole["sha256"]
    for path in places(whole):
        for value in [*STRANGE, {"../state.json": whole["files"]["state.json"]}, {"": whole["files"]["state.json"]}]:
            forge(checkpoint, changed(whole, path, value))
            try:
                load_snapshot(checkpoint)
            except CheckpointError as error:
                assert "\n" not in str(error)
            else:
                assert path == ("bytelm",)  # which version made it is for people
    for content in (
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"version": 1, "sha256": "x"}',
        b'{"version": NaN, "sha256": "x"}',
    ):
        (checkpoint / "manifest.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json") as error:
            find_model(checkpoint)
        one_line(error)


def forge(checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a right checksum, whatever it holds."""
    own = hashlib.sha256(rendered(manifest)).hexdigest()
    (checkpoint / "manifest.json").write_bytes(rendered({**manifest, "sha256": own}))


@pytest.mark.parametrize("read", [load_model, load_snapshot])
def test_weights_of_another_shape_than_the_settings_are_one_line(checkpoint: Path, read: Any) -> None:
    weights = snapshot().model
    name = "heads.unembedding.weight"
    other = ByteLM(CONFIG.model, CONFIG.heads.model_copy(update={"count": 3})).state_dict()
    less = {one: value for one, value in weights.items() if one != name}
    cases = {
        "its heads.unembedding.weight is 960 × 16, and the model's 640 × 16": other,
        "it holds no weight heads.unembedding.weight": less,
        "it holds more, which the model has not": {**weights, "more": torch.ones(3)},
        "its heads.unembedding.weight is , and": {**weights, name: torch.ones(())},
        "the numbers of heads.unembedding.weight are torch.int64": {**weights, name: weights[name].long()},
    }
    for message, tensors in cases.items():
        put(checkpoint, "model.safetensors", safetensors.torch.save(tensors))
        with pytest.raises(CheckpointError) as error:
            read(checkpoint)
        assert message in one_line(error)
        assert "model.safetensors" in one_line(error)
    for content in (b"", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{}", b"\x08" + b"\0" * 7 + b"[[[[[[[["):
        put(checkpoint, "model.safetensors", content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read(checkpoint)


def test_an_optimizer_s_file_that_is_none_is_one_line(checkpoint: Path) -> None:
    for content in (b"", b"\xff" * 100):
        put(checkpoint, "optimizer.safetensors", content)
        with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is no safetensors file"):
            load_snapshot(checkpoint)
    for tensors in ({}, {"random.cpu": torch.ones(3, dtype=torch.uint8)}, {"random.cpu": torch.ones(5056)}):
        put(checkpoint, "optimizer.safetensors", safetensors.torch.save(tensors))
        with pytest.raises(CheckpointError, match="no state of torch's random generator"):
            check_resumable(checkpoint, load_snapshot(checkpoint))
