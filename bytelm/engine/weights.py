"""Weights on their way into the engine: from a ``model.safetensors``, without torch, or from a torch model.

A file is mapped into memory, so that numbers are copied once, into the packed matrices. Each weight must be there, in
its shape, and finite: a weight that is not would make every byte wrong.

    file      8 bytes: length n of the header, little-endian; n bytes: JSON, name → dtype, shape, data_offsets; numbers
"""

import itertools
import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from bytelm.device import choose_decoding_threads
from bytelm.engine import Engine, MatrixKind, StatusError
from bytelm.engine.library import Library, load_library
from bytelm.errors import CheckpointError, weight_not_finite
from bytelm.model_shape import HeadsShape, TrunkShape, trunk_layers
from bytelm.vocab import Vocab

if TYPE_CHECKING:
    from bytelm.model import ByteLM

EnginePrecision = Literal["auto", MatrixKind]

_BLOCK: Final = (
    ("attention_norm.gain", 10),
    ("attention.query_key_gain", 12),
    ("attention.query_key_value.weight", 11),
    ("attention.output.weight", 13),
    ("feed_forward_norm.gain", 14),
    ("feed_forward.gate_up.weight", 15),
    ("feed_forward.output.weight", 16),
)
"""Names of a block's weights with their numbers as ``WeightPart`` in model.cpp has them."""
_MATRICES: Final = frozenset((2, 4, 6, 11, 13, 15, 16))
_LONGEST_HEADER: Final = 100 << 20
_DTYPES: Final = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16, "F64": np.float64}


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a model.

    Attributes:
        name: In files, and in torch.
        part: Of the engine's model.
        index: Of its layer or head there.
        shape: Of its numbers.
    """

    name: str
    part: int
    index: int
    shape: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether it takes the kind of the matrices."""
        return self.part in _MATRICES


def weights_of(model: TrunkShape, heads: HeadsShape) -> list[Weight]:
    """All weights of a model, in the order in which torch keeps them.

    Args:
        model: Of the trunk.
        heads: Family and number.
    """
    width, ids, ngrams = model.d_model, model.vocabulary_size, len(model.ngram_sizes)
    layers = trunk_layers(model, heads)
    found = [Weight("embedding", 0, 0, (ids, width))]
    if ngrams:
        found.append(Weight("ngrams.tables", 1, 0, (ngrams, model.ngram_rows, model.ngram_width)))
        found.append(Weight("ngrams.output.weight", 2, 0, (width, ngrams * model.ngram_width)))
    for layer in range(layers):
        found += _block(model, f"layers.{layer}", layer)
    if heads.family == "shared":
        found.append(Weight("heads.depth_embedding", 5, 0, (heads.count, width)))
    found.append(Weight("heads.norm.gain", 3, 0, (width,)))
    if heads.family == "mlp":
        found += [Weight(f"heads.layers.{head}.weight", 6, head, (width, width)) for head in range(heads.count)]
    elif heads.family != "linear":
        for head in range(1 if heads.family == "shared" else heads.count):
            found += _block(model, f"heads.blocks.{head}", layers + head)
    outputs = ids * (heads.count if heads.family == "linear" else 1)
    found.append(Weight("heads.unembedding.weight", 4, 0, (outputs, width)))
    return found


def matrix_parameters(model: TrunkShape, heads: HeadsShape) -> int:
    """Weights of all matrices: what a step multiplies with."""
    return sum(math.prod(one.shape) for one in weights_of(model, heads) if one.is_matrix)


def _block(model: TrunkShape, name: str, index: int) -> list[Weight]:
    width, inner = model.d_model, model.d_ff
    turned = model.attention_heads + model.kv_heads
    shapes = (
        (width,),
        (turned, model.head_channels),
        ((turned + model.kv_heads) * model.head_channels, width),
        (width, width),
        (width,),
        (2 * inner, width),
        (width, inner),
    )
    return [Weight(f"{name}.{own}", part, index, shape) for (own, part), shape in zip(_BLOCK, shapes, strict=True)]


def engine_from_file(
    path: Path,
    model: TrunkShape,
    heads: HeadsShape,
    vocabulary: Vocab,
    *,
    precision: EnginePrecision = "auto",
    threads: int = 1,
    library: Library | None = None,
) -> Engine:
    """The engine's model from a ``model.safetensors``, whose checksum has been verified.

    Args:
        path: Of the file.
        model: Of the trunk.
        heads: Family and number.
        vocabulary: What ids stand for.
        precision: Of the matrices; ``auto`` is bfloat16 where every matrix of the file is, which gives the bits of
            float32, else float32.
        threads: Of the sessions that decode.
        library: Loaded; the one of this package where None.

    Raises:
        CheckpointError: A weight is missing, of another shape, not finite, or there is one that the model has not.
        ConfigError: The engine cannot be used.
        GenerationError: There is not enough memory.
    """
    wanted = weights_of(model, heads)
    found = read_safetensors(path)
    _check(path, wanted, found)
    if precision == "auto":
        precision = (
            "bfloat16" if all(found[one.name].dtype == np.uint16 for one in wanted if one.is_matrix) else "float32"
        )
    engine = Engine(model, heads, vocabulary, precision, threads=threads, library=library)
    for one in wanted:
        _set(engine, one, found[one.name], str(path))
    assert engine.complete
    engine.source = path
    return engine


