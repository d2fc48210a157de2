"""A model inside the library: its weights, shape and vocabulary."""

import ctypes
from ctypes import c_int32
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from bytelm.engine.handles import Owned, Spare, StatusError, address_of, check_status, new_pointer, out_of_memory
from bytelm.engine.interface import Functions, Shape
from bytelm.engine.library import Library, load_library, unavailable_reason
from bytelm.errors import ConfigError
from bytelm.model_shape import HeadsShape, TrunkShape, trunk_layers
from bytelm.vocab import Vocab

MatrixKind = Literal["float32", "bfloat16", "int8"]

MOST_SLOTS: Final = 64
"""Sequences of a pass or of a decoder, at most."""
MOST_ROWS: Final = 4096
"""Rows of a session, at most."""

KINDS: Final[dict[MatrixKind, int]] = {"float32": 0, "bfloat16": 1, "int8": 2}
"""Numbers of the kinds in the library, of matrices and of caches."""
_FAMILIES: Final = ("linear", "mlp", "transformer", "causal", "anticausal", "shared")
ATTEND: Final = _FAMILIES[2:]
"""Families of heads that keep keys and values."""
PANEL: Final = 64
"""Outputs that a pass keeps together in memory."""
_MOST_THREADS: Final = 64


class Engine(Owned):
    """A model inside the library. ``bytelm.engine.weights`` makes one from a file or from a torch model.

    Args:
        config: Shape of the trunk.
        heads: Family and number of the prediction heads.
        vocabulary: The ids, and the bytes that each stands for.
        kind: Number format of the matrices.
        threads: Threads that decode, the caller's included; the most are 64.
        library: A library that is loaded; None for the one of this package.

    Attributes:
        config: Shape of the trunk.
        heads: Family and number of the prediction heads; ``heads.count`` is K.
        vocabulary: The ids, and the bytes that each stands for.
        kind: Number format of the matrices.
        threads: Threads that decode, the caller's included.
        isa: Instruction set of the library's variant.
        layers: Layers of the trunk.
        all_layers: Layers of the trunk and transformer blocks of the heads.
        source: File that the weights were read from; None for a model that was never a file.
        spare: Decoders that nobody uses at the moment.

    Raises:
        ConfigError: There is no library, or it cannot run a model of this shape.
    """

    def __init__(
        self,
        config: TrunkShape,
        heads: HeadsShape,
        vocabulary: Vocab,
        kind: MatrixKind,
        *,
        threads: int = 1,
        library: Library | None = None,
    ) -> None:
        library = load_library() if library is None else library
        if library is None:
            raise ConfigError(f"the engine cannot be used: {unavailable_reason()}")
        self.config, self.heads, self.vocabulary = config, heads, vocabulary
        self.kind: MatrixKind = kind
        self.isa = library.isa
        self.source: Path | None = None
        self.threads = min(max(1, threads), _MOST_THREADS)
        self.layers = trunk_layers(config, heads)
        attends = heads.family in ATTEND
        self.all_layers = self.layers + (1 if heads.family == "shared" else heads.count if attends else 0)
        self.cache_layers = self.layers + (heads.count if attends else 0)
        self.call = Functions(library)
        self.spare = Spare()
        # A head that attends does so as the model's last layer would.
        kinds = [config.attention_kind(layer) for layer in range(self.layers)]
        kinds += [config.attention_kind(config.layers - 1)] * (self.all_layers - self.layers)
        local = np.array([kind == "local" for kind in kinds], np.uint8)
        shape, address = self._shape(), address_of(local, np.uint8, self.all_layers)
        try:
            pointer = new_pointer(
                lambda out: self.call.model_new(ctypes.byref(shape), address, self.all_layers, out),
                "a model's layers",
                lambda: self.all_layers * 1024,
            )
        except AssertionError as error:
            raise ConfigError(f"the engine cannot run a model of this shape ({config})") from error
        super().__init__(pointer, self.call.model_free)

    def _shape(self) -> Shape:
        config, sizes = self.config, self.config.ngram_sizes
        return Shape(
            width=config.d_model,
            layers=self.layers,
            heads=config.attention_heads,
            groups=config.kv_heads,
            channels=config.head_channels,
            inner=config.d_ff,
            vocabulary=config.vocabulary_size,
            choices=self.vocabulary.count,
            head_count=self.heads.count,
            family=_FAMILIES.index(self.heads.family),
            ngrams=len(sizes),
            ngram_rows=config.ngram_rows,
            ngram_width=config.ngram_width,
            ngram_size=(c_int32 * 7)(*sizes),
            kind=KINDS[self.kind],
            local_window=min(config.local_window_ids, 2**31 - 1),
            norm_epsilon=config.norm_epsilon,
            rope_base=config.rope_base,
        )

    @property
    def head_count(self) -> int:
        """K."""
        return self.heads.count

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all matrices: what a step reads of them at least."""
        return self.call.model_matrix_bytes(self.pointer)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all weights."""
        return self.call.model_bytes(self.pointer)

    def elements(self, part: int, index: int) -> int:
        """Numbers of a weight; 0 for one that a model of this shape does not have."""
        return self.call.model_elements(self.pointer, part, index)

    def set_weight(self, part: int, index: int, weight: npt.NDArray[Any]) -> None:
        """Give the model a weight; it is copied, packed and rounded to the model's kind where it is a matrix.

        Args:
            part: ``WeightPart`` in model.cpp.
            index: Number of the layer or the head that the weight belongs to; 0 where there is only one such weight.
            weight: float32, or bfloat16 as uint16; ``elements`` says how many numbers.

        Raises:
            StatusError: A number is not finite.
            GenerationError: There is not enough memory.
        """
        dtype = np.dtype(np.uint16 if weight.dtype == np.uint16 else np.float32)
        size = self.elements(part, index)
        assert size > 0, f"a model of this shape has no weight ({part}, {index})"
        address = address_of(weight, dtype, size)
        try:
            check_status(self.call.model_set(self.pointer, part, index, int(dtype == np.uint16), address, size))
        except StatusError as status:
            if status.not_finite:
                raise
            raise out_of_memory("the model's weights", size * 4) from status

    @property
    def complete(self) -> bool:
        """Whether all weights are there."""
        return bool(self.call.model_complete(self.pointer))


def most_rows(engine: Engine, wanted: int) -> int:
    """Rows of a session that is asked for so many: fewer where a row's logits are large."""
    return max(1, min(wanted, MOST_ROWS, max(PANEL, (64 << 20) // (4 * engine.config.vocabulary_size))))
