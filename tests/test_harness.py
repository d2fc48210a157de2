"""The adapter with and without the harness: what it is asked, what it answers, and that it says what is missing."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.api import LanguageModel
from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.config import RunConfig
from bytelm.errors import ConfigError, GenerationError
from bytelm.harness import Scorer, adapter
from bytelm.model import ByteLM

INSTALLED = importlib.util.find_spec("lm_eval") is not None


def tiny_model() -> LanguageModel:
    changes = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
    config = RunConfig.build("tiny", [*changes, "heads.count=2", "data.window_bytes=32", "model.local_window_bytes=8"])
    torch.manual_seed(0)
    return LanguageModel(ByteLM(config.model, config.heads).eval(), config)


SCORER = Scorer(tiny_model(), max_bytes=8)


@given(st.text(max_size=15), st.text(max_size=15), st.text(max_size=15))
@settings(max_examples=30, deadline=None)
def test_log_probabilities_are_additive_wherever_a_text_is_cut(a: str, b: str, c: str) -> None:
    (whole, _), (first, _), (second, _) = SCORER.loglikelihood([(a, b + c), (a, b), (a + b, c)])
    assert whole == pytest.approx(first + second, abs=1e-3)
    assert SCORER.loglikelihood_rolling([a + b])[0] == pytest.approx(SCORER.loglikelihood([("", a + b)])[0][0])


def test_answers_end_at_a_stop_or_at_the_limit() -> None:
    whole = SCORER.model.generate("a", max_bytes=8).text
    stop = next(character for character in whole if character.isascii())
    asked: list[tuple[str, dict[str, Any]]] = [
        ("a", {}),
        ("a", {"until": [""], "max_gen_toks": 3}),
        ("a", {"until": stop}),
        ("a", {"temperature": 0.7, "do_sample": False}),
    ]
    plain, short, stopped, greedy = SCORER.generate_until(asked)
    assert plain == greedy == whole
    assert short == SCORER.model.generate("a", max_bytes=3).text
    assert stopped == whole[: whole.index(stop)]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_a_limit_has_all_the_names_that_the_harness_gives_it(name: str) -> None:
    expected = [SCORER.model.generate("a", max_bytes=3).text]
    for value in (3, 3.0):
        assert SCORER.generate_until([("a", {name: value, "until": []})]) == expected
    assert SCORER.generate_until([("a", {name: None})]) == [SCORER.model.generate("a", max_bytes=8).text]


def test_of_several_limits_the_first_in_the_order_of_the_harness_counts() -> None:
    given = {"max_completion_tokens": 1, "max_tokens": 2, "max_new_tokens": 3, "max_gen_toks": 4}
    for count in (4, 3, 2, 1):
        assert SCORER.generate_until([("a", given)]) == [SCORER.model.generate("a", max_bytes=count).text]
        del given[list(given)[-1]]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.5, "seed": None}, {"temperature": 0.7, "top_p": 0.5}),
        ({"do_sample": True, "top_k": 2, "min_p": 0.1}, {"temperature": 1.0, "top_k": 2, "min_p": 0.1}),
        ({"temperature": 1, "repetition_penalty": 1.5}, {"temperature": 1.0, "repetition_penalty": 1.5}),
        ({"temperature": 1, "top_k": -1, "top_p": 1.0, "min_p": 0, "num_beams": 1}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 1, "use_cache": True, "top_k": 0, "early_stopping": False}, {}),
        ({"do_sample": None, "temperature": None, "until": None, "stop": None}, {}),
        ({"do_sample": None, "temperature": 0.0}, {}),
        ({}, {}),
    ],
)
def test_every_setting_reaches_the_decoder(given: dict[str, Any], options: dict[str, Any]) -> None:
    expected = []
    for number, prompt in enumerate("ab"):
        own: Any = {**options, "seed": number}
        expected.append(SCORER.model.generate(prompt, max_bytes=8, **own).text)
    assert SCORER.generate_until([("a", given), ("b", given)]) == expected


def test_a_seed_is_the_task_s_and_each_request_has_noise_of_its_own() -> None:
    given = {"temperature": 1.0, "seed": 7}
    found = SCORER.generate_until([("a", given), ("a", given)])
    options: dict[str, Any] = {"max_bytes": 8, "temperature": 1.0, "seed": 7}
    assert found == [SCORER.model.generate("a", sequence=number, **options).text for number in range(2)]
    assert found[0] != found[1]


def test_stop_ends_a_text_as_until_does() -> None:
    whole = SCORER.model.generate("a", max_bytes=8).text
    stop = next(character for character in whole if character.isascii())
    for asked in ({"stop": stop}, {"stop": [stop]}, {"until": ["never"], "stop": (stop, "")}):
        assert SCORER.generate_until([("a", asked)]) == [whole[: whole.index(stop)]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams = 4 of a task cannot be honoured"),
        ({"max_length": 99}, "give max_gen_toks instead"),
        ({"max_gen_tokens": 9}, "max_gen_tokens = 9"),
        ({"top_p": 0.5}, "top_p has no effect at temperature 0"),
        ({"do_sample": False, "top_k": 5}, "top_k has no effect"),
        ({"do_sample": True, "temperature": 0.0}, "is greedy"),
        ({"do_sample": "yes"}, "do_sample = 'yes'"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": 1.0, "top_p": True}, "top_p = True"),
        ({"max_gen_toks": -1}, "max_bytes = -1"),
        ({"max_gen_toks": 2.5}, "max_bytes = 2.5"),
        ({"until": 5}, "until = 5"),
        ({"stop": ["a", 5]}, "stop = "),
        ({"seed": -1}, "seed = -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named_before_anything_is_written(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(SCORER.model, "generate", lambda *words, **_: written.append(words))
    with pytest.raises(GenerationError, match=message):
        SCORER.generate_until([("a", {}), ("b", given)])
    assert written == []


def test_text_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(GenerationError, match="a continuation: the text holds a lone surrogate"):
        SCORER.loglikelihood([("a", "\ud800")])


@pytest.mark.skipif(INSTALLED, reason="lm-evaluation-harness is installed")
def test_without_the_harness_one_line_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'bytelm\[lm-eval\]'"):
        adapter()
    words = [sys.executable, "-m", "bytelm.harness", "--model", "bytelm"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "bytelm[lm-eval]" in found.stderr


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type]]:
    """Just so much of the harness as an adapter meets: a base class and a registry, by their names."""
    registered: dict[str, type] = {}

    def register_model(name: str) -> Any:
        def keep(kind: type) -> type:
            registered[name] = kind
            return kind

        return keep

    for name, content in (("model", {"LM": type("LM", (), {})}), ("registry", {"register_model": register_model})):
        module = ModuleType(f"lm_eval.api.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield registered


def test_the_adapter_passes_on_what_the_harness_asks(
    registry: dict[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytelm.harness.load", lambda *_, **__: SCORER.model)
    made: Any = adapter()
    model = made(run="runs/a", max_bytes="8", batch_size=1, max_batch_size=None)
    assert set(registry) == {"bytelm"}
    pair = SimpleNamespace(args=("a", "bc"))
    assert model.loglikelihood([pair]) == SCORER.loglikelihood([("a", "bc")])
    assert model.loglikelihood_rolling([SimpleNamespace(args=("abc",))]) == SCORER.loglikelihood_rolling(["abc"])
    assert model.generate_until([SimpleNamespace(args=("a", {"max_gen_toks": 4}))]) == SCORER.generate_until(
        [("a", {"max_gen_toks": 4})]
    )


@pytest.mark.usefixtures("registry")
def test_the_device_that_the_harness_passes_on_by_itself_means_any(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("bytelm.harness.load", lambda *_, device, **__: asked.append(device) or SCORER.model)
    made: Any = adapter()
    for device in ("cuda:0", "cpu", "cuda:1"):
        made(run="runs/a", device=device)
    assert asked == ["auto", "cpu", "cuda:1"]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("arguments", "message"), [({}, "run is missing"), ({"run": "runs/a", "dtype": "float16"}, "it has no dtype")]
)
def test_arguments_that_cannot_take_effect_are_refused(arguments: dict[str, str], message: str) -> None:
    made: Any = adapter()
    with pytest.raises(ConfigError, match=rf"{message}; give run=FOLDER"):
        made(**arguments)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("given", ["many", "0", "-1", 2.5])
def test_a_limit_of_answers_that_is_none_is_refused(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.harness.load", lambda *_, **__: SCORER.model)
    made: Any = adapter()
    with pytest.raises(ConfigError, match=r"max_bytes = .* is none"):
        made(run="runs/a", max_bytes=given)


@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed")
def test_the_harness_itself_gets_what_the_task_gives(tmp_path: Path) -> None:
    config = SCORER.model.config
    nothing: dict[str, Any] = {"optimizer": {}, "random": {}, "progress": {}}
    weights = SCORER.model.model.state_dict()
    snapshot = Snapshot(step=1, config=config, corpus="x", fingerprint="y", model=weights, **nothing)
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run", snapshot, keep=1)
    rows = [{"context": "The sea is", "continuation": "blue"}, {"context": "x" * 40, "continuation": "Grüße"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "words.yaml").write_text(
        f"""
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: " {{{{continuation}}}}"
metric_list: [{{metric: acc}}]
"""
    )
    words = [sys.executable, "-m", "bytelm.harness", "--model", "bytelm", "--model_args", f"run={tmp_path / 'run'}"]
    words += ["--include_path", str(tmp_path / "tasks"), "--tasks", "words", "--log_samples"]
    words += ["--output_path", str(tmp_path / "out")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    found = subprocess.run(words, capture_output=True, text=True, check=False, env=offline)
    assert found.returncode == 0, found.stderr
    (kept,) = (tmp_path / "out").rglob("samples_words*.jsonl")
    said = [float(json.loads(line)["filtered_resps"][0][0]) for line in kept.read_text().splitlines()]
    expected = SCORER.loglikelihood([(row["context"], f" {row['continuation']}") for row in rows])
    assert said == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    words[words.index(f"run={tmp_path / 'run'}")] = "run=/nowhere"
    found = subprocess.run(words, capture_output=True, text=True, check=False, env=offline)
    assert found.returncode == 2
    assert "error: /nowhere does not exist" in found.stderr.splitlines()[-1]
