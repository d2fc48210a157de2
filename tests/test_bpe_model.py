"""A model over BPE ids is the byte model's trunk, trainer, scorer and decoder: what a byte model promises, it keeps."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.api import LanguageModel
from bytelm.bpe import BPEVocab, train_bpe
from bytelm.checkpoint import checkpoints, load_model, load_snapshot
from bytelm.cli.app import run
from bytelm.config import HeadsConfig, ModelConfig, RunConfig
from bytelm.data.ingest import ingest
from bytelm.decode import generate
from bytelm.errors import CheckpointError, ConfigError, GenerationError
from bytelm.evaluate import bits_per_byte
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.train import train
from bytelm.vocab import EOD

TEXT = b"".join(b"the %d little words of line %d, and some more.\n" % (number % 7, number) for number in range(400))
HARD = [
    b"",
    b"  lead",
    b"a\r\nb\r\n",
    b"\x00\x00",
    b"\xff\xfe\x80\xc3",
    "😀漢字".encode(),
    bytes(range(256)),
    TEXT[:777],
]


def model_of(vocabulary: BPEVocab, *, heads: int = 2, seed: int = 0) -> ByteLM:
    torch.manual_seed(seed)
    shape = ModelConfig(
        d_model=32,
        layers=2,
        attention_heads=2,
        kv_heads=1,
        d_ff=48,
        attention_pattern=("local", "global"),
        local_window_bytes=40,
        vocabulary=vocabulary.name,
        bytes_per_id=vocabulary.bytes_per_id,
    )
    return ByteLM(shape, HeadsConfig(count=heads), vocabulary=vocabulary).eval()


@pytest.fixture(scope="module")
def vocabulary() -> BPEVocab:
    return train_bpe([TEXT], "bpe:300")


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (16, 1), (4096, 4096), (5, 5)])
def test_every_byte_is_scored_once_and_the_total_is_the_size(vocabulary: BPEVocab, context: int, stride: int) -> None:
    scores = bits_per_byte(model_of(vocabulary), HARD, context_bytes=context, stride=stride)
    assert scores.scored_bytes == sum(map(len, HARD))
    assert scores.scored_ids == sum(len(vocabulary.encode(document)) for document in HARD)
    assert "stand for several bytes" in scores.rule


def test_bits_per_byte_are_the_nats_of_all_ids_over_the_bytes(vocabulary: BPEVocab) -> None:
    model = model_of(vocabulary)
    bits = [0.0, 0.0]
    sizes = [0, 0]
    for document in HARD:
        ids = [EOD, *vocabulary.encode(document).tolist()]
        logits_TKV = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        for head in (0, 1):
            for place in range(len(ids) - 1 - head):
                bits[head] -= logits_TKV[place, head, ids[place + 1 + head]].item() / math.log(2)
                sizes[head] += len(vocabulary.bytes_of(ids[place + 1 + head]))
    assert sizes[0] == sum(map(len, HARD))
    scores = bits_per_byte(model, HARD, context_bytes=2000)
    assert scores.by_head == pytest.approx([total / size for total, size in zip(bits, sizes, strict=True)], rel=1e-5)


def test_a_vocabulary_without_merges_scores_as_bytes_do() -> None:
    """The windows of both are the same: one rule for the context."""
    plain = BPEVocab([], name="bpe:320", bytes_per_id=1.0)
    torch.manual_seed(0)
    shape = ModelConfig(d_model=32, layers=2, attention_heads=2, kv_heads=1, d_ff=48, local_window_bytes=40)
    of_bytes = ByteLM(shape, HeadsConfig(count=2)).eval()
    of_ids = ByteLM(shape.model_copy(update={"vocabulary": "bpe:320"}), HeadsConfig(count=2), vocabulary=plain).eval()
    of_ids.load_state_dict(of_bytes.state_dict())
    for context, stride in ((64, 32), (10, 3)):
        expected, found = (
            bits_per_byte(model, HARD, context_bytes=context, stride=stride) for model in (of_bytes, of_ids)
        )
        assert found.by_head == expected.by_head
        assert found.scored_bytes == expected.scored_bytes == found.scored_ids


def test_a_window_of_ids_reads_the_bytes_of_a_window(vocabulary: BPEVocab) -> None:
    """What lies further back than the context does not change a score."""
    model = model_of(vocabulary)
    one, other = (bits_per_byte(model, [start + TEXT[:300]], context_bytes=100, stride=50) for start in (b"", b"x"))
    assert one.by_head != other.by_head  # places of windows move
    assert one.context_bytes == other.context_bytes == 100


def test_operations_for_a_byte_are_those_of_its_id_over_its_bytes(vocabulary: BPEVocab) -> None:
    model = model_of(vocabulary)
    same = ByteLM(model.config.model_copy(update={"vocabulary": "bpe:300", "bytes_per_id": 1.0}), HeadsConfig(count=2))
    ratio = vocabulary.bytes_per_id
    window = model.config.ids_for(400)
    shorter = same.config.model_copy(update={"local_window_bytes": model.config.local_window_ids})
    expected = ByteLM(shorter, HeadsConfig(count=2)).flops_per_byte(window, training=True) / ratio
    assert model.flops_per_byte(400, training=True) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("prompt", [b"", b"the 3 lit", b"\xff\x00"])
def test_drafts_change_no_byte(vocabulary: BPEVocab, prompt: bytes, temperature: float) -> None:
    model = model_of(vocabulary, heads=4)
    found = [
        generate(
            model, prompt, GenerateSettings(max_bytes=150, temperature=temperature, draft=draft), context_bytes=100
        )
        for draft in ("none", "heads", "adaptive")
    ]
    assert len({one.data for one in found}) == 1
    assert all(len(one.sources) == len(one.data) for one in found)
    assert len(found[0].data) == 150 or found[0].finish_reason == "end_of_document"


def test_the_output_ends_inside_an_id_where_it_must(vocabulary: BPEVocab) -> None:
    model = model_of(vocabulary)
    whole = generate(model, b"the", GenerateSettings(max_bytes=80, temperature=0.9), context_bytes=100).data
    for length in range(1, 40):
        part = generate(model, b"the", GenerateSettings(max_bytes=length, temperature=0.9), context_bytes=100)
        assert part.data == whole[:length]
    stop = whole[11:13]
    stopped = generate(model, b"the", GenerateSettings(max_bytes=80, temperature=0.9, stop=(stop,)), context_bytes=100)
    assert stopped.data == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    "changes", [{"utf8": True}, {"repetition_penalty": 1.2}, {"logprobs": True}, {"draft": "ngram"}]
)
def test_what_looks_at_single_bytes_is_refused(vocabulary: BPEVocab, changes: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match="looks at bytes, and ids of bpe:300 stand for several") as caught:
        generate(model_of(vocabulary), b"the", GenerateSettings(max_bytes=5, **changes), context_bytes=100)
    assert "\n" not in str(caught.value)


def test_probabilities_of_bytes_are_refused(vocabulary: BPEVocab) -> None:
    model = model_of(vocabulary)
    language_model = LanguageModel(model, RunConfig(model=model.config, heads=model.heads_config))
    with pytest.raises(GenerationError, match="bytelm eval --task bpb"):
        language_model.score("the", " little")


# Runs


CHANGES = (
    "model.vocabulary=bpe:300",
    "model.d_model=32",
    "model.d_ff=48",
    "model.layers=2",
    "heads.count=2",
    "data.window_bytes=128",
    "train.batch_windows=2",
    "train.log_every_steps=5",
    "train.validate_every_steps=10",
    "train.validation_bytes=600",
    "train.precision=float32",
    "train.sample_bytes=8",
    "train.learning_rate=0.01",
)


def settings(*changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*CHANGES, *changes])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sources = folder / "sources"
    sources.mkdir()
    for number in range(24):
        (sources / f"{number}.txt").write_bytes(TEXT[number * 500 : number * 500 + 3000])
    ingest([sources], folder / "corpus", validation_fraction=0.1)
    return folder / "corpus"


def test_a_run_learns_resumes_bit_for_bit_and_keeps_its_vocabulary(corpus: Path, tmp_path: Path) -> None:
    *_, finished = train(settings("train.steps=40"), corpus, tmp_path / "straight")
    *_, _ = train(settings("train.steps=40"), corpus, tmp_path / "stopped", should_stop=_after(15))
    *_, _ = train(settings("train.steps=40"), corpus, tmp_path / "stopped", resume="require")
    straight, stopped = (load_snapshot(checkpoints(tmp_path / name)[-1]) for name in ("straight", "stopped"))
    assert straight.step == stopped.step == finished.step == 40
    assert straight.vocabulary == stopped.vocabulary
    assert all(torch.equal(weight, stopped.model[name]) for name, weight in straight.model.items())
    model, config = load_model(tmp_path / "straight")
    assert model.vocabulary.name == config.model.vocabulary == "bpe:300"
    assert config.model.bytes_per_id == model.vocabulary.bytes_per_id > 1.5
    scores = bits_per_byte(model, [TEXT[:2000]], context_bytes=128)
    assert scores.by_head[0] is not None
    assert scores.by_head[0] < 3.0


def _after(steps: int) -> Any:
    asked = iter(range(10_000))
    return lambda: next(asked) >= steps


def test_a_run_does_not_change_its_vocabulary(corpus: Path, tmp_path: Path) -> None:
    *_, _ = train(settings("train.steps=2"), corpus, tmp_path / "run")
    for other in ("bytes", "bpe:320"):
        with pytest.raises(CheckpointError, match=rf"model\.vocabulary = bpe:300, and {other} was asked for"):
            list(train(settings("train.steps=4", f"model.vocabulary={other}"), corpus, tmp_path / "run", resume="auto"))


def test_a_damaged_vocabulary_is_noticed(corpus: Path, tmp_path: Path) -> None:
    *_, _ = train(settings("train.steps=2"), corpus, tmp_path / "run")
    path = checkpoints(tmp_path / "run")[-1] / "vocabulary.json"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the contents of vocabulary\.json are not those that were written"):
        load_model(tmp_path / "run")


def test_settings_that_contradict_a_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set data\.packing = stream"):
        settings("data.packing=document")
    with pytest.raises(ConfigError, match="there is no vocabulary 'bpe:12'"):
        settings("model.vocabulary=bpe:12")
    with pytest.raises(ConfigError, match="an id of bytes is one"):
        settings("model.vocabulary=bytes", "model.bytes_per_id=2")


def test_the_commands_train_score_and_write_over_ids(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "run")
    options = [word for change in CHANGES[1:] for word in ("--set", change)]
    words = ["train", "--corpus", str(corpus), "--out", place, "--vocab", "bpe:300", "--steps", "10", "--json"]
    assert run([*words, *options]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert run(["eval", place, "--task", "bpb", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["tasks"]["bpb"]
    assert "stand for several bytes" in scored["rule"]
    assert scored["bits_per_byte"] < 7  # ids, not bytes one by one, which such a model has hardly seen
    assert run(["eval", place, "--task", "bpb", "--compress"]) == 2
    assert "the ids of this run are not bytes" in capsys.readouterr().err
    assert run(["generate", place, "the ", "--max-bytes", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generated_bytes"] == 20
    assert run(["eval", place, "--task", "acceptance"]) == 2
    assert "is for models of bytes" in capsys.readouterr().err
    assert run(["train", "--out", place, "--resume", "require", "--steps", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == trained["step"] + 2
