"""The Llama of Hugging Face transformers with the shape of ours, for benchmarks beside it."""

import importlib
import sys
from typing import Any

from bytelm.model_shape import TrunkShape


def transformers() -> Any:
    """The library, imported only where it is asked for."""
    # A Llama needs no pictures, and a torchvision of another build would break the import.
    sys.modules["torchvision"] = None  # type: ignore[assignment]  Python's own way to say "not there"
    return importlib.import_module("transformers")


def llama(shape: TrunkShape, *, context_ids: int, **more: Any) -> Any:
    """A Llama with random weights, float32.

    Args:
        shape: Of our trunk, whose n-grams and local windows a Llama does not have.
        context_ids: Positions that it knows.
        more: Further settings of ``LlamaConfig``.
    """
    library = transformers()
    config = library.LlamaConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_channels,
        max_position_embeddings=context_ids,
        tie_word_embeddings=False,
        **more,
    )
    return library.LlamaForCausalLM(config)
