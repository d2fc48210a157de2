"""ByteLM: the trunk, the K prediction heads on it, and what they cost.

Decoder-only, pre-norm: RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU, no biases, embedding
and unembedding not tied. Layers are local or global as the pattern says.

Shapes: B batch, T bytes, M rows of a decoding pass, D width, K prediction heads, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.config import AttentionBackend, HeadsConfig, ModelConfig, trunk_layers
from bytelm.heads import SharedHeads, build_heads
from bytelm.kv_cache import KVCache, slots_for
from bytelm.layers import Attention, Block, CachedPass, Linear, Pass, RMSNorm, WindowPass, rotary_tables
from bytelm.ngrams import NgramEmbedding
from bytelm.vocab import BYTE_VOCABULARY, BYTES, Vocab


class ByteLM(nn.Module):
    """A byte-level language model with K prediction heads.

    Weights are drawn from torch's generator of the device; ``initialize`` draws them again from one that is given.

    Args:
        model: Shape of the trunk.
        heads: Family and number of the prediction heads.
        attention_backend: What computes attention in training, as ``choose_backend`` found out.
        vocabulary: What ids stand for. It may be left out for one that has to be made from data, as long as the model
            is given ids and asked for ids.
    """

    def __init__(
        self,
        model: ModelConfig,
        heads: HeadsConfig,
        *,
        attention_backend: AttentionBackend = "torch",
        vocabulary: Vocab | None = None,
    ) -> None:
        super().__init__()
        self._vocabulary = BYTES if model.vocabulary == BYTE_VOCABULARY else vocabulary
        assert self._vocabulary is None or self._vocabulary.name == model.vocabulary
        self.config = model
        self.heads_config = heads
        self.attention_backend: AttentionBackend = attention_backend
        layers = trunk_layers(model, heads)
        self.embedding = nn.Parameter(torch.empty(model.vocabulary_size, model.d_model))
        self.ngrams = NgramEmbedding(model) if model.ngram_sizes else None
        self.layers = nn.ModuleList(Block(model, model.attention_kind(layer), layer) for layer in range(layers))
        self.heads = build_heads(model, heads, layers, attention_backend)
        self.initialize()

    @property
    def vocabulary(self) -> Vocab:
        """What ids stand for."""
        assert self._vocabulary is not None, "the vocabulary of this model was left out"
        return self._vocabulary

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights.

        Every matrix keeps the size of what it is given (standard deviation 1 / sqrt(inputs)). Those that write to the
        residual stream are scaled by 1 / sqrt(2 · layers), so that its size does not grow with depth. Unembeddings are
        scaled by 0.3: a fresh model then spreads its probability over all V ids, log2(V) bits and hardly more, and
        the trunk still gets gradients that let it learn from the first steps.

        Args:
            generator: On the device of the weights; torch's own where None.
        """
        # Of the longest path: a chain of heads is one.
        depth = max(self.config.layers, len(self.layers) + self.heads.chained * self.heads.count)
        self.embedding.normal_(std=1.0, generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, SharedHeads):
                module.depth_embedding.zero_()
            elif isinstance(module, NgramEmbedding):
                module.tables.zero_()
            elif isinstance(module, RMSNorm):
                module.gain.fill_(1.0)
            elif isinstance(module, Linear):
                std = module.in_features**-0.5
                if name.endswith(".output"):
                    std *= (2 * depth) ** -0.5
                if name.endswith(".unembedding"):
                    std *= 0.3
                module.weight.normal_(std=std, generator=generator)

    def forward(self, inputs_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Logits of all heads over whole windows.

        Args:
            inputs_BT: Ids, integers in [0, V).
            documents_BT: Number of the document of each id; None where each row is one document.

        Returns:
            (B, T, K, V): [b, t, k] scores the id at t + 1 + k.
        """
        return self.heads.logits(self.trunk(inputs_BT, documents_BT), documents_BT)

    def trunk(self, inputs_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Residual stream at the trunk's end, before the final norm.

        Args:
            inputs_BT: Ids, integers in [0, V).
            documents_BT: Number of the document of each id; None where each row is one document.

        Returns:
            (B, T, D).
        """
        shared = WindowPass.build(self.config, inputs_BT, documents_BT, backend=self.attention_backend)
        return self._through(inputs_BT, shared)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for all layers of the trunk and of the heads.

        Args:
            batch: Sequences B that are decoded side by side.
            capacity: Bytes of each that may be kept.
        """
        slots_S = torch.arange(slots_for(capacity), device=self.embedding.device)
        cosine_SC, sine_SC = rotary_tables(slots_S, self.config.head_channels, self.config.rope_base)
        return KVCache(
            layers=len(self.layers) + self.heads.cache_layers,
            batch=batch,
            kv_heads=self.config.kv_heads,
            capacity=capacity,
            cosine_SC=cosine_SC,
            sine_SC=sine_SC,
            dtype=self.embedding.dtype,
        )

    @torch.no_grad()
    def prefill(self, inputs_1T: Tensor, cache: KVCache, sequence: int = 0) -> None:
        """Read a prompt into a sequence of a cache, trunk and heads alike; what was there is forgotten.

        Args:
            inputs_1T: Ids, integers in [0, V); T from 0 to the cache's capacity.
            cache: Of this model.
            sequence: Which one of the cache is filled.
        """
        cache.truncate(sequence, 0)
        if inputs_1T.shape[1] > 0:
            shared = WindowPass.build(self.config, inputs_1T, None, cache, sequence=sequence)
            self.heads.remember(self._through(inputs_1T, shared), shared)
            cache.extend(sequence, inputs_1T.shape[1])

    def cached_pass(self, cache: KVCache, batch: int, rows: int) -> CachedPass:
        """A pass of M rows of each of a cache's first B sequences, for ``decode``; see ``CachedPass.build``."""
        return CachedPass.build(self.config, cache, batch, rows, self.embedding.dtype)

    @torch.no_grad()
    def decode(self, inputs_BM: Tensor, shared: Pass) -> Tensor:
        """Run the rows of a decoding pass. Lengths of the cache stay: the caller accepts rows with ``advance``.

        A row gives the logits of the same byte in a whole window up to the rounding of the device's kernels.

        Args:
            inputs_BM: Ids, integers in [0, V).
            shared: The pass.

        Returns:
            Residual stream at the trunk's end, (B, M, D), for ``heads.decode_logits``.
        """
        return self._through(inputs_BM, shared)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part: ``embedding`` (n-grams too), ``trunk``, ``heads`` (with the final norm), ``total``."""
        ngrams = 0 if self.ngrams is None else sum(parameter.numel() for parameter in self.ngrams.parameters())
        counts = {
            "embedding": self.embedding.numel() + ngrams,
            "trunk": sum(parameter.numel() for parameter in self.layers.parameters()),
            "heads": sum(parameter.numel() for parameter in self.heads.parameters()),
        }
        return counts | {"total": sum(counts.values())}

    def flops_per_byte(self, context_bytes: int, *, training: bool) -> float:
        """Floating point operations for one byte of a window, all heads included.

        Of a vocabulary whose ids stand for several bytes, the operations for an id over ``bytes_per_id``.

        Matrices cost two operations a weight (as often as the heads use it), attention four for each
        channel and byte seen; what a byte cannot see is not counted, though a kernel may compute it. The backward
        pass costs twice the forward pass, and nothing in a trunk that is frozen. Norms, activations and softmax are
        not counted.

        Args:
            context_bytes: Length of the window, over whose positions the mean is taken.
            training: Forward and backward; otherwise forward.

        Source:
            Kaplan et al. 2020, arXiv 2001.08361, section 2.1.
        """
        of_heads = set(self.heads.modules())
        context = self.config.ids_for(context_bytes)
        operations = 0.0
        of_trunk = 3.0 if training and self.embedding.requires_grad else 1.0
        of_the_rest = 3.0 if training else 1.0
        row_share = self.heads_config.row_share if training else 1.0
        for module in self.modules():
            uses = of_the_rest * self.heads.uses(module, row_share) if module in of_heads else of_trunk
            if isinstance(module, Linear):
                operations += uses * 2.0 * module.weight.numel()
            elif isinstance(module, Attention):
                window = context if module.kind == "global" else self.config.local_window_ids
                operations += uses * 4.0 * self.config.d_model * _mean_visible(context, window)
        return operations / self.config.bytes_per_id

    def _through(self, inputs_BT: Tensor, shared: Pass) -> Tensor:
        hidden_BTD = F.embedding(inputs_BT, self.embedding)
        if self.ngrams is not None:
            hidden_BTD = hidden_BTD + self.ngrams(inputs_BT, shared.ids_before(inputs_BT, self.ngrams.before))
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, shared)
        return hidden_BTD


def _mean_visible(length: int, window: int) -> float:
    """Mean over t < length of min(t + 1, window): bytes that a byte sees."""
    window = min(window, length)
    return window - window * (window - 1) / (2 * length)
