"""A loaded model generates, streams and scores, and the three agree with each other."""

import dataclasses
import math
import pickle
import random
import re
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bytelm
from bytelm.api import GenerateOptions, LanguageModel, load
from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.config import RunConfig
from bytelm.drafting import DraftPolicy
from bytelm.engine.library import load_library
from bytelm.engine.weights import engine_from_torch
from bytelm.errors import BytelmError, CheckpointError, ConfigError, GenerationError
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.vocab import EOD

WINDOW = 64
CONFIG = RunConfig.build(
    "tiny",
    [
        f"data.window_bytes={WINDOW}",
        "model.local_window_bytes=16",
        "model.d_model=32",
        "model.layers=2",
        "model.d_ff=64",
        'model.attention_pattern=["local", "global"]',
        "heads.count=4",
    ],
)


@pytest.fixture(scope="module")
def weights() -> ByteLM:
    torch.manual_seed(1)
    weights = ByteLM(CONFIG.model, CONFIG.heads).eval()
    unembedding: Any = weights.heads.unembedding  # the linear family's
    with torch.no_grad():
        unembedding.weight.mul_(8.0)
    return weights


@pytest.fixture(scope="module", params=["compiled", "torch"])
def model(request: pytest.FixtureRequest, weights: ByteLM, run: Path) -> LanguageModel:
    if request.param == "torch":
        return LanguageModel(weights, CONFIG)
    if load_library() is None:
        pytest.skip("the engine was not built")
    return load(run)


