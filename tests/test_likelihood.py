import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.api import LanguageModel
from bytelm.config import RunConfig
from bytelm.likelihood import likelihoods
from bytelm.model import ByteLM

CONTEXT = 16


def tiny_model() -> LanguageModel:
    changes = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]
    config = RunConfig.build("tiny", [*changes, "heads.count=2", "data.window_bytes=64", "model.local_window_bytes=20"])
    torch.manual_seed(0)
    model = ByteLM(config.model, config.heads).eval()
    with torch.no_grad():
        model.heads.get_parameter("unembedding.weight").mul_(8.0)
    return LanguageModel(model, config)


MODEL = tiny_model()


def test_within_the_window_it_is_what_scoring_one_by_one_gives() -> None:
    pairs = [(b"", b"a"), (b"the ", b"byte"), (b"\x00\xff", b"\r\n" * 20), (b"x" * 30, b""), (b"Gr", "üße".encode())]
    found = likelihoods(MODEL.model, pairs, context_bytes=64)
    for (before, after), one in zip(pairs, found, strict=True):
        assert one.nats == pytest.approx(MODEL.score(before, after), abs=1e-5)
        assert one.total == pytest.approx(MODEL.score(before, after).sum(), abs=1e-4)
        assert len(one.greedy) == len(after)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
@settings(max_examples=40, deadline=None)
def test_where_a_continuation_is_cut_changes_nothing(a: bytes, b: bytes, c: bytes) -> None:
    """ll(a, bc) = ll(a, b) + ll(ab, c), also for texts that are longer than the window."""
    whole, first, second = likelihoods(MODEL.model, [(a, b + c), (a, b), (a + b, c)], context_bytes=CONTEXT)
    assert whole.nats == pytest.approx(np.concatenate([first.nats, second.nats]), abs=1e-5)
    assert whole.total == pytest.approx(first.total + second.total, abs=1e-3)


def test_greedy_is_what_greedy_decoding_writes() -> None:
    written = MODEL.generate(b"once", max_bytes=12, draft="none").data
    other = bytes([written[-1] ^ 1])
    right, wrong, none = likelihoods(
        MODEL.model, [(b"once", written), (b"once", written[:-1] + other), (b"once", b"")], context_bytes=64
    )
    assert right.is_greedy
    assert not wrong.is_greedy
    assert wrong.greedy.tolist() == [True] * (len(written) - 1) + [False]
    assert (none.total, none.is_greedy) == (0.0, True)