def engine_from_torch(
    model: "ByteLM", *, precision: EnginePrecision = "auto", threads: int = 1, library: Library | None = None
) -> Engine:
    """The engine's model from a torch model, whose weights are copied as they are now.

    Args:
        model: On any device; weights of float32 or bfloat16, others are widened.
        precision: As of ``engine_from_file``, ``auto`` by the dtypes of the model's matrices.
        threads: Of the sessions that decode.
        library: Loaded; the one of this package where None.

    Raises:
        CheckpointError: A weight is not finite.
        ConfigError: The engine cannot be used.
        GenerationError: There is not enough memory.
    """
    import torch

    state = model.state_dict()
    wanted = weights_of(model.config, model.heads_config)
    assert {one.name for one in wanted} == set(state), "the model has other weights than the engine knows"
    halves = {one.name for one in wanted if state[one.name].dtype == torch.bfloat16}
    if precision == "auto":
        precision = "bfloat16" if all(one.name in halves for one in wanted if one.is_matrix) else "float32"
    engine = Engine(model.config, model.heads_config, model.vocabulary, precision, threads=threads, library=library)
    for one in wanted:
        tensor = state[one.name].detach().cpu().contiguous()
        numbers = tensor.view(torch.uint16) if one.name in halves else tensor.float()
        _set(engine, one, numbers.numpy(), "the model")
    assert engine.complete
    return engine


def engine_if_possible(model: "ByteLM") -> Engine | None:
    """The engine's copy of a torch model, whose weights are copied as they are now; None where only torch decodes it.

    Args:
        model: On any device.

    Raises:
        CheckpointError: A weight is not finite.
        ConfigError: BYTELM_ENGINE asks for what is not there.
        GenerationError: There is not enough memory.
    """
    import torch

    # A model that is split among processes has no weights of its own to copy.
    whole = all(type(parameter.detach()) is torch.Tensor for parameter in model.parameters())
    if not whole or model.embedding.device.type != "cpu" or load_library() is None:
        return None
    threads = choose_decoding_threads(matrix_parameters(model.config, model.heads_config))
    return engine_from_torch(model, threads=threads)


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file, without copying them: they are read-only views of the mapped file.

    Args:
        path: Of the file.

    Returns:
        Arrays by name; bfloat16 as uint16.

    Raises:
        CheckpointError: The file cannot be read, is not of this format, or has numbers of another kind.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is empty'}") from error
    try:
        (length,) = struct.unpack("<Q", mapped[:8])
        if length > min(_LONGEST_HEADER, len(mapped) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(mapped[8 : 8 + length])
        header.pop("__metadata__", None)
        return {name: _tensor(mapped, 8 + length, facts) for name, facts in header.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no safetensors file that can be read: {error}") from error


def _tensor(mapped: mmap.mmap, start: int, facts: Mapping[str, Any]) -> npt.NDArray[Any]:
    shape, (begin, end) = tuple(facts["shape"]), facts["data_offsets"]
    if facts["dtype"] not in _DTYPES:
        raise ValueError(f"its numbers are {facts['dtype']}, not {', '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[facts["dtype"]])
    if not all(type(size) is int and size >= 0 for size in (*shape, begin, end)):
        raise ValueError("its header holds a size that is none")
    if end - begin != math.prod(shape) * dtype.itemsize or start + end > len(mapped):
        raise ValueError("its header and its size disagree")
    numbers = np.frombuffer(mapped, dtype, math.prod(shape), start + begin) if end > begin else np.empty(0, dtype)
    numbers = np.require(numbers, requirements=["A"])
    return (numbers if numbers.dtype in (np.float32, np.uint16) else numbers.astype(np.float32)).reshape(shape)


def weight_problem(found: Iterable[tuple[str, Any]], wanted: list[Weight]) -> str:
    """What is wrong with the shapes of weights; "" for nothing.

    Args:
        found: Names and shapes.
        wanted: Of the model.
    """
    shapes = {name: tuple(shape) for name, shape in found}
    for one in wanted:
        if one.name not in shapes:
            return f"it holds no weight {one.name}"
        if shapes[one.name] != one.shape:
            return f"its {one.name} is {_times(shapes[one.name])}, and the model's {_times(one.shape)}"
    other = next(itertools.filterfalse({one.name for one in wanted}.__contains__, shapes), None)
    return "" if other is None else f"it holds {other}, which the model has not"


def _check(path: Path, wanted: list[Weight], found: Mapping[str, npt.NDArray[Any]]) -> None:
    problem = weight_problem(((name, array.shape) for name, array in found.items()), wanted)
    if problem:
        raise CheckpointError(
            f"{path} does not fit its config.toml: {problem}; take the files from the same checkpoint"
        )


def _set(engine: Engine, weight: Weight, numbers: npt.NDArray[Any], place: str) -> None:
    try:
        engine.set_weight(weight.part, weight.index, numbers)
    except StatusError as status:
        raise weight_not_finite(place, weight.name) from status


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