@pytest.fixture(scope="module")
def run(weights: ByteLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    snapshot = Snapshot(
        step=3,
        config=CONFIG,
        corpus="corpus",
        fingerprint="0" * 64,
        model=weights.state_dict(),
        optimizer={},
        random={"cpu": torch.get_rng_state()},
        progress={},
    )
    save_checkpoint(folder, snapshot, keep=1)
    return folder


def test_a_loaded_model_says_what_the_saved_one_said(model: LanguageModel, run: Path) -> None:
    loaded = bytelm.load(run)
    assert loaded.config == CONFIG
    assert loaded.context_bytes == WINDOW
    assert loaded.model.embedding.dtype == torch.float32
    assert not loaded.model.training
    prompt = b"def main("
    assert loaded.generate(prompt, max_bytes=30).data == model.generate(prompt, max_bytes=30).data
    assert load(str(run), precision="bfloat16").generate(prompt, max_bytes=5).steps > 0


def test_pieces_join_to_the_generation(model: LanguageModel) -> None:
    for seed in range(4):
        options: GenerateOptions = {"max_bytes": 90, "temperature": 1.0, "seed": seed}
        whole = model.generate("text", **options)
        pieces = list(model.stream("text", **options))
        assert b"".join(piece.data for piece in pieces) == whole.data
        assert tuple(head for piece in pieces for head in piece.sources) == whole.sources
        assert "".join(piece.text for piece in pieces) == whole.text == whole.data.decode("utf-8", "replace")
        escaped = "".join(piece.text for piece in model.stream("text", invalid="escape", **options))
        assert escaped == whole.data.decode("utf-8", "backslashreplace")
        assert all(piece.data or piece.text for piece in pieces)


def test_text_and_its_bytes_are_the_same_prompt(model: LanguageModel) -> None:
    assert model.generate("né€", max_bytes=8).data == model.generate("né€".encode(), max_bytes=8).data


def test_one_stop_string_may_stand_alone_as_text_or_bytes(model: LanguageModel) -> None:
    whole = model.generate("s", max_bytes=40, temperature=1.0).data
    stop = next(whole[i : i + 1] for i in range(10, 40) if whole[i] < 128)
    expected = whole[: whole.index(stop)]
    for given in (stop, stop.decode(), [stop], (stop.decode(),), [stop, b"never said by this model"]):
        assert model.generate("s", max_bytes=40, temperature=1.0, stop=given).data == expected


def test_scores_are_those_of_reading_byte_by_byte(model: LanguageModel) -> None:
    source = random.Random(0)
    # Empty, short, just at the context's end, slid once and twice, and a prompt that is too long itself.
    cases = [(0, 5), (3, 40), (62, 1), (62, 2), (63, 1), (64, 1), (10, 150), (90, 30)]
    for prompt_bytes, continuation_bytes in cases:
        prompt, continuation = source.randbytes(prompt_bytes), source.randbytes(continuation_bytes)
        ids, expected = [EOD, *prompt], []
        start = 0 if len(ids) <= WINDOW else len(ids) - WINDOW // 2
        for byte in continuation:
            if len(ids) - start > WINDOW:
                start = len(ids) - WINDOW // 2
            with torch.no_grad():
                logits_V = model.model(torch.tensor([ids[start:]]))[0, -1, 0]
            expected.append(logits_V.double().log_softmax(0)[byte].item())
            ids.append(byte)
        np.testing.assert_allclose(model.score(prompt, continuation), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("draft", ["none", "adaptive", "heads"])
def test_log_probabilities_of_a_generation_are_its_scores(model: LanguageModel, draft: DraftPolicy) -> None:
    for temperature in (0.0, 1.0):
        generation = model.generate(b"best of", max_bytes=20, draft=draft, temperature=temperature, logprobs=True)
        scores = model.score(b"best of", generation.data)
        np.testing.assert_allclose(generation.logprobs, scores, rtol=0, atol=1e-4)


def test_a_greedy_byte_has_the_best_score_of_all_bytes(model: LanguageModel) -> None:
    said = model.generate("best", max_bytes=3).data
    scores = [model.score(b"best" + said[:2], bytes([byte]))[0] for byte in range(256)]
    assert int(np.argmax(scores)) == said[2]
    assert sum(math.exp(score) for score in scores) < 1.0


def test_nothing_has_no_score(model: LanguageModel) -> None:
    assert model.score("x", "").shape == (0,)


def test_the_options_are_the_settings_of_the_decoder() -> None:
    assert set(GenerateOptions.__annotations__) == {field.name for field in dataclasses.fields(GenerateSettings)}


def test_impossible_options_are_refused_at_the_call(model: LanguageModel) -> None:
    with pytest.raises(GenerationError, match="max_bytes"):
        model.stream("x", max_bytes=-1)
    with pytest.raises(GenerationError, match="stop string"):
        model.generate("x", stop="")
    with pytest.raises(GenerationError, match="surrogate at character 1"):
        model.generate("a\ud800")
    for wrong in (TypeError, GenerationError):
        with pytest.raises(wrong, match=r"generate has no keyword 'max_byte'; did you mean 'max_bytes'\?"):
            model.generate("x", max_byte=5)  # pyright: ignore[reportCallIssue]  # the wrong keyword is the point


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: load("nano", devise="cpu"), "load has no keyword 'devise'; did you mean 'device'?"),  # pyright: ignore[reportCallIssue]
        (lambda _: load(), "load: missing a required argument: 'path'; write load(path, …)"),  # pyright: ignore[reportCallIssue]
        (lambda _: load("nano", "cpu"), "load: too many positional arguments; write load(path, …)"),  # pyright: ignore[reportCallIssue]
        (lambda model: model.score("a", contxt=3), "score has no keyword 'contxt'; there are prompt, continuation"),
        (
            lambda model: model.score("a"),
            "score: missing a required argument: 'continuation'; write score(prompt, cont",
        ),
        (lambda model: model.score("a", "b", prompt="c"), "score: multiple values for argument 'prompt'"),
        (lambda model: model.generate(promt="a"), "generate has no keyword 'promt'; did you mean 'prompt'?"),
        (lambda model: model.generate(), "generate: missing a required argument: 'prompt'; write generate(prompt, …)"),
        (lambda model: model.generate_batch(["a"], slot=3), "has no keyword 'slot'; did you mean 'slots'?"),
        (lambda model: model.stream("a", invald="strict"), "stream has no keyword 'invald'; did you mean 'invalid'?"),
        (lambda model: model.stream("a", "strict"), "stream: too many positional arguments; write stream(prompt, …)"),
        (lambda model: model.plan(3), "plan: too many positional arguments; write plan()"),
        (lambda _: LanguageModel(), "LanguageModel: missing a required argument: 'decoder'"),  # pyright: ignore[reportCallIssue]
        (lambda _: RunConfig.build(preset="tiny", change=[]), "build has no keyword 'change'; did you mean 'changes'?"),  # pyright: ignore[reportCallIssue]
        (lambda _: CONFIG.with_changes(), "with_changes: missing a required argument: 'changes'"),  # pyright: ignore[reportCallIssue]
    ],
    ids=lambda value: value.partition(";")[0] if isinstance(value, str) else "",
)
def test_a_call_that_does_not_fit_is_told_in_one_line(
    model: LanguageModel, call: Callable[[LanguageModel], Any], message: str
) -> None:
    for kind in (BytelmError, TypeError):
        with pytest.raises(kind, match=re.escape(message)):
            call(model)


