"""The trunk of a decoding pass on the CPU, written flat: the numbers of ``Block`` up to rounding, with less around.

A pass of few rows of a small model is hardly any arithmetic. What takes time are the calls: modules, views, and an RMS
norm that torch computes in ten operations. Here are the same layers as one loop over matrices that were looked up
before, with four operations a norm. ``Block`` is the specification; ``docs/experiments.md`` has what is gained.

Every operation computes a row from that row alone, in the same order however many rows there are, as the layers do.

Shapes: M rows, D width, H attention heads, G key and value heads, R = H / G, C channels of a head, S slots.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.config import AttentionKind, ModelConfig
from bytelm.layers import Block, CachedPass, JoinedPass, Linear


@dataclass(frozen=True, slots=True)
class _Layer:
    """Matrices and gains of a layer; a gain has the root of its channels in it."""

    kind: AttentionKind
    index: int
    attention_gain_D: Tensor
    query_key_value: Callable[[Tensor], Tensor]
    query_key_gain_HC: Tensor
    output: Callable[[Tensor], Tensor]
    feed_forward_gain_D: Tensor
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, block: Block) -> "_Layer":
        attention, feed_forward = block.attention, block.feed_forward
        return cls(
            attention.kind,
            attention.layer,
            _scaled(block.attention_norm.gain),
            _product(attention.query_key_value),
            _scaled(attention.query_key_gain),
            _product(attention.output),
            _scaled(block.feed_forward_norm.gain),
            _product(feed_forward.gate_up),
            _product(feed_forward.output),
        )


class FlatTrunk:
    """Layers of a trunk on the CPU, for passes without gradients; weights that change after this need a new one.

    Args:
        config: Of the trunk.
        blocks: Its layers.

    Attributes:
        dtype: Of the matrices, which the rows must have too.
    """

    def __init__(self, config: ModelConfig, blocks: Sequence[Block]) -> None:
        self.dtype = blocks[0].attention.output.weight.dtype
        self._layers = [_Layer.of(block) for block in blocks]
        self._heads, self._groups, self._channels = config.attention_heads, config.kv_heads, config.head_channels
        self._least_D = torch.tensor(math.sqrt(config.norm_epsilon * config.d_model))
        self._least_C = torch.tensor(math.sqrt(config.norm_epsilon * config.head_channels))

    def __call__(self, hidden_1MD: Tensor, shared: CachedPass | JoinedPass) -> Tensor:
        """Residual stream at the trunk's end.

        Args:
            hidden_1MD: Embeddings of the rows of the pass.
            shared: The pass.
        """
        hidden_MD = hidden_1MD[0]
        rows, dtype = hidden_MD.shape[0], hidden_MD.dtype
        heads, groups, channels = self._heads, self._groups, self._channels
        both = heads + groups
        cosine_M1C, sine_M1C = shared.rotary.cosine[0], shared.rotary.sine[0]
        parts = [(shared, 0, rows)] if isinstance(shared, CachedPass) else shared.parts
        for layer in self._layers:
            normed_MD = _rms_norm(hidden_MD.float(), self._least_D, layer.attention_gain_D).to(dtype)
            projected_MHC = layer.query_key_value(normed_MD).view(rows, both + groups, channels)
            turned_MHC = _rms_norm(projected_MHC[:, :both].float(), self._least_C, layer.query_key_gain_HC)
            swapped_MHC = turned_MHC.view(rows, both, 2, channels // 2).flip(2).view(rows, both, channels)
            turned_MHC = torch.addcmul(turned_MHC * cosine_M1C, swapped_MHC, sine_M1C).to(dtype)
            query_MHC, key_MGC, value_MGC = turned_MHC[:, :heads], turned_MHC[:, heads:], projected_MHC[:, both:]
            mixed = [
                _attend(one, layer, query_MHC[start:end], key_MGC[start:end], value_MGC[start:end])
                for one, start, end in parts
            ]
            hidden_MD = hidden_MD + layer.output(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
            normed_MD = _rms_norm(hidden_MD.float(), self._least_D, layer.feed_forward_gain_D).to(dtype)
            gate_MF, up_MF = layer.gate_up(normed_MD).chunk(2, -1)
            hidden_MD = hidden_MD + layer.down(F.silu(gate_MF).mul_(up_MF))
        return hidden_MD.unsqueeze(0)


def _attend(one: CachedPass, layer: _Layer, query_MHC: Tensor, key_MGC: Tensor, value_MGC: Tensor) -> Tensor:
    """What ``CachedPass.attend`` does, (M, D)."""
    rows, heads, channels = query_MHC.shape
    groups = key_MGC.shape[1]
    one.cache.write(layer.index, key_MGC.transpose(0, 1).unsqueeze(0), value_MGC.transpose(0, 1).unsqueeze(0))
    start, end, bias_RMS = one.ranges[layer.kind]
    key_1GSC, value_1GSC = one.cache.read(layer.index, start, end)
    repeats = heads // groups
    query_1GQC = query_MHC.view(rows, groups, repeats, channels).permute(1, 2, 0, 3).reshape(1, groups, -1, channels)
    mixed = F.scaled_dot_product_attention(query_1GQC, key_1GSC, value_1GSC, bias_RMS.view(-1, end - start))
    return mixed.view(groups, repeats, rows, channels).permute(2, 0, 1, 3).reshape(rows, heads * channels)


def _rms_norm(wide: Tensor, least: Tensor, gain: Tensor) -> Tensor:
    """RMS norm of the last dimension, float32: x / sqrt(mean(x²) + ε) is √n · x / hypot(|x|, √(n · ε))."""
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide.div(length.hypot_(least)).mul_(gain)


def _scaled(gain: Tensor) -> Tensor:
    return gain.detach().float() * math.sqrt(gain.shape[-1])


def _product(linear: Linear) -> Callable[[Tensor], Tensor]:
    """(M, inputs) to (M, outputs), with as little as possible around."""
    if linear.packed is not None:
        return linear.packed.product
    weight_IO = linear.weight.detach().t()
    return lambda input_MI: torch.mm(input_MI, weight_IO)
