"""Local attention in blocks: each block of queries against its own keys and those of the blocks before it.

The cost grows with the length times the window. In float32 it is PyTorch's fused kernel with a mask. In bfloat16 on a
CPU, whose matrix products are several times faster than that kernel, it is product, softmax, product, on a few blocks
at a time and computed again in the backward pass.

Shapes: B batch, T bytes, H attention heads, G key and value heads, R = H / G query heads of a group, C channels,
N blocks, P bytes of a block, S keys of a block.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK: Final = 128  # queries of a block: measured fastest on CPUs for windows of 128 to 1024
_SCORES: Final = 1 << 20  # scores that a thread holds at once in bfloat16: they stay in its cache


@dataclass(frozen=True, slots=True)
class Blocks:
    """Who sees whom, block by block.

    Attributes:
        visible_BNPS: Bool, True = seen; B may be 1.
        inner: Keys S that every query sees in all blocks but the first; empty where documents are packed.
    """

    visible_BNPS: Tensor
    inner: slice


def blocks_of_window(
    length: int, window_bytes: int, documents_BT: Tensor | None, device: torch.device | str | None
) -> Blocks | None:
    """Mask of each block over its own keys and those of the blocks before; None where that is as good as dense.

    Args:
        length: Bytes T.
        window_bytes: Bytes that are seen, the present one included.
        documents_BT: Number of the document of each byte, non-decreasing; None where each row is one document.
        device: Where the mask is needed.
    """
    block = _BLOCK
    blocks = -(-length // block)
    reach = -(-(window_bytes - 1) // block)  # blocks before the own one
    if reach + 1 >= blocks:
        return None
    keys = (reach + 1) * block
    query_P = torch.arange(block, device=device)
    key_S = torch.arange(keys, device=device) - reach * block
    distance_PS = query_P[:, None] - key_S[None, :]
    near_PS = (distance_PS >= 0) & (distance_PS < window_bytes)
    first_N = torch.arange(blocks, device=device) * block
    real_NS = first_N[:, None] + key_S[None, :] >= 0
    # A padded query sees itself, padded too: its softmax stays finite and its result is cut off.
    visible = (near_PS[None] & real_NS[:, None, :]).unsqueeze(0)
    if documents_BT is not None:
        padded_BT = F.pad(documents_BT, (reach * block, blocks * block - length), value=-1)
        seen_BNS = padded_BT.unfold(1, keys, block)
        own_BNP = seen_BNS[..., -block:]
        visible = visible & (own_BNP[..., :, None] == seen_BNS[..., None, :])
        return Blocks(visible, slice(0, 0))
    return Blocks(visible, slice(keys - window_bytes, keys - block))


def attend_blocks(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, blocks: Blocks) -> Tensor:
    """Mixed values (B, H, T, C); see ``bytelm.attention.attend``."""
    if query_BHTC.dtype == torch.bfloat16 and query_BHTC.device.type == "cpu":
        inner = blocks.inner.start, blocks.inner.stop
        return _BlockProducts.apply(query_BHTC, key_BGTC, value_BGTC, ~blocks.visible_BNPS, *inner)
    return _attend_fused(query_BHTC, key_BGTC, value_BGTC, blocks.visible_BNPS)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes of the blocks, and the way from whole windows to them and back."""

    length: int
    blocks: int
    block: int
    keys: int

    @classmethod
    def of(cls, states_BXTC: Tensor, visible_BNPS: Tensor) -> "_Layout":
        return cls(states_BXTC.shape[2], *visible_BNPS.shape[1:])

    @property
    def before(self) -> int:
        """Keys in front of the first block, of no byte."""
        return self.keys - self.block

    def pad(self, states_BXTC: Tensor, before: int = 0) -> Tensor:
        return F.pad(states_BXTC, (0, 0, before, self.blocks * self.block - self.length))

    def query_blocks(self, query_BHTC: Tensor, groups: int) -> Tensor:
        """View as (B, G, N, R, P, C)."""
        blocked = query_BHTC.unflatten(2, (self.blocks, self.block)).unflatten(1, (groups, -1))
        return blocked.transpose(2, 3)

    def key_blocks(self, key_BGTC: Tensor) -> Tensor:
        """View of padded keys or values as (B, G, N, S, C): neighbouring blocks overlap and nothing is copied."""
        return key_BGTC.unfold(2, self.keys, self.block).transpose(3, 4)


