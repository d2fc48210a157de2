"""A thousand prompts, each policy, alone and side by side, of a model that knows some text: all as plain decoding.

Minutes, run by ``make test-slow``. Fast tests of single properties are in ``test_decode`` and ``test_decode_batch``.
"""

import functools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bytelm
from bytelm.config import HeadsConfig, ModelConfig
from bytelm.decode import DecodePlan, Request, decode_batch, prior_plan
from bytelm.decoding.engine_decode import prior_plan as engine_plan
from bytelm.drafting import DraftPolicy
from bytelm.engine import Engine
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.engine.weights import engine_from_torch
from bytelm.generation import GenerateSettings
from bytelm.model import ByteLM
from bytelm.pairs import fit_pairs

PROMPTS, BYTES, CONTEXT, HEADS = 1000, 256, 400, 8


@functools.cache
def source_text() -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(Path(bytelm.__file__).parent.glob("*.py")))


@functools.cache
def trained() -> tuple[ByteLM, DecodePlan]:
    """Half a minute on our own code: it repeats itself, and most drafts are right."""
    torch.manual_seed(2)
    shape = ModelConfig(
        d_model=64, layers=2, attention_heads=4, kv_heads=2, d_ff=128, attention_pattern=("local", "global"),
        local_window_bytes=48, ngram_sizes=(2, 3), ngram_rows=4096, ngram_width=32,
    )  # fmt: skip
    model = ByteLM(shape, HeadsConfig(count=HEADS))
    text = torch.tensor(list(source_text()))
    draw = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    length = 128
    for _ in range(400):
        starts = torch.randint(0, len(text) - length - HEADS, (12,), generator=draw).tolist()
        windows_BW = torch.stack([text[start : start + length + HEADS] for start in starts])
        targets_BTK = windows_BW.unfold(1, HEADS, 1)[:, 1:]
        logits_BTKV = model(windows_BW[:, :length])
        loss = torch.nn.functional.cross_entropy(logits_BTKV.flatten(0, 2), targets_BTK.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    pairs = fit_pairs(model, {"code": source_text()}, context_bytes=CONTEXT, windows=32)
    assert pairs is not None
    return model.double(), replace(prior_plan(model), pairs=pairs)


def requests(draft: DraftPolicy) -> list[Request]:
    """Text, text that was cut up, noise; half greedy and half drawn; now and then UTF-8 alone or a stop string."""
    source, text, found = random.Random(5), source_text(), []
    for index in range(PROMPTS):
        place = source.randrange(len(text) - 600)
        prompt = text[place : place + source.choice((0, 1, 30, 126, 127, 128, 250, 399, 400, 600))]
        if index % 3 == 1:
            prompt = source.randbytes(len(prompt) % 200)
        if index % 3 == 2:
            prompt = prompt[: len(prompt) // 2] + source.randbytes(3) + prompt[: len(prompt) // 2]
        if index % 20 == 14:  # characters of three bytes that come again, cut anywhere
            prompt = ("山高月小，水落石出。" * 20).encode()[: len(prompt)]
        settings = GenerateSettings(
            max_bytes=BYTES,
            draft=draft,
            sequence=index,
            temperature=0.0 if index % 2 else 0.7,
            utf8=index % 10 == 4,
            stop=(b"return None",) if index % 10 == 6 else (),
        )
        found.append(Request(prompt, settings))
    return found


@functools.cache
def engine() -> Engine:
    return engine_from_torch(trained()[0])


def outputs(draft: DraftPolicy, slots: int, decoder: "ByteLM | Engine | None" = None) -> tuple[list[bytes], int]:
    model, plan = trained()
    found, steps = [b""] * PROMPTS, 0
    if isinstance(decoder, Engine):
        plan = engine_plan(decoder, plan.pairs)
    for index, step in decode_batch(decoder or model, requests(draft), context_bytes=CONTEXT, slots=slots, tuned=plan):
        found[index] += step.data
        steps += 1
    return found, steps


@functools.cache
def plain() -> list[bytes]:
    found, steps = outputs("none", 1)
    assert steps >= sum(map(len, found))
    assert len(set(found)) > PROMPTS // 2, "the model says the same to every prompt: the test would see no error"
    return found


@functools.cache
def plain_of_engine() -> list[bytes]:
    return outputs("none", 1, engine())[0]


@pytest.mark.slow
@pytest.mark.skipif(load_library() is None, reason=unavailable_reason())
@pytest.mark.xdist_group("thousand prompts")
@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("draft", ["none", "heads", "ngram", "adaptive"])
def test_through_the_engine_a_thousand_prompts_get_the_bytes_of_plain_decoding(draft: DraftPolicy, slots: int) -> None:
    found, steps = outputs(draft, slots, engine())
    assert found == plain_of_engine()
    if draft in ("heads", "adaptive"):
        assert steps < 0.8 * sum(map(len, found))


@pytest.mark.slow
@pytest.mark.xdist_group("thousand prompts")
@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("draft", ["none", "heads", "ngram", "adaptive"])
def test_a_thousand_prompts_get_the_bytes_of_plain_decoding(draft: DraftPolicy, slots: int) -> None:
    found, steps = outputs(draft, slots)
    different = [index for index, (one, other) in enumerate(zip(found, plain(), strict=True)) if one != other]
    assert not different
    if draft != "none":
        assert steps < 0.8 * sum(map(len, found))
