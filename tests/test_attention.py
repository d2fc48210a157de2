"""Attention: every form of the mask is the one definition, every backend the reference."""

import types
import warnings

import pytest
import torch
from torch import Tensor

from bytelm.attention import Mask, attend, attend_range, visible_dense

GLOBAL = None


def some_documents(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Documents of random lengths, a few in each row."""
    return (torch.rand(batch, length, generator=generator) < 3 / length).cumsum(1)


def states(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator).requires_grad_()


def test_a_byte_sees_its_own_document_back_to_its_window() -> None:
    documents = [0, 0, 1, 1, 1, 1, 2]
    visible = visible_dense(7, window_bytes=3, documents_BT=torch.tensor([documents]))[0]
    for byte in range(7):
        for other in range(7):
            expected = other <= byte and byte - other < 3 and documents[byte] == documents[other]
            assert bool(visible[byte, other]) is expected


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("length", "window_bytes"),
    [(1, GLOBAL), (37, GLOBAL), (37, 5), (300, 1), (300, 2), (512, 128), (513, 129), (600, 130), (640, 300)],
)
def test_the_fast_backend_equals_the_reference_forward_and_backward(
    length: int, window_bytes: int | None, heads: int, groups: int, with_documents: bool
) -> None:
    generator = torch.Generator().manual_seed(length + heads)
    documents_BT = some_documents(2, length, generator) if with_documents else None
    mask = Mask.build(length, window_bytes=window_bytes, documents_BT=documents_BT)
    query = states(2, heads, length, 8, generator=generator)
    key = states(2, groups, length, 8, generator=generator)
    value = states(2, groups, length, 8, generator=generator)
    upstream = torch.randn(2, heads, length, 8, generator=generator)

    expected = attend(query, key, value, mask, backend="reference")
    found = attend(query, key, value, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)
    gradients = torch.autograd.grad(found, (query, key, value), upstream)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window_bytes", [GLOBAL, 200])
def test_documents_never_see_each_other(window_bytes: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    documents_BT = (torch.arange(700) >= 333).long().unsqueeze(0)
    mask = Mask.build(700, window_bytes=window_bytes, documents_BT=documents_BT)
    query, key, value = (torch.randn(1, 2, 700, 8, generator=generator) for _ in range(3))
    before = attend(query, key, value, mask)
    other_key, other_value = key.clone(), value.clone()
    other_key[:, :, :333] = torch.randn(333, 8, generator=generator)
    other_value[:, :, :333] = torch.randn(333, 8, generator=generator)
    after = attend(query, other_key, other_value, mask)
    assert torch.equal(before[:, :, 333:], after[:, :, 333:])
    assert not torch.allclose(before[:, :, :333], after[:, :, :333])


def test_a_local_mask_grows_with_the_length_and_not_with_its_square() -> None:
    def entries(length: int) -> int:
        visible = Mask.build(length, window_bytes=128).visible
        assert visible is not None
        return visible.numel()

    assert entries(8192) == 2 * entries(4096)
    assert entries(8192) < 8192 * 8192 / 16


def test_one_causal_document_needs_no_mask_at_all() -> None:
    assert Mask.build(64).visible is None
    assert Mask.build(64, window_bytes=64).visible is None
    assert Mask.build(64, window_bytes=63).visible is not None


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_rows_over_cached_keys_equal_the_last_rows_of_a_whole_pass(heads: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 40, 8, generator=generator)
    key, value = (torch.randn(2, groups, 40, 8, generator=generator) for _ in range(2))
    expected = attend(query, key, value, Mask.build(40, window_bytes=9), backend="reference")[:, :, 35:]
    bias_MS = torch.zeros(5, 40).masked_fill(~visible_dense(40, window_bytes=9)[0, 35:], -torch.inf)
    found = attend_range(query[:, :, 35:], key, value, bias_MS.repeat(heads // groups, 1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def attn_bias() -> types.ModuleType:
    with warnings.catch_warnings():
        # On a machine without a matching GPU build, its import warns that the kernels are missing; its masks are not.
        warnings.simplefilter("ignore")
        return pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is not installed")


LENGTHS = [7, 1, 12, 30]


def seen_by(bias: object, length: int) -> Tensor:
    materialized = bias.materialize((length, length), dtype=torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return materialized.reshape(length, length) == 0


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
