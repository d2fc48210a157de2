"""The K prediction heads: hidden state at byte t → logits of bytes t + 1 … t + K.

Three families with one interface. ``linear``: K maps of their own on the normalised hidden state, one product in
training. ``mlp``: one residual SiLU layer a head, then a shared unembedding. ``transformer``: one transformer layer a
head, then a shared unembedding. A new family is a class with ``head_logits`` and an entry in ``FAMILIES``.

Head 0 is the language model, the others draft. In decoding head 0 is always computed by itself, with the rows of
its own pass, so that it gives the same bits whether or not the draft heads run.

Shapes: B batch, T bytes (M rows of a decoding pass), D width, K prediction heads (k some of them), V vocabulary.
"""

import abc
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.config import AttentionBackend, HeadFamily, HeadsConfig, ModelConfig
from bytelm.kv_cache import KVCache
from bytelm.layers import ALL_ROWS, Block, CachedPass, Linear, Pass, RMSNorm, WindowPass
from bytelm.vocab import VOCABULARY_SIZE


class PredictionHeads(nn.Module, abc.ABC):
    """K heads over one trunk, the final norm and the unembedding included.

    Args:
        model: Of the trunk.
        count: K.
        first_layer: Layers of the trunk; a head that attends takes the cache's layers from there.
        attention_backend: What computes attention in training.

    Attributes:
        count: K.
        cache_layers: Layers that the heads take in a cache.
        shares_unembedding: Whether all heads end in one matrix.
    """

    cache_layers = 0
    shares_unembedding = True

    def __init__(
        self, model: ModelConfig, count: int, first_layer: int, attention_backend: AttentionBackend = "torch"
    ) -> None:
        super().__init__()
        del first_layer  # only a family that attends needs a place in the cache
        self.config = model
        self.count = count
        self.attention_backend: AttentionBackend = attention_backend
        self.norm = RMSNorm(model.d_model, model.norm_epsilon)

    @abc.abstractmethod
    def head_logits(self, head: int, hidden_BTD: Tensor, shared: Pass | None = None, rows: slice = ALL_ROWS) -> Tensor:
        """Logits of one head.

        Args:
            head: 0 … K - 1.
            hidden_BTD: Residual stream at the trunk's end, before the final norm.
            shared: The pass, from ``window_pass``; families that do not attend take no notice of it.
            rows: Rows whose logits are wanted.

        Returns:
            (B, rows, V): [b, t, v] scores id v as byte t + 1 + head.
        """
        ...

    def window_pass(self, hidden_BTD: Tensor, documents_BT: Tensor | None) -> Pass | None:
        """What ``head_logits`` needs of a window, made once for all heads; None in a family without attention."""
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
        wanted = range(self.count) if heads is None else heads
        return torch.stack([self.head_logits(head, hidden_BTD, shared) for head in wanted], dim=2)

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """Leave the keys and values of all heads in the cache of a pass that reads a prompt."""
        del hidden_BTD, shared

    def decode_logits(self, hidden_BMD: Tensor, cache: KVCache, which: range, *, rows: slice = ALL_ROWS) -> Tensor:
        """Logits of some heads in a decoding pass, before its rows are accepted.

        A head that attends keeps keys of every accepted byte. So ``hidden_BMD`` is always the whole pass, whose row
        m stands in slot ``cache.length + m``, and ``rows`` picks the rows whose logits are wanted: all for head 0,
        the last accepted one for the draft heads. Call it before ``cache.advance``. Draft heads that are used at all
        are called in every pass.

        Args:
            hidden_BMD: What ``ByteLM.decode`` returned, all rows.
            cache: The same cache, its length unchanged since.
            which: Heads, e.g. ``range(0, 1)`` to verify and ``range(1, K)`` to draft.
            rows: Rows whose logits are wanted.

        Returns:
            (B, rows, k, V).
        """
        shared = self._cached_pass(hidden_BMD, cache)
        return torch.stack([self.head_logits(head, hidden_BMD, shared, rows) for head in which], dim=2)

    def _cached_pass(self, hidden_BMD: Tensor, cache: KVCache) -> Pass | None:
        del hidden_BMD, cache
        return None


