"""Embeddings of n-grams: what the last few ids together say, looked up before the first layer.

An embedding of single bytes has 257 rows, and the first layers are spent on putting letters together. A table of
n-grams does that in one look-up: a row for each n-gram, found by a hash, so that n-grams that share a row share what
is learnt of it. A look-up costs no product but the small one that brings the rows to the width of the trunk.

An n-gram ends at the id that it is added to and stays in that id's document: what would be before the document, or
before the context, counts as nothing.

Shapes: B batch, T bytes, D width, N kinds of n-grams, P ids before (the longest kind less one), W width of a row.

Source:
    Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1: hashed n-gram embeddings of bytes. There a row has the width
    of the model and rows are added up; here rows are narrow, side by side, and one matrix widens them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.config import ModelConfig
from bytelm.layers import Linear
from bytelm.ngram_rows import ngram_rows


class NgramEmbedding(nn.Module):
    """One table of hashed n-grams for each length, and the matrix that widens what is found.

    The tables begin with zeros: n-grams that were never seen add nothing.

    Args:
        config: Of the trunk, with at least one of ``ngram_sizes``.

    Attributes:
        before: P, ids before the present one that are looked at.
        tables: (N, rows of a table, W).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sizes = config.ngram_sizes
        self.before = max(self.sizes) - 1
        self.tables = nn.Parameter(torch.empty(len(self.sizes), config.ngram_rows, config.ngram_width))
        self.output = Linear(len(self.sizes) * config.ngram_width, config.d_model)

    def forward(self, inputs_BT: Tensor, before_PBT: Tensor) -> Tensor:
        """What the n-grams that end at each id add to its embedding.

        Args:
            inputs_BT: Ids.
            before_PBT: [p, b, t] is the id p + 1 places before [b, t], or ``NOTHING``.

        Returns:
            (B, T, D).
        """
        rows_NBT = ngram_rows(inputs_BT, before_PBT, self.sizes, self.tables.shape[1])
        found_NBTW = F.embedding(rows_NBT, self.tables.flatten(0, 1))
        return self.output(found_NBTW.permute(1, 2, 0, 3).flatten(2))
