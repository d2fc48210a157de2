import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.arithmetic_coding import Coded, RangeDecoder, RangeEncoder, decode, encode, shares
from bytelm.config import HeadFamily, RunConfig
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.engine.weights import engine_from_torch
from bytelm.evaluate import bits_per_byte
from bytelm.model import ByteLM

TOTAL = 1 << 32


def tiny_model(family: HeadFamily = "linear") -> ByteLM:
    config = RunConfig.build(
        "tiny",
        [
            "model.d_model=16",
            "model.layers=2",
            "model.attention_heads=2",
            "model.kv_heads=1",
            "model.d_ff=16",
            'model.attention_pattern=["local", "global"]',
            "model.local_window_bytes=5",
            "heads.count=2",
            f"heads.family={family}",
        ],
    )
    torch.manual_seed(0)
    model = ByteLM(config.model, config.heads).eval()
    with torch.no_grad():  # far from uniform, yet no byte is less likely than one in 2^32
        for name, parameter in model.named_parameters():
            if "unembedding" in name:
                parameter.mul_(4.0)
    return model


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=200))
@settings(deadline=None)
def test_symbols_come_back_and_cost_what_their_shares_say(draws: list[tuple[int, bool]]) -> None:
    """Shares from one in 2^32 to nearly all: carries, tiny steps and long runs."""
    encoder = RangeEncoder()
    tables, symbols, bits = [], [], 0.0
    for cut, upper in draws:
        edge = min(TOTAL - 1, 1 << min(cut, 31)) if not upper else TOTAL - (1 << min(cut, 31))
        starts = np.array([0, edge])
        symbol = int(upper)
        share = (edge, TOTAL - edge)[symbol]
        encoder.encode(int(starts[symbol]), share)
        bits += 32 - math.log2(share)
        tables.append(starts)
        symbols.append(symbol)
    payload = encoder.finish()
    assert 8 * len(payload) <= bits * 1.0001 + 16
    decoder = RangeDecoder(payload)
    assert [decoder.decode(starts) for starts in tables] == symbols


def test_a_carry_runs_through_bytes_that_are_full() -> None:
    encoder, decoded = RangeEncoder(), []
    steps = [(TOTAL - 1, 1)] * 5 + [(TOTAL - 2, 2), (TOTAL // 2, TOTAL // 2)] * 4
    for start, share in steps:
        encoder.encode(start, share)
    decoder = RangeDecoder(encoder.finish())
    for start, _ in steps:
        decoded.append(decoder.decode(np.array([0, start])))
    assert decoded == [1] * len(steps)


def test_shares_are_the_law_and_leave_no_byte_without_one() -> None:
    logits_V = np.random.default_rng(0).normal(size=320).astype(np.float32) * 3
    logits_V[7], logits_V[9] = -1e4, 40.0
    starts = shares(logits_V)
    widths = np.diff(np.append(starts, TOTAL))
    assert len(widths) == 257
    assert widths.min() >= 1
    law = np.exp(logits_V.astype(np.float64) - np.logaddexp.reduce(logits_V.astype(np.float64)))
    assert widths[:256] / TOTAL == pytest.approx(law[:256], abs=1e-7)


@pytest.mark.parametrize(
    ("family", "context", "stride"),
    [("linear", 16, 5), ("linear", 8, 8), ("transformer", 150, 75), ("anticausal", 20, 9)],
)
def test_documents_come_back_whatever_the_window(family: HeadFamily, context: int, stride: int) -> None:
    model = tiny_model(family)
    documents = [random.Random(0).randbytes(60), b"", b"\x00\r\n\xff", "Grüße, 世界".encode(), b"a"]
    coded = encode(model, documents, context_bytes=context, stride=stride)
    assert decode(model, coded, context_bytes=context, stride=stride) == documents
    found = bits_per_byte(model, documents, context_bytes=context, stride=stride)
    assert len(coded.payload) == pytest.approx((found.by_head[0] or 0.0) * found.scored_bytes / 8, abs=2)


@pytest.mark.skipif(load_library() is None, reason=unavailable_reason())
@pytest.mark.parametrize("family", ["linear", "causal"])
def test_the_engine_codes_too(family: HeadFamily) -> None:
    model = tiny_model(family)
    engine = engine_from_torch(model)
    documents = [random.Random(0).randbytes(200), b"", "Grüße, 世界".encode()]
    coded = encode(engine, documents, context_bytes=48, stride=20)
    assert decode(engine, coded, context_bytes=48, stride=20) == documents
    assert abs(len(coded.payload) - len(encode(model, documents, context_bytes=48, stride=20).payload)) <= 1


@pytest.mark.slow
def test_the_size_is_that_of_bits_per_byte_within_a_thousandth() -> None:
    model, documents = tiny_model(), [random.Random(0).randbytes(3000), b"", "Grüße, 世界".encode() * 50]
    coded = encode(model, documents, context_bytes=300, stride=150)
    assert decode(model, coded, context_bytes=300, stride=150) == documents
    found = bits_per_byte(model, documents, context_bytes=300, stride=150)
    assert len(coded.payload) == pytest.approx((found.by_head[0] or 0.0) * found.scored_bytes / 8, rel=1e-3)


def test_another_model_does_not_find_the_bytes() -> None:
    model, document = tiny_model(), b"the same bytes for one model alone"
    coded = encode(model, [document], context_bytes=64, stride=32)
    with torch.no_grad():
        model.embedding.mul_(-1.0)
    assert decode(model, coded, context_bytes=64, stride=32) != [document]


def test_nothing_is_coded_in_no_bits() -> None:
    model = tiny_model()
    assert encode(model, [b"", b""], context_bytes=8, stride=4) == Coded(b"", (0, 0))
    assert decode(model, Coded(b"", (0, 0)), context_bytes=8, stride=4) == [b"", b""]