def test_the_type_checker_still_sees_a_call_that_does_not_fit(model: LanguageModel) -> None:
    with pytest.raises(GenerationError):
        model.score("a")  # pyright: ignore[reportCallIssue]  # an ignore without an error is one itself
    with pytest.raises(GenerationError):
        model.stream("a", invald="strict")  # pyright: ignore[reportCallIssue]
    with pytest.raises(GenerationError):
        load("nano", threads="2", devise="cpu")  # pyright: ignore[reportCallIssue]


def test_text_and_bytes_of_any_kind_are_taken(model: LanguageModel) -> None:
    expected = model.generate("nö", max_bytes=8).data
    numbers: Any = np.frombuffer("nö".encode(), np.uint8)
    givens: list[Any] = [
        bytearray("nö".encode()), memoryview("nö".encode()), np.str_("nö"), np.bytes_("nö".encode()), numbers,
        np.array("nö"), memoryview(numbers),
    ]  # fmt: skip
    for given in givens:
        assert model.generate(given, max_bytes=8).data == expected
        assert model.score(given, given).tolist() == model.score("nö", "nö").tolist()
        assert b"".join(piece.data for piece in model.stream(given, max_bytes=8)) == expected
    for several in (givens, tuple(givens), iter(givens), np.array(["nö"] * 2), dict.fromkeys(["nö"]).keys()):
        assert {one.data for one in model.generate_batch(several, max_bytes=8)} == {expected}


def test_no_stop_and_stops_of_any_kind_are_taken(model: LanguageModel) -> None:
    whole = model.generate("s", max_bytes=40, temperature=1.0).data
    assert model.generate("s", max_bytes=40, temperature=1.0, stop=None).data == whole
    place = next(place for place in range(10, 40) if whole[place] < 128)
    stop = whole[place : place + 1]
    givens: list[Any] = [bytearray(stop), memoryview(stop), np.str_(stop.decode()), {stop}, np.array([stop.decode()])]
    for given in [*givens, (one for one in [stop])]:
        assert model.generate("s", max_bytes=40, temperature=1.0, stop=given).data == whole[: whole.index(stop)]


def test_numbers_of_other_libraries_are_taken(model: LanguageModel) -> None:
    expected = model.generate("x", max_bytes=9, temperature=0.5, top_k=5, seed=2**62 + 1, logprobs=True)
    options: Any = {"temperature": np.float64(0.5), "top_k": np.uint8(5), "seed": np.int64(2**62 + 1)}
    options |= {"max_bytes": np.int16(9), "logprobs": np.bool_(True)}
    found = model.generate("x", **options)
    assert (found.data, found.logprobs) == (expected.data, expected.logprobs)
    slots: Any = np.int32(2)
    assert model.generate_batch(["x"], max_bytes=3, slots=slots)[0].data == model.generate("x", max_bytes=3).data


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "prompt = 5 is of type int, and neither text nor bytes"),
        (None, "prompt = None is None"),
        (["x"], "for several prompts there is generate_batch"),
        (Path("x"), "prompt = PosixPath"),
        (memoryview(array("d", [1.0])), "prompt = <memory"),
        (np.ones(2), "of type ndarray"),
    ],
)
def test_what_is_no_text_is_named(model: LanguageModel, given: Any, message: str) -> None:
    calls = (model.generate, model.stream, lambda one: model.score(one, "x"))
    for call in calls:
        with pytest.raises(GenerationError, match=message):
            call(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": 5}, "stop = 5 is of type int"),
        ({"stop": ["a", 5]}, r"stop\[1\] = 5"),
        ({"stop": {"a": 1}}, "stop = .* is of type dict"),
        ({"max_bytes": "5"}, "max_bytes = '5' is no whole number"),
        ({"max_bytes": 5.0}, "max_bytes = 5.0 is no whole number"),
        ({"temperature": "hot"}, "temperature = 'hot' is no number"),
        ({"temperature": 10**400}, "temperature is larger than any number"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"draft": None}, "draft = None is unknown"),
        ({"draft": np.ones(2)}, "draft = array"),
        ({"utf8": 1}, "utf8 = 1 is neither true nor false"),
        ({"slots": 0}, "slots = 0 is no number of prompts"),
        ({"slots": 2.0}, "slots = 2.0"),
        ({"slots": True}, "slots = True"),
        ({"slots": None}, "slots = None"),
        ({"stops": "x"}, "generate_batch has no keyword 'stops'; did you mean 'stop'"),
    ],
)
def test_a_value_that_cannot_be_is_named(model: LanguageModel, options: Any, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.generate_batch(["x"], **options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("abc", "prompts = 'abc' is one text; give a list"),
        (b"abc", "is one text"),
        (None, "prompts = None is None; give a list"),
        ({"a": "b"}, "of type dict"),
        ({"a"}, "of type set"),
        (["a", None], r"prompts\[1\] = None"),
        (["a", "\ud800"], r"prompts\[1\]: .*surrogate at character 0"),
    ],
)
def test_what_is_no_list_of_prompts_is_named(model: LanguageModel, prompts: Any, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.generate_batch(prompts)


def test_no_prompts_are_answered_with_nothing(model: LanguageModel) -> None:
    assert model.generate_batch([]) == []


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"path": None}, "path = None is None"),
        ({"path": 5}, "path = 5"),
        ({"device": None}, "device = None"),
        ({"precision": "fp16"}, "precision = 'fp16' is unknown"),
        ({"threads": "2"}, "threads = '2'"),
        ({"threads": True}, "threads = True"),
    ],
)
def test_a_keyword_of_load_that_cannot_be_is_named(run: Path, keywords: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**{"path": run, **keywords})