def _attend_fused(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, visible_BNPS: Tensor) -> Tensor:
    """Blocks as a batch of the fused kernel, row by row: keys of one row need not be copied to overlap."""
    layout = _Layout.of(query_BHTC, visible_BNPS)
    groups = key_BGTC.shape[1]
    queries = layout.query_blocks(layout.pad(query_BHTC), groups)
    keys, values = (layout.key_blocks(layout.pad(states, layout.before)) for states in (key_BGTC, value_BGTC))
    repeats = queries.shape[3]
    mixed = []
    for row in range(len(queries)):
        # The query heads of a group join the rows: a key is read once for all of them.
        query = queries[row].transpose(0, 1).flatten(2, 3)
        visible_NPS = visible_BNPS[row if len(visible_BNPS) > 1 else 0]
        visible = visible_NPS.repeat(1, repeats, 1).unsqueeze(1)
        done = F.scaled_dot_product_attention(query, keys[row].transpose(0, 1), values[row].transpose(0, 1), visible)
        done = done.unflatten(2, (repeats, -1)).permute(1, 2, 0, 3, 4)  # (G, R, N, P, C)
        mixed.append(done.flatten(2, 3).flatten(0, 1)[:, : layout.length])
    return torch.stack(mixed)


class _BlockProducts(torch.autograd.Function):
    """Blocks as product, softmax, product in the dtype of the states, computed again in the backward pass.

    Queries, keys and values are all that is kept. Scores are rounded to the dtype before the softmax, which computes
    in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTC: Tensor,
        key_BGTC: Tensor,
        value_BGTC: Tensor,
        hidden_BNPS: Tensor,
        inner_start: int,
        inner_stop: int,
    ) -> Tensor:
        ctx.save_for_backward(query_BHTC, key_BGTC, value_BGTC, hidden_BNPS)
        ctx.inner = inner_start, inner_stop
        mixed = _mix_op(query_BHTC, key_BGTC, value_BGTC, hidden_BNPS, inner_start, inner_stop)
        return mixed[:, : query_BHTC.shape[2]].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's types lose the name of ctx
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        query_BHTC, *_, hidden_BNPS = ctx.saved_tensors
        grad_query, grad_key, grad_value = _mix_backward_op(grad_outputs[0], *ctx.saved_tensors, *ctx.inner)
        length, before = query_BHTC.shape[2], hidden_BNPS.shape[3] - hidden_BNPS.shape[2]
        own = slice(before, before + length)
        grads = grad_query[:, :length].transpose(1, 2), grad_key[:, :, own], grad_value[:, :, own]
        return *(grad.to(query_BHTC.dtype) for grad in grads), None, None, None


def _mix(
    query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, hidden_BNPS: Tensor, inner_start: int, inner_stop: int
) -> Tensor:
    """Mixed values (B, N · P, H, C)."""
    work = _Work(query_BHTC, key_BGTC, value_BGTC, hidden_BNPS, inner_start, inner_stop)
    mixed, mixed_blocks = work.new_blocks()
    with torch.autocast("cpu", enabled=False):
        for part in work.parts():
            query, key, value = work.states(part)
            mixed_blocks[part] = work.like_blocks(work.shares(query, key, part) @ value, part)
    return mixed


def _mix_backward(
    upstream_BHTC: Tensor,
    query_BHTC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    hidden_BNPS: Tensor,
    inner_start: int,
    inner_stop: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries (B, N · P, H, C), and in float32 of keys and values (B, G, S - P + N · P, C)."""
    work = _Work(query_BHTC, key_BGTC, value_BGTC, hidden_BNPS, inner_start, inner_stop)
    upstream = work.layout.query_blocks(work.layout.pad(upstream_BHTC), work.groups)
    grad_query, grad_query_blocks = work.new_blocks()
    grad_key, grad_value = (torch.zeros_like(work.keys, dtype=torch.float32) for _ in range(2))
    with torch.autocast("cpu", enabled=False):
        for part in work.parts():
            query, key, value = work.states(part)
            shares = work.shares(query, key, part)
            grad_mixed = upstream[part].reshape(query.shape)
            work.add_keys(grad_value, shares.mT @ grad_mixed, part)
            grad_shares = grad_mixed @ value.mT
            grad_scores = torch.ops.aten._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
            work.add_keys(grad_key, grad_scores.mT @ query, part)
            grad_query_blocks[part] = work.like_blocks(grad_scores @ key, part)
    return grad_query.mul_(work.scale), grad_key, grad_value


# Operators of their own, so that whoever traces or compiles a step meets one node and not the loop over all blocks.
_mix_op = torch.library.custom_op("bytelm::mix_blocks", _mix, mutates_args=())
_mix_backward_op = torch.library.custom_op("bytelm::mix_blocks_backward", _mix_backward, mutates_args=())


