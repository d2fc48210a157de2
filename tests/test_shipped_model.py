"""The model that ships: it is there, it is small, and it is a trained model whose drafts change nothing."""

import functools
import inspect
import math
import re
from pathlib import Path

import pytest

import bytelm
from bytelm.api import LanguageModel
from bytelm.data import order
from bytelm.plans import find_plan
from bytelm.shipped import shipped_models
from bytelm.utf8 import is_utf8


@functools.cache
def nano() -> LanguageModel:
    return bytelm.load("nano")


def test_nano_ships_with_its_card_and_is_small() -> None:
    folder = shipped_models()["nano"]
    assert (folder / "MODEL_CARD.md").is_file()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    assert nano().config.heads.count == 8
    assert nano().context_bytes >= 2048


def test_drafts_change_no_byte_of_nano_and_save_steps() -> None:
    prompt = "import os\n\ndef main("
    for temperature in (0.0, 0.8):
        plain = nano().generate(prompt, max_bytes=96, draft="none", temperature=temperature)
        drafted = nano().generate(prompt, max_bytes=96, temperature=temperature)
        assert drafted.data == plain.data
        assert drafted.steps < 0.8 * plain.steps


@pytest.mark.parametrize("prompt", ["日本".encode(), "山山山".encode(), b"abcd\xb1 abcd\xb1 abcd", "é".encode()[:1]])
def test_drafts_change_no_byte_of_utf8_whatever_the_prompt_is(prompt: bytes) -> None:
    plain = nano().generate(prompt, max_bytes=48, utf8=True, draft="none")
    for draft in ("adaptive", "heads", "ngram"):
        assert nano().generate(prompt, max_bytes=48, utf8=True, draft=draft).data == plain.data
    assert is_utf8(plain.data) or prompt == b"\xc3"  # there the first byte ends the prompt's character


def test_nano_expects_python_where_python_stands() -> None:
    source = inspect.getsource(order).encode()[:1500]  # ours, so it was never trained on
    scores = nano().score("", source)
    bits_per_byte = -sum(scores) / len(source) / math.log(2)
    assert bits_per_byte < 2.5
    backwards = nano().score("", source[::-1])
    assert sum(backwards) < 2 * sum(scores)  # nats, negative


def test_what_ships_of_drafts_belongs_to_these_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing was measured here
    plan, refused = find_plan(Path("nano"), nano().model)
    assert plan is not None
    assert plan.pairs is not None
    assert plan.calibration.counts
    assert refused == ""


def test_nothing_of_the_machine_that_made_it_is_told() -> None:
    for path in shipped_models()["nano"].iterdir():
        assert not re.search(rb"(?<![\w.~<])/(home|root|tmp|work|mnt|data)/", path.read_bytes()), path


def test_nano_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bytelm.load("nano").generate("The ", max_bytes=4).data
