"""What a decoding benchmark measures: engines of a trained model and of random ones, and a Llama of the same shape.

Speed of plain decoding does not depend on what the weights say, so that large models may be random. Of these the end of
the document is never the highest logit: it would end a run early.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from decode_rates import say
from held_out import prompts_of, texts
from other_decoders import GGUF_PRECISIONS, LlamaCpp, absent, differences, llama_weights, write_gguf
from safetensors import safe_open

from bytelm.checkpoint_files import ModelFiles, find_model
from bytelm.decode import DecodePlan
from bytelm.engine import Engine, MatrixKind
from bytelm.engine.weights import engine_from_file, weights_of
from bytelm.model_shape import ReadHeads, ReadTrunk, TrunkShape
from bytelm.pair_correction import PATH_OF_PAIRS, PairCorrection, read_pairs
from bytelm.tune import Tuning, tune
from bytelm.vocab import BYTES, EOD

MATRIX_KINDS: Final[tuple[MatrixKind, ...]] = ("float32", "bfloat16", "int8")
CONTEXTS: Final = (64, 400)
"""Bytes before the first one that is generated."""

LARGE: Final = "25 M"
SHAPES: Final = {
    "1 M": (128, 5, 4, 2, 384),
    "10 M": (384, 6, 6, 3, 1024),
    LARGE: (512, 8, 8, 4, 1408),
    "140 M": (1024, 12, 16, 8, 2816),
}
"""Width, layers, attention heads, key and value heads, inner width."""

HEADS: Final = ReadHeads(family="linear", count=8, keep_parameters_equal=False)
_TUNING_BYTES: Final = 192
_UNEMBEDDING: Final = 4
_GAINS: Final = (3, 10, 12, 14)


def trunk_of(shape: str) -> ReadTrunk:
    """A trunk with full attention and no n-grams, as a Llama has it."""
    width, layers, heads, kv_heads, inner = SHAPES[shape]
    return ReadTrunk(
        d_model=width,
        layers=layers,
        attention_heads=heads,
        kv_heads=kv_heads,
        d_ff=inner,
        attention_pattern=("global",),
        local_window_bytes=256,
        ngram_sizes=(),
        ngram_rows=0,
        ngram_width=0,
        rope_base=10000.0,
        norm_epsilon=1e-6,
        vocabulary="bytes",
        bytes_per_id=1.0,
    )


def random_engine(shape: str, kind: MatrixKind, threads: int) -> Engine:
    """A model of a shape with random weights, the same for every kind."""
    trunk, rng = trunk_of(shape), np.random.default_rng(0)
    engine = Engine(trunk, HEADS, BYTES, kind, threads=threads)
    for weight in weights_of(trunk, HEADS):
        if weight.part in _GAINS:
            numbers = np.ones(weight.shape, np.float32)
        else:
            numbers = rng.random(weight.shape, np.float32)
            numbers -= 0.5
            numbers *= (12 / weight.shape[-1]) ** 0.5
        if weight.part == _UNEMBEDDING:
            numbers[EOD] = 0.0
        engine.set_weight(weight.part, weight.index, numbers)
    assert engine.complete
    return engine


def bytes_of_plain_step(engine: Engine) -> int:
    """Bytes of the matrices that a step without drafts reads: all but the draft heads'."""
    assert engine.heads.family == "linear"
    matrices = [np.prod(one.shape) for one in weights_of(engine.config, engine.heads) if one.is_matrix]
    unembedding = engine.elements(_UNEMBEDDING, 0)
    left_out = unembedding * (engine.head_count - 1) / engine.head_count
    return round(engine.matrix_bytes * float(1 - left_out / sum(matrices)))


