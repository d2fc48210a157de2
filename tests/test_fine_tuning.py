"""Fine-tuning: what is kept of another run, what is never changed, what is refused, and that the run stands alone."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bytelm.checkpoint import checkpoints, load_model, load_snapshot
from bytelm.config import HeadFamily, RunConfig
from bytelm.data.ingest import ingest
from bytelm.errors import BytelmError, CheckpointError, ConfigError
from bytelm.events import Event, Saved, Started
from bytelm.fine_tuning import Source, begin_with, read_source
from bytelm.heads import FAMILIES
from bytelm.model import ByteLM
from bytelm.train import train
from bytelm.vocab import BYTES, VOCABULARY_SIZE

TINY = [
    "model.d_model=16",
    "model.layers=2",
    "model.attention_heads=2",
    "model.kv_heads=1",
    "model.d_ff=16",
    "model.local_window_bytes=8",
    "heads.count=1",
    "data.window_bytes=24",
    "train.optimizer=adamw",
    "train.batch_windows=4",
    "train.precision=float32",
    "train.threads=1",
    "train.steps=6",
    "train.validation_bytes=200",
    "train.sample_bytes=0",
]
LANGUAGE_MODEL = "train.frozen=language_model"


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*TINY, *changes])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    (folder / "text").write_text(" ".join(draw.choices(["the", "byte", "window", "Größe", "head"], k=600)))
    ingest([folder / "text"], folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("source") / "run"
    trained(settings(), corpus, run)
    return run


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(config: RunConfig, corpus: Path, run: Path, **options: object) -> list[Event]:
    return list(train(config, corpus, run, **options))  # type: ignore[arg-type]


def model_of(family: HeadFamily, count: int, seed: int) -> ByteLM:
    torch.manual_seed(seed)
    config = settings(f"heads.family={family}", f"heads.count={count}")
    model = ByteLM(config.model, config.heads)
    with torch.no_grad():  # so that no two parameters are alike, gains and embeddings of depth included
        for parameter in model.parameters():
            parameter.normal_()
    return model


def source_of(model: ByteLM) -> Source:
    heads = [f"heads.family={model.heads_config.family}", f"heads.count={model.heads.count}"]
    weights = model.state_dict()
    return Source(checkpoint=Path("step-00000001"), config=settings(*heads), vocabulary=BYTES, weights=weights)


def rows_of_head(model: ByteLM, head: int) -> torch.Tensor:
    rows = model.heads.get_parameter("unembedding.weight")
    return rows[head * VOCABULARY_SIZE : (head + 1) * VOCABULARY_SIZE]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("before", "now"), [(2, 4), (4, 2), (3, 3)])
def test_the_trunk_and_equal_heads_are_kept_and_others_are_fresh(family: HeadFamily, before: int, now: int) -> None:
    theirs, ours, fresh = model_of(family, before, 1), model_of(family, now, 2), model_of(family, now, 2)
    begin_with(ours, source_of(theirs))
    window_BT = torch.randint(0, 256, (1, 20))
    hidden_BTD = theirs.trunk(window_BT)
    assert torch.equal(ours.trunk(window_BT), hidden_BTD)
    shared = theirs.heads.window_pass(hidden_BTD, None), ours.heads.window_pass(hidden_BTD, None)
    for head in range(min(before, now)):
        states = [
            model.heads.head_state(head, hidden_BTD, *rest)
            for model, rest in zip((theirs, ours), ((shared[0],), (shared[1],)), strict=True)
        ]
        assert torch.equal(*states)
        logits = [model.heads.unembed(head, states[0]) for model in (theirs, ours)]
        assert torch.equal(*logits)
    own = {name: weight for name, weight in ours.state_dict().items() if name not in theirs.state_dict()}
    assert all(torch.equal(weight, fresh.state_dict()[name]) for name, weight in own.items())
    if family == "linear":
        assert all(torch.equal(rows_of_head(ours, head), rows_of_head(fresh, head)) for head in range(before, now))
    elif family == "shared":
        depths, fresh_depths = ours.state_dict()["heads.depth_embedding"], fresh.state_dict()["heads.depth_embedding"]
        assert torch.equal(depths[before:], fresh_depths[before:])
    else:
        assert bool(own) == (now > before)


def test_heads_of_another_family_are_all_fresh() -> None:
    theirs, ours, fresh = model_of("linear", 2, 1), model_of("mlp", 2, 2), model_of("mlp", 2, 2)
    begin_with(ours, source_of(theirs))
    for name, weight in ours.state_dict().items():
        kept = not name.startswith("heads.")
        assert torch.equal(weight, (theirs if kept else fresh).state_dict()[name]), name


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("linear", []),
        ("linear", ["train.optimizer=muon", "train.ema_decay=0.6", "heads.backward=naive"]),
        ("mlp", []),
        ("transformer", ["train.optimizer=muon"]),
        ("transformer", ["heads.backward=naive"]),
        ("causal", ["train.ema_decay=0.6", "heads.backward=checkpoint"]),
        ("causal", []),
    ],
)
def test_heads_alone_learn_and_the_language_model_stays_the_same_bit_for_bit(
    corpus: Path, tmp_path: Path, family: str, changes: list[str]
) -> None:
    trained(settings(f"heads.family={family}"), corpus, tmp_path / "source")
    wanted = [f"heads.family={family}", "heads.count=3", f"train.init_from={tmp_path / 'source'}", LANGUAGE_MODEL]
    trained(settings(*wanted, "train.learning_rate=0.01", *changes), corpus, tmp_path / "run")
    (before, _), (after, _) = load_model(tmp_path / "source"), load_model(tmp_path / "run")
    window_BT = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden_BTD = before.trunk(window_BT)
        assert torch.equal(after.trunk(window_BT), hidden_BTD)
        first = [
            model.heads.head_logits(0, hidden_BTD, model.heads.window_pass(hidden_BTD, None))
            for model in (before, after)
        ]
        assert torch.equal(*first)
    (start, _), (end, _) = (
        load_model(checkpoint) for checkpoint in (checkpoints(tmp_path / "run")[0], tmp_path / "run")
    )
    for head in (1, 2):
        logits = [model(window_BT)[:, :, head] for model in (start, end)]
        assert not torch.equal(*logits), f"head {head} has learnt nothing"


def test_a_frozen_trunk_stays_and_head_0_learns(corpus: Path, tmp_path: Path, source: Path) -> None:
    changes = ["heads.family=mlp", "heads.count=2", f"train.init_from={source}", "train.frozen=trunk"]
    trained(settings(*changes), corpus, tmp_path / "run")
    theirs, ours = load_model(source)[0].state_dict(), load_model(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items() if not name.startswith("heads."))
    assert not torch.equal(ours["heads.norm.gain"], theirs["heads.norm.gain"])


def test_a_trunk_that_is_not_frozen_learns_on(corpus: Path, tmp_path: Path, source: Path) -> None:
    trained(settings(f"train.init_from={source}"), corpus, tmp_path / "run")
    first, last = (load_snapshot(checkpoint) for checkpoint in checkpoints(tmp_path / "run"))
    theirs = load_model(source)[0].state_dict()
    assert first.step == 0
    assert all(torch.equal(weight, theirs[name]) for name, weight in first.model.items())
    assert not torch.equal(last.model["embedding"], theirs["embedding"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.d_model=32"], r"has 16 as model\.d_model, and 32 was asked for"),
        (["model.layers=3"], "has 2 as layers of the trunk, and 3 was asked for"),
        (["model.d_ff=24"], r"has 16 as model\.d_ff, and 24"),
        (["model.rope_base=500.0", "train.frozen=trunk"], r"has model\.rope_base = 10000.0, and 500.0"),
        (["heads.family=mlp", "heads.count=2", LANGUAGE_MODEL], r"heads\.family = linear, and mlp was asked for"),
        ([LANGUAGE_MODEL], r"heads\.count = 1, which leaves no head"),
        (["heads.count=2", "heads.family=shared", LANGUAGE_MODEL], "all heads make head 0"),
        (["heads.count=2", "heads.curriculum=forward", LANGUAGE_MODEL], r"set heads\.curriculum = none"),
    ],
)
def test_what_does_not_fit_is_one_line_with_both_values(
    corpus: Path, tmp_path: Path, source: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        trained(settings(f"train.init_from={source}", *changes), corpus, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_source_of_another_vocabulary_is_refused(corpus: Path, tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConfigError, match=r"has bytes as model\.vocabulary, and bpe:512 was asked for"):
        trained(settings(f"train.init_from={source}", "model.vocabulary=bpe:512"), corpus, tmp_path / "run")


def test_nothing_is_frozen_without_a_source() -> None:
    with pytest.raises(ConfigError, match="would freeze random weights"):
        settings("train.frozen=trunk")


@pytest.mark.parametrize("place", ["missing", "corpus"])
def test_a_source_that_is_no_run_is_refused(corpus: Path, tmp_path: Path, place: str) -> None:
    path = corpus if place == "corpus" else tmp_path / "missing"
    with pytest.raises(CheckpointError, match=r"does not exist|not the folder of a run"):
        trained(settings(f"train.init_from={path}"), corpus, tmp_path / "run")


def test_a_run_that_began_with_another_goes_on_without_it_bit_for_bit(
    corpus: Path, tmp_path: Path, source: Path
) -> None:
    shutil.copytree(source, tmp_path / "source")
    config = settings(f"train.init_from={tmp_path / 'source'}", "heads.count=3", LANGUAGE_MODEL)
    trained(config, corpus, tmp_path / "straight")
    asked = iter([False, False, False, True])
    trained(config, corpus, tmp_path / "stopped", should_stop=lambda: next(asked, True))
    assert RunConfig.from_toml((tmp_path / "stopped" / "config.toml").read_text()).train.init_from == str(
        (tmp_path / "source" / "checkpoints" / "step-00000006").resolve()
    )
    shutil.rmtree(tmp_path / "source")
    started, *_ = trained(config, corpus, tmp_path / "stopped", resume="auto")
    assert isinstance(started, Started)
    assert started.step == 3
    straight, stopped = (load_model(tmp_path / name)[0].state_dict() for name in ("straight", "stopped"))
    assert all(torch.equal(weight, stopped[name]) for name, weight in straight.items())


def test_a_run_stands_alone_before_its_first_step(corpus: Path, tmp_path: Path, source: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    config = settings(f"train.init_from={tmp_path / 'source'}")
    events = trained(config, corpus, tmp_path / "run", should_stop=lambda: True)
    assert [event.step for event in events if isinstance(event, Saved)] == [0]
    shutil.rmtree(tmp_path / "source")
    trained(config, corpus, tmp_path / "run", resume="require")


def test_another_beginning_is_refused_on_resume(corpus: Path, tmp_path: Path, source: Path) -> None:
    trained(settings(), corpus, tmp_path / "fresh")
    with pytest.raises(BytelmError, match="began with fresh weights, and"):
        trained(settings(f"train.init_from={source}"), corpus, tmp_path / "fresh", resume="auto")
    trained(settings(f"train.init_from={source}"), corpus, tmp_path / "run")
    trained(settings(), corpus, tmp_path / "run", resume="auto")
    with pytest.raises(BytelmError, match="leave --init-from out"):
        trained(settings(f"train.init_from={tmp_path / 'fresh'}"), corpus, tmp_path / "run", resume="auto")


def test_the_source_is_named_by_its_checkpoint(source: Path) -> None:
    found = read_source(source)
    assert found.checkpoint == (source / "checkpoints" / "step-00000006").resolve()
    assert found.config.heads.count == 1