def test_a_device_that_is_not_there_and_a_run_that_is_not_there_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no device 'warp:9'"):
        load(run, device="warp:9")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_a_path_says_who_decodes_and_with_what(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if load_library() is not None:
        model = load(run, threads=2, precision="bfloat16")
        assert model.engine is model.decoder
        by = model.decoded_by
        assert (by.name, by.precision, by.threads, by.reason) == ("compiled", "bfloat16", 2, "")
        assert str(by) == f"the engine ({by.isa}, bfloat16, 2 threads)"
    monkeypatch.setattr("bytelm.api.unavailable_reason", lambda: "no library was built")
    model = load(run)
    assert model.engine is None
    assert model.engine_reason == model.decoded_by.reason == "no library was built"
    assert model.decoder is model.model
    assert str(model.decoded_by).startswith("torch (float32, ")
    with pytest.raises(ConfigError, match="int8 needs the engine"):
        load(run, precision="int8")
    with pytest.raises(ConfigError, match="threads = 0"):
        load(run, threads=0)


def test_a_loaded_model_is_pickled_as_its_path_and_another_is_not(run: Path, model: LanguageModel) -> None:
    loaded = load(run, device="cpu", precision="float32", threads=1)
    again = pickle.loads(pickle.dumps(loaded))  # noqa: S301  our own, made in this line
    assert again.decoded_by == loaded.decoded_by
    assert again.generate("x", max_bytes=20).data == loaded.generate("x", max_bytes=20).data
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(LanguageModel(model.model, CONFIG))


@pytest.mark.skipif(load_library() is None, reason="the engine was not built")
def test_an_engine_alone_decodes_and_has_no_torch_model(weights: ByteLM) -> None:
    model = LanguageModel(engine_from_torch(weights), CONFIG)
    assert model.generate("x", max_bytes=20).data == LanguageModel(weights, CONFIG).generate("x", max_bytes=20).data
    assert model.plan() is None
    with pytest.raises(GenerationError, match="an engine alone"):
        _ = model.model


@pytest.mark.skipif(load_library() is None, reason="the engine was not built")
def test_generating_and_scoring_on_a_cpu_load_no_torch(run: Path) -> None:
    code = f"""
import sys, bytelm
model = bytelm.load({str(run)!r}, device="cpu")
model.generate("x", max_bytes=9, stop="zz", logprobs=True)
model.generate_batch(["a", "b", "c"], max_bytes=9, slots=2, temperature=1.0)
list(model.stream("x", max_bytes=9, utf8=True))
model.score("x", "yz")
model.plan(), model.vocabulary, model.head_count, model.decoded_by
print(*({{"torch", "pydantic", "rich", "typer"}} & set(sys.modules)))
print(model.config.heads.count, "torch" in sys.modules)
print(model.model.heads.count, "torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines() == ["", "4 False", "4 True"]
