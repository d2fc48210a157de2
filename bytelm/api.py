"""The Python interface: load a trained model, then generate, stream and score.

    import bytelm

    model = bytelm.load("runs/a")
    for piece in model.stream(b"def main(", max_bytes=256):
        print(piece.text, end="", flush=True)

A prompt is the beginning of a document, as bytes or as text, which is encoded in UTF-8. What the model says is bytes
first; text is decoded from them with a stated policy for invalid ones.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch

from bytelm.checkpoint import load_model
from bytelm.config import RunConfig
from bytelm.decode import DecodePlan, Request, context_start, decode_batch, decode_steps, generate, slid_start
from bytelm.device import choose_device
from bytelm.drafting import DraftPolicy
from bytelm.errors import ConfigError, GenerationError
from bytelm.generation import Acceptance, Exactness, GenerateSettings, Generation, Step
from bytelm.model import ByteLM
from bytelm.packed import SMALLEST_INT8, why_not_int8
from bytelm.tune import find_plan
from bytelm.utf8 import InvalidBytes, TextDecoder
from bytelm.vocab import BYTES, EOD

WeightPrecision = Literal["auto", "float32", "bfloat16", "int8"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


class GenerateOptions(TypedDict, total=False):
    """Keywords of ``generate`` and ``stream``; ``GenerateSettings`` says what they mean and holds the defaults."""

    max_bytes: int
    draft: DraftPolicy
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int
    sequence: int
    stop: str | bytes | Sequence[str | bytes]
    utf8: bool
    logprobs: bool
    exact: Exactness
    accept: Acceptance


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain at once while streaming.

    Attributes:
        data: The next bytes of the output.
        text: The characters that these bytes made whole. Over all pieces the texts join to the text of all bytes.
        sources: For each byte who proposed it: 0 chosen by the trunk itself, k >= 1 drafted by head k, -1 by the
            text's own past, -2 by the trunk behind a branch that was right.
        logprobs: For each byte the logarithm of its probability, nats; empty unless ``logprobs`` is asked for.
    """

    data: bytes
    text: str
    sources: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


class LanguageModel:
    """A model with the settings of its run, ready to decode.

    Args:
        model: In evaluation mode, on its device.
        config: Of the run that trained it.
        path: What it was loaded from, to find what ``bytelm tune`` has measured; None for nothing.

    Attributes:
        refused: Why the plan that is there is not used; "" where it is, or there is none. Known after ``plan``.
    """

    def __init__(self, model: ByteLM, config: RunConfig, path: Path | None = None) -> None:
        self.model = model
        self.config = config
        self.refused = ""
        self._path = path
        self._plan: DecodePlan | None = None
        self._looked = False

    def plan(self) -> DecodePlan | None:
        """What ``bytelm tune`` measured here; looked for once, with the threads and the precision of that moment."""
        if not self._looked and self._path is not None:
            self._plan, self.refused = find_plan(self._path, self.model)
        self._looked = True
        return self._plan

    @property
    def context_bytes(self) -> int:
        """Slots of the context, in generation and in scoring: the window that the model was trained with."""
        return self.config.data.window_bytes

    def generate(self, prompt: str | bytes, **options: Unpack[GenerateOptions]) -> Generation:
        """Continue a prompt and return the whole output with its statistics.

        Args:
            prompt: Beginning of a document; empty for a document from its first byte.
            **options: Keywords of ``GenerateSettings``; ``stop`` may be one string or several, text or bytes.

        Raises:
            GenerationError: A setting is impossible or has no effect, or the model's logits are not finite.

        Example:
            ``model.generate("def ", max_bytes=64, stop="\\n\\n").text``
        """
        return generate(
            self.model, _bytes(prompt), _settings(options), context_bytes=self.context_bytes, tuned=self.plan()
        )

    def generate_batch(
        self, prompts: Sequence[str | bytes], *, slots: int = 8, **options: Unpack[GenerateOptions]
    ) -> list[Generation]:
        """Continue several prompts side by side; each gets the bytes that it would get alone.

        Args:
            prompts: Beginnings of documents, of any lengths.
            slots: Prompts at a time.
            **options: As of ``generate``; prompt n is sequence ``sequence`` + n, so that each has noise of its own.

        Returns:
            As many generations, in the order of the prompts; ``elapsed_s`` is that of all.

        Raises:
            GenerationError: As ``generate``.
        """
        first = _settings(options)
        settings = [dataclasses.replace(first, sequence=first.sequence + place) for place in range(len(prompts))]
        asked = [Request(_bytes(prompt), one) for prompt, one in zip(prompts, settings, strict=True)]
        steps: list[list[Step]] = [[] for _ in asked]
        begin = time.perf_counter()
        for index, step in decode_batch(
            self.model, asked, context_bytes=self.context_bytes, slots=slots, tuned=self.plan()
        ):
            steps[index].append(step)
        elapsed_s = time.perf_counter() - begin
        return [Generation.of(one, prediction_heads=self.model.heads.count, elapsed_s=elapsed_s) for one in steps]

    def stream(
        self, prompt: str | bytes, *, invalid: InvalidBytes = "replace", **options: Unpack[GenerateOptions]
    ) -> Iterator[Piece]:
        """Continue a prompt and hand out bytes as they are accepted: together, the bytes of ``generate``.

        Args:
            prompt: Beginning of a document; empty for a document from its first byte.
            invalid: What bytes that are no UTF-8 become in the text.
            **options: Keywords of ``GenerateSettings``; ``stop`` may be one string or several, text or bytes.

        Returns:
            An iterator of pieces, each with at least one byte or one character.

        Raises:
            GenerationError: At the call, if a setting is impossible or has no effect; while iterating, if the model's
                logits are not finite or bytes are invalid and ``invalid`` is ``strict``.
        """
        return self._pieces(_bytes(prompt), _settings(options), TextDecoder(invalid))

    def score(self, prompt: str | bytes, continuation: str | bytes) -> npt.NDArray[np.float64]:
        """Log-probability of each byte of a continuation, every byte before it being given.

        The law is head 0's softmax over all V ids, as in training; sampling at temperature 1 leaves out the ids that
        are never used. The context is the one that generation would have had at each byte.

        Args:
            prompt: Beginning of a document.
            continuation: What follows.

        Returns:
            Nats, at most 0, one for each byte of the continuation.

        Example:
            ``-model.score("", data).sum() / math.log(2) / len(data)`` is bits per byte.
        """
        if self.model.vocabulary is not BYTES:
            raise GenerationError(
                f"the probability of a byte was asked for, and ids of {self.model.vocabulary.name} stand for several; "
                "bytelm eval --task bpb scores whole documents"
            )
        return _score(self.model, _bytes(prompt), _bytes(continuation), self.context_bytes)

    def _pieces(self, prompt: bytes, settings: GenerateSettings, decoder: TextDecoder) -> Iterator[Piece]:
        for step in decode_steps(self.model, prompt, settings, context_bytes=self.context_bytes, tuned=self.plan()):
            text = decoder.feed(step.data)
            if step.finish_reason is not None:
                text += decoder.finish()
            if step.data or text:
                yield Piece(step.data, text, step.sources, step.logprobs)


