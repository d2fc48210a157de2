"""The shape of a model as a decoder needs it, without the library that checks settings.

``bytelm.config`` checks every setting and builds its classes in a fifth of a second, longer than a short generation
takes. A decoder reads the few values that it needs itself (``read_shape``), where each is plainly right: of its kind,
finite and within the bounds of ``bytelm.config``. A checksum says that a file is as somebody left it, no more.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from bytelm.vocab import BYTE_VOCABULARY, EOD, MOST_IDS, vocabulary_size

AttentionKind = Literal["local", "global"]
HeadFamily = Literal["linear", "mlp", "transformer", "causal", "anticausal", "shared"]

PATH_OF_CONFIG: Final = "config.toml"

_HEADS: Final = {
    "family",
    "count",
    "backward",
    "keep_parameters_equal",
    "weight_ratio",
    "row_share",
    "curriculum",
    "z_loss",
}
"""Settings of the heads; the first two and ``keep_parameters_equal`` matter to a decoder."""


_LATER: Final = {"row_share"}
"""Settings that files of earlier versions lack, and that no decoder asks for."""
_NAME_OF_BPE: Final = re.compile("bpe:([0-9]{3,6})")


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


def read_shape(tree: Mapping[str, Any]) -> ModelShape | None:
    """The shape in a ``config.toml``.

    Args:
        tree: Content of the file, as ``parse_toml`` gives it.

    Returns:
        None where it has not exactly the settings that this version writes, or one of them is not plainly right: then
        only ``RunConfig`` can tell what they mean, or that they mean nothing.
    """
    try:
        model, heads, window_bytes = tree["model"], tree["heads"], tree["data"]["window_bytes"]
        if not isinstance(model, dict) or not isinstance(heads, dict):
            return None
        if set(heads) | _LATER != _HEADS or heads["family"] not in get_args(HeadFamily):
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
        trunk = ReadTrunk(**values)
        read_heads = ReadHeads(
            family=heads["family"], count=heads["count"], keep_parameters_equal=heads["keep_parameters_equal"]
        )
    except (KeyError, TypeError):
        return None
    if not _plain(trunk, read_heads, window_bytes):
        return None
    return ModelShape(trunk=trunk, heads=read_heads, window_bytes=window_bytes)


def _plain(trunk: ReadTrunk, heads: ReadHeads, window_bytes: int) -> bool:
    """Whether the values are such that the settings accept them; some that they accept may be among the others."""
    bounds = (
        (window_bytes, 2, 1 << 20),
        (heads.count, 1, 32),
        (trunk.d_model, 8, 65_536),
        (trunk.layers, 1, 512),
        (trunk.attention_heads, 1, 1024),
        (trunk.kv_heads, 1, 1024),
        (trunk.d_ff, 8, 262_144),
        (trunk.local_window_bytes, 1, 1 << 62),
        (len(trunk.ngram_sizes), 0, 7),
        (trunk.ngram_rows, 1, 1 << 26),
        (trunk.ngram_width, 1, 65_536),
        (trunk_layers(trunk, heads), 1, 512),
    )
    if not all(least <= value <= most for value, least, most in bounds):
        return False
    numbers = all(map(math.isfinite, (trunk.rope_base, trunk.norm_epsilon, trunk.bytes_per_id)))
    numbers &= trunk.rope_base > 1.0 and 0.0 < trunk.norm_epsilon < 0.1 and trunk.bytes_per_id >= 1.0
    sizes = trunk.ngram_sizes
    ascending = list(sizes) == sorted(set(sizes)) and all(2 <= size <= 8 for size in sizes)
    divides = trunk.d_model % (2 * trunk.attention_heads) == 0 and trunk.attention_heads % trunk.kv_heads == 0
    if heads.keep_parameters_equal and heads.family in ("linear", "mlp", "shared"):  # which have no layer for each head
        return False
    return numbers and ascending and divides and _is_vocabulary(trunk)


def _is_vocabulary(trunk: ReadTrunk) -> bool:
    if trunk.vocabulary == BYTE_VOCABULARY:
        return trunk.bytes_per_id == 1.0
    size = _NAME_OF_BPE.fullmatch(trunk.vocabulary)
    return size is not None and EOD + 1 < int(size[1]) <= MOST_IDS


def _is(value: Any, kind: Any) -> bool:
    if kind == tuple[int, ...]:
        return type(value) is tuple and all(type(one) is int for one in value)
    if kind == tuple[AttentionKind, ...]:
        return type(value) is tuple and value != () and all(one in get_args(AttentionKind) for one in value)
    return type(value) is kind
