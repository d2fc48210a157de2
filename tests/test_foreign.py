"""Models that were made elsewhere: every raw byte is counted, and what would lose one is refused."""

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bytelm.arms import Arm, Plan, parse_arms, parse_budgets
from bytelm.compare import compare
from bytelm.comparison_facts import as_json, sentences
from bytelm.comparison_measure import known
from bytelm.comparison_page import write_comparison_report
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.errors import CheckpointError, ConfigError, CorpusError
from bytelm.foreign import ForeignModel, ForeignVocab, byte_characters, open_foreign

TEXT = "".join(f"the {number % 7} little words of line {number}, and some more.\n" for number in range(200))
HARD = [
    b"",
    b"  lead",
    b"a\r\nb\r\n",
    b"\x00\x00",
    b"\xff\xfe\x80\xc3",
    "Grüße, 😀漢字".encode(),
    b"a<|endoftext|>b   c",
    bytes(range(256)),
    TEXT[:333].encode(),
]
LAYERS = ["model.d_model=32", "model.d_ff=48", "model.layers=1", "data.window_bytes=64", "model.local_window_bytes=32"]


def tokenizer(*, normalizer: Any = None) -> Any:
    """As GPT-2's, with a special token and one that is added and not special."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    made.train_from_iterator([TEXT], trainer=trainer)
    made.add_tokens(["   "])
    if normalizer is not None:
        made.normalizer = normalizer
    return made


class Bigrams(nn.Module):
    """A causal model with the interface of transformers: logits of the last id and of the place."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, ids)
        nn.init.normal_(self.embedding.weight)
        self.read: list[int] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.read.append(int(attention_mask.sum()))
        return SimpleNamespace(logits=self.embedding(input_ids) + torch.arange(input_ids.shape[1])[:, None] / 7)


@pytest.fixture
def model() -> ForeignModel:
    torch.manual_seed(0)
    vocabulary = ForeignVocab(tokenizer(), "there")
    return ForeignModel(Bigrams(vocabulary.count - 257), vocabulary, begin=0, longest=None)


def test_characters_of_bytes_are_those_of_the_library() -> None:
    assert sorted(byte_characters()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_characters().values()) == list(range(256))


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_any_bytes_are_the_bytes_of_their_ids(data: bytes) -> None:
    assert VOCABULARY.decode(VOCABULARY.encode(data).tolist()) == data


VOCABULARY = ForeignVocab(tokenizer(), "there")


@pytest.mark.parametrize("data", HARD)
def test_nothing_that_tokenizers_lose_is_lost(data: bytes) -> None:
    ids = VOCABULARY.encode(data)
    assert int(VOCABULARY.sizes[ids].sum()) == len(data)
    assert VOCABULARY.decode(ids.tolist()) == data
    assert all(identifier > 256 for identifier in ids.tolist())


def test_merges_and_added_tokens_are_used_and_special_ones_are_text() -> None:
    assert len(VOCABULARY.encode(b"the little words")) < 12
    assert len(VOCABULARY.encode(b"a   b")) == 3
    assert len(VOCABULARY.encode(b"<|endoftext|>")) > 1
    assert VOCABULARY.bytes_of(257 + tokenizer().token_to_id("<|endoftext|>")) == b""
    assert VOCABULARY.bytes_of(65) == b"A"


def test_a_tokenizer_that_changes_bytes_is_refused() -> None:
    lowering = ForeignVocab(tokenizer(normalizer=tokenizers.normalizers.Lowercase()), "there")
    assert lowering.decode(lowering.encode(b"small").tolist()) == b"small"
    with pytest.raises(ConfigError, match="tokenizer of there changes or loses bytes"):
        lowering.encode(b"Large")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "?": 1}, unk_token="?"))
    with pytest.raises(ConfigError, match="no byte-level BPE: it has no token for 255 of 256 bytes"):
        ForeignVocab(words, "there")


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (7, 3), (4096, 4096)])
def test_every_byte_is_scored_once_by_what_the_model_gave_it(model: ForeignModel, context: int, stride: int) -> None:
    found = model.bits_per_byte(HARD, context_bytes=context, stride=stride)
    assert found.scored_bytes == sum(map(len, HARD))
    assert found.scored_ids == sum(len(model.vocabulary.encode(data)) for data in HARD)
    nats = 0.0
    table = model.model.embedding.weight.double().log_softmax(-1)  # what is added to all logits changes nothing
    for data in HARD:
        ids = [0, *(model.vocabulary.encode(data) - 257).tolist()]
        nats -= sum(table[one, other].item() for one, other in itertools.pairwise(ids))
    assert found.by_head == (pytest.approx(nats / math.log(2) / found.scored_bytes, rel=1e-6),)


def test_windows_are_no_longer_than_the_context(model: ForeignModel) -> None:
    model.bits_per_byte([b"\xff" * 50], context_bytes=8, stride=4)
    assert model.model.read == [8 * 11 + 6]  # twelve windows side by side: of the 50 places the last one begins at 44