class LinearHeads(PredictionHeads):
    """K independent maps from the final hidden state to logits, stored as one matrix.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, appendix B, "replicated unembeddings", which its byte models use.
    """

    shares_unembedding = False

    def __init__(
        self, model: ModelConfig, count: int, first_layer: int, attention_backend: AttentionBackend = "torch"
    ) -> None:
        super().__init__(model, count, first_layer, attention_backend)
        self.unembedding = Linear(model.d_model, count * VOCABULARY_SIZE)

    def head_logits(self, head: int, hidden_BTD: Tensor, shared: Pass | None = None, rows: slice = ALL_ROWS) -> Tensor:
        """See ``PredictionHeads``."""
        del shared
        return self._product(self.norm(hidden_BTD[:, rows]), range(head, head + 1)).squeeze(2)

    def logits(self, hidden_BTD: Tensor, documents_BT: Tensor | None = None, heads: range | None = None) -> Tensor:
        """See ``PredictionHeads``; all heads are one product."""
        del documents_BT
        return self._product(self.norm(hidden_BTD), range(self.count) if heads is None else heads)

    def decode_logits(self, hidden_BMD: Tensor, cache: KVCache, which: range, *, rows: slice = ALL_ROWS) -> Tensor:
        """See ``PredictionHeads``; the draft heads are one product, head 0 is its own."""
        del cache
        normed = self.norm(hidden_BMD[:, rows])
        if which.start == 0 and len(which) > 1:
            return torch.cat((self._product(normed, which[:1]), self._product(normed, which[1:])), dim=2)
        return self._product(normed, which)

    def _product(self, normed_BTD: Tensor, heads: range) -> Tensor:
        assert heads.step == 1
        weight = self.unembedding.weight[heads.start * VOCABULARY_SIZE : heads.stop * VOCABULARY_SIZE]
        return F.linear(normed_BTD, weight).unflatten(-1, (len(heads), VOCABULARY_SIZE))


class MLPHeads(PredictionHeads):
    """One residual SiLU layer a head on the final hidden state, then an unembedding that all heads share.

    Source:
        The residual block of Cai et al. 2024, arXiv 2401.10774, section 2.1.1, here trained with the trunk.
    """

    def __init__(
        self, model: ModelConfig, count: int, first_layer: int, attention_backend: AttentionBackend = "torch"
    ) -> None:
        super().__init__(model, count, first_layer, attention_backend)
        self.layers = nn.ModuleList(Linear(model.d_model, model.d_model) for _ in range(count))
        self.unembedding = Linear(model.d_model, VOCABULARY_SIZE)

    def head_logits(self, head: int, hidden_BTD: Tensor, shared: Pass | None = None, rows: slice = ALL_ROWS) -> Tensor:
        """See ``PredictionHeads``."""
        del shared
        normed = self.norm(hidden_BTD[:, rows])
        return self.unembedding(normed + F.silu(self.layers[head](normed)))


class TransformerHeads(PredictionHeads):
    """One transformer layer a head on the trunk's residual stream, then a norm and an unembedding that all share.

    A head's attention is of the kind that the model's last layer has.

    Source:
        Gloeckle et al. 2024, arXiv 2404.19737, section 2.
    """

    def __init__(
        self, model: ModelConfig, count: int, first_layer: int, attention_backend: AttentionBackend = "torch"
    ) -> None:
        super().__init__(model, count, first_layer, attention_backend)
        kind = model.attention_kind(model.layers - 1)
        self.cache_layers = count
        self.blocks = nn.ModuleList(Block(model, kind, first_layer + head) for head in range(count))
        self.unembedding = Linear(model.d_model, VOCABULARY_SIZE)

    def head_logits(self, head: int, hidden_BTD: Tensor, shared: Pass | None = None, rows: slice = ALL_ROWS) -> Tensor:
        """See ``PredictionHeads``."""
        assert shared is not None, "a head that attends needs the pass"
        return self.unembedding(self.norm(self.blocks[head](hidden_BTD, shared, rows)))

    def window_pass(self, hidden_BTD: Tensor, documents_BT: Tensor | None) -> Pass | None:
        """See ``PredictionHeads``."""
        return WindowPass.build(self.config, hidden_BTD, documents_BT, backend=self.attention_backend)

    def remember(self, hidden_BTD: Tensor, shared: Pass) -> None:
        """See ``PredictionHeads``."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.remember(hidden_BTD, shared)

    def _cached_pass(self, hidden_BMD: Tensor, cache: KVCache) -> Pass | None:
        return CachedPass.build(self.config, cache, hidden_BMD.shape[1], hidden_BMD.dtype)


FAMILIES: Final[dict[HeadFamily, type[PredictionHeads]]] = {
    "linear": LinearHeads,
    "mlp": MLPHeads,
    "transformer": TransformerHeads,
}
"""Class of each head family."""


def build_heads(
    model: ModelConfig, heads: HeadsConfig, first_layer: int, attention_backend: AttentionBackend = "torch"
) -> PredictionHeads:
    """Make the heads that the settings name."""
    return FAMILIES[heads.family](model, heads.count, first_layer, attention_backend)
