"""Training on several corpora by weight, on windows of documents, and on a corpus that is damaged."""

import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.checkpoint import checkpoints, load_model, load_snapshot, read_corpus, read_run
from bytelm.config import RunConfig
from bytelm.corpora import Corpora, open_corpora, parse_weighted
from bytelm.data.ingest import ingest
from bytelm.data.mixture import MixtureLoader
from bytelm.data.shards import Corpus
from bytelm.errors import CheckpointError, ConfigError, CorpusError, ShardError
from bytelm.events import Event, Finished, Progress, Replaced, Started
from bytelm.run_log import read_log
from bytelm.train import train

TINY = [
    "model.d_model=16",
    "model.layers=1",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=2",
    "data.window_bytes=24",
    "train.batch_windows=4",
    "train.precision=float32",
    "train.threads=1",
    "train.log_every_steps=2",
    "train.validate_every_steps=4",
    "train.save_every_steps=4",
    "train.save_in_background=false",
]


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*TINY, *changes])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three corpora; the last holds nothing out."""
    made = []
    for number, letters in enumerate((b"abcd ", b"EFGH\n", b"0123")):
        folder = tmp_path_factory.mktemp("corpora")
        chance = random.Random(number)
        for file in range(30):
            (folder / str(file)).write_bytes(bytes(chance.choices(letters, k=chance.randrange(20, 900))))
        fraction = 0.0 if number == 2 else 0.2
        ingest([folder], folder / "corpus", validation_fraction=fraction, shard_bytes=4000, frame_bytes=1024)
        made.append(folder / "corpus")
    return made


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(10**9))
    return lambda: next(calls) >= steps


def trained(corpus: Any, run: Path, *changes: str, **options: Any) -> list[Event]:
    return list(train(settings(*changes), corpus, run, **options))


def lasting_log(run: Path) -> list[dict[str, Any]]:
    times = {"elapsed_s", "bytes_per_second", "mfu", "memory_bytes", "peak_memory_bytes"}
    return [{key: value for key, value in record.items() if key not in times} for record in read_log(run)]


def equal_weights(one: Path, other: Path) -> bool:
    left, right = (load_model(run)[0].state_dict() for run in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


def weighted(folders: list[Path], *weights: str) -> list[str]:
    return [f"{folder}:{weight}" for folder, weight in zip(folders, weights, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", "1")),
        ("a/:0.7", ("a/", "0.7")),
        ("a:2", ("a", "2")),
        ("a:1/3", ("a", "1/3")),
        ("s3://bucket/a:0.5", ("s3://bucket/a", "0.5")),
        ("s3://bucket/a", ("s3://bucket/a", "1")),
        ("with:colon", ("with:colon", "1")),
        ("with:colon:3", ("with:colon", "3")),
        ("a:", ("a:", "1")),
        (":5", (":5", "1")),
    ],
)
def test_a_corpus_is_given_with_its_weight_or_without(text: str, expected: tuple[str, str]) -> None:
    assert parse_weighted(text) == expected


@pytest.mark.parametrize("weight", ["nan", "inf", "-1", "x", "", "1e400"])
def test_a_wrong_weight_of_a_folder_is_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert parse_weighted(f"a:{weight}") == ("a", weight)


def test_a_folder_whose_name_looks_like_a_weight_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").mkdir()
    assert parse_weighted("a:2") == ("a:2", "1")


@pytest.mark.parametrize("weight", ["0", "0.0", "0/3", "1/0", "."])
def test_one_corpus_with_a_weight_that_gives_nothing_is_refused(folders: list[Path], weight: str) -> None:
    with pytest.raises(ConfigError, match=rf"weights? {weight}: "):
        open_corpora([f"{folders[0]}:{weight}"], settings())
    with pytest.raises(ConfigError, match="no corpus is given"):
        open_corpora([], settings())
    assert open_corpora([f"{folders[0]}:2"], settings()).weights is None


def test_a_run_on_several_corpora_keeps_their_places_weights_and_fingerprints(
    folders: list[Path], tmp_path: Path
) -> None:
    given = weighted(folders, "0.5", "0.3", "0.2")
    events = trained(given, tmp_path / "run", "train.steps=10")
    assert isinstance(events[-1], Finished)
    fingerprints = [Corpus.open(folder).fingerprint for folder in folders]
    assert read_corpus(tmp_path / "run") == (given, fingerprints)
    assert read_run(tmp_path / "run")[1] == given
    made_by = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["made_by"]
    assert (made_by["corpus"], made_by["corpus_fingerprint"]) == (given, fingerprints)
    state = load_snapshot(checkpoints(tmp_path / "run")[-1]).progress["loader"]
    assert state["positions"] == [20, 12, 8]


def test_one_corpus_with_a_weight_is_that_corpus_alone(folders: list[Path], tmp_path: Path) -> None:
    trained(folders[0], tmp_path / "plain", "train.steps=6")
    trained([f"{folders[0]}:0.7"], tmp_path / "weighted", "train.steps=6")
    assert lasting_log(tmp_path / "plain") == lasting_log(tmp_path / "weighted")
    assert read_corpus(tmp_path / "weighted") == read_corpus(tmp_path / "plain")


@pytest.mark.parametrize("packing", ["stream", "document"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_equals_one_that_was_not(
    folders: list[Path], tmp_path: Path, stop: int, packing: str
) -> None:
    given, changes = weighted(folders, "3", "2", "1"), ("train.steps=9", f"data.packing={packing}")
    trained(given, tmp_path / "straight", *changes)
    trained(given, tmp_path / "stopped", *changes, should_stop=stop_after(stop))
    # the run remembers its corpora; the same weights in other words are the same
    again = given if stop == 1 else weighted(folders, "0.3", "0.2", "0.1")
    trained(again, tmp_path / "stopped", *changes, resume="require")
    assert lasting_log(tmp_path / "stopped") == lasting_log(tmp_path / "straight")
    assert equal_weights(tmp_path / "stopped", tmp_path / "straight")


def test_weights_may_change_where_a_run_is_resumed(folders: list[Path], tmp_path: Path) -> None:
    trained(weighted(folders, "1", "1", "0"), tmp_path / "run", "train.steps=10")
    trained(weighted(folders, "0", "1", "3"), tmp_path / "run", "train.steps=20", resume="require")
    assert load_snapshot(checkpoints(tmp_path / "run")[-1]).progress["loader"]["positions"] == [20, 30, 30]
    assert read_run(tmp_path / "run")[1] == weighted(folders, "0", "1", "3")


def test_other_corpora_are_refused_on_resume_and_the_right_ones_named(folders: list[Path], tmp_path: Path) -> None:
    given = weighted(folders[:2], "1", "2")
    trained(given, tmp_path / "run", "train.steps=4")
    for other in (folders[0], weighted(folders, "1", "1", "1"), weighted(folders[1::-1], "2", "1")):
        with pytest.raises(CheckpointError, match=r"another corpus .*; give --corpus .*:1 --corpus .*:2, or start"):
            trained(other, tmp_path / "run", "train.steps=8", resume="auto")
    trained(folders[0], tmp_path / "single", "train.steps=4")
    with pytest.raises(CheckpointError, match="another corpus"):
        trained(given, tmp_path / "single", "train.steps=8", resume="auto")


def test_held_out_bytes_come_from_each_corpus_by_its_weight(folders: list[Path]) -> None:
    config = settings("train.validation_bytes=1200")
    corpora = open_corpora(weighted(folders, "2", "1", "7"), config)
    found = b"".join(corpora.held_out(config))
    lower = sum(byte in b"abcd " for byte in found)
    assert len(found) > 900
    assert lower == pytest.approx(2 * (len(found) - lower), rel=0.25)
    assert not open_corpora(weighted(folders, "0", "0", "1"), config).held_out(config)
    alone = Corpora(corpora=corpora.corpora[:1], weights=None)
    assert set(b"".join(alone.held_out(config))) <= set(b"abcd ")


def test_the_loader_of_several_mixes_them(folders: list[Path]) -> None:
    config = settings()
    with open_corpora(weighted(folders, "1", "1", "2"), config).loader(
        config, batch_windows=config.train.batch_windows
    ) as loader:
        assert isinstance(loader, MixtureLoader)
        for batch in (next(loader) for _ in range(20)):
            letters = [b"abcd ", b"EFGH\n", b"0123"]
            rows = zip(batch.windows_BW, batch.corpora_B.tolist(), strict=True)
            assert all(set(window.tolist()) <= set(letters[corpus]) for window, corpus in rows)


def test_impossible_weights_and_missing_corpora_are_refused_before_anything_is_made(
    folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="one must be above 0"):
        trained(weighted(folders, "0", "0", "0"), tmp_path / "run", "train.steps=4")
    with pytest.raises(CorpusError, match="is given twice"):
        trained([str(folders[0]), str(folders[0])], tmp_path / "run", "train.steps=4")
    with pytest.raises(CorpusError, match="no corpus at"):
        trained([str(folders[0]), str(tmp_path / "gone")], tmp_path / "run", "train.steps=4")
    assert not (tmp_path / "run").exists()


def test_the_packing_policy_is_kept(folders: list[Path], tmp_path: Path) -> None:
    trained(folders[0], tmp_path / "run", "train.steps=4", "data.packing=document")
    with pytest.raises(CheckpointError, match=r"has data\.packing = document, and stream was asked for"):
        trained(folders[0], tmp_path / "run", "train.steps=8", resume="auto")


def test_damage_stops_a_run_unless_it_is_to_be_replaced_and_then_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(random.Random(0).choices(b"abcd ", k=9000)))
    ingest([tmp_path / "text"], tmp_path / "corpus", validation_fraction=0, frame_bytes=1024)
    shard = tmp_path / "corpus" / "train-00000.zst"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"frame 0 .* is damaged"):
        trained(tmp_path / "corpus", tmp_path / "stopped", "train.steps=90")
    events = trained(tmp_path / "corpus", tmp_path / "run", "train.steps=90", "data.on_damage=replace")
    told = [event for event in events if isinstance(event, Replaced)]
    assert len(told) == 1
    assert "frame 0 " in told[0].reason
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert 0 < last.replaced_windows < 360
    assert isinstance(events[0], Started)
    records = read_log(tmp_path / "run")
    assert [record["reason"] for record in records if record["kind"] == "damage"] == [told[0].reason]
    assert [record for record in records if record["kind"] == "step"][-1]["replaced_windows"] == last.replaced_windows
