"""The K prediction heads: hidden state at byte t → logits of bytes t + 1 … t + K.

Six families with one interface. A head is a state and its unembedding. ``linear``: K maps of their own on the
normalised hidden state, one product in training. ``mlp``: one residual SiLU layer a head. ``transformer``: one
transformer layer a head. ``causal`` and ``anticausal``: the same layers one on top of the other, from the nearest
byte to the farthest or the other way. ``shared``: one such layer, applied once more for each head. All but the first
share an unembedding. A new family is a class with ``head_state`` and ``unembed`` and an entry in ``FAMILIES``.

Head 0 is the language model, the others draft.

Shapes: B batch, T bytes (M rows of a decoding pass), D width, K prediction heads (k some of them), V vocabulary.
"""

import abc
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.config import AttentionBackend, AttentionKind, HeadFamily, HeadsConfig, ModelConfig
from bytelm.layers import Block, Linear, Pass, RMSNorm, Rotary, WindowPass, pick_rows


class PredictionHeads(nn.Module, abc.ABC):
    """K heads over one trunk, the final norm and the unembedding included.

    Args:
        model: Of the trunk.
        count: K.
        first_layer: Layers of the trunk; a head that attends takes the cache's layers from there.
        attention_backend: What computes attention in training.

    Attributes:
        count: K.
        vocabulary_size: V.
        order: The heads in the order in which they are computed.
        chained: Whether a head's state is made from that of the head before it in ``order``, and not from the trunk's.
        row_by_row: Whether a row of a head's state is made from that row alone: the head does not attend.
        cache_layers: Layers that the heads take in a cache.
    """

    chained = False
    row_by_row = True
    cache_layers = 0

    def __init__(
        self, model: ModelConfig, count: int, first_layer: int, attention_backend: AttentionBackend = "torch"
    ) -> None:
        super().__init__()
        self.config = model
        self.count = count
        self.vocabulary_size = model.vocabulary_size
        self.order = range(count)
        self.attention_backend: AttentionBackend = attention_backend
        self.norm = RMSNorm(model.d_model, model.norm_epsilon)
        self._build(model, first_layer)

    @abc.abstractmethod
    def _build(self, model: ModelConfig, first_layer: int) -> None:
        """Make the parameters that are not common to all families."""
        ...

    @abc.abstractmethod
    def head_state(
        self, head: int, before_BTD: Tensor, shared: Pass | None = None, row_B: Tensor | None = None
    ) -> Tensor:
        """What a head makes of what it is given.

        Args:
            head: 0 … K - 1.
            before_BTD: Residual stream at the trunk's end, before the final norm; in a chain, for all heads but the
                first in ``order``, the state of the head before.
            shared: The pass, from ``window_pass``; families that do not attend take no notice of it.
            row_B: One row of each sequence, whose state is wanted; None for all.

        Returns:
            (B, T or 1, D).
        """
        ...

    @abc.abstractmethod
    def unembed(self, head: int, state_BTD: Tensor) -> Tensor:
        """Logits (B, T, V) of a head from its state: [b, t, v] scores id v as byte t + 1 + head."""
        ...

    def own_layer(self, head: int) -> nn.Module | None:
        """The layer that this head has for itself; None in a family without such layers."""
        del head
        return None

    def parameters_of(self, heads: Collection[int]) -> list[nn.Parameter]:
        """Parameters that some heads are computed with: all but the layers that others have for themselves."""
        others = [self.own_layer(head) for head in range(self.count) if head not in heads]
        left_out = {id(parameter) for layer in others if layer is not None for parameter in layer.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in left_out]

    def uses(self, module: nn.Module, row_share: float = 1.0) -> float:
        """How often all heads together compute with one of their matrices or attention layers, for each row.

        Args:
            module: A matrix or an attention layer of these heads.
            row_share: Share of the rows that heads 1 … K - 1 are computed for, in (0, 1].
        """
        return 1.0 + (self.count - 1) * row_share if module is self.get_submodule("unembedding") else 1.0

    def states(
        self, hidden_BTD: Tensor, shared: Pass | None, wanted: range, row_B: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Wanted heads with their states, each computed once, in ``order``.

        Args:
            hidden_BTD: Residual stream at the trunk's end, before the final norm.
            shared: The pass, from ``window_pass``.
            wanted: Heads, ascending.
            row_B: One row of each sequence, whose states are wanted; None for all.
        """
        for head in wanted:
            yield head, self.head_state(head, hidden_BTD, shared, row_B)

    def head_logits(
        self, head: int, hidden_BTD: Tensor, shared: Pass | None = None, row_B: Tensor | None = None
    ) -> Tensor:
        """Logits of one head; in a chain, all heads before it in ``order`` are computed for it.

        Args:
            head: 0 … K - 1.
            hidden_BTD: Residual stream at the trunk's end, before the final norm.
            shared: The pass, from ``window_pass``.
            row_B: One row of each sequence, whose logits are wanted; None for all.

        Returns:
            (B, T or 1, V): [b, t, v] scores id v as byte t + 1 + head.
        """
        ((_, state_BTD),) = self.states(hidden_BTD, shared, range(head, head + 1), row_B)
        return self.unembed(head, state_BTD)

    def window_pass(self, hidden_BTD: Tensor, documents_BT: Tensor | None) -> Pass | None:
        """What ``head_state`` needs of a window, made once for all heads; None in a family without attention."""
        del hidden_BTD, documents_BT
        return None

    def logits(self, hidden_BTD: Tensor, documents_BT: Tensor | None = None, heads: range | None = None) -> Tensor:
        """Logits of some heads over whole windows.

        Args:
            hidden_BTD: Residual stream at the trunk's end, before the final norm.
            documents_BT: Number of the document of each byte; None where each row is one document.
            heads: Which; all where None.

        Returns:
            (B, T, k, V).
        """
        shared = self.window_pass(hidden_BTD, documents_BT)
        return self.stacked_logits(hidden_BTD, shared, range(self.count) if heads is None else heads)

    def stacked_logits(
        self, hidden_BTD: Tensor, shared: Pass | None, which: range, row_B: Tensor | None = None
    ) -> Tensor:
        """Logits of some heads (B, T or 1, k, V), where the pass is there already."""
        found = {head: self.unembed(head, state) for head, state in self.states(hidden_BTD, shared, which, row_B)}
        return torch.stack([found[head] for head in which], dim=2)

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """Leave the keys and values of all heads in the cache of a pass that reads a prompt."""
        del hidden_BTD, shared

    def decode_logits(self, hidden_BMD: Tensor, shared: Pass, which: range, *, row_B: Tensor | None = None) -> Tensor:
        """Logits of some heads in a decoding pass, before its rows are accepted.

        A head that attends keeps keys of every accepted byte. So ``hidden_BMD`` is always the whole pass, and
        ``row_B`` picks the rows whose logits are wanted: all for head 0, the last accepted ones for the draft heads.
        Call it before a cache is advanced. Draft heads that are used at all are called in every pass.

        Args:
            hidden_BMD: What ``ByteLM.decode`` returned, all rows.
            shared: The same pass.
            which: Heads, e.g. ``range(0, 1)`` to verify and ``range(1, K)`` to draft.
            row_B: One row of each sequence, whose logits are wanted; None for all.

        Returns:
            (B, M or 1, k, V).
        """
        return self.stacked_logits(hidden_BMD, shared, which, row_B)


class LinearHeads(PredictionHeads):
    """K independent maps from the final hidden state to logits, stored as one matrix.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, appendix B, "replicated unembeddings", which its byte models use.
    """

    def _build(self, model: ModelConfig, first_layer: int) -> None:
        del first_layer
        self.unembedding = Linear(model.d_model, self.count * self.vocabulary_size)

    def uses(self, module: nn.Module, row_share: float = 1.0) -> float:
        """See ``PredictionHeads``; one matrix holds all heads."""
        return super().uses(module, row_share) / self.count

    def head_state(
        self, head: int, before_BTD: Tensor, shared: Pass | None = None, row_B: Tensor | None = None
    ) -> Tensor:
        """See ``PredictionHeads``; the same for all heads."""
        del head, shared
        return self.norm(pick_rows(before_BTD, row_B))

    def unembed(self, head: int, state_BTD: Tensor) -> Tensor:
        """See ``PredictionHeads``."""
        return self._product(state_BTD, range(head, head + 1)).squeeze(2)

    def stacked_logits(
        self, hidden_BTD: Tensor, shared: Pass | None, which: range, row_B: Tensor | None = None
    ) -> Tensor:
        """See ``PredictionHeads``; all heads are one product."""
        del shared
        return self._product(self.norm(pick_rows(hidden_BTD, row_B)), which)

    def _product(self, normed_BTD: Tensor, heads: range) -> Tensor:
        assert heads.step == 1
        size = self.vocabulary_size
        weight = self.unembedding.weight[heads.start * size : heads.stop * size]
        return F.linear(normed_BTD, weight).unflatten(-1, (len(heads), size))


class MLPHeads(PredictionHeads):
    """One residual SiLU layer a head on the final hidden state, then an unembedding that all heads share.

    Source:
        The residual block of Cai et al. 2024, arXiv 2401.10774, section 2.1.1, here trained with the trunk.
    """

    def _build(self, model: ModelConfig, first_layer: int) -> None:
        del first_layer
        self.layers = nn.ModuleList(Linear(model.d_model, model.d_model) for _ in range(self.count))
        self.unembedding = Linear(model.d_model, self.vocabulary_size)

    def uses(self, module: nn.Module, row_share: float = 1.0) -> float:
        """See ``PredictionHeads``."""
        return row_share if module in set(self.layers[1:]) else super().uses(module, row_share)

    def own_layer(self, head: int) -> nn.Module:
        """See ``PredictionHeads``."""
        return self.layers[head]

    def head_state(
        self, head: int, before_BTD: Tensor, shared: Pass | None = None, row_B: Tensor | None = None
    ) -> Tensor:
        """See ``PredictionHeads``."""
        del shared
        normed = self.norm(pick_rows(before_BTD, row_B))
        return normed + F.silu(self.layers[head](normed))

    def unembed(self, head: int, state_BTD: Tensor) -> Tensor:
        """See ``PredictionHeads``."""
        del head
        return self.unembedding(state_BTD)


class TransformerHeads(PredictionHeads):
    """One transformer layer a head on the trunk's residual stream, then a norm and an unembedding that all share.

    A head's attention is of the kind that the model's last layer has.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, section 2.
    """

    row_by_row = False
    layers_of_its_own = True

    def _build(self, model: ModelConfig, first_layer: int) -> None:
        kind = model.attention_kind(model.layers - 1)
        self.cache_layers = self.count
        layers = self.count if self.layers_of_its_own else 1
        self.blocks = nn.ModuleList(Block(model, kind, first_layer + layer) for layer in range(layers))
        self.unembedding = Linear(model.d_model, self.vocabulary_size)

    def own_layer(self, head: int) -> nn.Module | None:
        """See ``PredictionHeads``."""
        return self.blocks[head] if self.layers_of_its_own else None

    def head_state(
        self, head: int, before_BTD: Tensor, shared: Pass | None = None, row_B: Tensor | None = None
    ) -> Tensor:
        """See ``PredictionHeads``."""
        assert shared is not None, "a head that attends needs the pass"
        return self.blocks[head](before_BTD, shared, row_B)

    def unembed(self, head: int, state_BTD: Tensor) -> Tensor:
        """See ``PredictionHeads``."""
        del head
        return self.unembedding(self.norm(state_BTD))

    def window_pass(self, hidden_BTD: Tensor, documents_BT: Tensor | None) -> Pass | None:
        """See ``PredictionHeads``."""
        return WindowPass.build(self.config, hidden_BTD, documents_BT, backend=self.attention_backend)

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """See ``PredictionHeads``."""
        for head in self.order:
            self._remember_head(head, hidden_BTD, shared)

    def _remember_head(self, head: int, before_BTD: Tensor, shared: Pass) -> None:
        block = self.blocks[head]
        assert isinstance(block, Block)
        block.remember(before_BTD, shared)


class CausalHeads(TransformerHeads):
    """Transformer heads in a chain: head 0 on the trunk, each other one on the head of the byte before its own.

    Head 0 has the path of ``transformer``, the farthest head K layers. A chain is a deeper network: in training the
    states of all its layers are kept (or computed again), and only logits exist one head at a time.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, appendix B, "causal".
    """

    chained = True

    def states(
        self, hidden_BTD: Tensor, shared: Pass | None, wanted: range, row_B: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """See ``PredictionHeads``; heads that others need are computed for all rows."""
        last = max(wanted, key=self.order.index)
        state_BTD = hidden_BTD
        for head in self.order:
            if head == last:
                yield head, self.head_state(head, state_BTD, shared, row_B)
                return
            state_BTD = self.head_state(head, state_BTD, shared)
            if head in wanted:
                yield head, pick_rows(state_BTD, row_B)

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """See ``PredictionHeads``; of the last head in ``order`` nothing else is needed."""
        for head in self.order[:-1]:
            hidden_BTD = self.head_state(head, hidden_BTD, shared)
        self._remember_head(self.order[-1], hidden_BTD, shared)


class AnticausalHeads(CausalHeads):
    """Transformer heads in a chain from the farthest byte to the nearest: the language model is the end of it.

    Head 0 has K layers on the trunk, so that plain decoding computes all heads as well.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, appendix B, "anticausal".
    """

    def _build(self, model: ModelConfig, first_layer: int) -> None:
        super()._build(model, first_layer)
        self.order = range(self.count - 1, -1, -1)


class SharedHeads(CausalHeads):
    """One transformer layer, applied once for head 0 and once more for each head after it: a causal chain.

    It is told how deep it stands by an embedding that is added to what it is given, at first zero. Its keys of each
    depth have a layer of their own in a cache.

    Source:
        Recurrence in depth with an embedding of the depth: Dehghani et al. 2018, arXiv 1807.03819, section 2.1. As
        prediction heads with shared weights: FastMTP 2025, arXiv 2509.18362, whose layer also reads the id before.
    """

    layers_of_its_own = False

    def _build(self, model: ModelConfig, first_layer: int) -> None:
        super()._build(model, first_layer)
        self.depth_embedding = nn.Parameter(torch.zeros(self.count, model.d_model))

    def uses(self, module: nn.Module, row_share: float = 1.0) -> float:
        """See ``PredictionHeads``; its layer is computed for all rows, whatever the share."""
        return super().uses(module, row_share) if module is self.unembedding else self.count

    def head_state(
        self, head: int, before_BTD: Tensor, shared: Pass | None = None, row_B: Tensor | None = None
    ) -> Tensor:
        """See ``PredictionHeads``."""
        assert shared is not None, "a head that attends needs the pass"
        return self.blocks[0](before_BTD + self.depth_embedding[head], _AtDepth(shared, head), row_B)

    def _remember_head(self, head: int, before_BTD: Tensor, shared: Pass) -> None:
        block = self.blocks[0]
        assert isinstance(block, Block)
        block.remember(before_BTD + self.depth_embedding[head], _AtDepth(shared, head))


@dataclass(frozen=True, slots=True)
class _AtDepth:
    """A pass whose layers are so many places later in the cache."""

    inner: Pass
    depth: int

    @property
    def rotary(self) -> Rotary:
        return self.inner.rotary

    def ids_before(self, inputs_BT: Tensor, count: int) -> Tensor:
        return self.inner.ids_before(inputs_BT, count)

    def remember(self, layer: int, key_BTGC: Tensor, value_BTGC: Tensor) -> None:
        self.inner.remember(layer + self.depth, key_BTGC, value_BTGC)

    def attend(
        self,
        query_BTHC: Tensor,
        key_BTGC: Tensor,
        value_BTGC: Tensor,
        kind: AttentionKind,
        layer: int,
        row_B: Tensor | None,
    ) -> Tensor:
        return self.inner.attend(query_BTHC, key_BTGC, value_BTGC, kind, layer + self.depth, row_B)


FAMILIES: Final[dict[HeadFamily, type[PredictionHeads]]] = {
    "linear": LinearHeads,
    "mlp": MLPHeads,
    "transformer": TransformerHeads,
    "causal": CausalHeads,
    "anticausal": AnticausalHeads,
    "shared": SharedHeads,
}
"""Class of each head family."""


def build_heads(
    model: ModelConfig, heads: HeadsConfig, first_layer: int, attention_backend: AttentionBackend = "torch"
) -> PredictionHeads:
    """Make the heads that the settings name."""
    return FAMILIES[heads.family](model, heads.count, first_layer, attention_backend)
