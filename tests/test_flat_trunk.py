"""The flat trunk of decoding computes what the layers do: rows, trees, several sequences, both dtypes."""

import copy

import pytest
import torch

from bytelm.config import HeadsConfig, ModelConfig, RunConfig
from bytelm.kv_cache import KVCache
from bytelm.layers import JoinedPass
from bytelm.model import ByteLM
from bytelm.vocab import EOD

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.06}


def two_models(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[ByteLM, ByteLM]:
    """The same weights with gains that matter, once as they are and once packed, with every matrix packed."""
    base = RunConfig.build("tiny").model.model_dump()
    model = ModelConfig(**(base | {"ngram_sizes": (2, 3), "ngram_rows": 97, "ngram_width": 8}))
    layered = ByteLM(model, HeadsConfig(count=2)).eval()
    layered.initialize(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in layered.parameters():
            if parameter.dim() <= 2 and parameter.shape[-1] <= model.d_model and parameter.eq(1).all():
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(4))
    layered.to(dtype)
    flat = copy.deepcopy(layered)
    monkeypatch.setattr("bytelm.packed.SMALLEST", 0)
    flat.pack()
    return layered, flat


def ids(length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, EOD, (1, length), generator=torch.Generator().manual_seed(seed))


def filled(model: ByteLM, length: int, seed: int) -> KVCache:
    cache = model.new_cache(1, 512)
    model.prefill(ids(length, seed), cache)
    return cache


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("parents", [None, [-1, 0, 1, 0, 3, 1, 0, 6]])
def test_a_flat_pass_equals_the_layers(
    dtype: torch.dtype, parents: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for model in two_models(dtype, monkeypatch):
        cache = filled(model, 300, 1)
        with torch.inference_mode():
            hidden_1MD = model.decode(ids(8, 2), model.cached_pass(cache, 8, parents))
        keys, values = cache.read(model.config.layers - 1, 300, 308)
        found.append((hidden_1MD, keys.clone(), values.clone()))
    scale = found[0][0].float().square().mean().sqrt()
    assert scale > 0.5
    for layered, flat in zip(*found, strict=True):
        assert flat.shape == layered.shape
        assert flat.dtype == layered.dtype == dtype
        assert (flat.float() - layered.float()).abs().max() < TOLERANCE[dtype] * max(1.0, scale.item())


def test_several_sequences_in_a_flat_pass_equal_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for model in two_models(torch.float32, monkeypatch):
        caches = [filled(model, length, seed) for seed, length in enumerate((0, 40, 200))]
        with torch.inference_mode():
            joined = JoinedPass.build([model.cached_pass(cache, 4) for cache in caches])
            found.append(model.decode(ids(12, 5), joined))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=2e-5)


def test_the_flat_trunk_is_used_where_it_can_be_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = two_models(torch.float32, monkeypatch)
    used = []
    flat = model._flat
    assert flat is not None
    plain_call = type(flat).__call__
    monkeypatch.setattr(type(flat), "__call__", lambda *given: used.append(1) or plain_call(*given))
    cache = filled(model, 20, 1)
    assert not used  # a window is read by the layers
    model.decode(ids(4, 2), model.cached_pass(cache, 4))
    assert len(used) == 1
    model.trunk(ids(4, 2)).sum().backward()
    assert len(used) == 1
    model.to(torch.bfloat16)  # what was packed is of another dtype now
    cache = filled(model, 20, 1)
    model.decode(ids(4, 2), model.cached_pass(cache, 4))
    assert len(used) == 1
