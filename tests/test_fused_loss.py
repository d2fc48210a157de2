"""The loss of linear heads in pieces: the plain one, whatever the sizes, and never many logits at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytelm.fused_loss import _sum_of_pieces, linear_heads_loss
from bytelm.vocab import VOCABULARY_SIZE

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def some_inputs(count: int, heads: int, width: int = 12, size: float = 1.0) -> Inputs:
    """States, weight, targets and scales, some of which are 0."""
    generator = torch.Generator().manual_seed(count + heads)
    states_ND = (size * torch.randn(count, width, generator=generator)).requires_grad_()
    weight = torch.randn(heads * VOCABULARY_SIZE, width, generator=generator).requires_grad_()
    targets_NK = torch.randint(0, VOCABULARY_SIZE, (count, heads), generator=generator)
    scale_NK = torch.rand(count, heads, generator=generator) * (torch.rand(count, heads, generator=generator) < 0.8)
    return states_ND, weight, targets_NK, scale_NK


def plain_loss(inputs: Inputs, z_loss: float) -> tuple[Tensor, Tensor]:
    states_ND, weight, targets_NK, scale_NK = inputs
    logits = (states_ND @ weight.T).view(-1, VOCABULARY_SIZE)
    nats = F.cross_entropy(logits, targets_NK.flatten(), reduction="none").view(scale_NK.shape)
    drift = logits.logsumexp(-1).square().view(scale_NK.shape)
    return ((nats + z_loss * drift) * scale_NK).sum(), (nats * (scale_NK > 0)).sum(0).detach()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize(("count", "heads"), [(1, 1), (40, 3), (1024, 4), (1025, 5), (2300, 9)])
def test_pieces_add_up_to_the_plain_loss_and_its_gradients(count: int, heads: int, z_loss: float) -> None:
    inputs = some_inputs(count, heads)
    expected, expected_nats = plain_loss(inputs, z_loss)
    found, nats_K = linear_heads_loss(*inputs, z_loss)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nats_K, expected_nats)
    assert not nats_K.requires_grad
    gradients = torch.autograd.grad(3.0 * found, inputs[:2])
    expected_gradients = torch.autograd.grad(3.0 * expected, inputs[:2])
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4)


def test_a_target_of_no_probability_has_a_finite_cost() -> None:
    inputs = some_inputs(50, 2, size=300.0)
    expected, expected_nats = plain_loss(inputs, 0.0)
    found, nats_K = linear_heads_loss(*inputs, 0.0)
    assert expected > 1000
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nats_K, expected_nats)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, inputs[:2]))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen: int) -> None:
    inputs = some_inputs(30, 2)
    wanted = inputs[1 - frozen]
    (expected,) = torch.autograd.grad(plain_loss(inputs, 0.0)[0], [wanted])
    inputs[frozen].requires_grad_(False)
    (found,) = torch.autograd.grad(linear_heads_loss(*inputs, 0.0)[0], [wanted])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_under_bfloat16_autocast_the_loss_strays_as_far_as_bfloat16_does() -> None:
    inputs = some_inputs(1500, 6)
    expected, _ = plain_loss(inputs, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        found, nats_K = linear_heads_loss(*inputs, 0.0)
    assert found.dtype == nats_K.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
    for wanted in inputs[:2]:
        ours, theirs = (torch.autograd.grad(loss, [wanted], retain_graph=True)[0] for loss in (found, expected))
        assert ours.dtype == torch.float32
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.02


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
                self.elements = max(self.elements, result.numel())
        return results


@pytest.mark.parametrize("heads", [4, 16])
def test_no_tensor_is_larger_than_the_logits_of_a_piece(heads: int) -> None:
    states_ND, weight, targets_NK, scale_NK = some_inputs(4096, heads)
    with Largest() as largest:  # it looks into no operator: what the operator runs is called
        _sum_of_pieces(states_ND.detach(), weight.detach(), targets_NK, scale_NK, 0.0, True, True)
    assert largest.elements == 1024 * 4 * VOCABULARY_SIZE
    assert largest.elements < 4096 * heads * VOCABULARY_SIZE / 3
