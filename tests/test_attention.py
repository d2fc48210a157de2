"""Attention: every backend is the one definition, forward and backward, as far as this machine runs it."""

import math
import types
import warnings
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytelm import attention_flex, attention_torch, attention_xformers
from bytelm.attention import Mask, attend, attend_cached, choose_backend
from bytelm.attention_blocks import Blocks, _mix, _mix_backward
from bytelm.config import AttentionBackend, AttentionSetting, HeadsConfig, ModelConfig
from bytelm.errors import ConfigError
from bytelm.masks import document_lengths, visible_dense
from bytelm.model import ByteLM

GLOBAL = None
CPU = torch.device("cpu")
MANY, FEW, ONE_BYTE_EACH = 40, 3, 10**9
"""Documents in a row, about."""


def some_documents(batch: int, length: int, generator: torch.Generator, about: int = FEW) -> Tensor:
    """Documents of random lengths, which go on counting where a row ends."""
    begins = torch.rand(batch * length, generator=generator) < about / length
    return begins.cumsum(0).view(batch, length)


def states(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    # Laid out as the layers do: (B, T, H, C), seen as (B, H, T, C).
    batch, heads, length, channels = shape
    drawn = torch.randn(batch, length, heads, channels, generator=generator).to(dtype)
    return drawn.transpose(1, 2).requires_grad_()


def test_a_byte_sees_its_own_document_back_to_its_window() -> None:
    documents = [0, 0, 1, 1, 1, 1, 2]
    visible = visible_dense(7, window_bytes=3, documents_BT=torch.tensor([documents]))[0]
    for byte in range(7):
        for other in range(7):
            expected = other <= byte and byte - other < 3 and documents[byte] == documents[other]
            assert bool(visible[byte, other]) is expected


def test_documents_end_where_the_number_rises_and_where_a_row_ends() -> None:
    assert document_lengths(torch.tensor([[0, 0, 1, 1, 1], [1, 2, 3, 3, 3]])) == [2, 3, 1, 1, 3]
    assert document_lengths(torch.tensor([[7]])) == [1]


def passes(
    length: int,
    window_bytes: int | None,
    documents_BT: Tensor | None,
    *,
    heads: int = 4,
    groups: int = 2,
    dtype: torch.dtype = torch.float32,
    backend: AttentionBackend = "torch",
    batch: int = 2,
    device: torch.device = CPU,
) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients of a backend, and those of the reference in float32."""
    generator = torch.Generator().manual_seed(length + heads)
    query = states(batch, heads, length, 16, generator=generator, dtype=dtype)
    key = states(batch, groups, length, 16, generator=generator, dtype=dtype)
    value = states(batch, groups, length, 16, generator=generator, dtype=dtype)
    upstream = torch.randn(batch, heads, length, 16, generator=generator).to(dtype)
    wide = [state.detach().float().requires_grad_() for state in (query, key, value)]
    kind = {"window_bytes": window_bytes, "documents_BT": documents_BT}
    expected = attend(wide[0], wide[1], wide[2], Mask.build(length, **kind, backend="reference"))
    expected_gradients = torch.autograd.grad(expected, wide, upstream.float())
    there = [state.detach().to(device).requires_grad_() for state in (query, key, value)]
    if documents_BT is not None:
        kind["documents_BT"] = documents_BT.to(device)
    found = attend(there[0], there[1], there[2], Mask.build(length, **kind, device=device, backend=backend))
    assert found.dtype == dtype
    gradients = torch.autograd.grad(found, there, upstream.to(device))
    return [found, *gradients], [expected, *expected_gradients]


LENGTHS_AND_WINDOWS = [
    (1, GLOBAL),
    (37, GLOBAL),
    (37, 5),
    (300, 1),
    (300, 2),
    (513, GLOBAL),
    (512, 128),
    (513, 129),
    (600, 130),
    (640, 300),
]


@pytest.mark.parametrize("about", [0, FEW, MANY, ONE_BYTE_EACH])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("length", "window_bytes"), LENGTHS_AND_WINDOWS)
def test_torch_equals_the_reference_forward_and_backward(
    length: int, window_bytes: int | None, heads: int, groups: int, about: int
) -> None:
    documents_BT = some_documents(2, length, torch.Generator().manual_seed(length), about) if about else None
    found, expected = passes(length, window_bytes, documents_BT, heads=heads, groups=groups)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("about", [0, FEW, MANY])
@pytest.mark.parametrize(("length", "window_bytes"), LENGTHS_AND_WINDOWS)
def test_torch_in_bfloat16_strays_from_the_reference_as_far_as_bfloat16_does(
    length: int, window_bytes: int | None, about: int
) -> None:
    documents_BT = some_documents(2, length, torch.Generator().manual_seed(length), about) if about else None
    for found, expected in zip(*passes(length, window_bytes, documents_BT, dtype=torch.bfloat16), strict=True):
        if expected.norm() > 0:  # one byte alone has no choice: its scores have no gradient
            assert ((found - expected).norm() / expected.norm()).item() < 2**-6


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.one_of(st.none(), st.integers(1, 400)),
    st.integers(0, 60),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_length_window_or_document_makes_torch_differ(
    length: int, window_bytes: int | None, about: int, batch: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(length * 61 + about)
    documents_BT = some_documents(batch, length, generator, about) if about else None
    found, expected = passes(length, window_bytes, documents_BT, dtype=dtype, batch=batch)
    tolerance = 2e-5 if dtype == torch.float32 else 0.1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window_bytes", [GLOBAL, 200])
def test_documents_never_see_each_other(window_bytes: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    documents_BT = (torch.arange(700) >= 333).long().unsqueeze(0)
    mask = Mask.build(700, window_bytes=window_bytes, documents_BT=documents_BT)
    query, key, value = (torch.randn(1, 2, 700, 8, generator=generator).to(dtype) for _ in range(3))
    before = attend(query, key, value, mask)
    other_key, other_value = key.clone(), value.clone()
    other_key[:, :, :333] = torch.randn(333, 8, generator=generator)
    other_value[:, :, :333] = torch.randn(333, 8, generator=generator)
    after = attend(query, other_key, other_value, mask)
    assert torch.equal(before[:, :, 333:], after[:, :, 333:])
    assert not torch.allclose(before[:, :, :333], after[:, :, :333])


# Costs


def elements_of(prepared: object) -> int:
    match prepared:
        case Blocks(visible, _) | attention_torch.Dense(visible):
            return visible.numel()
        case attention_torch.Pieces(_, visible):
            return sum(mask.numel() for mask in visible if mask is not None)
    return 0


@pytest.mark.parametrize("about", [0, FEW, MANY, 1000, ONE_BYTE_EACH])
@pytest.mark.parametrize("window_bytes", [GLOBAL, 128])
def test_masks_grow_with_the_length_and_not_with_its_square(window_bytes: int | None, about: int) -> None:
    def elements(length: int) -> int:
        generator = torch.Generator().manual_seed(length)
        documents_BT = some_documents(1, length, generator, about * length // 4096) if about else None
        return elements_of(Mask.build(length, window_bytes=window_bytes, documents_BT=documents_BT).prepared)

    assert elements(8192) <= 2.2 * elements(4096) + 256 * 256
    assert elements(8192) <= 8192 * 256


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator makes."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window_bytes", [GLOBAL, 128])
@pytest.mark.parametrize("about", [0, FEW, MANY])
def test_no_pass_makes_a_tensor_of_the_square_of_the_length(
    window_bytes: int | None, about: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    length = 4096
    documents_BT = some_documents(1, length, generator, about) if about else None
    query, key, value = (states(1, heads, length, 16, generator=generator, dtype=dtype) for heads in (2, 1, 1))
    with Largest() as largest:
        mask = Mask.build(length, window_bytes=window_bytes, documents_BT=documents_BT)
        attend(query, key, value, mask).sum().backward()
    assert largest.elements <= length * length / 8


def test_blocks_in_bfloat16_hold_few_scores_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    length, window_bytes = 8192, 512
    blocks = Mask.build(length, window_bytes=window_bytes).prepared
    assert isinstance(blocks, Blocks)
    query, key, value = (states(1, 4, length, 8, generator=generator, dtype=torch.bfloat16).detach() for _ in range(3))
    rest = ~blocks.visible_BNPS, blocks.inner.start, blocks.inner.stop
    with Largest() as largest:  # it looks into no operator: what the operators run is called
        upstream = _mix(query, key, value, *rest).transpose(1, 2)
        _mix_backward(upstream, query, key, value, *rest)
    assert largest.elements <= blocks.visible_BNPS.numel()  # all scores of the four heads are four times that


def test_many_short_documents_are_few_pieces() -> None:
    for about in (MANY, 1000, ONE_BYTE_EACH):
        documents_BT = some_documents(3, 4096, torch.Generator().manual_seed(0), about)
        pieces = Mask.build(4096, documents_BT=documents_BT).prepared
        assert isinstance(pieces, attention_torch.Pieces)
        assert sum(pieces.lengths) == 3 * 4096
        assert len(pieces.lengths) <= 2 * 3 * 4096 / 256 + 1


def test_one_causal_document_needs_no_mask_at_all() -> None:
    for mask in (Mask.build(64), Mask.build(64, window_bytes=64)):
        assert isinstance(mask.prepared, attention_torch.Causal)
    assert elements_of(Mask.build(64, window_bytes=63).prepared) == 64 * 64


def test_a_window_that_no_document_fills_is_no_window() -> None:
    documents_BT = torch.arange(1200).unsqueeze(0) // 100
    assert isinstance(Mask.build(1200, window_bytes=100, documents_BT=documents_BT).prepared, attention_torch.Pieces)
    assert isinstance(Mask.build(1200, window_bytes=99, documents_BT=documents_BT).prepared, Blocks)


def test_blocks_in_bfloat16_keep_nothing_but_their_inputs() -> None:
    kept: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    query, key, value = (states(1, heads, 600, 8, generator=generator, dtype=torch.bfloat16) for heads in (2, 1, 1))
    mask = Mask.build(600, window_bytes=64)
    with torch.autograd.graph.saved_tensors_hooks(lambda state: kept.append(state) or state, lambda state: state):
        attend(query, key, value, mask)
    wide = [state for state in kept if state.is_floating_point()]
    assert sum(state.numel() for state in wide) == query.numel() + key.numel() + value.numel()


# Choice


def choose(setting: AttentionSetting) -> tuple[AttentionBackend, str]:
    choice = choose_backend(setting, CPU, dtype=torch.bfloat16, channels=64)
    return choice.backend, choice.reason


def test_on_a_cpu_auto_is_torch_and_says_why() -> None:
    backend, reason = choose("auto")
    assert backend == "torch"
    assert "CUDA" in reason


@pytest.mark.parametrize("setting", ["torch", "reference"])
def test_a_backend_that_runs_anywhere_is_taken_as_set(setting: AttentionSetting) -> None:
    assert choose(setting) == (setting, "as set")


@pytest.mark.parametrize("setting", ["flex", "xformers"])
def test_a_backend_that_cannot_run_here_is_refused_with_the_reason(setting: AttentionSetting) -> None:
    with pytest.raises(ConfigError, match=f"attention_backend = {setting} cannot run here: .*CUDA.*cpu; use auto"):
        choose(setting)


def test_every_setting_but_auto_is_a_backend() -> None:
    assert set(get_args(AttentionSetting)) == {"auto", *get_args(AttentionBackend)}


def test_a_model_computes_with_its_backend_where_gradients_are_wanted_and_with_torch_elsewhere() -> None:
    config = ModelConfig(d_model=32, layers=2, attention_heads=4, kv_heads=2, d_ff=48, local_window_bytes=8)
    models = [
        ByteLM(config, HeadsConfig(family="transformer", count=2), attention_backend=backend)
        for backend in ("reference", "torch")
    ]
    models[1].load_state_dict(models[0].state_dict())
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    documents_BT = some_documents(2, 40, torch.Generator().manual_seed(1))
    reference, torch_ = (model(ids, documents_BT) for model in models)
    torch.testing.assert_close(reference, torch_, rtol=1e-4, atol=1e-5)
    assert not torch.equal(reference, torch_)
    with torch.no_grad():
        assert torch.equal(models[0](ids, documents_BT), models[1](ids, documents_BT))


# Decoding


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_rows_over_cached_keys_equal_the_last_rows_of_a_whole_pass(heads: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 40, 8, generator=generator)
    key, value = (torch.randn(2, groups, 40, 8, generator=generator) for _ in range(2))
    expected = attend(query, key, value, Mask.build(40, window_bytes=9, backend="reference"))[:, :, 35:]
    bias_MS = torch.zeros(5, 40).masked_fill(~visible_dense(40, window_bytes=9)[0, 35:], -torch.inf)
    found = attend_cached(query[:, :, 35:], key, value, bias_MS.expand(2, heads // groups, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# FlexAttention


@pytest.mark.parametrize("about", [0, FEW, MANY, ONE_BYTE_EACH])
@pytest.mark.parametrize("window_bytes", [GLOBAL, 1, 100, 128, 129, 300, 2000])
@pytest.mark.parametrize("length", [1, 128, 500, 1024])
def test_the_blocks_of_flex_hold_every_pair_and_skip_what_nobody_sees(
    length: int, window_bytes: int | None, about: int
) -> None:
    batch = 2 if about else 1
    documents_BT = some_documents(batch, length, torch.Generator().manual_seed(length), about) if about else None
    prepared = attention_flex.prepare(length, window_bytes, documents_BT, "cpu")
    visible = visible_dense(length, window_bytes=window_bytes, documents_BT=documents_BT)
    block = attention_flex.BLOCK
    blocks = -(-length // block)
    padded = torch.zeros(batch, blocks * block, blocks * block)
    padded[:, :length, :length] = visible
    # Rows and columns beyond the end count for nothing: a block is full where all that is real is seen.
    real = torch.zeros_like(padded)
    real[:, :length, :length] = 1

    def blockwise(pairs: Tensor) -> Tensor:
        return pairs.unflatten(1, (blocks, block)).unflatten(3, (blocks, block)).sum((2, 4))

    some, whole = blockwise(padded) > 0, blockwise(padded) == blockwise(real)
    full_blocks, full_indices = prepared.full_kv_num_blocks, prepared.full_kv_indices
    assert full_blocks is not None
    assert full_indices is not None

    def listed(counts: Tensor, indices: Tensor) -> Tensor:
        found = torch.zeros(batch, blocks, blocks, dtype=torch.bool)
        for row in range(batch):
            for query in range(blocks):
                found[row, query, indices[row, 0, query, : counts[row, 0, query]].long()] = True
        return found

    partial, full = listed(prepared.kv_num_blocks, prepared.kv_indices), listed(full_blocks, full_indices)
    assert not (partial & full).any()
    assert torch.equal(partial | full, some)
    # Every block that is taken for full is; only a diagonal of single bytes is full and not taken for it.
    assert not (full & ~whole).any()
    off_diagonal = ~torch.eye(blocks, dtype=torch.bool)
    assert torch.equal(full & off_diagonal, whole & some & off_diagonal)

    places = torch.arange(length)
    for row in range(batch):
        seen = prepared.mask_mod(torch.tensor(row), torch.tensor(0), places[:, None], places[None, :])
        assert torch.equal(seen.expand(length, length), visible[row])


@pytest.mark.slow
@pytest.mark.parametrize(("length", "window_bytes", "about"), [(512, GLOBAL, 0), (600, 100, FEW), (512, GLOBAL, MANY)])
def test_compiled_flex_equals_the_reference_in_the_forward_pass(
    length: int, window_bytes: int | None, about: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    documents_BT = some_documents(2, length, generator, about) if about else None
    query, key, value = (states(2, heads, length, 16, generator=generator).detach() for heads in (4, 2, 2))
    kind = {"window_bytes": window_bytes, "documents_BT": documents_BT}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        found = attend(query, key, value, Mask.build(length, **kind, backend="flex"))
        expected = attend(query, key, value, Mask.build(length, **kind, backend="reference"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# xformers


@pytest.fixture
def attn_bias() -> types.ModuleType:
    with warnings.catch_warnings():
        # On a machine without a matching GPU build, its import warns that the kernels are missing; its masks are not.
        warnings.simplefilter("ignore")
        return pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is not installed")


def materialized(query_BTHC: Tensor, key_BTHC: Tensor, value_BTHC: Tensor, bias: object) -> Tensor:
    """What ``memory_efficient_attention`` documents as the same: its mask written out, and plain products."""
    query, key, value = (states.transpose(1, 2) for states in (query_BTHC, key_BTHC, value_BTHC))
    length = query.shape[2]
    written = bias.materialize((length, length), dtype=torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    scores = query @ key.mT / math.sqrt(query.shape[-1]) + written
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.usefixtures("attn_bias")
@pytest.mark.parametrize("about", [0, FEW, MANY])
@pytest.mark.parametrize("window_bytes", [GLOBAL, 1, 2, 5, 12, 60])
def test_the_masks_and_rows_that_xformers_gets_are_the_reference(window_bytes: int | None, about: int) -> None:
    generator = torch.Generator().manual_seed(0)
    length = 50
    documents_BT = some_documents(2, length, generator, about) if about else None
    query, key, value = (states(2, heads, length, 8, generator=generator) for heads in (4, 2, 2))
    kind = {"window_bytes": window_bytes, "documents_BT": documents_BT}
    prepared = Mask.build(length, **kind, backend="xformers", device="cpu").prepared
    found = attention_xformers.attend(query, key, value, prepared, kernel=materialized)
    expected = attend(query, key, value, Mask.build(length, **kind, backend="reference"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    upstream = torch.randn(expected.shape, generator=generator)
    gradients = torch.autograd.grad(found, (query, key, value), upstream)
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


LENGTHS = [7, 1, 12, 30]


def seen_by(bias: object, length: int) -> Tensor:
    written = bias.materialize((length, length), dtype=torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return written.reshape(length, length) == 0


def test_our_document_mask_is_the_block_diagonal_causal_mask_of_xformers(attn_bias: types.ModuleType) -> None:
    documents_BT = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)).unsqueeze(0)
    theirs = seen_by(attn_bias.BlockDiagonalCausalMask.from_seqlens(LENGTHS), sum(LENGTHS))
    assert torch.equal(visible_dense(sum(LENGTHS), documents_BT=documents_BT)[0], theirs)


@pytest.mark.parametrize("window_bytes", [1, 2, 5, 12])
def test_our_local_window_is_the_local_attention_of_xformers(attn_bias: types.ModuleType, window_bytes: int) -> None:
    documents_BT = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)).unsqueeze(0)
    # make_local_attention(W) means W keys, the present one included.
    bias = attn_bias.BlockDiagonalCausalMask.from_seqlens(LENGTHS).make_local_attention(window_bytes)
    ours = visible_dense(sum(LENGTHS), window_bytes=window_bytes, documents_BT=documents_BT)[0]
    assert torch.equal(ours, seen_by(bias, sum(LENGTHS)))
    causal = seen_by(attn_bias.LowerTriangularMask(), 20)
    assert torch.equal(visible_dense(20)[0], causal)


# On a GPU


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, where it compiles FlexAttention
@pytest.mark.parametrize("about", [0, FEW, MANY])
@pytest.mark.parametrize(("length", "window_bytes"), [(512, GLOBAL), (600, 100), (1100, 300)])
@pytest.mark.parametrize("backend", ["torch", "flex", "xformers"])
def test_on_a_gpu_every_backend_equals_the_reference(
    backend: AttentionBackend, length: int, window_bytes: int | None, about: int
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    try:
        choose_backend(backend, device, dtype=torch.bfloat16, channels=16)
    except ConfigError as error:
        pytest.skip(str(error))
    documents_BT = some_documents(2, length, torch.Generator().manual_seed(0), about) if about else None
    kind = {"dtype": torch.bfloat16, "backend": backend, "device": device}
    for found, expected in zip(*passes(length, window_bytes, documents_BT, **kind), strict=True):
        assert ((found.cpu() - expected).norm() / expected.norm()).item() < 2**-6
