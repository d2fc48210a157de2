"""Prompts that are decoded side by side through torch get the bytes that each gets alone, up to rounding."""

import random
from typing import Any

import pytest

from bytelm.config import HeadFamily, HeadsConfig, ModelConfig
from bytelm.decode import Request, decode_batch, generate
from bytelm.decoding import torch_decode
from bytelm.drafting import DraftPolicy
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings, Generation, Step
from bytelm.model import ByteLM
from bytelm.vocab import EOD, VOCABULARY_SIZE

CONTEXT = 150
SHAPE = ModelConfig(
    d_model=32,
    layers=2,
    attention_heads=4,
    kv_heads=2,
    d_ff=64,
    attention_pattern=("local", "global"),
    local_window_bytes=24,
)


def model_of(family: HeadFamily) -> ByteLM:
    """Random weights in float64; drafts by a causal chain are right now and then."""
    import torch

    torch.manual_seed(4)
    model = ByteLM(SHAPE, HeadsConfig(family=family, count=5)).eval()
    unembedding: Any = model.heads.unembedding
    with torch.no_grad():
        unembedding.weight.mul_(8.0).view(-1, VOCABULARY_SIZE, SHAPE.d_model)[:, EOD] = -0.1
    return model.double()


def requests(count: int, draft: DraftPolicy) -> list[Request]:
    """Prompts of all lengths, also beyond the context, with settings of their own."""
    source = random.Random(1)
    found = []
    for index in range(count):
        prompt = (b"again and " * 40)[: source.choice((0, 3, 60, 110, 148, 149, 150, 330))]
        settings: dict[str, Any] = {"max_bytes": source.choice((0, 1, 7, 40)), "draft": draft, "sequence": index}
        if index % 2:
            settings |= {"temperature": 0.8, "seed": 5}
        if index % 5 == 3:
            settings |= {"utf8": True}
        if index % 7 == 2:
            settings |= {"repetition_penalty": 1.3, "logprobs": True}
        found.append(Request(prompt + source.randbytes(index % 3), GenerateSettings(**settings)))
    return found


def together(model: ByteLM, asked: list[Request], slots: int) -> list[Generation]:
    steps: list[list[Step]] = [[] for _ in asked]
    for index, step in decode_batch(model, asked, context_bytes=CONTEXT, slots=slots):
        assert not steps[index] or steps[index][-1].finish_reason is None
        steps[index].append(step)
    return [Generation.of(one, prediction_heads=5, elapsed_s=1.0) for one in steps]


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize(
    ("family", "draft"), [("linear", "adaptive"), ("transformer", "heads"), ("causal", "adaptive")]
)
def test_each_row_gets_what_it_gets_alone_without_drafts(family: HeadFamily, draft: DraftPolicy, slots: int) -> None:
    model = model_of(family)
    asked = requests(14, draft)
    expected = [
        generate(model, one.prompt, plain.settings, context_bytes=CONTEXT)
        for one, plain in zip(asked, requests(14, "none"), strict=True)
    ]
    found = together(model, asked, slots)
    assert [one.data for one in found] == [one.data for one in expected]
    assert [one.finish_reason for one in found] == [one.finish_reason for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({one.data for one in found}) > 8


def test_plain_decoding_side_by_side_equals_plain_decoding_alone() -> None:
    model = model_of("linear")
    asked = requests(9, "none")
    expected = [generate(model, one.prompt, one.settings, context_bytes=CONTEXT).data for one in asked]
    assert [one.data for one in together(model, asked, 4)] == expected


def test_rows_may_be_rounded_up_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As off the CPU: to powers of two, up to the last slots of a context."""
    model, asked = model_of("shared"), requests(10, "heads")
    expected = together(model, asked, 3)
    monkeypatch.setattr(torch_decode._Decoder, "_rounded", lambda _, rows: 1 << (rows + 2).bit_length())
    found = together(model, asked, 3)
    assert [one.data for one in found] == [one.data for one in expected]
    assert sum(one.rows for one in found) > sum(one.rows for one in expected)


def test_places_are_filled_again_and_no_request_is_taken_too_early() -> None:
    model, taken = model_of("linear"), 0

    def asked() -> Any:
        nonlocal taken
        for length in (1, 30, 1, 1, 30):
            taken += 1
            yield Request(b"x", GenerateSettings(max_bytes=length, draft="none"))

    most = 0
    open_now: dict[int, bool] = {}
    for index, step in decode_batch(model, asked(), context_bytes=CONTEXT, slots=2):
        open_now[index] = step.finish_reason is None
        most = max(most, sum(open_now.values()))
        assert taken <= 2 + sum(not running for running in open_now.values())
    assert most == 2
    assert open_now == dict.fromkeys(range(5), False)


def test_prompts_side_by_side_share_their_drafts() -> None:
    asked = [Request(b"a", GenerateSettings()), Request(b"b", GenerateSettings(draft="none"))]
    with pytest.raises(GenerationError, match="differ in draft"):
        list(decode_batch(model_of("linear"), asked, context_bytes=CONTEXT))
    assert list(decode_batch(model_of("linear"), [], context_bytes=CONTEXT)) == []
