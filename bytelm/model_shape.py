"""The shape of a model as a decoder needs it, without the library that checks settings.

``bytelm.config`` checks every setting and builds its classes in a fifth of a second, longer than a short generation
takes. A checkpoint's ``config.toml`` was checked when it was written, and its checksum says that it is unchanged: a
decoder reads the few values that it needs itself (``read_shape``).
"""

import tomllib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from bytelm.vocab import vocabulary_size

AttentionKind = Literal["local", "global"]
HeadFamily = Literal["linear", "mlp", "transformer", "causal", "anticausal", "shared"]

PATH_OF_CONFIG: Final = "config.toml"

_HEADS: Final = {"family", "count", "backward", "keep_parameters_equal", "weight_ratio", "curriculum", "z_loss"}
"""Settings of the heads; the first two and ``keep_parameters_equal`` matter to a decoder."""


class TrunkShape:
    """What follows from the numbers of a trunk; its children have them as fields."""

    if TYPE_CHECKING:
        d_model: int
        layers: int
        attention_heads: int
        kv_heads: int
        d_ff: int
        attention_pattern: tuple[AttentionKind, ...]
        local_window_bytes: int
        ngram_sizes: tuple[int, ...]
        ngram_rows: int
        ngram_width: int
        rope_base: float
        norm_epsilon: float
        vocabulary: str
        bytes_per_id: float

    @property
    def head_channels(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.attention_heads

    def attention_kind(self, layer: int) -> AttentionKind:
        """Kind of attention in a layer (0-based): the pattern, repeated."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    @property
    def vocabulary_size(self) -> int:
        """Width of every prediction head."""
        return vocabulary_size(self.vocabulary)

    @property
    def local_window_ids(self) -> int:
        """Ids that a local layer sees: those of ``local_window_bytes``, on the average."""
        return self.ids_for(self.local_window_bytes)

    def ids_for(self, size_bytes: int) -> int:
        """Ids that so many bytes make on the average; as many for a byte model.

        Example:
            100 bytes are 100 ids of bytes, and 31 where ``bytes_per_id`` is 3.2.
        """
        return max(1, round(size_bytes / self.bytes_per_id))


class HeadsShape(Protocol):
    """What a decoder must know of the prediction heads."""

    @property
    def family(self) -> HeadFamily:
        """What a head is made of."""
        ...

    @property
    def count(self) -> int:
        """K."""
        ...

    @property
    def keep_parameters_equal(self) -> bool:
        """Whether K - 1 layers were taken off the trunk."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReadTrunk(TrunkShape):
    """A trunk as a ``config.toml`` has it: the fields of ``bytelm.config.ModelConfig``, unchecked."""

    d_model: int
    layers: int
    attention_heads: int
    kv_heads: int
    d_ff: int
    attention_pattern: tuple[AttentionKind, ...]
    local_window_bytes: int
    ngram_sizes: tuple[int, ...]
    ngram_rows: int
    ngram_width: int
    rope_base: float
    norm_epsilon: float
    vocabulary: str
    bytes_per_id: float


@dataclass(frozen=True, kw_only=True)
class ReadHeads:
    """The heads as a ``config.toml`` has them, unchecked; see ``HeadsShape``."""

    family: HeadFamily
    count: int
    keep_parameters_equal: bool


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model as a decoder needs to know it.

    Attributes:
        trunk: Its numbers.
        heads: Family and number.
        window_bytes: Context that it was trained with.
    """

    trunk: TrunkShape
    heads: HeadsShape
    window_bytes: int


def trunk_layers(model: TrunkShape, heads: HeadsShape) -> int:
    """Layers of the trunk: all of them, or K - 1 fewer under ``keep_parameters_equal`` (Gloeckle et al. 2024, §3)."""
    return model.layers - (heads.count - 1 if heads.keep_parameters_equal else 0)


def read_shape(text: str) -> ModelShape | None:
    """The shape in a ``config.toml`` whose checksum has been verified.

    Args:
        text: Of the file.

    Returns:
        None where it has not exactly the settings that this version writes: then only ``RunConfig`` can tell what the
        others mean, or that they mean nothing.
    """
    try:
        tree = tomllib.loads(text)
        model, heads, window_bytes = tree["model"], tree["heads"], tree["data"]["window_bytes"]
        if set(heads) != _HEADS or heads["family"] not in get_args(HeadFamily):
            return None
        # Lists are tuples there; a wrong kind of value is left to RunConfig as well.
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in model.items()
        }
        kinds = {field.name: field.type for field in fields(ReadTrunk)}
        if set(values) != set(kinds) or any(not _is(values[name], kind) for name, kind in kinds.items()):
            return None
        if not (_is(heads["count"], int) and _is(heads["keep_parameters_equal"], bool) and _is(window_bytes, int)):
            return None
        read_heads = ReadHeads(
            family=heads["family"], count=heads["count"], keep_parameters_equal=heads["keep_parameters_equal"]
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return None
    return ModelShape(trunk=ReadTrunk(**values), heads=read_heads, window_bytes=window_bytes)


def _is(value: Any, kind: Any) -> bool:
    if kind == tuple[int, ...]:
        return type(value) is tuple and all(type(one) is int for one in value)
    if kind == tuple[AttentionKind, ...]:
        return type(value) is tuple and value != () and all(one in get_args(AttentionKind) for one in value)
    return type(value) is kind