def test_what_does_not_fit_is_refused(model: ForeignModel) -> None:
    short = ForeignModel(model.model, model.vocabulary, begin=0, longest=32)
    with pytest.raises(ConfigError, match="there reads 32 ids at most, and windows and continuations may have 33"):
        short.bits_per_byte(HARD, context_bytes=33, stride=1)
    with pytest.raises(ConfigError, match="skips bytes"):
        model.bits_per_byte(HARD, context_bytes=8, stride=9)
    with pytest.raises(CorpusError, match="no byte to score"):
        model.bits_per_byte([b""], context_bytes=8, stride=4)


def test_shared_parameters_count_once(model: ForeignModel) -> None:
    assert model.parameters() == (model.model.embedding.weight.numel(), 0)


def test_an_arm_of_elsewhere_is_told_from_a_run() -> None:
    assert Arm.parse("hf=models/a") == Arm(name="hf=models/a", changes=(), run=Path("models/a"), foreign=True)
    assert not Arm.parse("run=models/a").foreign


def test_folders_that_are_none_and_a_missing_library_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"is no folder of a Hugging Face model \(config.json"):
        open_foreign(tmp_path, device=torch.device("cpu"))
    (tmp_path / "config.json").write_text("{}")
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs transformers.*pip install 'bytelm\[hf\]'"):
        open_foreign(tmp_path, device=torch.device("cpu"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(24):
        (sources / f"{number}.txt").write_text(TEXT[number * 300 : number * 300 + 900])
    ingest([sources], tmp_path / "corpus", validation_fraction=0.1)
    return tmp_path / "corpus"


def plan_of(arms: str) -> Plan:
    return Plan(
        arms=tuple(parse_arms(arms)),
        budgets=parse_budgets("bytes:4k"),
        seeds=(0,),
        base=RunConfig.build("tiny", [*LAYERS, "train.sample_bytes=0", "train.precision=float32"]),
        scored_bytes=400,
        stride_bytes=32,
        prompts=1,
        generated_bytes=8,
    )


def check_joined(corpus: Path, out: Path, folder: Path) -> None:
    plan = plan_of(f"byte:k=1,hf={folder}")
    comparison = compare(plan, corpus, out)
    assert not comparison.failed, comparison.failed
    ours, theirs = comparison.measured
    assert theirs.scored_bytes == ours.scored_bytes > theirs.scored_ids
    assert (theirs.trained, theirs.met) == (False, None)
    assert theirs.bytes_per_second_plain > 0
    assert theirs.flops_per_byte_decoding > 0
    facts = write_comparison_report(comparison, out, made_by="bytelm compare")
    assert json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail) == json.loads(
        json.dumps(facts)
    )
    assert facts["arms"][1]["training_flops"] is None
    assert any("Measured as found" in said and str(folder) in said for said in sentences(comparison))
    told: list[str] = []
    again = compare(plan, corpus, out, tell=told.append)
    assert not any("measuring" in line for line in told)
    assert known(again.measured[1]) == known(theirs)
    assert as_json(again) == as_json(comparison)


def test_a_model_of_elsewhere_joins_as_an_arm(
    model: ForeignModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for what transformers opens, which writes what is likeliest."""

    def generate(given: Tensor, *, max_new_tokens: int, **_: Any) -> Tensor:
        row = given[0].tolist()
        for _number in range(max_new_tokens):
            row.append(int(model.model.embedding.weight[row[-1]].argmax()))
        return torch.tensor([row])

    model.model.generate = generate
    monkeypatch.setattr("bytelm.comparison_measure.open_foreign", lambda *_, **__: model)
    monkeypatch.setattr(model, "flops_per_byte", lambda *_, **__: 1e6)
    check_joined(corpus, tmp_path / "out", tmp_path)


INSTALLED = importlib.util.find_spec("transformers") is not None


@pytest.mark.skipif(not INSTALLED, reason="transformers is not installed: pip install 'bytelm[hf]'")
def test_a_folder_that_transformers_wrote_joins_as_an_arm(corpus: Path, tmp_path: Path) -> None:
    import transformers  # pyright: ignore[reportMissingImports]

    folder = tmp_path / "gpt2"
    made = tokenizer()
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128, "vocab_size": made.get_vocab_size()}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    check_joined(corpus, tmp_path / "out", folder)
    found = open_foreign(folder, device=torch.device("cpu"))
    total, inner = found.parameters()
    assert total == inner + 32 * made.get_vocab_size()
    flops = found.flops_per_byte([TEXT.encode()], context_bytes=64)
    window_ids = len(found.vocabulary.encode(TEXT.encode()[:63]))
    expected = 2 * (2 * 12 * 32 * 32 + 32 * made.get_vocab_size()) * (1 + window_ids) / 64
    assert flops == pytest.approx(expected, rel=0.2)  # attention and what the last id stands for besides
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_foreign(folder, device=torch.device("cpu"))