def load(path: str | Path, *, device: str = "auto", precision: WeightPrecision = "auto") -> LanguageModel:
    """Load a trained model.

    Args:
        path: Folder of a run, whose newest checkpoint is taken, or of one checkpoint; or the name of a model that ships
            with bytelm.
        device: torch device; ``auto`` takes CUDA where there is one.
        precision: Of weights and cache; ``auto`` is float32 on the CPU, where equal bytes with and without drafts are
            promised, and bfloat16 on CUDA. ``int8`` makes matrices of half a million weights and more int8 and leaves
            the rest float32, on CPUs with VNNI: a little another model, faster where matrices are large.

    Raises:
        CheckpointError: No checkpoint is there, or it is damaged.
        ConfigError: The device cannot be used here, or int8 cannot or would have no effect.
    """
    place = choose_device(device)
    if precision == "int8" and (why := why_not_int8(place)):
        raise ConfigError(f"precision int8 cannot be had here: {why}; use float32 or bfloat16")
    model, config = load_model(Path(path))
    if precision == "auto":
        precision = "bfloat16" if place.type == "cuda" else "float32"
    model = model.to(device=place, dtype=_DTYPES[precision]).eval()
    model.pack(int8=precision == "int8")
    if precision == "int8" and not model.int8:
        raise ConfigError(
            f"precision int8 has no effect: no matrix of this model has {SMALLEST_INT8:,} weights; "
            "use float32 or bfloat16"
        )
    return LanguageModel(model, config, Path(path))


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GenerationError(
            f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot encode; give bytes instead"
        ) from error


def _settings(options: GenerateOptions) -> GenerateSettings:
    stop = options.get("stop", ())
    stops = (stop,) if isinstance(stop, str | bytes) else tuple(stop)
    return GenerateSettings(**{**options, "stop": tuple(_bytes(one) for one in stops)})


@torch.inference_mode()
def _score(model: ByteLM, prompt: bytes, continuation: bytes, context_bytes: int) -> npt.NDArray[np.float64]:
    ids = [EOD, *prompt, *continuation]
    row = len(prompt)  # place of the id after which the next byte is scored
    start = context_start(row + 1, context_bytes)
    scores = [np.empty(0)]
    while row < len(ids) - 1:
        if row - start == context_bytes:
            start = slid_start(row + 1, context_bytes)
        end = min(start + context_bytes, len(ids) - 1)
        inputs_1T = torch.tensor([ids[start:end]], device=model.embedding.device)
        logits_TV = model.heads.logits(model.trunk(inputs_1T), heads=range(1))[0, row - start :, 0]
        targets_T1 = torch.tensor(ids[row + 1 : end + 1], device=logits_TV.device).unsqueeze(1)
        scores.append(logits_TV.double().log_softmax(-1).gather(1, targets_T1).squeeze(1).cpu().numpy())
        row = end
    return np.concatenate(scores)
