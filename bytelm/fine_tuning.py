"""Fine-tuning: a run that begins with the weights of another one, and what of them it leaves as they are.

The trunk is taken over whole. Heads of the same family are taken over by their number, with the norm and the
unembedding that they share; those that the other run had not, and all heads of another family, begin afresh.

``train.frozen`` says what is then never changed: nothing, the trunk, or the whole language model, which is the trunk
with all that head 0 needs. With the latter other heads learn to draft for a model whose own outputs stay the same bit
for bit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from bytelm.checkpoint import find_checkpoint, load_vocabulary, load_weights
from bytelm.config import Frozen, RunConfig
from bytelm.errors import ConfigError
from bytelm.heads import LinearHeads
from bytelm.model import ByteLM
from bytelm.vocab import Vocab

_SHAPE: Final = ("d_model", "attention_heads", "kv_heads", "d_ff", "ngram_sizes", "ngram_rows", "ngram_width")
_WORKINGS: Final = ("attention_pattern", "local_window_bytes", "rope_base", "norm_epsilon")
"""What changes a trunk's outputs, though its weights fit."""
_HEADS: Final = "heads."
_UNEMBEDDING: Final = "heads.unembedding.weight"
_DEPTHS: Final = "heads.depth_embedding"
_OF_A_HEAD: Final = ("heads.layers.", "heads.blocks.")
"""Beginnings of names that go on with the number of a head."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model to begin with."""

    checkpoint: Path
    """From the root of the file system."""
    config: RunConfig
    vocabulary: Vocab
    """What its ids stand for."""
    weights: Mapping[str, Tensor]
    """Those that are evaluated, by name."""


def read_source(path: Path) -> Source:
    """The model of a run, or of one checkpoint, verified.

    Raises:
        CheckpointError: No checkpoint is there, or it is damaged.
    """
    checkpoint = find_checkpoint(path).resolve()
    config, weights = load_weights(checkpoint)
    return Source(checkpoint=checkpoint, config=config, vocabulary=load_vocabulary(checkpoint, config), weights=weights)


def settings_from(path: Path, changes: list[str]) -> RunConfig:
    """Settings of a run that begins with a model: the model's own, with nothing frozen, and what is changed.

    Args:
        path: As ``read_source`` takes it.
        changes: As ``RunConfig.with_changes`` takes them; they come last.

    Raises:
        CheckpointError: No checkpoint is there, or it is damaged.
        ConfigError: A change is impossible.
    """
    begin = ["train.frozen=nothing", f"train.init_from={json.dumps(str(path))}"]
    return read_source(path).config.with_changes([*begin, *changes])


def check_source(source: Source, config: RunConfig) -> None:
    """Refuse a source whose weights do not fit, or would not be what the settings say.

    Raises:
        ConfigError: The width, depth or vocabulary is another one, or what is to be frozen is not there.
    """
    theirs, ours = source.config, config
    pairs = [(f"model.{key}", getattr(theirs.model, key), getattr(ours.model, key)) for key in _SHAPE]
    pairs.append(("layers of the trunk", theirs.trunk_layers, ours.trunk_layers))
    pairs.append(("model.vocabulary", theirs.model.vocabulary, ours.model.vocabulary))
    for what, their, our in pairs:
        if their != our:
            raise ConfigError(f"{source.checkpoint} has {their} as {what}, and {our} was asked for; leave {their}")
    if config.train.frozen == "nothing":
        return
    for key in _WORKINGS:
        their, our = getattr(theirs.model, key), getattr(ours.model, key)
        if their != our:
            raise ConfigError(
                f"{source.checkpoint} has model.{key} = {their}, and {our} was asked for; a trunk that is frozen keeps "
                "it: leave it out, or set train.frozen = nothing"
            )
    if config.train.frozen == "language_model" and theirs.heads.family != ours.heads.family:
        raise ConfigError(
            f"{source.checkpoint} has heads.family = {theirs.heads.family}, and {ours.heads.family} was asked for; "
            f"head 0 can be kept only in its own family: set heads.family = {theirs.heads.family}, or "
            "train.frozen = trunk"
        )


def begin_with(model: ByteLM, source: Source) -> None:
    """Give a fresh model the weights of a source: its trunk, and its heads where they are of the same family.

    Args:
        model: Fits, as ``check_source`` found; weights that the source has not stay as they are.
        source: Where from.
    """
    weights = dict(model.state_dict())
    same_family = source.config.heads.family == model.heads_config.family
    kept_heads = min(source.config.heads.count, model.heads.count) if same_family else 0
    for name, fresh in weights.items():
        taken = source.weights.get(name)
        if not name.startswith(_HEADS):
            assert taken is not None
            fresh.copy_(taken)
        elif kept_heads and taken is not None:
            head = _number_of_head(name)
            if isinstance(model.heads, LinearHeads) and name == _UNEMBEDDING:
                rows = kept_heads * model.heads.vocabulary_size
                fresh[:rows].copy_(taken[:rows])
            elif name == _DEPTHS:
                fresh[:kept_heads].copy_(taken[:kept_heads])
            elif head is None or head < kept_heads or model.heads_config.family == "shared":
                fresh.copy_(taken)


def freeze(model: ByteLM, frozen: Frozen) -> None:
    """Let a part of a model learn no more; only what requires gradients is given to an optimizer.

    Args:
        model: Changed in place.
        frozen: What is never changed. With ``language_model`` the rows of head 0 in the one matrix of ``linear`` heads
            get gradients of zero, and an optimizer must not let that matrix decay.
    """
    if frozen == "nothing":
        return
    model.embedding.requires_grad_(False)
    if model.ngrams is not None:
        model.ngrams.requires_grad_(False)
    model.layers.requires_grad_(False)
    if frozen == "trunk":
        return
    model.heads.norm.requires_grad_(False)
    unembedding = model.heads.get_parameter("unembedding.weight")
    if isinstance(model.heads, LinearHeads):
        unembedding.register_hook(partial(_without_head_0, rows=model.heads.vocabulary_size))
    else:
        unembedding.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if _number_of_head(name) == 0:
                parameter.requires_grad_(False)


def _without_head_0(gradient: Tensor, *, rows: int) -> Tensor:
    """Gradient of the matrix of all linear heads, zero in the rows of head 0."""
    changed = gradient.clone()
    changed[:rows] = 0
    return changed


def _number_of_head(name: str) -> int | None:
    """The head that a parameter belongs to alone; None where several share it."""
    for beginning in _OF_A_HEAD:
        if name.startswith(beginning):
            return int(name.removeprefix(beginning).partition(".")[0])
    return None