@dataclass
class Subjects:
    """Everything that a part may measure, made when it is first asked for.

    Attributes:
        path: Of the trained model.
        data: Folder of held-out texts; None for what every machine has.
        folder: For GGUF files.
        repeats: Rounds.
        prompts: Of each text.
        quick: Whether to look only whether everything runs.
        temperatures: Of decoding with drafts.
        tunings: Of the trained model, by kind of its matrices.
        differences: Of llama.cpp's logits from Hugging Face's, by model and precision.
    """

    path: Path
    data: Path | None
    folder: Path
    repeats: int
    prompts: int
    quick: bool
    temperatures: tuple[float, ...]
    tunings: dict[MatrixKind, Tuning] = field(default_factory=dict)
    _engines: dict[tuple[str, MatrixKind, int], Engine] = field(default_factory=dict)
    _llamas: dict[str, dict[str, LlamaCpp]] = field(default_factory=dict)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def files(self) -> ModelFiles:
        """Of the trained model."""
        return find_model(self.path)

    @property
    def context_bytes(self) -> int:
        """Window of the trained model."""
        return self.files.shape.window_bytes

    @cached_property
    def absent(self) -> list[str]:
        """What could be measured beside, and is not installed."""
        return absent(("llama_cpp", "gguf", "transformers"))

    def engine(self, shape: str | None, kind: MatrixKind, threads: int = 1) -> Engine:
        """The trained model, or a random one of a shape."""
        key = shape or "trained", kind, threads
        if key not in self._engines:
            files = self.files
            self._engines[key] = (
                random_engine(shape, kind, threads)
                if shape is not None
                else engine_from_file(
                    files.weights,
                    files.shape.trunk,
                    files.shape.heads,
                    files.vocabulary,
                    precision=kind,
                    threads=threads,
                )
            )
        return self._engines[key]

    def forget(self, shape: str) -> None:
        """Give the memory of a shape's engines back."""
        for key in [key for key in self._engines if key[0] == shape]:
            self._engines.pop(key).close()

    def llamas(self, shape: str | None) -> dict[str, LlamaCpp]:
        """llama.cpp with a Llama of the same shape, by precision and attention; none where it is not installed."""
        if {"llama_cpp", "gguf"} & set(self.absent):
            return {}
        name = shape or "trained"
        if name not in self._llamas:
            trunk: TrunkShape = self.files.shape.trunk if shape is None else trunk_of(shape)
            weights = llama_weights(trunk)
            paths = {precision: self.folder / f"{name} {precision}.gguf" for precision in GGUF_PRECISIONS}
            for precision, path in paths.items():
                write_gguf(trunk, weights, path, precision)
            if "transformers" not in self.absent:
                self.differences[name] = differences(trunk, weights, paths, self.texts["python"][:96])
            self._llamas[name] = {
                f"llama.cpp {precision}{attention}": LlamaCpp(path, flash=not attention)
                for precision, path in paths.items()
                for attention in ("", ", no flash attention")
            }
        return self._llamas[name]

    def close(self) -> None:
        """Give everything back."""
        for models in self._llamas.values():
            for model in models.values():
                model.close()

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """Held-out bytes by kind."""
        return texts(self.data)

    def prompts_of(self, kind: str, length: int, count: int | None = None) -> list[bytes]:
        """Prompts from the second half of a text; the first half tunes."""
        data = self.texts[kind]
        return prompts_of(data[len(data) // 2 :], count or self.prompts, length, 1)

    def plan(self, engine: Engine) -> DecodePlan:
        """The trained model's, as ``bytelm tune`` makes it, from the first half of every text; measured once."""
        if engine.kind not in self.tunings:
            say(f"tuning, {engine.kind}")
            self.tunings[engine.kind] = tune(
                engine,
                {kind: prompts_of(data[: len(data) // 2], 4, _TUNING_BYTES, 2) for kind, data in self.texts.items()},
                context_bytes=self.context_bytes,
                max_bytes=32 if self.quick else 96,
                repeats=3 if self.quick else 15,
                pairs=self.pairs,
            )
        return self.tunings[engine.kind].plan

    def predictions(self) -> dict[str, dict[str, float]]:
        """Speed that each tuning predicted over the speed that its check achieved, by kind of matrices and text."""
        return {
            kind: {check.kind: round(check.predicted / check.achieved, 3) for check in tuning.checks}
            for kind, tuning in self.tunings.items()
        }

    @cached_property
    def pairs(self) -> PairCorrection | None:
        """The correction of the draft heads that lies beside the trained model's weights; None where there is none."""
        checkpoint = self.files.checkpoint
        for folder in (checkpoint, checkpoint.parent.parent):
            if (path := folder / PATH_OF_PAIRS).is_file():
                with safe_open(path, "numpy") as file:
                    weights = (file.metadata() or {}).get("weights", "")
                return read_pairs(folder, weights, self.files.shape.heads.count - 1)[0]
        return None