@_mix_op.register_fake
def _(
    query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, hidden_BNPS: Tensor, inner_start: int, inner_stop: int
) -> Tensor:
    return _Work(query_BHTC, key_BGTC, value_BGTC, hidden_BNPS, inner_start, inner_stop).new_blocks()[0]


@_mix_backward_op.register_fake
def _(
    upstream_BHTC: Tensor,  # noqa: ARG001
    query_BHTC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    hidden_BNPS: Tensor,
    inner_start: int,
    inner_stop: int,
) -> tuple[Tensor, Tensor, Tensor]:
    work = _Work(query_BHTC, key_BGTC, value_BGTC, hidden_BNPS, inner_start, inner_stop)
    grad_key, grad_value = (torch.empty_like(work.keys, dtype=torch.float32) for _ in range(2))
    return work.new_blocks()[0], grad_key, grad_value


class _Work:
    """The loop over blocks that both passes share: a part is a row of the batch and a few of its blocks."""

    def __init__(
        self,
        query_BHTC: Tensor,
        key_BGTC: Tensor,
        value_BGTC: Tensor,
        hidden_BNPS: Tensor,
        inner_start: int,
        inner_stop: int,
    ) -> None:
        self.layout = layout = _Layout.of(query_BHTC, hidden_BNPS)
        self.groups = key_BGTC.shape[1]
        self.scale = 1.0 / math.sqrt(query_BHTC.shape[3])
        self.hidden_BNPS = hidden_BNPS
        self.edges = slice(0, inner_start), slice(inner_stop, layout.keys)
        self.queries = layout.query_blocks(layout.pad(query_BHTC), self.groups)
        self.keys = layout.pad(key_BGTC, layout.before)
        self._key_blocks = layout.key_blocks(self.keys)
        self._value_blocks = layout.key_blocks(layout.pad(value_BGTC, layout.before))

    def new_blocks(self) -> tuple[Tensor, Tensor]:
        """Room for what has the shape of the queries, padded: whole (B, N · P, H, C) and as blocks."""
        batch, _, blocks, _, block, channels = self.queries.shape
        whole = self.queries.new_empty(batch, blocks * block, self.groups * self.queries.shape[3], channels)
        return whole, self.layout.query_blocks(whole.transpose(1, 2), self.groups)

    def parts(self) -> Iterable[tuple[int, slice, slice]]:
        """Row, groups (all), blocks."""
        repeats = self.queries.shape[3]
        scores = self.groups * repeats * self.layout.block * self.layout.keys
        count = max(1, _SCORES * torch.get_num_threads() // scores)
        for row in range(len(self.queries)):
            for start in range(0, self.layout.blocks, count):
                yield row, slice(None), slice(start, min(start + count, self.layout.blocks))

    def states(self, part: tuple[int, slice, slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries (X, R · P, C), keys and values (X, S, C) of a part, X = G times its blocks."""
        query = self.queries[part].flatten(2, 3).flatten(0, 1) * self.scale
        return query, self._key_blocks[part].flatten(0, 1), self._value_blocks[part].flatten(0, 1)

    def shares(self, query: Tensor, key: Tensor, part: tuple[int, slice, slice]) -> Tensor:
        """What each query takes of each key: (X, R · P, S), rows sum to 1."""
        row, _, blocks = part
        hidden_NPS = self.hidden_BNPS[row if len(self.hidden_BNPS) > 1 else 0, blocks]
        scores = query @ key.mT
        by_head = scores.view(self.groups, len(hidden_NPS), -1, *hidden_NPS.shape[1:])
        first = blocks.start * self.layout.block < self.layout.before  # its window begins before the first byte
        for keys in (slice(None),) if first else self.edges:
            by_head[..., keys].masked_fill_(hidden_NPS[..., keys].unsqueeze(1), -math.inf)
        return scores.softmax(-1)

    def like_blocks(self, flat: Tensor, part: tuple[int, slice, slice]) -> Tensor:
        """(X, R · P, C) as (G, blocks, R, P, C)."""
        return flat.view(self.queries[part].shape)

    def add_keys(self, total_BGTC: Tensor, more: Tensor, part: tuple[int, slice, slice]) -> None:
        """Add what a part found for its overlapping keys (X, S, C) to the whole."""
        row, _, blocks = part
        block = self.layout.block
        more = more.view(self.groups, blocks.stop - blocks.start, -1, block, more.shape[-1])
        for distance in range(more.shape[2]):
            begin = (blocks.start + distance) * block
            place = total_BGTC[row, :, begin : begin + more.shape[1] * block]
            place.view(more[:, :, distance].shape).add_(more[:, :, distance])
